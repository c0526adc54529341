//! Are products of packed experts right? Grouped rows against the bf16 kernels with the weights widened, bit for bit in every
//! tile; few rows against them nearly, and bit for bit beside others and alone.
//!
//! Predicted: nothing is wrong. Few rows multiply with exact numbers times their scale, the widened weight has them rounded:
//! 2e-3 to 4e-3 of a row's norm, the limit is 1e-2.

use half::bf16;
use hearth_kernels::Activation;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::experts::{Experts, Room, Routes, Shape, Stack};
use hearth_kernels::cuda::stream::number;
use hearth_kernels::cuda::weightonly::{Format, Packed, Weight};
use serde_json::{Value, json};

use crate::Failure;
use crate::device::Bench;
use crate::right::rig::{bits, relative};

/// Whole panels, steps and tiles, and a part of each.
const SHAPES: [Shape; 2] = [
    Shape { experts: 8, top_k: 2, width: 1024, ffn: 1792 },
    Shape { experts: 16, top_k: 3, width: 200, ffn: 328 },
];
const TINY: Shape = Shape { experts: 8, top_k: 2, width: 40, ffn: 24 };
const BUCKETS: [usize; 7] = [1, 2, 4, 8, 64, 512, 2048];
const LIMIT: f32 = 1e-2;

/// The weights of all experts, `[n, k]` each: packed, and widened to bf16.
fn stacks(
    bench: &Bench,
    format: Format,
    experts: usize,
    (n, k): (usize, usize),
) -> Result<[Stack; 2], Failure> {
    let scale = (3.0 / k as f32).sqrt();
    let (mut numbers, mut scales, mut wide) = (Vec::new(), Vec::new(), Vec::new());
    for expert in 0..experts {
        let weight: Vec<f32> =
            (0..n * k).map(|i| number(i as u32, 50 + expert as u32, scale).to_f32()).collect();
        let packed = Packed::of(format, (n, k), &weight);
        wide.extend((0..n * k).map(|i| bf16::from_f32(packed.number(i / k, i % k))));
        numbers.extend(packed.numbers);
        scales.extend(packed.scales);
    }
    let (numbers, scales) = (Buffer::of(&bench.device, &numbers)?, Buffer::of(&bench.device, &scales)?);
    let packed = Stack::Packed(Weight { format, n, k, numbers, scales });
    Ok([packed, Stack::Wide(Buffer::of(&bench.device, &wide)?)])
}

pub fn run(bench: &Bench) -> Result<Value, Failure> {
    let (mut wrong, mut worst, mut launches) = (Vec::new(), 0f32, 0);
    let shapes = if bench.is_emulated || bench.quick { &[TINY][..] } else { &SHAPES[..] };
    let most = if bench.is_emulated { 64 } else { 2048 };
    for shape in shapes.iter().copied() {
        for format in Format::ALL {
            let (width, ffn) = (format.whole(shape.width), format.whole(shape.ffn));
            let shape = Shape { width, ffn, ..shape };
            let mut case = Case::new(bench, format, shape, most)?;
            for bucket in BUCKETS.into_iter().filter(|bucket| *bucket <= most) {
                // Fewer rows than the launch is for, unless it is for one.
                let rows = bucket - bucket / 5;
                let what = format!("{} {shape:?}, {rows} rows of {bucket}", format.title());
                let wanted = case.grouped(bucket, rows, false)?;
                let got = case.grouped(bucket, rows, true)?;
                launches += 2;
                if bits(&got) != bits(&wanted) {
                    wrong.push(format!("{what}: other bits than widened"));
                }
                if bucket > case.packed[0].direct_rows(&case.packed[1]) {
                    continue;
                }
                let direct = case.direct(bucket, rows)?;
                let apart = relative(&direct, &wanted);
                worst = worst.max(apart);
                launches += 1;
                if apart.is_nan() || apart >= LIMIT {
                    wrong.push(format!("{what}: {apart:.1e} off"));
                }
                let alone = case.direct(1, 1)?;
                if bits(&alone) != bits(&direct[..shape.width]) {
                    wrong.push(format!("{what}: the first has other bits alone"));
                }
            }
        }
    }
    wrong.iter().for_each(|what| println!("WRONG: {what}"));
    println!("packed experts: {launches} launches, few rows at most {worst:.1e} off, {} wrong", wrong.len());
    Ok(json!({ "launches": launches, "worst": worst, "wrong": wrong }))
}

/// A mixture's layer, packed and widened, and rows for it.
struct Case {
    kernels: Experts,
    shape: Shape,
    routes: Routes,
    /// Gate and up, and down.
    packed: [Stack; 2],
    wide: [Stack; 2],
    x: Buffer<bf16>,
    logits: Buffer<f32>,
    gathered: Buffer<bf16>,
    middle: Buffer<bf16>,
    results: Buffer<f32>,
    residual: Buffer<f32>,
    count: Buffer<u32>,
}

impl Case {
    fn new(bench: &Bench, format: Format, shape: Shape, rows: usize) -> Result<Self, Failure> {
        let (device, Shape { experts, top_k, width, ffn }) = (&bench.device, shape);
        let [gate_up, wide_gate_up] = stacks(bench, format, experts, (2 * ffn, width))?;
        let [down, wide_down] = stacks(bench, format, experts, (width, ffn))?;
        let x = Buffer::new(device, rows * width)?;
        bench.stream.fill(&x, 3, 1.0)?;
        // Nobody goes to the second.
        let logit = |i: usize| if i % experts == 1 { -9.0 } else { number(i as u32, 4, 3.0).to_f32() };
        let logits: Vec<f32> = (0..rows * experts).map(logit).collect();
        let pairs = rows * top_k;
        Ok(Self {
            kernels: Experts::load(device, Some(format))?,
            shape,
            routes: Routes::new(device, shape, rows)?,
            packed: [gate_up, down],
            wide: [wide_gate_up, wide_down],
            x,
            logits: Buffer::of(device, &logits)?,
            gathered: Buffer::new(device, pairs * width)?,
            middle: Buffer::new(device, pairs * ffn)?,
            results: Buffer::new(device, pairs * width)?,
            residual: Buffer::zeros(device, rows * width)?,
            count: Buffer::of(device, &[0])?,
        })
    }

    fn begin(&mut self, bucket: usize, rows: usize) -> Result<(), Failure> {
        self.count.put(0, &[rows as u32])?;
        self.residual.put(0, &vec![0.375; rows * self.shape.width])?;
        Ok(self.kernels.route(bucket, &self.count, &self.logits, true, &self.routes)?)
    }

    /// What the rows' residual is afterwards.
    fn grouped(&mut self, bucket: usize, rows: usize, is_packed: bool) -> Result<Vec<f32>, Failure> {
        self.begin(bucket, rows)?;
        let Self { kernels, routes, x, count, gathered, middle, results, residual, .. } = self;
        let [gate_up, down] = if is_packed { &self.packed } else { &self.wide };
        let room = Room { gathered, middle, results };
        kernels.grouped(bucket, count, routes, x, gate_up, down, Activation::Silu, room, residual)?;
        Ok(self.residual.part(0, rows * self.shape.width).get()?)
    }

    fn direct(&mut self, bucket: usize, rows: usize) -> Result<Vec<f32>, Failure> {
        self.begin(bucket, rows)?;
        let Self { kernels, routes, x, count, middle, residual, .. } = self;
        let [gate_up, down] = &self.packed;
        kernels.direct(bucket, count, routes, x, gate_up, down, Activation::Silu, middle, residual)?;
        Ok(self.residual.part(0, rows * self.shape.width).get()?)
    }
}
