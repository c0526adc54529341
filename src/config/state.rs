//! The state directory and the keys in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::{ConfigError, Origin};

/// A secret: it has no `Display`, and `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Keys that are shorter can be guessed.
const SHORTEST: usize = 16;
const LONGEST: usize = 512;

impl Secret {
    /// A key that somebody chose.
    pub fn checked(key: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let printable = key.bytes().all(|b| b.is_ascii_graphic());
        if !(SHORTEST..=LONGEST).contains(&key.len()) || !printable {
            let what = format!("the API key has {} characters", key.chars().count());
            let fix = format!("use {SHORTEST} to {LONGEST} printable ASCII characters without spaces");
            return Err(ConfigError::new(origin, what, fix));
        }
        Ok(Self(key.to_owned()))
    }

    /// A key that somebody else chose, for us to send in a header.
    pub fn given(key: &str, origin: &Origin) -> Result<Self, ConfigError> {
        if key.is_empty() || key.len() > 4096 || !key.bytes().all(|b| b.is_ascii_graphic()) {
            let what = format!("the key of an upstream has {} characters", key.chars().count());
            let fix = "use 1 to 4096 printable ASCII characters without spaces";
            return Err(ConfigError::new(origin, what, fix));
        }
        Ok(Self(key.to_owned()))
    }

    /// To hand it to whoever checks it, or shows it once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Who runs this process: the owner of its own directory in `/proc`.
pub fn user() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|of| of.uid())
}

/// `$STATE_DIRECTORY` (systemd), `/var/lib/hearth` for root, else below the home directory.
pub fn default_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let root = user() == Some(0);
    if let Some(directory) = variable("STATE_DIRECTORY") {
        return directory;
    }
    if root {
        return "/var/lib/hearth".into();
    }
    let base = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    base.unwrap_or_else(|| "/var/lib".into()).join("hearth")
}

/// Makes the directory, for its owner alone, where it is missing.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// What root makes in a directory belongs to the directory's owner: the server that reads it runs as that user.
pub fn give_to_owner_of(directory: &Path, file: &File) -> io::Result<()> {
    let of = fs::metadata(directory)?;
    match user() == Some(0) && of.uid() != 0 {
        true => fchown(file, Some(of.uid()), Some(of.gid())),
        false => Ok(()),
    }
}

/// A file's new text, on the disk beside it and not in its place yet. Whoever reads the file, also after a crash, finds all
/// of the old text or all of the new; only its owner can read it. Dropped before it is in place, it leaves nothing.
#[derive(Debug)]
pub struct Replacement {
    aside: PathBuf,
    path: PathBuf,
    placed: bool,
}

impl Replacement {
    pub fn prepare(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        make_directory(directory)?;
        let nonce = getrandom::u64().map_err(|e| io::Error::other(e.to_string()))?;
        let aside = directory.join(format!(".{name}.{nonce:016x}"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        let replacement = Self { aside, path: path.to_owned(), placed: false };
        give_to_owner_of(directory, &file)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(replacement)
    }

    /// Puts it in place.
    pub fn commit(mut self) -> io::Result<()> {
        fs::rename(&self.aside, &self.path)?;
        self.placed = true;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.aside);
        }
    }
}

/// A secret file of the state directory.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub name: &'static str,
    /// What is in it, for messages.
    pub what: &'static str,
    /// The setting that does without it.
    pub instead: &'static str,
}

const KEY: Kept = Kept { name: "key", what: "the API key", instead: "HEARTH_KEY" };

/// The key in the state directory, made on the first call; `true` when it was made now.
pub fn key(directory: &Path) -> Result<(Secret, bool), ConfigError> {
    let (text, made) = KEY.get_or_make(directory, new_key)?;
    Ok((Secret::checked(text.trim(), &Origin::File(KEY.path(directory)))?, made))
}

/// The text of a file with a new key.
pub fn new_key() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
    bytes.iter().fold("hearth_".to_owned(), |text, b| format!("{text}{b:02x}")) + "\n"
}

/// Where the key is kept.
pub fn key_path(directory: &Path) -> PathBuf {
    KEY.path(directory)
}

impl Kept {
    /// For file systems without links: a reader may see half of it, and of two starts still only one wins.
    fn write_in_place(&self, directory: &Path, text: &str) -> io::Result<()> {
        let path = self.path(directory);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        give_to_owner_of(directory, &file)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.inspect_err(|_| drop(fs::remove_file(&path)))
    }

    pub fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.name)
    }

    pub fn failed(&self, directory: &Path, error: &io::Error) -> ConfigError {
        let fix =
            format!("make it readable and writable for this user, or set {} or --state-dir", self.instead);
        let what = format!("{} cannot be kept there: {error}", self.what);
        ConfigError::new(&Origin::File(self.path(directory)), what, fix)
    }

    /// The file's text, if it is there. Others must not be able to read it.
    pub fn get(&self, directory: &Path) -> Result<Option<String>, ConfigError> {
        let path = self.path(directory);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.failed(directory, &e)),
        };
        let mode = fs::metadata(&path).map_err(|e| self.failed(directory, &e))?.permissions().mode();
        if mode & 0o077 != 0 {
            let fix = format!(
                "chmod 600 {}; where Kubernetes gives the volume to a group at every start (fsGroup), also set \
                 fsGroupChangePolicy: OnRootMismatch",
                path.display()
            );
            let what = format!("others can read {} (mode {:03o})", self.what, mode & 0o777);
            return Err(ConfigError::new(&Origin::File(path), what, fix));
        }
        Ok(Some(text))
    }

    /// The file's text, made on the first call; `true` when it was made now.
    pub fn get_or_make(
        &self,
        directory: &Path,
        make: impl FnOnce() -> String,
    ) -> Result<(String, bool), ConfigError> {
        if let Some(text) = self.get(directory)? {
            return Ok((text, false));
        }
        let failed = |e: io::Error| self.failed(directory, &e);
        let text = make();
        make_directory(directory).map_err(failed)?;
        // Written aside and linked into place: a reader sees a whole file or none, and of two starts one wins.
        let nonce = getrandom::u64().map_err(|e| failed(io::Error::other(e.to_string())))?;
        let aside = directory.join(format!(".{}.{nonce:016x}", self.name));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            give_to_owner_of(directory, &file)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            match fs::hard_link(&aside, self.path(directory)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => self.write_in_place(directory, &text),
                linked => linked,
            }
        };
        let written = write();
        let _ = fs::remove_file(&aside);
        match written {
            Ok(()) => Ok((text, true)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.get(directory)? {
                Some(text) => Ok((text, false)),
                None => Err(failed(e)),
            },
            Err(e) => Err(failed(e)),
        }
    }
}
