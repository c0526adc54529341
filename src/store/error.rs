//! What goes wrong with models on disk: what happened, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use hearth_models::memory::Size;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {doing}: {error}", path.display())]
    File { path: PathBuf, doing: &'static str, error: io::Error },
    #[error("{}: {} are needed and {} are free", path.display(), Size(*needed), Size(*free))]
    Full { path: PathBuf, needed: u64, free: u64 },
    #[error("{}: it is read-only", path.display())]
    ReadOnly { path: PathBuf },
    #[error("{name:?} cannot be the name of a model")]
    Name { name: String },
    #[error("there is no imported model {name}")]
    Missing { name: String, known: Vec<String> },
    #[error("a model named {name} was imported before, with other files")]
    Exists { name: String },
    #[error("another import, removal or check of models is at work in {}", root.display())]
    Busy { root: PathBuf },
    /// A file that is never taken in: it could run code when it is read.
    #[error("{place}: {}", list(.files))]
    Refused { place: String, files: Vec<(String, String)> },
    #[error("{place}: {reason}")]
    Archive { place: String, reason: String },
    #[error("{place}: {reason}")]
    Content { place: String, reason: String },
    #[error("{place}: {}", list(.files))]
    Sums { place: String, files: Vec<(String, String)> },
    #[error("the files of {name} are not those that were imported: {}", list(.files))]
    Damaged { name: String, files: Vec<(String, String)> },
    #[error("the chat template or the tokenizer is not taken: {reason}")]
    Vetting { reason: String },
    #[error("the licence of {place} was not accepted")]
    Licence { place: String },
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
}

/// The first few files and what is wrong with each.
fn list(files: &[(String, String)]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> =
        files.iter().take(SHOWN).map(|(file, reason)| format!("{} {reason}", brief(file))).collect();
    let more = files.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{more}", shown.join("; "))
}

/// A name out of somebody else's archive as it goes into a message.
pub fn brief(name: &str) -> String {
    let short: String = name.chars().take(100).collect();
    short.escape_debug().to_string()
}

impl StoreError {
    /// The error of a file operation. What a full or read-only file system says is told apart.
    pub fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path: path.to_owned() },
            _ => Self::File { path: path.to_owned(), doing, error },
        }
    }

    /// Whether an import that failed so can never become a model, however often it is tried: then nothing of it stays.
    pub fn is_final(&self) -> bool {
        use StoreError::*;
        matches!(
            self,
            Refused { .. } | Archive { .. } | Content { .. } | Sums { .. } | Vetting { .. } | Exists { .. }
        )
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::File { error, .. } => match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run it as the user who owns the store of models, or as root".to_owned()
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "make room, or let models.dir be on a larger file system; what is there already is used when the \
                     import runs again"
                        .to_owned()
                }
                io::ErrorKind::NotFound => "check the path".to_owned(),
                _ => "check the disk (the kernel's log) and try again".to_owned(),
            },
            Self::Full { .. } => {
                "make room (`hearth models remove`), or let models.dir be on a larger file system".to_owned()
            }
            Self::ReadOnly { .. } => {
                "import where it can be written, or let models.dir be on another file system".to_owned()
            }
            Self::Name { .. } => {
                "use 1 to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit: --name"
                    .to_owned()
            }
            Self::Missing { known, .. } if known.is_empty() => {
                "import one: hearth models import DIR --accept-license".to_owned()
            }
            Self::Missing { known, .. } => format!("the imported models are {}", known.join(", ")),
            Self::Exists { .. } => "give another --name, or --replace".to_owned(),
            Self::Busy { .. } => "wait until it has ended, and try again".to_owned(),
            Self::Refused { .. } => {
                "take the safetensors files of the checkpoint; --leave-out imports the rest without these".to_owned()
            }
            Self::Archive { .. } => {
                "make the archive again: tar -cf MODEL.tar -C PARENT DIRECTORY, then perhaps zstd MODEL.tar".to_owned()
            }
            Self::Content { .. } => "copy the checkpoint again, whole".to_owned(),
            Self::Sums { .. } => "it was damaged on its way: copy it again".to_owned(),
            Self::Damaged { name, .. } => {
                format!("check the disk, then import {name} again with --replace")
            }
            Self::Vetting { .. } => {
                "take the checkpoint from its publisher; a template that is slow or large is not run".to_owned()
            }
            Self::Licence { .. } => "read it; if you agree, give the command again with --accept-license".to_owned(),
            Self::Audit(error) => error.fix().to_owned(),
        }
    }
}
