//! The arithmetic of memory: what a model will take, before a byte of it is read.
//!
//! A model that does not fit is refused with the sum, copies included: running into the kernel's killer halfway
//! through a load tells nobody what to change. Weights are counted as they lie in memory once packed; the mapped file
//! is not, its pages are the kernel's to drop.

use std::fmt;

use hearth_kernels::Weight;
use hearth_kernels::cuda::weightonly::PANEL;
use hearth_kernels::paged::BLOCK;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::decoder::{Options, kv_shape, quantized};
use crate::device;
use crate::host::Available;
use crate::layout::Role;

/// Tokenizer, HTTP, threads' stacks: what a process takes beside its models.
pub const PROCESS: u64 = 96 << 20;

/// A line of the sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    pub what: String,
    pub bytes: u64,
}

/// What one decoder takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// By role and type, as packed or quantised.
    pub weights: Vec<Share>,
    /// One block of keys and values in all layers.
    pub block_bytes: u64,
    pub blocks: u64,
    /// Cosines and sines of all positions.
    pub rope: u64,
    /// Buffers of the largest step.
    pub step: u64,
}

impl Memory {
    /// The sum for a checkpoint under these options. Looks at names, shapes and types only.
    pub fn of(checkpoint: &Checkpoint, options: &Options) -> Memory {
        let mut weights: Vec<Share> = Vec::new();
        for block in checkpoint.layout().blocks() {
            let dtype = checkpoint.dtype(&block.parts[0].name).expect("bug: the checkpoint was checked");
            let (rows, cols) = (block.rows(), block.cols());
            let (what, bytes) = match (block.role, quantized(block, options.quantize)) {
                (Role::Vector, _) => ("norms and biases, f32".to_owned(), 4 * rows),
                (_, Some(kind)) => {
                    (format!("layers, {}", kind.name()), Weight::quantized_bytes(kind, rows, cols))
                }
                (role, None) => {
                    let part = match role {
                        Role::Embedding => "embedding",
                        Role::Head => "head",
                        _ => "layers",
                    };
                    (format!("{part}, {}", dtype.as_str()), Weight::packed_bytes(dtype, rows, cols))
                }
            };
            match weights.iter_mut().find(|share| share.what == what) {
                Some(share) => share.bytes += bytes as u64,
                None => weights.push(Share { what, bytes: bytes as u64 }),
            }
        }
        let spec = checkpoint.spec();
        let shape = kv_shape(spec, checkpoint, options);
        Memory {
            weights,
            block_bytes: shape.block_bytes() as u64,
            blocks: options.blocks as u64,
            rope: (options.context * spec.head_dim * 4) as u64,
            step: step_bytes(checkpoint, options),
        }
    }

    /// The sum on a GPU, where weights lie as bf16 or packed.
    pub fn on_device(checkpoint: &Checkpoint, options: &device::Options) -> Memory {
        let mut weights: Vec<Share> = Vec::new();
        for block in checkpoint.layout().blocks() {
            let elements = block.elements();
            let (what, bytes) = match (block.role, device::packed_as(block, options.quantize)) {
                (Role::Vector, _) => ("norms and biases, f32".to_owned(), 4 * elements),
                (Role::Embedding, _) => ("embedding, bf16".to_owned(), 2 * elements),
                (Role::Head, _) => ("head, bf16".to_owned(), 2 * elements),
                (_, Some(format)) => {
                    let (numbers, scales) = format.panel_bytes(block.cols());
                    let bytes = block.rows().div_ceil(PANEL) * (numbers + scales);
                    (format!("layers, {}", format.title()), bytes as u64)
                }
                (Role::Linear | Role::Router, None) => ("layers, bf16".to_owned(), 2 * elements),
            };
            match weights.iter_mut().find(|share| share.what == what) {
                Some(share) => share.bytes += bytes,
                None => weights.push(Share { what, bytes }),
            }
        }
        let spec = checkpoint.spec();
        Memory {
            weights,
            block_bytes: (spec.layers * 2 * BLOCK * spec.key_width() * options.kv.bytes()) as u64,
            blocks: options.blocks as u64,
            rope: (options.context * spec.head_dim * 4) as u64,
            step: device::step_bytes(spec, options),
        }
    }

    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|share| share.bytes).sum()
    }

    pub fn kv_bytes(&self) -> u64 {
        self.blocks * self.block_bytes
    }

    /// Keys and values of one position.
    pub fn token_bytes(&self) -> u64 {
        self.block_bytes / BLOCK as u64
    }

    /// Everything but keys and values.
    pub fn fixed_bytes(&self) -> u64 {
        self.weight_bytes() + self.rope + self.step
    }

    pub fn total(&self) -> u64 {
        self.fixed_bytes() + self.kv_bytes()
    }

    /// How many blocks there is room for when this model may take `bytes` in all.
    pub fn blocks_within(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.fixed_bytes()) / self.block_bytes
    }
}

/// Activations, and what products need beside them: their input, staged; of a mixture the rows of an expert; of
/// quantised weights a copy of input and output, which candle makes.
fn step_bytes(checkpoint: &Checkpoint, options: &Options) -> u64 {
    let spec = checkpoint.spec();
    let (hidden, query, qkv) = (spec.hidden, spec.query_width(), spec.query_width() + 2 * spec.key_width());
    let experts = spec.experts.map_or(0, |experts| experts.count);
    let widest = hidden.max(query).max(spec.ffn).next_multiple_of(32);
    let mlp = 3 * spec.ffn + if experts > 0 { hidden + experts } else { 0 };
    let copies = if options.quantize.is_some() { widest + qkv.max(2 * spec.ffn) } else { 0 };
    let row = 2 * hidden + qkv + query + mlp + widest + copies;
    4 * (options.rows as u64 * row as u64 + options.logits as u64 * spec.vocab as u64)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, bytes: u64| writeln!(f, "  {what:<44} {:>12}", Size(bytes).to_string());
        for share in &self.weights {
            line(&share.what, share.bytes)?;
        }
        let tokens = self.blocks * BLOCK as u64;
        line(&format!("keys and values of {tokens} tokens"), self.kv_bytes())?;
        line("positions", self.rope)?;
        line("buffers of a step", self.step)?;
        line("total", self.total())
    }
}

/// Models that do not fit together into what the host can give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not enough memory: {needed} needed, {available} available ({limit}), {short} short\n{sum}\
     Serve fewer models, lower the number of blocks or the context, or load with --quantize q8_0 or q4_k."
)]
pub struct DoesNotFit {
    pub needed: Size,
    pub available: Size,
    pub limit: String,
    pub short: Size,
    pub sum: String,
}

/// Checks all models of a process against what the host can give, before any is loaded.
pub fn fit(models: &[(&str, &Memory)], available: &Available) -> Result<(), DoesNotFit> {
    let needed = PROCESS + models.iter().map(|(_, memory)| memory.total()).sum::<u64>();
    if needed <= available.bytes {
        return Ok(());
    }
    let mut sum: String = models.iter().map(|(name, memory)| format!("{name}\n{memory}")).collect();
    sum += &format!("{:<46} {:>12}\n", "the process itself", Size(PROCESS).to_string());
    Err(DoesNotFit {
        needed: Size(needed),
        available: Size(available.bytes),
        limit: available.limit.clone(),
        short: Size(needed - available.bytes),
        sum,
    })
}

/// Bytes in the unit a person would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            n if n >= 1 << 30 => (30, "GiB"),
            n if n >= 1 << 20 => (20, "MiB"),
            n if n >= 1 << 10 => (10, "KiB"),
            n => return write!(f, "{n} B"),
        };
        write!(f, "{:.1} {name}", self.0 as f64 / f64::from(1u32 << unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_sum() {
        let memory = Memory {
            weights: vec![Share { what: "layers, bf16".into(), bytes: 13 << 30 }],
            block_bytes: 2 << 20,
            blocks: 512,
            rope: 1 << 20,
            step: 3 << 20,
        };
        let small = Available { bytes: 8 << 30, limit: "the control group's limit".into() };
        let text = fit(&[("mistral", &memory)], &small).unwrap_err().to_string();
        for part in ["14.1 GiB needed", "8.0 GiB available (the control group's limit)", "6.1 GiB short"] {
            assert!(text.contains(part), "{text}");
        }
        for part in ["layers, bf16", "13.0 GiB", "keys and values of 8192 tokens", "1.0 GiB", "--quantize"] {
            assert!(text.contains(part), "{text}");
        }
        let large = Available { bytes: 15 << 30, ..small };
        assert_eq!(fit(&[("mistral", &memory)], &large), Ok(()));
        let two = [("a", &memory), ("b", &memory)];
        assert!(fit(&two, &large).is_err(), "models are checked together");
    }

    #[test]
    fn room_is_divided_into_blocks_after_everything_else() {
        let memory = Memory { weights: vec![], block_bytes: 1000, blocks: 0, rope: 100, step: 400 };
        assert_eq!(memory.blocks_within(10_500), 10);
        assert_eq!(memory.blocks_within(499), 0);
    }

    #[test]
    fn sizes_read_like_sizes() {
        assert_eq!(Size(999).to_string(), "999 B");
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert_eq!(Size(13 << 30).to_string(), "13.0 GiB");
    }
}
