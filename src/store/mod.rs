//! Models on disk (before the life of a request): how checkpoints come in, what is known about them, how they go.
//!
//! ```text
//! MODELS/                       the setting models.dir
//!   blobs/sha256/HEX            the bytes of a file, once, read-only, named by their sum
//!   NAME/                       a model: links into blobs, MANIFEST, manifest.json
//!   .NAME.import/               an import at work or cut off: what it has done, and the file it was writing
//!   .NAME.ready/                a model made up and not yet published
//!   .lock
//! ```
//!
//! A model appears by one rename, whole or not at all; what was cut off is taken up where it was. `NAME/` is a checkpoint's
//! directory like any other: whoever serves it needs to know nothing of the store.

mod archive;
mod blob;
mod error;
mod export;
mod import;
pub mod licence;
mod manifest;
mod papers;
mod policy;
mod source;
mod verify;
pub mod vet;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use archive::entries;
pub use blob::{Broken, Sums, hex, pass, sha256};
pub use error::{StoreError, brief};
pub use export::{Hashed, append as append_model, append_bytes, export, header as tar_header};
pub use import::{Import, Imported, Request, admissible};
pub use manifest::{FileEntry, Licence, Manifest, SUMS, parse_sums};
pub use papers::{Compared, Origin, Papers, digest, digest_at};
pub use policy::{flat, is_wanted};
pub use source::{Found, Offer, Source, files};
pub use verify::{How, Report, at_load, verify};

/// What stands in a model's directory beside its own files.
pub const OWN_FILES: [&str; 2] = [manifest::SUMS, manifest::JSON];

/// Who is told how far something long has come.
pub trait Watch {
    /// A stage begins; `total` bytes of it, where that is known.
    fn begin(&mut self, stage: &str, total: Option<u64>);
    /// Bytes of the stage so far.
    fn at(&mut self, done: u64);
    /// Something that a person should know.
    fn note(&mut self, text: &str);
}

/// Nobody.
impl Watch for () {
    fn begin(&mut self, _: &str, _: Option<u64>) {}
    fn at(&mut self, _: u64) {}
    fn note(&mut self, _: &str) {}
}

/// A directory of models.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// One imported model.
#[derive(Clone, Debug)]
pub struct Stored {
    pub directory: PathBuf,
    pub manifest: Manifest,
}

/// An import that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    pub name: String,
    pub bytes: u64,
}

/// Held while models come, go or are looked at. Released by `Drop`.
#[derive(Debug)]
pub struct Lock {
    /// `None` where there is nothing to lock: a store that cannot be written changes under nobody.
    _file: Option<File>,
}

impl Store {
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it can be the name of a model: a plain file name that no shell and no path takes for something else.
    pub fn name(name: &str) -> Result<&str, StoreError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        match begins && name.len() <= 100 && name.bytes().all(plain) && name != "blobs" {
            true => Ok(name),
            false => Err(StoreError::Name { name: brief(name) }),
        }
    }

    pub fn blob(&self, sum: &str) -> PathBuf {
        self.blobs().join(sum)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn importing(&self, name: &str) -> PathBuf {
        self.root.join(format!(".{name}.import"))
    }

    fn ready(&self, name: &str) -> PathBuf {
        self.root.join(format!(".{name}.ready"))
    }

    /// The directory of an imported model, if there is one of that name.
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        let directory = self.root.join(Self::name(name).ok()?);
        directory.join(manifest::JSON).is_file().then_some(directory)
    }

    /// The model whose directory this is, if it is one of the store's.
    pub fn model_in(&self, directory: &Path) -> Option<String> {
        let (root, directory) = (self.root.canonicalize().ok()?, directory.canonicalize().ok()?);
        let name = directory.file_name()?.to_str()?;
        (directory.parent()? == root && self.directory(name).is_some()).then(|| name.to_owned())
    }

    pub fn get(&self, name: &str) -> Result<Stored, StoreError> {
        let Some(directory) = self.directory(name) else {
            return Err(StoreError::Missing { name: brief(name), known: self.names()? });
        };
        let path = directory.join(manifest::JSON);
        let damaged = |reason| StoreError::Damaged {
            name: name.to_owned(),
            files: vec![(manifest::JSON.to_owned(), format!("is damaged: {reason}"))],
        };
        let manifest = Manifest::parse(&bounded(&path, manifest::LIMIT)?).map_err(damaged)?;
        if manifest.name != name {
            return Err(damaged(format!("it is of {}", brief(&manifest.name))));
        }
        Ok(Stored { directory, manifest })
    }

    /// The names of all models, sorted.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> =
            self.entries()?.into_iter().filter(|n| self.directory(n).is_some()).collect();
        names.sort();
        Ok(names)
    }

    /// Imports that were cut off, or are at work.
    pub fn halves(&self) -> Result<Vec<Half>, StoreError> {
        let name_of = |entry: String| Some(entry.strip_prefix('.')?.strip_suffix(".import")?.to_owned());
        let mut halves: Vec<Half> = self
            .entries()?
            .into_iter()
            .filter_map(name_of)
            .map(|name| {
                let done: u64 = import::Journal::read(&self.importing(&name))
                    .lines
                    .iter()
                    .map(|line| line.file.bytes)
                    .sum();
                let part = fs::metadata(self.importing(&name).join(import::PART)).map_or(0, |of| of.len());
                Half { name, bytes: done + part }
            })
            .collect();
        halves.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(halves)
    }

    fn entries(&self) -> Result<Vec<String>, StoreError> {
        match fs::read_dir(&self.root) {
            Ok(entries) => entries
                .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
                .collect::<io::Result<_>>()
                .map_err(StoreError::io(&self.root, "models cannot be listed")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(StoreError::io(&self.root, "models cannot be listed")(e)),
        }
    }

    /// Alone in the store, for what changes it. Made if it is not there.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        let failed = |e| StoreError::io(&self.root, "the store of models cannot be made")(e);
        if let Some(parent) = self.root.parent().filter(|parent| !parent.exists()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        }
        for directory in [&self.root, &self.root.join("blobs"), &self.blobs()] {
            make(directory).map_err(failed)?;
        }
        let path = self.root.join(".lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o644).open(&path);
        let file = file.map_err(StoreError::io(&path, "it cannot be opened"))?;
        self.locked(file.try_lock())?;
        Ok(Lock { _file: Some(file) })
    }

    /// With others who only look.
    pub fn lock_shared(&self) -> Result<Lock, StoreError> {
        let Ok(file) = File::open(self.root.join(".lock")) else { return Ok(Lock { _file: None }) };
        self.locked(file.try_lock_shared())?;
        Ok(Lock { _file: Some(file) })
    }

    fn locked(&self, result: Result<(), TryLockError>) -> Result<(), StoreError> {
        result.map_err(|e| match e {
            TryLockError::WouldBlock => StoreError::Busy { root: self.root.clone() },
            TryLockError::Error(e) => StoreError::io(&self.root, "it cannot be locked")(e),
        })
    }

    /// Removes a model, or what was left of an import, and the bytes that nothing else needs. How many those were.
    pub fn remove(&self, name: &str, lock: &Lock) -> Result<u64, StoreError> {
        let name = Self::name(name)?;
        let (importing, ready) = (self.importing(name), self.ready(name));
        let half = importing.exists() || ready.exists();
        match self.directory(name) {
            // Out of sight first, by one rename: a removal that is cut off leaves no half a model.
            Some(directory) => {
                clear(&ready)?;
                fs::rename(&directory, &ready).map_err(StoreError::io(&directory, "it cannot be removed"))?;
                sync_directory(&self.root)?;
            }
            None if !half => return Err(StoreError::Missing { name: name.to_owned(), known: self.names()? }),
            None => {}
        }
        clear(&ready)?;
        clear(&importing)?;
        self.sweep(lock)
    }

    /// Removes bytes that no model and no import at work needs. How many those were. What cannot be read may need any of
    /// them: then nothing is removed.
    fn sweep(&self, _alone: &Lock) -> Result<u64, StoreError> {
        let mut needed = BTreeSet::new();
        // By the links and not by the manifests: one that is damaged must not cost a model its bytes.
        for model in self.entries()?.into_iter().filter(|entry| Self::name(entry).is_ok()) {
            let directory = self.root.join(model);
            let files = match fs::read_dir(&directory) {
                Ok(files) => files,
                Err(e) if absent(&e) => continue,
                Err(e) => return Err(StoreError::io(&directory, "what it needs cannot be read")(e)),
            };
            for file in files {
                let path = file.map_err(StoreError::io(&directory, "what it needs cannot be read"))?.path();
                match fs::read_link(&path) {
                    Ok(to) => needed.extend(to.file_name().and_then(|sum| Some(sum.to_str()?.to_owned()))),
                    // A file of its own is no link.
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput || absent(&e) => {}
                    Err(e) => return Err(StoreError::io(&path, "what it needs cannot be read")(e)),
                }
            }
        }
        for half in self.halves()? {
            let journal = import::Journal::read(&self.importing(&half.name));
            needed.extend(journal.lines.into_iter().map(|line| line.file.sha256));
        }
        let blobs = self.blobs();
        let entries = fs::read_dir(&blobs).map_err(StoreError::io(&blobs, "it cannot be read"))?;
        let mut freed = 0;
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|sum| !needed.contains(sum)) {
                freed += entry.metadata().map_or(0, |of| of.len());
                let path = entry.path();
                fs::remove_file(&path).map_err(StoreError::io(&path, "it cannot be removed"))?;
            }
        }
        Ok(freed)
    }
}

/// Whether there is nothing, or no directory, rather than something that cannot be read.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Removes a directory of ours, if it is there.
fn clear(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io(directory, "it cannot be removed")(e))
        }
        _ => Ok(()),
    }
}

/// Makes a directory that everybody may read, whatever the umask: whoever imports is often not who serves.
fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => fs::set_permissions(directory, fs::Permissions::from_mode(0o755)),
        Err(_) if directory.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes the names in a directory outlast a power cut.
fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    let synced = File::open(directory).and_then(|file| file.sync_all());
    synced.map_err(StoreError::io(directory, "it cannot be written out"))
}

/// A file of at most so many bytes.
fn bounded(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(StoreError::io(path, "it cannot be opened"))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(StoreError::io(path, "it cannot be read"))?;
    match bytes.len() as u64 > limit {
        false => Ok(bytes),
        true => Err(StoreError::Content {
            place: path.display().to_string(),
            reason: format!("it is longer than {limit} bytes"),
        }),
    }
}

/// Now, in UTC, to the second.
pub fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}
