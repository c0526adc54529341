//! A model out of the store, as one archive that any tar reads and an import takes in again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::blob::hex;
use super::error::StoreError;
use super::{Store, Watch, bounded, manifest};

/// Writes `NAME/…` with the sums first. A file that is not what was imported ends it, and nothing stays at `target`;
/// `None`: to standard output.
pub fn export(
    store: &Store,
    name: &str,
    target: Option<&Path>,
    watch: &mut dyn Watch,
) -> Result<u64, StoreError> {
    let Some(target) = target else {
        return write(store, name, &mut io::stdout().lock(), Path::new("-"), watch);
    };
    if target.exists() {
        let there = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(StoreError::io(target, "it is there already")(there));
    }
    let mut aside = target.as_os_str().to_owned();
    aside.push(".part");
    let aside = Path::new(&aside);
    let failed = |e| StoreError::io(aside, "it cannot be written")(e);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(aside).map_err(failed)?;
    let packed = target.extension().is_some_and(|e| e == "zst" || e == "tzst");
    let written = match packed {
        false => write(store, name, &mut file, aside, watch),
        true => packed_to(store, name, &file, aside, watch),
    };
    let written = written.and_then(|bytes| file.sync_all().map_err(failed).map(|()| bytes));
    let renamed = written.and_then(|bytes| fs::rename(aside, target).map_err(failed).map(|()| bytes));
    renamed.inspect_err(|_| drop(fs::remove_file(aside)))
}

fn packed_to(
    store: &Store,
    name: &str,
    file: &File,
    path: &Path,
    watch: &mut dyn Watch,
) -> Result<u64, StoreError> {
    let failed = |e| StoreError::io(path, "it cannot be written")(e);
    // Weights hardly shrink: the lowest level costs the least time for it.
    let mut encoder = zstd::Encoder::new(file, 1).map_err(failed)?;
    encoder.include_checksum(true).map_err(failed)?;
    let bytes = write(store, name, &mut encoder, path, watch)?;
    encoder.finish().map_err(failed)?;
    Ok(bytes)
}

fn write(
    store: &Store,
    name: &str,
    out: &mut dyn Write,
    path: &Path,
    watch: &mut dyn Watch,
) -> Result<u64, StoreError> {
    let stored = store.get(name)?;
    watch.begin("exporting", Some(stored.manifest.bytes()));
    let mut archive = tar::Builder::new(out);
    let bytes =
        append(&mut archive, &stored.directory, &stored.manifest, name, path, &mut |done| watch.at(done))?;
    let finished = archive.into_inner().and_then(|out| out.flush());
    finished.map_err(StoreError::io(path, "it cannot be written"))?;
    Ok(bytes)
}

/// Appends a model below `folder`: its sums, then every file, compared with its sum as it passes.
pub fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    directory: &Path,
    manifest: &manifest::Manifest,
    folder: &str,
    path: &Path,
    at: &mut dyn FnMut(u64),
) -> Result<u64, StoreError> {
    for file in [manifest::SUMS, manifest::JSON] {
        let bytes = bounded(&directory.join(file), manifest::LIMIT)?;
        append_bytes(archive, &format!("{folder}/{file}"), &bytes, path)?;
    }
    let mut done = 0;
    for file in &manifest.files {
        let from = directory.join(&file.name);
        let opened = File::open(&from).map_err(StoreError::io(&from, "it cannot be opened"))?;
        let mut hashed = Hashed::new(opened.take(file.bytes));
        let name = format!("{folder}/{}", file.name);
        archive
            .append_data(&mut header(file.bytes), &name, &mut hashed)
            .map_err(StoreError::io(path, "it cannot be written"))?;
        if hashed.bytes != file.bytes || hashed.sum() != file.sha256 {
            let wrong = vec![(file.name.clone(), "is not what was imported".to_owned())];
            return Err(StoreError::Damaged { name: manifest.name.clone(), files: wrong });
        }
        done += file.bytes;
        at(done);
    }
    Ok(done)
}

/// The same archive from the same files: no times, no owners.
pub fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(bytes);
    header
}

pub fn append_bytes<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    bytes: &[u8],
    path: &Path,
) -> Result<(), StoreError> {
    let appended = archive.append_data(&mut header(bytes.len() as u64), name, bytes);
    appended.map_err(StoreError::io(path, "it cannot be written"))
}

/// Hashes what is read through it.
pub struct Hashed<R> {
    inner: R,
    hash: aws_lc_rs::digest::Context,
    pub bytes: u64,
}

impl<R: Read> Hashed<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256), bytes: 0 }
    }

    pub fn sum(self) -> String {
        hex(self.hash.finish())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}
