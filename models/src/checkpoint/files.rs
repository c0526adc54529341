//! The files of a checkpoint directory: which are read, which are refused by name, and the memory map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use serde::Deserialize;
use serde_json::Value;

use super::{CheckpointError, HEADER_LIMIT, brief};

/// A config.json at most; real ones have a few kilobytes.
const JSON_LIMIT: u64 = 4 << 20;
/// Shards of one checkpoint at most.
const SHARD_LIMIT: usize = 1000;

/// The bytes of a weight file.
pub(super) enum Bytes {
    Map(Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Lets go of the pages that lie inside these bytes: they were copied. They count as resident otherwise, and a
    /// model would seem to take twice its size until it is loaded; the kernel keeps them as cache while it has room.
    pub fn release(&self, start: usize, end: usize) {
        // Larger than any page there is; neighbours in a page may still be needed soon.
        const PAGE: usize = 64 << 10;
        let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        if let Bytes::Map(map) = self
            && start < end
        {
            // SAFETY: the map is of a file, never written to: pages that are touched again come back from the file
            // with the same bytes.
            let advised =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
            // Advice only: without it memory is reclaimed later.
            let _ = advised;
        }
    }
}

/// Which shard holds which tensor, as the index says.
pub(super) struct Index {
    pub path: PathBuf,
    pub files: BTreeMap<String, String>,
}

pub(super) struct Weights {
    pub files: Vec<(PathBuf, Bytes)>,
    pub index: Option<Index>,
}

/// Reads a file of at most `limit` bytes; `None` if there is none.
fn bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
    let fail = |error| CheckpointError::Read { path: path.into(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(CheckpointError::Large { path: path.into(), bytes: bytes.len() as u64, limit });
    }
    Ok(Some(bytes))
}

/// A small JSON file; `None` if there is none.
pub(super) fn json(path: &Path) -> Result<Option<Value>, CheckpointError> {
    let Some(bytes) = bounded(path, JSON_LIMIT)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|error| CheckpointError::Json { path: path.into(), error })
}

/// Maps the weights of a directory: model.safetensors, or the shards of its index. `consolidated.safetensors` beside
/// them is the same weights under other names and stays unread.
pub(super) fn weights(dir: &Path) -> Result<Weights, CheckpointError> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        let bytes = map(&single)?;
        return Ok(Weights { files: vec![(single, bytes)], index: None });
    }
    let path = dir.join("model.safetensors.index.json");
    let Some(text) = bounded(&path, HEADER_LIMIT as u64)? else {
        return Err(CheckpointError::NoWeights { dir: dir.into(), found: found(dir) });
    };
    #[derive(Deserialize)]
    struct Raw {
        weight_map: BTreeMap<String, String>,
    }
    let raw: Raw =
        serde_json::from_slice(&text).map_err(|error| CheckpointError::Json { path: path.clone(), error })?;
    let mut names: Vec<&String> = raw.weight_map.values().collect();
    names.sort();
    names.dedup();
    let refuse = |reason| Err(CheckpointError::Index { path: path.clone(), reason });
    if names.is_empty() || names.len() > SHARD_LIMIT {
        return refuse(format!("{} shards; the limit is 1 to {SHARD_LIMIT}", names.len()));
    }
    let mut files = Vec::new();
    for name in names {
        // A name only, in this directory: an index is a file from elsewhere.
        let plain = Path::new(name).components().count() == 1 && !name.contains(['/', '\\']);
        if !plain || !name.ends_with(".safetensors") || name.starts_with('.') {
            return refuse(format!("`{}` is not the name of a safetensors file beside it", brief(name)));
        }
        let shard = dir.join(name);
        let bytes = map(&shard)?;
        files.push((shard, bytes));
    }
    Ok(Weights { files, index: Some(Index { path, files: raw.weight_map }) })
}

fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    let fail = |error| CheckpointError::Read { path: path.into(), error };
    let file = File::open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(io::Error::other("not a file")));
    }
    // SAFETY: the map is private to this process and only read. Weights are installed once and never edited in place
    // (an import writes a new file and renames it), so the bytes do not change and the file does not shrink below it.
    let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
    // Advice only: a file system without read-ahead is slower, not wrong.
    let _ = map.advise(Advice::Sequential);
    Ok(Bytes::Map(map))
}

/// What lies in a directory instead of safetensors, for the message.
fn found(dir: &Path) -> String {
    let Ok(entries) = dir.read_dir() else { return String::new() };
    let mut names: Vec<String> =
        entries.flatten().take(10_000).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let pick = |test: &dyn Fn(&str) -> bool| names.iter().find(|name| test(name)).map(|name| brief(name));
    let pickle = |name: &str| [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|end| name.ends_with(end));
    if let Some(name) = pick(&|name| name == "consolidated.safetensors") {
        return format!(" (`{name}` is Mistral's own layout; take the directory's sharded files)");
    }
    if let Some(name) = pick(&|name| name.ends_with(".gguf")) {
        return format!(" (`{name}` is GGUF)");
    }
    if let Some(name) = pick(&pickle) {
        return format!(" (`{name}` is a pickle, which can run code when it is read: never opened)");
    }
    String::new()
}
