//! Whether a model is still what was imported: all of it, or a sample at every load.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::blob::{self, Broken, CHUNK, hex, sha256};
use super::error::{StoreError, brief};
use super::manifest::{self, FileEntry, Manifest};
use super::{Store, Watch, bounded};

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Every byte: seconds for each ten gigabytes.
    Full,
    /// Small files whole; of large ones the length, the first and the last chunk and two at random.
    Sample,
    Off,
}

impl How {
    pub const WORDS: &'static [&'static str] = &["full", "sample", "off"];

    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "full" => Some(Self::Full),
            "sample" => Some(Self::Sample),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

/// What was looked at and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub files: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files, and what is wrong with each.
    pub wrong: Vec<(String, String)>,
}

/// Random chunks of a large file that a sample reads beside its first and last.
const RANDOM: u64 = 2;

/// Compares a model with its manifest, and the manifest with its own sum.
pub fn verify(store: &Store, name: &str, how: How, watch: &mut dyn Watch) -> Result<Report, StoreError> {
    let stored = store.get(name)?;
    let (directory, manifest) = (&stored.directory, &stored.manifest);
    watch.begin(name, (how == How::Full).then(|| manifest.bytes()));
    let mut report = Report { files: manifest.files.len(), bytes: 0, wrong: Vec::new() };
    if let Some(reason) = sums(directory, manifest) {
        report.wrong.push((manifest::SUMS.to_owned(), reason));
    }
    for file in &manifest.files {
        let path = directory.join(&file.name);
        let before = report.bytes;
        match check(&path, file, how, &mut |done| watch.at(before + done)) {
            Ok(read) => report.bytes += read,
            Err(reason) => {
                report.bytes += file.bytes;
                report.wrong.push((file.name.clone(), reason));
            }
        }
    }
    report.wrong.extend(strangers(directory, manifest));
    Ok(report)
}

/// Before a model is loaded. A directory that is none of the store's has no manifest to compare with.
pub fn at_load(store: &Store, directory: &Path, how: How) -> Result<Option<Report>, StoreError> {
    if how == How::Off {
        return Ok(None);
    }
    let Some(name) = store.model_in(directory) else { return Ok(None) };
    let report = verify(store, &name, how, &mut ())?;
    match report.wrong.is_empty() {
        true => Ok(Some(report)),
        false => Err(StoreError::Damaged { name, files: report.wrong }),
    }
}

/// The sums in the form of coreutils must be those of the manifest.
fn sums(directory: &Path, manifest: &Manifest) -> Option<String> {
    let read = |name: &str| bounded(&directory.join(name), manifest::LIMIT);
    let (Ok(sums), Ok(json)) = (read(manifest::SUMS), read(manifest::JSON)) else {
        return Some("cannot be read".to_owned());
    };
    let Ok(listed) = std::str::from_utf8(&sums).map_err(|e| e.to_string()).and_then(manifest::parse_sums)
    else {
        return Some("is damaged".to_owned());
    };
    let mut wanted: BTreeSet<(String, String)> =
        manifest.files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
    wanted.insert((manifest::JSON.to_owned(), hex(sha256(&json))));
    match listed.into_iter().collect::<BTreeSet<_>>() == wanted {
        true => None,
        false => Some(format!("and {} do not agree: one of them is damaged", manifest::JSON)),
    }
}

/// Files that nobody imported: one beside the others could change what is served.
fn strangers(directory: &Path, manifest: &Manifest) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = |name: &str| [manifest::SUMS, manifest::JSON].contains(&name) || manifest.file(name).is_some();
    names.filter(|name| !ours(name)).map(|name| (brief(&name), "was not imported".to_owned())).collect()
}

/// Reads as much of a file as was asked for. How much that was, or what is wrong.
fn check(path: &Path, wanted: &FileEntry, how: How, at: &mut dyn FnMut(u64)) -> Result<u64, String> {
    let failed = |e: io::Error| format!("cannot be read: {e}");
    let mut file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => "is missing".to_owned(),
        _ => failed(e),
    })?;
    let length = file.metadata().map_err(failed)?.len();
    if length != wanted.bytes {
        return Err(format!("has {length} bytes; {} were imported", wanted.bytes));
    }
    let differs = || "is not what was imported: its sum differs".to_owned();
    let chunks = wanted.chunks.len() as u64;
    if how == How::Full || chunks < 2 || chunks != length.div_ceil(CHUNK) {
        let mut read = 0;
        let sums = blob::pass(&mut file, |piece| {
            read += piece.len() as u64;
            at(read);
            Ok(())
        });
        let sums = sums.map_err(|(Broken::Read(e) | Broken::Write(e))| failed(e))?;
        // Where in it, for whoever looks for a failing disk.
        let place = sums.chunks.iter().zip(&wanted.chunks).position(|(a, b)| a != b);
        let place = place.map(|i| format!(", within the {} bytes from {}", CHUNK, i as u64 * CHUNK));
        return match sums.sha256 == wanted.sha256 {
            true => Ok(read),
            false => Err(differs() + &place.unwrap_or_default()),
        };
    }
    let random = || getrandom::u64().unwrap_or_default() % chunks;
    let sample: BTreeSet<u64> = [0, chunks - 1].into_iter().chain((0..RANDOM).map(|_| random())).collect();
    let mut read = 0;
    for i in sample {
        let sum = blob::chunk(&file, i, length).map_err(failed)?;
        if sum != wanted.chunks[i as usize] {
            return Err(format!("{}, within the {CHUNK} bytes from {}", differs(), i * CHUNK));
        }
        read += CHUNK.min(length - i * CHUNK);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A large file is known by its chunks: a sample reads its first and its last, all of it is read on request.
    #[test]
    fn a_sample_of_a_large_file_reads_its_ends_and_all_of_it_finds_the_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large");
        let length = 5 * CHUNK + 1000;
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        let sums = blob::pass(&mut &file, |_| Ok(())).unwrap();
        let entry =
            FileEntry { name: "large".into(), bytes: length, sha256: sums.sha256, chunks: sums.chunks };
        let look = |how| check(&path, &entry, how, &mut |_| {});
        assert_eq!(look(How::Full), Ok(length));
        let read = look(How::Sample).unwrap();
        assert!((CHUNK + 1000..=3 * CHUNK + 1000).contains(&read), "{read}");
        for (at, chunk) in [(0, 0), (length - 1, 5)] {
            file.write_all_at(b"x", at).unwrap();
            let place = format!("within the {CHUNK} bytes from {}", chunk * CHUNK);
            for how in [How::Sample, How::Full] {
                let reason = look(how).unwrap_err();
                assert!(reason.contains(&place), "{how:?}: {reason}");
            }
            file.write_all_at(b"\0", at).unwrap();
        }
        file.write_all_at(b"x", 2 * CHUNK + 5).unwrap();
        assert!(look(How::Full).unwrap_err().contains(&format!("from {}", 2 * CHUNK)));
        file.set_len(length - 1).unwrap();
        assert!(look(How::Sample).unwrap_err().contains("were imported"));
    }
}
