//! `keys.json` of the state directory: every key's entry, never a key.
//!
//! It is replaced as a whole, so a reader finds all of the old file or all of the new. Whoever changes it holds a lock from
//! reading to writing. The file says which version wrote it and which version at least can read it: a version that only
//! adds what older ones may leave out of account keeps `needs`, and they keep what they do not know.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::grant::{Grant, Record};
use super::key::{Mac, Pepper};
use crate::config::state::{self, Replacement};
use crate::config::{ConfigError, Origin};

/// Its name in the state directory.
pub const FILE: &str = "keys.json";
const LOCK: &str = "keys.lock";

/// The version of the form that this program writes, and the highest `needs` that it can read.
const VERSION: u32 = 1;
const MOST_KEYS: usize = 10_000;
const MOST_BYTES: u64 = 32 << 20;
/// How long another process may hold the lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// What [`Form::check`] is made of.
const CHECK: &str = "the secret that belongs to this file";

#[derive(Serialize, Deserialize)]
struct Form {
    version: u32,
    needs: u32,
    /// Made with the secret, so that a file beside another secret is told from wrong keys.
    check: Mac,
    keys: Vec<Record>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// The keys, as they were read.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    pub keys: Vec<Record>,
    more: Map<String, Value>,
    version: u32,
    needs: u32,
    /// Without it there are no keys.
    pub pepper: Option<Pepper>,
}

impl Store {
    /// Reads and checks all of it. Where there is no file there are no keys.
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(FILE);
        let origin = Origin::File(path.clone());
        let wrong = |what: String, fix: &str| ConfigError::new(&origin, what, fix);
        let pepper = Pepper::get(directory)?;
        let unread = |e: io::Error| {
            wrong(format!("the keys cannot be read: {e}"), "make the file readable for the server's user")
        };
        let meta = match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let (keys, more) = (Vec::new(), Map::new());
                return Ok(Self {
                    directory: directory.into(),
                    keys,
                    more,
                    version: VERSION,
                    needs: VERSION,
                    pepper,
                });
            }
            meta => meta.map_err(unread)?,
        };
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let fix = format!("chmod 600 {}", path.display());
            return Err(wrong(format!("others can read or write the keys (mode {mode:03o})"), &fix));
        }
        if meta.len() > MOST_BYTES {
            return Err(wrong(
                format!("it has {} bytes, more than {MOST_BYTES}", meta.len()),
                "restore it from a backup",
            ));
        }
        let text = fs::read(&path).map_err(unread)?;
        let restore = "restore it from a backup, or move it away and create the keys anew";
        let form: Form = serde_json::from_slice(&text)
            .map_err(|e| wrong(format!("it is no file of keys: {e}"), restore))?;
        if form.needs > VERSION {
            let what = format!(
                "it was written by a later version of hearth (form {}), and form {VERSION} is what this one reads",
                form.needs
            );
            return Err(wrong(
                what,
                "install that version again, or restore the file from before the upgrade",
            ));
        }
        let Some(pepper) = pepper else {
            let fix = "restore keys.hmac from the backup that keys.json came from; without it none of these keys is good";
            return Err(wrong("the secret beside it, keys.hmac, is missing".to_owned(), fix));
        };
        if !pepper.is(CHECK, &form.check) {
            let fix = "restore both from the same backup, or move both away and create the keys anew";
            return Err(wrong("it does not belong to the secret beside it, keys.hmac".to_owned(), fix));
        }
        let Form { version, needs, keys, more, .. } = form;
        let store = Self { directory: directory.into(), keys, more, version, needs, pepper: Some(pepper) };
        store.grants().map_err(|what| wrong(what, restore))?;
        Ok(store)
    }

    /// Every key's entry beside what it opens.
    pub fn grants(&self) -> Result<Vec<(&Record, Grant)>, String> {
        let mut ids: Vec<&str> = self.keys.iter().map(|key| key.id.as_str()).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("the key {} stands twice in it", twice[0]));
        }
        let grant = |key: &'_ Record| key.grant().map_err(|what| format!("the key {}: {what}", key.id));
        self.keys.iter().map(|key| Ok((key, grant(key)?))).collect()
    }

    /// Whether another key fits.
    pub fn full(&self) -> bool {
        self.keys.len() >= MOST_KEYS
    }

    pub const fn most() -> usize {
        MOST_KEYS
    }

    /// Writes it aside, whole and on the disk. [`Replacement::commit`] puts it in place.
    pub fn prepare(&self) -> io::Result<Replacement> {
        let pepper = self.pepper.as_ref().ok_or_else(|| io::Error::other("bug: keys without a secret"))?;
        let form = Form {
            version: self.version.max(VERSION),
            needs: self.needs,
            check: pepper.mac(CHECK),
            keys: self.keys.clone(),
            more: self.more.clone(),
        };
        let mut text = serde_json::to_vec_pretty(&form)?;
        text.push(b'\n');
        Replacement::prepare(&self.directory.join(FILE), &text)
    }
}

/// Held while the keys are changed.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for others for a moment; then it says that they are there.
    pub fn take(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(LOCK);
        let failed = |e: io::Error| {
            let fix = "run it as the server's user or as root, and make the state directory writable for it";
            ConfigError::new(
                &Origin::File(path.clone()),
                format!("the keys cannot be locked for a change: {e}"),
                fix,
            )
        };
        state::make_directory(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(failed)?;
        state::give_to_owner_of(directory, &file).map_err(failed)?;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
                Err(TryLockError::WouldBlock) if begin.elapsed() >= PATIENCE => {
                    return Err(failed(io::Error::other(format!(
                        "another process has been changing them for {} s",
                        PATIENCE.as_secs()
                    ))));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}
