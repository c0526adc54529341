//! Reading the golden data, and driving a decoder over paged keys and values as the engine does.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use hearth_kernels::paged::Span;
use hearth_kernels::{Context, Quantize};
use hearth_models::checkpoint::Checkpoint;
use hearth_models::decoder::{Decoder, Options};
use hearth_models::layout::Layout;
use hearth_models::spec::Spec;
use hearth_models::step::Step;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

pub fn names() -> Vec<String> {
    let entries = folder("").read_dir().unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&folder(name)).unwrap_or_else(|e| panic!("{e}"))
}

/// The checkpoint with all weights widened to f32, which is exact, in one file.
pub fn widened(name: &str) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(name);
    let wide: Vec<(String, Vec<usize>, Vec<u8>)> = checkpoint
        .layout()
        .parts()
        .map(|part| {
            let slice = checkpoint.tensor(&part.name).unwrap();
            let wide =
                slice.bytes.chunks_exact(slice.dtype.size_in_bytes()).flat_map(|b| match slice.dtype {
                    DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes(),
                    DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes(),
                    _ => b.try_into().unwrap(),
                });
            (part.name.clone(), slice.shape.to_vec(), wide.collect())
        })
        .collect();
    let views = wide.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    for file in ["config.json", "generation_config.json"] {
        fs::copy(folder(name).join(file), dir.path().join(file)).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    (dir, checkpoint)
}

/// A checkpoint of any config.json with random weights in f32, scaled so that activations stay near one.
pub fn random(config: &serde_json::Value) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::from_config(config).unwrap();
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
            let values = (0..part.elements()).map(|_| gain.map_or(1.0, |gain| gain * draw()));
            (part.name.clone(), part.shape(), values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    (dir, checkpoint)
}

/// What the reference says of one prompt and its greedy continuation.
pub struct Case {
    pub tokens: Vec<u32>,
    pub prompt: usize,
    pub argmax: Vec<u32>,
    pub margin: Vec<f32>,
    pub rows: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
    /// Per layer and position; empty without experts.
    pub router: Vec<Vec<f32>>,
}

pub struct Golden {
    tensors: HashMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Golden {
    pub fn read(name: &str) -> Golden {
        let bytes = fs::read(folder(name).join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| {
            let bytes = match view.dtype() {
                Dtype::BF16 => {
                    let wide =
                        view.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32());
                    wide.flat_map(f32::to_le_bytes).collect()
                }
                _ => view.data().to_vec(),
            };
            (name.to_owned(), (view.shape().to_vec(), bytes))
        });
        Golden { tensors: tensors.collect() }
    }

    pub fn batch(&self) -> usize {
        (0..).take_while(|i| self.tensors.contains_key(&format!("batch.{i}.tokens"))).count()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors[name].1.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ints(&self, name: &str) -> Vec<u32> {
        self.tensors[name].1.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn matrix(&self, name: &str) -> Vec<Vec<f32>> {
        let Some((shape, _)) = self.tensors.get(name) else { return Vec::new() };
        self.floats(name).chunks(shape[1]).map(<[f32]>::to_vec).collect()
    }

    pub fn case(&self, case: &str) -> Case {
        let of = |what: &str| format!("{case}.{what}");
        Case {
            tokens: self.ints(&of("tokens")),
            prompt: self.ints(&of("prompt"))[0] as usize,
            argmax: self.ints(&of("argmax")),
            margin: self.floats(&of("margin")),
            rows: self.ints(&of("rows")).iter().map(|row| *row as usize).collect(),
            logits: self.matrix(&of("logits")),
            router: self.matrix(&of("router")),
        }
    }

    /// How far transformers itself is from its f32 when it computes in the checkpoint's type.
    pub fn half_error(&self) -> f32 {
        let errors = self.matrix("long.half").into_iter().zip(self.matrix("long.logits"));
        errors.map(|(half, full)| relative(&half, &full)).fold(0.0, f32::max)
    }
}

/// Norm of the difference over the norm of the reference.
pub fn relative(got: &[f32], wanted: &[f32]) -> f32 {
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let apart = norm(&mut got.iter().zip(wanted).map(|(a, b)| a - b));
    (apart / norm(&mut wanted.iter().copied())) as f32
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A decoder with blocks for a few sequences. Blocks of a sequence are scattered, so that nothing rests on their order.
pub struct Rig {
    pub decoder: Decoder,
    pub block: usize,
}

pub const BLOCKS: usize = 96;

impl Rig {
    pub fn new(checkpoint: &Checkpoint, quantize: Option<Quantize>) -> Rig {
        let context = checkpoint.spec().context.min(1536);
        let options = Options { quantize, rows: 256, logits: 256, context, blocks: BLOCKS, kv: None };
        let ctx = Context::cpu(None).unwrap();
        let decoder =
            Decoder::load(&ctx, checkpoint, &options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
        let block = decoder.block_size();
        Rig { decoder, block }
    }

    /// Adds rows of a sequence to a step. Its blocks are those from `first` on, in a scattered order.
    fn push(&self, step: &mut Step, tokens: &[u32], done: usize, first: usize) {
        let count = (done + tokens.len()).div_ceil(self.block);
        let table: Vec<u32> = (0..count).map(|i| ((first + i) * 37 % BLOCKS) as u32).collect();
        self.rows(step, tokens, done, &table);
    }

    /// Adds rows of a sequence whose first `done` positions are in the blocks of `table` already.
    pub fn rows(&self, step: &mut Step, tokens: &[u32], done: usize, table: &[u32]) {
        let context = done + tokens.len();
        let span = Span {
            row: step.tokens.len() as u32,
            rows: tokens.len() as u32,
            table: step.tables.len() as u32,
            context: context as u32,
        };
        step.spans.push(span);
        step.tables.extend(&table[..context.div_ceil(self.block)]);
        for (position, token) in (done..).zip(tokens) {
            let block = table[position / self.block] as usize;
            step.tokens.push(*token);
            step.positions.push(position as u32);
            step.slots.push((block * self.block + position % self.block) as u32);
        }
    }

    pub fn logits(&mut self, step: &Step) -> Vec<Vec<f32>> {
        let rows = step.logits.len();
        let logits: &Tensor = self.decoder.forward(step).unwrap_or_else(|e| panic!("{e}"));
        logits.narrow(0, 0, rows).unwrap().to_vec2().unwrap()
    }

    /// One sequence alone, in chunks; the logits of all positions.
    pub fn run(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        for part in tokens.chunks(chunk) {
            let mut step = Step::default();
            self.push(&mut step, part, all.len(), 0);
            step.logits = (0..part.len() as u32).collect();
            all.extend(self.logits(&step));
        }
        all
    }

    /// The prompt at once, then one token after another, each the best of the logits before.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut known = prompt.to_vec();
        let mut done = 0;
        while known.len() < prompt.len() + count {
            let mut step = Step::default();
            self.push(&mut step, &known[done..], done, 0);
            step.logits.push(step.rows() as u32 - 1);
            done = known.len();
            known.push(argmax(&self.logits(&step)[0]));
        }
        known.split_off(prompt.len())
    }

    /// All sequences in the same steps: first everything but the last `tail` tokens of each, then these one by one. Per
    /// sequence the positions whose logits were asked for, and these.
    pub fn together(&mut self, sequences: &[Vec<u32>], tail: usize) -> Vec<Vec<(usize, Vec<f32>)>> {
        let mut out = vec![Vec::new(); sequences.len()];
        let mut done = vec![0; sequences.len()];
        for round in 0..=tail {
            let mut step = Step::default();
            let mut first = 0;
            for (sequence, done) in sequences.iter().zip(&mut done) {
                let end = sequence.len() - tail + round;
                self.push(&mut step, &sequence[*done..end], *done, first);
                step.logits.push(step.rows() as u32 - 1);
                *done = end;
                first += sequence.len().div_ceil(self.block);
            }
            assert!(first <= BLOCKS);
            for ((out, logits), done) in out.iter_mut().zip(self.logits(&step)).zip(&done) {
                out.push((done - 1, logits));
            }
        }
        out
    }
}
