//! Small checkpoints with heads of the true size, and both decoders driven over scattered pages as the engine does.

use std::fs;
use std::path::Path;

use half::bf16;
use hearth_kernels::Context;
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::paged::Span;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::layout::Layout;
use hearth_models::spec::Spec;
use hearth_models::step::Step;
use hearth_models::{decoder, device};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const BLOCKS: usize = 64;
const ROWS: usize = 64;
const CONTEXT: usize = 256;
const MEMORY: usize = 1 << 30;

/// A golden checkpoint's config with other heads, and random weights in bf16, scaled so that activations stay near one.
pub fn checkpoint((name, heads, kv, dim): (&str, usize, usize, usize)) -> (tempfile::TempDir, Checkpoint) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name);
    let text = fs::read_to_string(golden.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_attention_heads"] = heads.into();
    config["num_key_value_heads"] = kv.into();
    // Some families say the size of a head, others have it from the width.
    if name.starts_with("qwen") {
        config["hidden_size"] = (heads * dim).into();
    } else {
        config["head_dim"] = dim.into();
    }
    config["torch_dtype"] = "bfloat16".into();
    let spec = Spec::from_config(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Layout::of(&spec)
        .parts()
        .map(|part| {
            let embedding = part.name.ends_with("embed_tokens.weight");
            let gain = part.cols.map(|cols| (12.0 / if embedding { 1.0 } else { cols as f32 }).sqrt());
            let vector = if part.name.ends_with("bias") { 0.1 } else { 1.0 };
            let values = (0..part.elements()).map(|_| gain.map_or(vector, |gain| gain * draw()));
            let bytes = values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
            (part.name.clone(), part.shape(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    let dir = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    (dir, checkpoint)
}

/// Norm of the difference over the norm of the reference.
pub fn relative(got: &[f32], wanted: &[f32]) -> f32 {
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let apart = norm(&mut got.iter().zip(wanted).map(|(a, b)| a - b));
    (apart / norm(&mut wanted.iter().copied())) as f32
}

/// Bits, of which no two are equal by accident.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What a sequence says, and how much of it was computed.
pub struct Sequence {
    tokens: Vec<u32>,
    done: usize,
}

impl Sequence {
    pub fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, done: 0 }
    }

    pub fn left(&self) -> usize {
        self.tokens.len() - self.done
    }

    pub fn begin_anew(&mut self) {
        self.done = 0;
    }
}

pub enum Rig {
    Cpu(Box<decoder::Decoder>),
    Device(Box<device::Decoder>),
}

impl Rig {
    pub fn cpu(checkpoint: &Checkpoint) -> Self {
        let options = decoder::Options {
            quantize: None,
            rows: ROWS,
            logits: ROWS,
            context: CONTEXT,
            blocks: BLOCKS,
            kv: None,
        };
        let ctx = Context::cpu(None).unwrap();
        let decoder = decoder::Decoder::load(&ctx, checkpoint, &options, &mut |_| ());
        Self::Cpu(Box::new(decoder.unwrap_or_else(|e| panic!("{e}"))))
    }

    pub fn device(checkpoint: &Checkpoint, strict: bool, graphs: bool) -> Self {
        let options =
            device::Options { rows: ROWS, logits: ROWS, context: CONTEXT, blocks: BLOCKS, strict, graphs };
        let emulated = Emulated::open(Order::Shuffled, MEMORY);
        let decoder = device::Decoder::load(&emulated, checkpoint, &options, &mut |_| ());
        Self::Device(Box::new(decoder.unwrap_or_else(|e| panic!("{e}"))))
    }

    /// Computes the next rows of some sequences, `(which, how many)`, and returns the logits of the last row of each.
    pub fn step(&mut self, sequences: &mut [Sequence], turns: &[(usize, usize)]) -> Vec<Vec<f32>> {
        self.run(sequences, turns, false)
    }

    /// Computes the next rows of a sequence and returns the logits of all of them.
    pub fn score(&mut self, sequence: &mut Sequence, rows: usize) -> Vec<Vec<f32>> {
        self.run(std::slice::from_mut(sequence), &[(0, rows)], true)
    }

    fn run(&mut self, sequences: &mut [Sequence], turns: &[(usize, usize)], all: bool) -> Vec<Vec<f32>> {
        let mut step = Step::default();
        for (which, rows) in turns {
            let sequence = &mut sequences[*which];
            let end = sequence.done + rows;
            // Each has a quarter of the blocks, in a mixed order.
            let table: Vec<u32> =
                (0..end.div_ceil(16)).map(|i| (which * 16 + (i * 5 + which) % 16) as u32).collect();
            for at in sequence.done..end {
                step.tokens.push(sequence.tokens[at]);
                step.positions.push(at as u32);
                step.slots.push(table[at / 16] * 16 + (at % 16) as u32);
            }
            step.spans.push(Span {
                row: (step.rows() - rows) as u32,
                rows: *rows as u32,
                table: step.tables.len() as u32,
                context: end as u32,
            });
            step.tables.extend(table);
            let end_row = step.rows() as u32;
            step.logits.extend(end_row - if all { *rows as u32 } else { 1 }..end_row);
            sequence.done = end;
        }
        let (logits, vocab) = match self {
            Rig::Cpu(decoder) => {
                let logits = decoder.forward(&step).unwrap_or_else(|e| panic!("{e}"));
                (logits.flatten_all().unwrap().to_vec1().unwrap(), decoder.spec().vocab)
            }
            Rig::Device(decoder) => {
                decoder.forward(&step).unwrap_or_else(|e| panic!("{e}"));
                (decoder.logits().get().unwrap(), decoder.spec().vocab)
            }
        };
        logits.chunks_exact(vocab).take(step.logits.len()).map(<[f32]>::to_vec).collect()
    }
}
