//! Archives of checkpoints: tar, perhaps in zstd, from a file or a pipe, made by nobody one should trust.
//!
//! The archive is never unpacked: its entries are offered one by one under flat names, so that no path in it reaches the
//! disk. Only plain files count. What lies between two files (names, attributes, padding) is read under a budget of its own,
//! or a name of ten gigabytes would be held in memory; and the stream must end as an archive ends.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use tar::EntryType;

use super::error::{StoreError, brief};
use super::source::Offer;

/// Bytes between two files at most.
const BETWEEN: u64 = 1 << 20;
/// Entries of an archive at most, directories and files that are left behind among them.
const ENTRIES: usize = 10_000;
/// What zstd may keep in memory to look back, as a power of two: its own default.
const WINDOW: u32 = 27;
/// A stream may grow by this factor, after a first stretch. Weights hardly shrink at all.
const RATIO: u64 = 100;
const FREE: u64 = 64 << 20;
const BLOCK: u64 = 512;

/// Reads under a budget, and remembers whether the end was zeros.
struct Guard<R> {
    inner: R,
    limits: Rc<Limits>,
}

#[derive(Debug, Default)]
struct Limits {
    budget: Cell<u64>,
    /// Zero bytes at the end of what was read.
    zeros: Cell<u64>,
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let budget = self.limits.budget.get();
        if budget == 0 && !buffer.is_empty() {
            return Err(io::Error::other("names and attributes between two files are too long"));
        }
        let room = buffer.len().min(usize::try_from(budget).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buffer[..room])?;
        self.limits.budget.set(budget - n as u64);
        let tail = buffer[..n].iter().rev().take_while(|b| **b == 0).count();
        let before = if tail == n { self.limits.zeros.get() } else { 0 };
        self.limits.zeros.set(before + tail as u64);
        Ok(n)
    }
}

/// Counts what goes into a decoder.
struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.read.set(self.read.get() + n as u64);
        self.inner.consume(n);
    }
}

/// Ends a stream that grows beyond all measure.
struct Bounded<R> {
    inner: R,
    made: u64,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.made += n as u64;
        let read = self.read.get();
        if self.made > FREE && self.made / RATIO > read {
            let made = self.made;
            return Err(io::Error::other(format!(
                "{read} bytes became more than {made}: no checkpoint packs so well"
            )));
        }
        Ok(n)
    }
}

/// The tar stream inside, unpacked from zstd where it is in it.
fn open<'a>(mut input: impl BufRead + 'a, place: &str) -> Result<Box<dyn Read + 'a>, StoreError> {
    let refuse = |reason: String| StoreError::Archive { place: place.to_owned(), reason };
    let start = input.fill_buf().map_err(|e| refuse(format!("it cannot be read: {e}")))?;
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let read = Rc::new(Cell::new(0));
        let counted = Counted { inner: input, read: read.clone() };
        let mut decoder = zstd::Decoder::with_buffer(counted).map_err(|e| refuse(e.to_string()))?;
        decoder.window_log_max(WINDOW).map_err(|e| refuse(e.to_string()))?;
        return Ok(Box::new(Bounded { inner: decoder, made: 0, read }));
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        return Err(refuse("it is gzip; .tar and .tar.zst are read".to_owned()));
    }
    if start.starts_with(b"PK\x03\x04") {
        return Err(refuse("it is zip; .tar and .tar.zst are read".to_owned()));
    }
    Ok(Box::new(input))
}

/// Offers the files of an archive in turn, those at its top or in its one directory.
pub fn each(
    input: impl BufRead,
    place: &str,
    stamp: Option<&str>,
    take: &mut dyn FnMut(Offer<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut folder: Option<String> = None;
    let refuse = |reason: String| StoreError::Archive { place: place.to_owned(), reason };
    entries(input, place, stamp, &mut |path, offer| {
        let (directory, name) = match path.split_once('/') {
            None => ("", path),
            Some((directory, name)) if !name.contains('/') => (directory, name),
            // Deeper than a checkpoint is: of no use here.
            Some(_) => return take(offer.named(path)),
        };
        let known = folder.get_or_insert_with(|| directory.to_owned());
        if known != directory {
            return Err(refuse(format!(
                "files are in two places, {:?} and {:?}",
                brief(known),
                brief(directory)
            )));
        }
        take(offer.named(name))
    })
}

/// Offers every plain file with its path, checked: relative, without `..`, no two the same.
pub fn entries(
    input: impl BufRead,
    place: &str,
    stamp: Option<&str>,
    take: &mut dyn FnMut(&str, Offer<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let refuse = |reason: String| StoreError::Archive { place: place.to_owned(), reason };
    let broken = |e: io::Error| refuse(format!("it cannot be read as tar: {}", cause(&e)));
    let limits = Rc::new(Limits::default());
    let mut archive = tar::Archive::new(Guard { inner: open(input, place)?, limits: limits.clone() });
    let mut seen = BTreeSet::new();
    let mut count = 0;
    limits.budget.set(BETWEEN);
    let mut rows = archive.entries().map_err(broken)?;
    loop {
        limits.budget.set(BETWEEN);
        let Some(entry) = rows.next() else { break };
        let mut entry = entry.map_err(broken)?;
        count += 1;
        if count > ENTRIES {
            return Err(refuse(format!("it has more than {ENTRIES} entries")));
        }
        let path = path_of(&entry).map_err(refuse)?;
        kind_of(&mut entry, &path).map_err(refuse)?;
        if entry.header().entry_type() == EntryType::Directory {
            continue;
        }
        if !seen.insert(path.clone()) {
            return Err(refuse(format!("{} is in it twice", brief(&path))));
        }
        let bytes = entry.size();
        limits.budget.set(bytes.saturating_add(BLOCK));
        let stamp = stamp.map(|of| format!("{of}@{}", entry.raw_file_position()));
        let mut counted = Exact { inner: &mut entry, left: bytes };
        take(&path, Offer { name: &path, bytes, stamp, sum: None, read: &mut counted })?;
        // What was not wanted is passed over here, under the file's own budget.
        io::copy(&mut counted, &mut io::sink()).map_err(broken)?;
    }
    let mut reader = archive.into_inner();
    limits.budget.set(BETWEEN);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).map_err(broken)?;
    if rest.iter().any(|b| *b != 0) {
        return Err(refuse("something follows its end".to_owned()));
    }
    if limits.zeros.get() < 2 * BLOCK {
        return Err(refuse("it ends early: it was not copied whole".to_owned()));
    }
    Ok(())
}

/// Reads a file to its last byte, or says that the archive ended before.
struct Exact<'a, R> {
    inner: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Exact<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("it ends in the middle of a file: it was not copied whole"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// The path of an entry without a leading `./`; an error where it leads anywhere but down.
fn path_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<String, String> {
    let bytes = entry.path_bytes();
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| format!("the name {} is not text", brief(&String::from_utf8_lossy(&bytes))))?;
    if text.len() > 4096 || text.chars().any(char::is_control) {
        return Err(format!("{} is no name for a file", brief(text)));
    }
    if text.starts_with('/') || text.contains('\\') {
        return Err(format!("{} leads out of the archive", brief(text)));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("{} leads out of the archive", brief(text)));
    }
    let directory = entry.header().entry_type() == EntryType::Directory;
    match parts.is_empty() && !directory {
        true => Err("an entry has no name".to_owned()),
        false => Ok(parts.join("/")),
    }
}

/// Whether it is a plain file, or a directory, whose size all readers agree on.
fn kind_of<R: Read>(entry: &mut tar::Entry<'_, R>, path: &str) -> Result<(), String> {
    let name = brief(path);
    let header = entry.header();
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => None,
        EntryType::Directory => None,
        EntryType::Symlink | EntryType::Link => Some("a link"),
        EntryType::Char | EntryType::Block => Some("a device"),
        EntryType::Fifo => Some("a pipe"),
        EntryType::GNUSparse => Some("a sparse file"),
        _ => Some("neither a file nor a directory"),
    };
    if let Some(kind) = kind {
        return Err(format!("{name} is {kind}; only plain files are taken"));
    }
    let in_header = header.entry_size().map_err(|e| format!("the size of {name}: {e}"))?;
    let size = entry.size();
    if in_header != size && in_header != 0 {
        return Err(format!("{name} has two sizes, {in_header} and {size}"));
    }
    if entry.header().entry_type() == EntryType::Directory && size > 0 {
        return Err(format!("the directory {name} has {size} bytes"));
    }
    let extensions =
        entry.pax_extensions().map_err(|e| format!("the attributes of {name}: {}", cause(&e)))?;
    for extension in extensions.into_iter().flatten() {
        let extension = extension.map_err(|e| format!("the attributes of {name}: {}", cause(&e)))?;
        if extension.key_bytes().starts_with(b"GNU.sparse") {
            return Err(format!("{name} is a sparse file; only plain files are taken"));
        }
    }
    Ok(())
}

/// The innermost cause, which is where our own limits speak.
fn cause(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.get_ref().and_then(|e| e.source());
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}
