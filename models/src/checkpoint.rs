//! A checkpoint: a directory as it comes from the hub, memory-mapped and checked whole before a byte is copied.
//!
//! Before step 1 in the life of a request. Nothing in these files is trusted: the header is bounded before it is
//! parsed, names are unique, offsets lie inside the file, and names, shapes and types are those of the spec.

mod files;
mod header;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value;

use crate::layout::{self, Layout, Role};
use crate::spec::{Spec, SpecError};
use files::Bytes;
pub use header::{HEADER_LIMIT, TENSOR_LIMIT};

/// Weights that can be read, and what they are.
pub struct Checkpoint {
    spec: Spec,
    layout: Layout,
    /// Where it came from, for messages.
    origin: PathBuf,
    files: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
    /// Tensors in the files that the decoder does not read.
    ignored: Vec<String>,
}

/// One tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    file: usize,
    /// As the file names it: `BF16`, `F8_E4M3`.
    dtype: String,
    shape: Vec<usize>,
    /// Bytes of the file, inside its length.
    start: usize,
    end: usize,
}

/// A tensor of the checkpoint where it lies. `bytes` may be unaligned.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Why a checkpoint was not opened. Each names the file, what is wrong and what would do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path} is missing; give the directory of a checkpoint in the hub's layout")]
    NoConfig { path: PathBuf },
    #[error("{path}: {error}")]
    Json { path: PathBuf, error: serde_json::Error },
    #[error("{path}: {bytes} bytes; the limit for such a file is {limit}")]
    Large { path: PathBuf, bytes: u64, limit: u64 },
    #[error(
        "{dir}: no model.safetensors and no model.safetensors.index.json{found}; only the hub's safetensors \
         files are read"
    )]
    NoWeights { dir: PathBuf, found: String },
    #[error("{path}: {reason}; the file is damaged or not a safetensors file, copy it again")]
    Header { path: PathBuf, reason: String },
    #[error("{path}: {reason}; the index does not belong to these shards, copy it again")]
    Index { path: PathBuf, reason: String },
    #[error("{origin}: {error}")]
    Spec { origin: PathBuf, error: SpecError },
    #[error("{origin}: {}{}; copy the checkpoint again", list("missing tensors", .missing), also(.unexpected))]
    Missing { origin: PathBuf, missing: Vec<String>, unexpected: Vec<String> },
    #[error("{origin}: {}; config.json does not describe this file", list("unexpected tensors", .unexpected))]
    Unexpected { origin: PathBuf, unexpected: Vec<String> },
    #[error("{origin}: tensor `{name}` has shape {found:?}; config.json asks for {wanted:?}")]
    Shape { origin: PathBuf, name: String, found: Vec<usize>, wanted: Vec<usize> },
    #[error("{origin}: tensor `{name}` has type {found}; {wanted}")]
    Type { origin: PathBuf, name: String, found: String, wanted: String },
}

/// The first few names of a list, and how many there are.
fn list(what: &str, names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| brief(name)).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {what}: {shown}{more}", names.len())
}

/// What is there in the place of what is missing, if anything is.
fn also(unexpected: &[String]) -> String {
    if unexpected.is_empty() {
        String::new()
    } else {
        format!("; {}", list("unexpected tensors", unexpected))
    }
}

/// A name out of a file as it goes into a message.
fn brief(name: &str) -> String {
    let short: String = name.chars().take(100).collect();
    short.escape_debug().to_string()
}

impl Checkpoint {
    /// Opens a directory with config.json and either model.safetensors or shards with their index.
    pub fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
        let config = files::json(&dir.join("config.json"))?
            .ok_or_else(|| CheckpointError::NoConfig { path: dir.join("config.json") })?;
        let generation = files::json(&dir.join("generation_config.json"))?;
        let spec = read_spec(dir, &config, generation.as_ref())?;
        let mapped = files::weights(dir)?;
        Checkpoint::assemble(dir.to_path_buf(), spec, mapped.files, mapped.index)
    }

    /// A checkpoint that lies in memory for good: the one inside the binary.
    pub fn from_bytes(
        name: &str,
        config: &[u8],
        generation: &[u8],
        weights: &'static [u8],
    ) -> Result<Checkpoint, CheckpointError> {
        let origin = PathBuf::from(name);
        let parse = |file: &str, bytes: &[u8]| {
            serde_json::from_slice::<Value>(bytes)
                .map_err(|error| CheckpointError::Json { path: origin.join(file), error })
        };
        let config = parse("config.json", config)?;
        let generation = parse("generation_config.json", generation)?;
        let spec = read_spec(&origin, &config, Some(&generation))?;
        let file = (origin.join("model.safetensors"), Bytes::Static(weights));
        Checkpoint::assemble(origin, spec, vec![file], None)
    }

    fn assemble(
        origin: PathBuf,
        spec: Spec,
        files: Vec<(PathBuf, Bytes)>,
        index: Option<files::Index>,
    ) -> Result<Checkpoint, CheckpointError> {
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for (at, (path, bytes)) in files.iter().enumerate() {
            let names = header::read(bytes)
                .map_err(|reason| CheckpointError::Header { path: path.clone(), reason })?;
            for (name, mut entry) in names {
                entry.file = at;
                if let Some(before) = tensors.get(&name) {
                    return Err(CheckpointError::Header {
                        path: path.clone(),
                        reason: format!(
                            "tensor `{}` is also in {}",
                            brief(&name),
                            files[before.file].0.display()
                        ),
                    });
                }
                tensors.insert(name, entry);
                if tensors.len() > TENSOR_LIMIT {
                    return Err(CheckpointError::Header {
                        path: path.clone(),
                        reason: format!("more than {TENSOR_LIMIT} tensors"),
                    });
                }
            }
        }
        if let Some(index) = index {
            for (name, file) in &index.files {
                if !tensors.get(name).is_some_and(|entry| files[entry.file].0.ends_with(file)) {
                    let reason = format!("tensor `{}` is not in {}", brief(name), brief(file));
                    return Err(CheckpointError::Index { path: index.path, reason });
                }
            }
        }
        let layout = Layout::of(&spec);
        let ignored = check(&origin, &spec, &layout, &tensors)?;
        let files = files.into_iter().map(|(_, bytes)| bytes).collect();
        Ok(Checkpoint { spec, layout, origin, files, tensors, ignored })
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Names of tensors in the files that are not read: saved frequencies, a vision tower.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// A tensor of the layout.
    pub fn tensor(&self, name: &str) -> Option<Slice<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = &self.files[entry.file].as_slice()[entry.start..entry.end];
        Some(Slice { dtype: dtype(&entry.dtype)?, shape: &entry.shape, bytes })
    }

    /// Says that a tensor was copied and its place in the file is not needed soon.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.files[entry.file].release(entry.start, entry.end);
        }
    }

    /// The type of a tensor of the layout.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        dtype(&self.tensors.get(name)?.dtype)
    }

    /// The type that most weights have: the embedding's.
    pub fn main_dtype(&self) -> DType {
        self.dtype(&self.layout.embedding.parts[0].name).expect("bug: a checked checkpoint has an embedding")
    }

    /// Elements of all tensors of the layout.
    pub fn parameters(&self) -> u64 {
        self.layout.parts().map(|part| part.elements()).sum()
    }

    /// Bytes of all tensors of the layout, in the files.
    pub fn bytes(&self) -> u64 {
        let entries = self.layout.parts().filter_map(|part| self.tensors.get(&part.name));
        entries.map(|entry| (entry.end - entry.start) as u64).sum()
    }

    /// Bytes per type, as the files name it, of the tensors that are read.
    pub fn bytes_by_type(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for part in self.layout.parts() {
            if let Some(entry) = self.tensors.get(&part.name) {
                *sums.entry(entry.dtype.clone()).or_default() += (entry.end - entry.start) as u64;
            }
        }
        sums
    }
}

fn read_spec(origin: &Path, config: &Value, generation: Option<&Value>) -> Result<Spec, CheckpointError> {
    let fail = |error| CheckpointError::Spec { origin: origin.to_path_buf(), error };
    let spec = Spec::from_config(config).map_err(fail)?;
    match generation {
        Some(generation) => spec.with_generation(generation).map_err(fail),
        None => Ok(spec),
    }
}

fn dtype(name: &str) -> Option<DType> {
    match name {
        "BF16" => Some(DType::BF16),
        "F16" => Some(DType::F16),
        "F32" => Some(DType::F32),
        _ => None,
    }
}

/// Names, shapes and types against the layout; the names that are not read.
fn check(
    origin: &Path,
    spec: &Spec,
    layout: &Layout,
    tensors: &BTreeMap<String, Entry>,
) -> Result<Vec<String>, CheckpointError> {
    let origin = || origin.to_path_buf();
    let parts: BTreeMap<&str, _> = layout.parts().map(|part| (part.name.as_str(), part)).collect();
    let missing: Vec<String> =
        layout.parts().filter(|p| !tensors.contains_key(&p.name)).map(|p| p.name.clone()).collect();
    if !missing.is_empty() {
        let strange = |name: &&String| !parts.contains_key(name.as_str()) && !layout::harmless(spec, name);
        let unexpected = tensors.keys().filter(strange).cloned().collect();
        return Err(CheckpointError::Missing { origin: origin(), missing, unexpected });
    }
    let mut ignored = Vec::new();
    let mut unexpected = Vec::new();
    for (name, entry) in tensors {
        let Some(part) = parts.get(name.as_str()) else {
            if layout::harmless(spec, name) {
                ignored.push(name.clone());
            } else {
                unexpected.push(name.clone());
            }
            continue;
        };
        let wanted = part.shape();
        if entry.shape != wanted {
            let (name, found) = (name.clone(), entry.shape.clone());
            return Err(CheckpointError::Shape { origin: origin(), name, found, wanted });
        }
        if dtype(&entry.dtype).is_none() {
            return Err(CheckpointError::Type {
                origin: origin(),
                name: name.clone(),
                found: entry.dtype.clone(),
                wanted: "supported: BF16, F16, F32; take the unquantised checkpoint".into(),
            });
        }
    }
    if !unexpected.is_empty() {
        return Err(CheckpointError::Unexpected { origin: origin(), unexpected });
    }
    for block in layout.blocks().filter(|block| block.role != Role::Vector) {
        let first = &tensors[&block.parts[0].name].dtype;
        for part in &block.parts[1..] {
            let found = &tensors[&part.name].dtype;
            if found != first {
                return Err(CheckpointError::Type {
                    origin: origin(),
                    name: part.name.clone(),
                    found: found.clone(),
                    wanted: format!("`{}` has {first} and both must have one type", block.parts[0].name),
                });
            }
        }
    }
    Ok(ignored)
}
