//! The audit log (step 11 in the life of a request, and every change that an administrator makes): who did what and
//! when, a line of JSON each in `audit.jsonl` of the state directory; full files stand beside it ([`files`]).
//!
//! Lines are only ever added. Each carries the hash of the one before, so that a line that was changed, taken out or put in
//! breaks the chain ([`check`]). What a chain cannot show is an end that was cut off, or a file that was written anew by
//! somebody who may write it: for that, each record's number and hash are also told to the server's log, and
//! `hearth audit verify --head` holds the file against what was noted elsewhere.
//!
//! A record is on the disk before [`Audit::record`] returns. Where it cannot be written, the change that it is about must not
//! happen; serving goes on. Prompts, keys and tokens are no part of any [`Event`].

mod chain;
mod event;
mod files;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use chain::{Checked, Damage, Entry, Head, check};
pub use event::{Event, Who};
pub use files::Rotation;

use crate::config::{ConfigError, Settings, state};

/// Its name in the state directory.
pub const FILE: &str = "audit.jsonl";

/// A line at most, so that the last one is found at the end of the file without reading all of it.
const LINE: u64 = 64 << 10;

/// How long another process may hold the file.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the audit log {path} cannot be written: {error}", path = path.display())]
    Disk { path: PathBuf, error: io::Error },
    #[error(
        "the audit log {path} is damaged at its end: {what}; keep it, move it away, and a new one begins (`hearth audit verify` says where it broke)",
        path = path.display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error("the audit log {path} has been locked by another process for {seconds} s", path = path.display(), seconds = PATIENCE.as_secs())]
    Locked { path: PathBuf },
    #[error("an entry of the audit log would have {bytes} bytes, more than {LINE}")]
    TooLong { bytes: usize },
}

impl AuditError {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Disk { .. } => "make room or make the state directory writable; nothing was changed",
            Self::Damaged { .. } => {
                "move the file away and keep it for whoever looks into this; nothing was changed"
            }
            Self::Locked { .. } => "try again, or see who holds it (`fuser -v FILE`); nothing was changed",
            Self::TooLong { .. } => "use shorter names; nothing was changed",
        }
    }
}

/// For changes that are refused in the words of the settings.
impl From<AuditError> for ConfigError {
    fn from(error: AuditError) -> Self {
        let origin = match &error {
            AuditError::Disk { path, .. }
            | AuditError::Damaged { path, .. }
            | AuditError::Locked { path } => path.display().to_string(),
            AuditError::TooLong { .. } => FILE.to_owned(),
        };
        Self { origin, what: error.to_string(), fix: error.fix().to_owned() }
    }
}

/// The audit log of a state directory. Server and command line write the same file: each record is made under its lock.
#[derive(Clone, Debug)]
pub struct Audit {
    path: PathBuf,
    rotation: Rotation,
}

impl Audit {
    /// Nothing is opened or made before the first record. It goes on in the file that it finds, however large that is.
    pub fn at(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE), rotation: Rotation::default() }
    }

    /// The same, which closes files as the settings say.
    pub fn of(settings: &Settings) -> Self {
        Self { rotation: settings.audit, ..Self::at(&settings.state_dir) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one record and waits until it is on the disk. It blocks: async code calls it from `spawn_blocking`.
    pub fn record(&self, who: &Who, event: &Event) -> Result<Head, AuditError> {
        let failed = |error| AuditError::Disk { path: self.path.clone(), error };
        let (mut file, last, torn) = loop {
            let mut file = self.open().map_err(failed)?;
            self.lock(&file)?;
            if !self.is_current(&file).map_err(failed)? {
                continue;
            }
            let (last, torn, length) = Self::end(&self.path, &mut file)?;
            match &last {
                Some(entry) if self.is_full(length, Some(entry)) => self.close(&mut file, entry, torn)?,
                Some(entry) => break (file, entry.head(), torn),
                None => match self.begin(&mut file, torn)? {
                    Some(head) => break (file, head, 0),
                    None => break (file, Head::default(), torn),
                },
            }
        };
        let head = self.append(&mut file, torn, last, &[(who, event)])?;
        tracing::info!(number = head.number, hash = %head.hash, event = event.name(), who = %who, "audit");
        Ok(head)
    }

    /// Writes records behind the last whole one, in place of what a crash left of another, and waits until they are on the
    /// disk.
    fn append(
        &self,
        file: &mut File,
        torn: u64,
        mut last: Head,
        records: &[(&Who, &Event)],
    ) -> Result<Head, AuditError> {
        let failed = |error| AuditError::Disk { path: self.path.clone(), error };
        let mut text = String::new();
        // What a crash left of a record that nobody was told of. The new one says that it was there.
        let removed = Event::TornEntryRemoved { bytes: torn };
        let torn_first = (torn > 0).then_some((&Who::Server, &removed));
        for (who, event) in torn_first.iter().chain(records) {
            let (line, head) = last.next(who, event);
            if line.len() as u64 > LINE {
                return Err(AuditError::TooLong { bytes: line.len() });
            }
            text += &line;
            last = head;
        }
        let whole = file.seek(SeekFrom::End(0)).map_err(failed)? - torn;
        let written =
            file.set_len(whole).and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // Half a record is as good as none.
            let _ = file.set_len(whole);
            return Err(failed(error));
        }
        Ok(last)
    }

    /// Records what has happened already and cannot be taken back. A failure is an error in the log and nothing else.
    pub fn note(&self, who: &Who, event: &Event) {
        if let Err(error) = self.record(who, event) {
            tracing::error!(event = event.name(), who = %who, "not in the audit log: {error}; {}", error.fix());
        }
    }

    fn open(&self) -> io::Result<File> {
        let directory = self.directory();
        state::make_directory(directory)?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        match options.open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let file = options.create(true).open(&self.path)?;
        // Made by root for a server that is not: it must be able to go on writing.
        state::give_to_owner_of(directory, &file)?;
        self.sync()?;
        Ok(file)
    }

    fn lock(&self, file: &File) -> Result<(), AuditError> {
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => {
                    return Err(AuditError::Disk { path: self.path.clone(), error });
                }
                Err(TryLockError::WouldBlock) if begin.elapsed() >= PATIENCE => {
                    return Err(AuditError::Locked { path: self.path.clone() });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The last whole record if there is one, how many bytes of a torn one follow it, and how long the file is.
    fn end(path: &Path, file: &mut File) -> Result<(Option<Entry>, u64, u64), AuditError> {
        let failed = |error| AuditError::Disk { path: path.to_owned(), error };
        let damaged = |what: &str| AuditError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        // A torn record, the last whole one, and the end of the line before it.
        let from = length.saturating_sub(2 * LINE + 1);
        file.seek(SeekFrom::Start(from)).map_err(failed)?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).map_err(failed)?;
        let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let torn = (tail.len() - whole) as u64;
        if torn > LINE || (whole == 0 && from > 0) {
            return Err(damaged("its end is no record"));
        }
        if whole == 0 {
            return Ok((None, torn, length));
        }
        let lines = &tail[..whole - 1];
        let line = &lines[lines.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)..];
        let entry = Entry::read(line).map_err(|what| damaged(&what))?;
        Ok((Some(entry), torn, length))
    }
}

#[cfg(test)]
mod tests;
