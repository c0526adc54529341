//! The files of the log: the one that is written, and those that were closed before it.
//!
//! A file that has grown to `audit.max_size` ends with a record that says so, takes the number of that record as its name,
//! `audit-N.jsonl`, and the next file goes on with the chain: numbers and hashes run through all of them. A file without a
//! record goes on from the newest that was closed, so that a crash between the steps leaves nothing to mend.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::chain::{Checked, Damage, Entry, Head, Walk};
use super::event::{Event, Who};
use super::{Audit, AuditError};

/// When a file is closed, and how many closed ones are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes; 0: a file grows for ever.
    pub max_size: u64,
    /// 0: all of them.
    pub keep: usize,
}

impl Audit {
    /// The closed files, oldest first, each with the number of its last record.
    pub fn closed(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let number = |name: &str| name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse().ok();
        let mut closed = Vec::new();
        for entry in fs::read_dir(self.directory())? {
            let entry = entry?;
            closed.extend(entry.file_name().to_str().and_then(number).map(|number| (number, entry.path())));
        }
        closed.sort();
        Ok(closed)
    }

    pub(super) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Whether the path still leads to the file that is open: while its lock was waited for it may have been closed.
    pub(super) fn is_current(&self, file: &File) -> io::Result<bool> {
        let (open, now) = (file.metadata()?, fs::symlink_metadata(&self.path));
        Ok(now.is_ok_and(|now| (now.dev(), now.ino()) == (open.dev(), open.ino())))
    }

    /// Whether the file that ends so has to be closed before the next record.
    pub(super) fn is_full(&self, length: u64, last: Option<&Entry>) -> bool {
        let max = self.rotation.max_size;
        last.is_some_and(|last| last.event == CLOSED || (max > 0 && length >= max))
    }

    /// Closes the file, whose lock is held: the next one that opens the path begins a new file. `last` is its last record,
    /// which says so already where a crash came before the new name.
    pub(super) fn close(&self, file: &mut File, last: &Entry, torn: u64) -> Result<(), AuditError> {
        let head = match last.event.as_str() {
            CLOSED => {
                let cut = |file: &File| file.set_len(file.metadata()?.len() - torn);
                cut(file).map_err(|error| AuditError::Disk { path: self.path.clone(), error })?;
                last.head()
            }
            _ => self.append(file, torn, last.head(), &[(&Who::Server, &Event::FileClosed)])?,
        };
        let name = self.directory().join(format!("audit-{:012}.jsonl", head.number));
        let failed = |error| AuditError::Disk { path: name.clone(), error };
        if fs::symlink_metadata(&name).is_ok() {
            return Err(AuditError::Damaged {
                path: self.path.clone(),
                what: format!("{} is there already", name.display()),
            });
        }
        fs::rename(&self.path, &name).and_then(|()| self.sync()).map_err(failed)
    }

    /// The first record of a new file, which goes on where the newest closed one ended; then closed files beyond those
    /// that are kept are removed. A log that has no closed file begins with whatever is recorded first.
    pub(super) fn begin(&self, file: &mut File, torn: u64) -> Result<Option<Head>, AuditError> {
        let failed = |error| AuditError::Disk { path: self.path.clone(), error };
        let closed = self.closed().map_err(failed)?;
        let Some((_, newest)) = closed.last() else { return Ok(None) };
        let end = File::open(newest).map_err(|error| AuditError::Disk { path: newest.clone(), error });
        let (Some(last), 0, _) = Self::end(newest, &mut end?)? else {
            return Err(AuditError::Damaged {
                path: newest.clone(),
                what: "its end is no record".to_owned(),
            });
        };
        let beyond =
            if self.rotation.keep == 0 { 0 } else { closed.len().saturating_sub(self.rotation.keep) };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let removed: Vec<String> = closed[..beyond].iter().map(|(_, path)| name(path)).collect();
        let event = Event::FileOpened { after: name(newest), removed };
        let head = self.append(file, torn, last.head(), &[(&Who::Server, &event)])?;
        for (_, path) in &closed[..beyond] {
            if let Err(error) = fs::remove_file(path) {
                tracing::error!("{} cannot be removed, and is tried again later: {error}", path.display());
            }
        }
        Ok(Some(head))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(self.directory())?.sync_all()
    }

    /// Reads every file and checks the chain through all of them. With what is wrong comes the file in which it is.
    pub fn check(
        &self,
        through: Option<&Head>,
        mut each: impl FnMut(Entry),
    ) -> Result<Checked, (PathBuf, Damage)> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| (path, Damage::Read(error))
        };
        // Held to the end: nobody closes a file meanwhile, and no record is in the making.
        let current = self.open_shared().map_err(at(&self.path))?;
        let closed = match self.closed() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            closed => closed.map_err(at(self.directory()))?,
        };
        let mut walk = Walk::through(through);
        for (_, path) in &closed {
            let file = File::open(path).map_err(at(path))?;
            let torn = walk.file(BufReader::new(file), &mut each).map_err(|e| (path.clone(), e))?;
            if torn > 0 {
                let what = "it ends in the middle of a record".to_owned();
                return Err((path.clone(), Damage::Line { line: walk.lines() + 1, what }));
            }
        }
        let torn = match current {
            Some(file) => walk.file(BufReader::new(file), &mut each).map_err(|e| (self.path.clone(), e))?,
            None => 0,
        };
        Ok(walk.done(torn))
    }

    /// The file that is written, with a lock that others who read share. `None`: there is none.
    fn open_shared(&self) -> io::Result<Option<File>> {
        loop {
            let file = match File::open(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            file.lock_shared()?;
            if self.is_current(&file)? {
                return Ok(Some(file));
            }
        }
    }
}

/// The event of a closed file's last record, and of the first record of the file after it.
pub(super) const CLOSED: &str = "file_closed";
pub(super) const OPENED: &str = "file_opened";
