//! Small checkpoints with heads of the true size, and both decoders driven over scattered pages as the engine does.

use std::path::Path;
use std::{fmt, fs};

use half::{bf16, f16};
use hearth_kernels::Context;
use hearth_kernels::cuda::driver::Device;
use hearth_kernels::cuda::weightonly::{Format, Packed};
use hearth_kernels::paged::Span;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::layout::{Layout, Part, Role};
use hearth_models::spec::Spec;
use hearth_models::step::Step;
use hearth_models::{decoder, device};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const BLOCKS: usize = 64;
const ROWS: usize = 64;
const CONTEXT: usize = 256;

/// What a device's decoder is made for.
pub const OPTIONS: device::Options = device::Options {
    quantize: None,
    kv: device::KvType::Bf16,
    rows: ROWS,
    logits: ROWS,
    context: CONTEXT,
    blocks: BLOCKS,
    strict: false,
    graphs: true,
};

/// A checkpoint of the golden data, and what of it is changed: query heads, heads of keys, size of a head. Width and
/// vocabulary stay small; what a head's kernels see is as large as in the real model.
pub type Family = (&'static str, usize, usize, usize);

pub const FAMILIES: [Family; 9] = [
    ("mistral-v0.3", 8, 2, 128),
    ("mistral-v0.1", 4, 1, 128),
    ("codestral-v0.1", 6, 1, 128),
    ("deepseek-coder-33b", 7, 1, 128),
    ("codellama-13b", 2, 2, 128),
    ("codegemma-2b", 8, 1, 256),
    ("codegemma-7b", 2, 2, 256),
    ("qwen2.5-coder-7b", 7, 1, 64),
    ("mixtral-8x7b-v0.1", 8, 2, 128),
];

/// The norm of an error over the norm of a row: queries, probabilities and what goes into products have 8 bits.
pub const HALF: f32 = 1e-2;

/// Keys and values with four significant bits: a twenty-fifth of each is lost on the average, in all layers, and what
/// softmax and sums over positions leave of it.
pub const FP8: f32 = 0.05;

/// A golden checkpoint's config.json, in the program: what measures a GPU has no tree beside it.
fn config(name: &str) -> &'static str {
    macro_rules! golden {
        ($($name:literal)*) => {
            match name {
                $($name => include_str!(concat!("../../../tests/golden/checkpoints/", $name, "/config.json")),)*
                _ => panic!("bug: no family {name}"),
            }
        };
    }
    golden!(
        "mistral-v0.3" "mistral-v0.1" "codestral-v0.1" "deepseek-coder-33b" "codellama-13b" "codegemma-2b"
        "codegemma-7b" "qwen2.5-coder-7b" "mixtral-8x7b-v0.1"
    )
}

/// A golden checkpoint's config with other heads, and random weights in bf16, scaled so that activations stay near one.
pub fn checkpoint(family: Family) -> (tempfile::TempDir, Checkpoint) {
    altered(family, &[])
}

/// One all of whose widths divide into blocks of 256 numbers.
pub fn wide() -> (tempfile::TempDir, Checkpoint) {
    of_widths(FAMILIES[0], 256, 512)
}

/// The same with other widths of its residual stream and its MLP.
pub fn of_widths(family: Family, hidden: usize, ffn: usize) -> (tempfile::TempDir, Checkpoint) {
    altered(family, &[("hidden_size", hidden.into()), ("intermediate_size", ffn.into())])
}

/// The same with other values of its config.
pub fn altered(
    (name, heads, kv, dim): Family,
    values: &[(&str, serde_json::Value)],
) -> (tempfile::TempDir, Checkpoint) {
    let mut config: serde_json::Value = serde_json::from_str(config(name)).unwrap();
    config["num_attention_heads"] = heads.into();
    config["num_key_value_heads"] = kv.into();
    // Some families say the size of a head, others have it from the width.
    if name.starts_with("qwen") {
        config["hidden_size"] = (heads * dim).into();
    } else {
        config["head_dim"] = dim.into();
    }
    config["torch_dtype"] = "bfloat16".into();
    values.iter().for_each(|(key, value)| config[*key] = value.clone());
    let spec = Spec::from_config(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    write(&config, &spec, Dtype::BF16, &mut |part| {
        let embedding = part.name.ends_with("embed_tokens.weight");
        let gain = part.cols.map(|cols| (12.0 / if embedding { 1.0 } else { cols as f32 }).sqrt());
        // Biases of which no two neighbours are the same, so that it matters whose they are.
        let is_bias = part.name.ends_with("bias");
        let vector = |i: u64| if is_bias { (4 + i * 7 % 13) as f32 / 100.0 } else { 1.0 };
        let values = (0..part.elements()).map(|i| gain.map_or_else(|| vector(i), |gain| gain * draw()));
        values.map(|value| bf16::from_f32(value).to_f32()).collect()
    })
}

/// The config.json of a checkpoint's directory.
fn config_of(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// A tensor of a checkpoint of bf16.
fn numbers(from: &Checkpoint, part: &Part) -> Vec<f32> {
    let bytes = from.tensor(&part.name).unwrap().bytes;
    bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
}

/// The numbers of another checkpoint, and a little more than bf16 holds, in another type; and what bf16 makes of them.
pub fn stored(from: &Checkpoint, dir: &Path, dtype: Dtype) -> [(tempfile::TempDir, Checkpoint); 2] {
    let fine = |part: &Part| -> Vec<f32> {
        let wide = numbers(from, part);
        let more = wide.iter().enumerate().map(|(i, v)| v * (1.0 + (i % 7) as f32 / 2048.0));
        more.map(|v| if dtype == Dtype::F16 { f16::from_f32(v).to_f32() } else { v }).collect()
    };
    // Norms and biases stay f32 on the device.
    let rounded = |part: &Part| match part.cols {
        Some(_) => fine(part),
        None => numbers(from, part),
    };
    [dtype, Dtype::BF16].map(|dtype| write(&config_of(dir), from.spec(), dtype, &mut |part| rounded(part)))
}

/// A checkpoint whose linear weights are what those of another are once they were packed and widened again.
pub fn widened(from: &Checkpoint, dir: &Path, format: Format) -> (tempfile::TempDir, Checkpoint) {
    let linear: Vec<String> = from
        .layout()
        .blocks()
        .filter(|block| block.role == Role::Linear)
        .flat_map(|block| block.parts.iter().map(|part| part.name.clone()))
        .collect();
    write(&config_of(dir), from.spec(), Dtype::BF16, &mut |part| {
        let wide = numbers(from, part);
        if !linear.contains(&part.name) || part.cols.is_none_or(|k| !format.takes(k)) {
            return wide;
        }
        let (n, k) = (part.rows, part.cols.unwrap());
        let packed = Packed::of(format, (n, k), &wide);
        (0..n * k).map(|i| packed.number(i / k, i % k)).collect()
    })
}

/// A checkpoint of some type with what `numbers` says of each tensor.
fn write(
    config: &serde_json::Value,
    spec: &Spec,
    dtype: Dtype,
    numbers: &mut dyn FnMut(&Part) -> Vec<f32>,
) -> (tempfile::TempDir, Checkpoint) {
    let mut bytes = |part: &Part| -> Vec<u8> {
        let values = numbers(part).into_iter();
        match dtype {
            Dtype::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        }
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        Layout::of(spec).parts().map(|part| (part.name.clone(), part.shape(), bytes(part))).collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    (dir, checkpoint)
}

/// Two prompts in chunks, one of them after the other began to decode, and a third that is a single token.
pub fn schedule() -> Vec<Vec<(usize, usize)>> {
    vec![
        vec![(0, 19)],
        vec![(0, 30), (1, 7)],
        vec![(0, 1), (1, 33), (2, 1)],
        vec![(0, 1), (1, 1), (2, 1)],
        vec![(2, 1), (1, 1)],
        vec![(0, 1), (1, 1), (2, 17)],
    ]
}

/// What the schedule is about.
pub fn sequences() -> Vec<Sequence> {
    (0..3).map(|of| Sequence::new((0..64).map(|i| ((3 + i * 7 + of * 31) % 300) as u32).collect())).collect()
}

/// How far the rows of a schedule are from the reference's.
#[derive(Debug, Default)]
pub struct Apart {
    pub rows: usize,
    /// Of the rows that are no strays.
    pub worst: f32,
    /// Rows of a mixture that another expert spoke in, or in a row before: where a router's near tie falls the other way.
    pub strays: usize,
}

impl Apart {
    /// Looks at one more row.
    pub fn add(&mut self, got: &[f32], wanted: &[f32], is_mixture: bool) {
        let is_finite = got.iter().all(|logit| logit.is_finite());
        let apart = if is_finite { relative(got, wanted) } else { f32::NAN };
        let apart = if apart.is_nan() { f32::INFINITY } else { apart };
        self.rows += 1;
        if is_mixture && (HALF..5.0 * HALF).contains(&apart) {
            self.strays += 1;
        } else {
            self.worst = self.worst.max(apart);
        }
    }

    pub fn is_near(&self) -> bool {
        self.worst < HALF && 3 * self.strays <= self.rows
    }
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, worst, strays } = self;
        write!(f, "{rows} rows, worst {worst:.1e}")?;
        if *strays > 0 { write!(f, ", {strays} after another expert") } else { Ok(()) }
    }
}

/// Both through the schedule, from the beginning. Something that is no number counts as endlessly far.
pub fn compare(device: &mut Rig, reference: &mut Rig) -> Apart {
    let (mut here, mut there) = (sequences(), sequences());
    let mut all = Apart::default();
    for turns in schedule() {
        let wanted = reference.step(&mut here, &turns);
        for (got, wanted) in device.step(&mut there, &turns).iter().zip(&wanted) {
            all.add(got, wanted, device.spec().experts.is_some());
        }
    }
    all
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

    pub fn on(device: &Device, checkpoint: &Checkpoint, options: device::Options) -> Self {
        let decoder = device::Decoder::load(device, checkpoint, &options, &mut |_| ());
        Self::Device(Box::new(decoder.unwrap_or_else(|e| panic!("{e}"))))
    }

    pub fn spec(&self) -> &Spec {
        match self {
            Rig::Cpu(decoder) => decoder.spec(),
            Rig::Device(decoder) => decoder.spec(),
        }
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
                // A rank has those of its part of the vocabulary.
                (decoder.logits().get().unwrap(), decoder.spec().vocab / decoder.shard().of)
            }
        };
        logits.chunks_exact(vocab).take(step.logits.len()).map(<[f32]>::to_vec).collect()
    }
}
