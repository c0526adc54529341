//! Is it right? Products at the shapes of the supported models against f64, and the decoder against the CPU's.
//!
//! Predicted: nothing is wrong. Sums of f32 in any order stay below 1e-6 of a row's norm, 1e-5 is the limit; gated outputs
//! are rounded to bf16, at most 2^-8, the limit is 4e-3; logits 2e-3 to 6e-3 beside those of the CPU as in emulation (queries,
//! probabilities and inputs of products have 8 bits), the limit is 1e-2. Bits that must be equal are equal.
//!
//! Weights are made on the device; a sample of rows and columns is made anew on the host, so a product of 1.5 GB of weight
//! is checked as fast as a small one. Of each row of the sample every number is looked at for its bits.

use std::collections::HashMap;

use half::bf16;
use hearth_kernels::Activation;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::DeviceError;
use hearth_kernels::cuda::hopper::Hopper;
use hearth_kernels::cuda::product::{Finish, Product, gate_row};
use hearth_kernels::cuda::skinny::{Class, MAX_ROWS, Skinny};
use hearth_kernels::cuda::stream::number;
use hearth_kernels::cuda::weightonly::Format;
use hearth_models::device::{KvType, Options};
use serde_json::{Value, json};

use crate::Failure;
use crate::device::Bench;
use crate::{experts, grouped, shapes};

#[path = "../../tests/device/rig.rs"]
#[allow(dead_code)] // what the tests are driven by
pub mod rig;

use rig::{Apart, FAMILIES, FP8, Family, Rig, bits, checkpoint, compare, schedule, sequences};

/// Steps of so many rows, of which fewer are there.
const BUCKETS: [usize; 10] = [1, 8, 16, 17, 32, 64, 65, 128, 256, 2048];
/// Outputs are made for at most so many numbers: heads get no prompts.
const MOST_OUTPUTS: usize = 1 << 28;
/// Partial tiles and rounds, with and without a turn of gates.
const RAGGED: [(usize, usize); 5] = [(48, 2056), (200, 72), (336, 136), (1040, 520), (16, 8)];
/// For the kernels of few rows alone: any number of outputs.
const RAGGED_FEW: [(usize, usize); 3] = [(37, 2056), (5, 8), (1027, 264)];

/// How often steps of chained launches are compared, enqueued and captured.
const CHAINED_ROUNDS: usize = 50;

const X_SEED: u32 = 900;
const W_SEED: u32 = 17;
/// What the residual holds before.
const BEFORE: f32 = 0.375;
/// Columns are sampled in turns of gate and up.
const TURN: usize = 16;

pub fn run(bench: &Bench) -> Result<Value, Failure> {
    let products = products(bench)?;
    let grouped = grouped::right(bench)?;
    let decoders = decoders(bench)?;
    let packed = packed(bench)?;
    let experts = experts::run(bench)?;
    let parts = [&products, &grouped, &decoders, &packed, &experts];
    let right = parts.iter().all(|part| part["wrong"] == json!([]));
    println!("verdict: {}", if right { "right" } else { "WRONG" });
    Ok(json!({
        "right": right, "products": products, "grouped": grouped, "decoders": decoders, "packed": packed,
        "experts": experts,
    }))
}

/// The shapes of the products of all models, and those with ragged edges.
fn all_shapes(bench: &Bench) -> Result<Vec<(usize, usize)>, Failure> {
    let mut all: Vec<(usize, usize)> = RAGGED.to_vec();
    if !bench.quick && !bench.is_emulated {
        for name in shapes::NAMES {
            let spec = shapes::shape(name)?;
            let (hidden, query, key, ffn) = (spec.hidden, spec.query_width(), spec.key_width(), spec.ffn);
            all.extend([(query + 2 * key, hidden), (hidden, query), (2 * ffn, hidden), (hidden, ffn)]);
            all.push((spec.vocab, hidden));
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn products(bench: &Bench) -> Result<Value, Failure> {
    let device = &bench.device;
    let kernels = Kernels {
        skinny: Skinny::load(device)?,
        product: Product::load(device)?,
        hopper: Hopper::load(device)?,
    };
    let mut check = Check { launches: 0, rows: 0, worst: [0.0; 2], wrong: Vec::new() };
    if let Some(hopper) = &kernels.hopper
        && let Some(differs) = hopper.check(&kernels.product)?
    {
        check.fail(differs.to_string());
    }
    let shapes = all_shapes(bench)?;
    for (i, shape) in shapes.iter().enumerate() {
        Case::new(bench, *shape, i % 2 == 0)?.run(&kernels, &mut check)?;
    }
    for (i, shape) in RAGGED_FEW.into_iter().enumerate() {
        Case::new(bench, shape, i % 2 == 0)?.few(&kernels.skinny, &mut check)?;
    }
    let Check { launches, rows, worst: [plain, gated], wrong } = check;
    println!(
        "products: {} shapes, {launches} launches, {rows} rows looked at, worst {plain:.1e}, gated {gated:.1e}, {} wrong",
        shapes.len() + RAGGED_FEW.len(),
        wrong.len()
    );
    Ok(json!({
        "shapes": shapes.len() + RAGGED_FEW.len(), "launches": launches, "rows": rows, "worst": plain,
        "worst_gated": gated, "wrong": wrong,
    }))
}

struct Kernels {
    skinny: Skinny,
    product: Product,
    hopper: Option<Hopper>,
}

/// What was found so far.
struct Check {
    launches: usize,
    rows: usize,
    /// Of sums, and of gated outputs.
    worst: [f64; 2],
    wrong: Vec<String>,
}

impl Check {
    fn fail(&mut self, what: String) {
        println!("WRONG: {what}");
        self.wrong.push(what);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    Set,
    Add,
    Silu,
    Gelu,
}

impl End {
    const ALL: [End; 4] = [End::Set, End::Add, End::Silu, End::Gelu];

    pub fn activation(self) -> Option<Activation> {
        match self {
            End::Set | End::Add => None,
            End::Silu => Some(Activation::Silu),
            End::Gelu => Some(Activation::GeluTanh),
        }
    }
}

/// One weight, its inputs, and the sums of a sample.
struct Case {
    shape: (usize, usize),
    x: Buffer<bf16>,
    w: Buffer<bf16>,
    bias: Option<Buffer<f32>>,
    sums: Buffer<f32>,
    gated: Buffer<bf16>,
    count: Buffer<u32>,
    buckets: Vec<usize>,
    /// Rows whose numbers are looked at, ascending.
    rows: Vec<usize>,
    /// Where turns of the sampled columns begin.
    turns: Vec<usize>,
    /// By row and turn of the sample.
    wanted: HashMap<(usize, usize), [f64; TURN]>,
    /// Bits of a row by class and end, as they first were.
    first: HashMap<(&'static str, End, usize), Vec<u32>>,
}

impl Case {
    fn new(bench: &Bench, (n, k): (usize, usize), has_bias: bool) -> Result<Self, Failure> {
        let device = &bench.device;
        let most = if bench.is_emulated { 65 } else { 2048 };
        let fits = |bucket: &usize| *bucket <= most && bucket * n <= MOST_OUTPUTS;
        let buckets: Vec<usize> = BUCKETS.into_iter().filter(fits).collect();
        let bucket = buckets.iter().max().expect("bug: one row always fits").max(&MAX_ROWS);
        let scale = (3.0 / k as f32).sqrt();
        let (x, w) = (Buffer::new(device, bucket * k)?, Buffer::new(device, n * k)?);
        bench.stream.fill(&x, X_SEED, 1.0)?;
        bench.stream.fill(&w, W_SEED, scale)?;
        let bias: Vec<f32> = (0..n).map(bias_of).collect();
        let bias = has_bias.then(|| Buffer::of(device, &bias)).transpose()?;

        let mut rows = vec![0, 1, 6, 7, 13, 15, 31, 50, 62, 63, 100, 127, 201, 255, 1000, 1700, 2047];
        rows.retain(|row| row < bucket);
        let turn_count = n.div_ceil(TURN);
        // First and last, and two in between that differ from shape to shape.
        let mut turns: Vec<usize> = [0, turn_count / 3 + k % 7, turn_count * 2 / 3 + n % 5, turn_count - 1]
            .into_iter()
            .map(|turn| turn.min(turn_count - 1) * TURN)
            .collect();
        turns.dedup();
        let mut wanted = HashMap::new();
        for turn in &turns {
            let columns: Vec<Vec<f64>> = (*turn..n.min(turn + TURN))
                .map(|j| (0..k).map(|i| number((j * k + i) as u32, W_SEED, scale).to_f64()).collect())
                .collect();
            for row in &rows {
                let x: Vec<f64> =
                    (0..k).map(|i| number((row * k + i) as u32, X_SEED, 1.0).to_f64()).collect();
                let mut sums = [0.0; TURN];
                for (j, (sum, column)) in sums.iter_mut().zip(&columns).enumerate() {
                    *sum = x.iter().zip(column).map(|(x, w)| x * w).sum::<f64>();
                    *sum += if has_bias { f64::from(bias_of(turn + j)) } else { 0.0 };
                }
                wanted.insert((*row, *turn), sums);
            }
        }
        Ok(Self {
            shape: (n, k),
            x,
            w,
            bias,
            sums: Buffer::new(device, bucket * n)?,
            gated: Buffer::new(device, bucket * n / 2 + 1)?,
            count: Buffer::of(device, &[0])?,
            buckets,
            rows,
            turns,
            wanted,
            first: HashMap::new(),
        })
    }

    fn ends(&self) -> impl Iterator<Item = End> + use<> {
        let turns = self.shape.0.is_multiple_of(TURN);
        End::ALL.into_iter().filter(move |end| turns || end.activation().is_none())
    }

    fn run(&mut self, kernels: &Kernels, check: &mut Check) -> Result<(), Failure> {
        let Kernels { skinny, product, hopper } = kernels;
        self.few(skinny, check)?;
        for bucket in self.buckets.clone() {
            // Fewer rows than the launch is for, unless it is for one.
            let rows = bucket - bucket / 5;
            for end in self.ends() {
                self.count.put(0, &[rows as u32])?;
                self.poison(rows, end)?;
                let Self { x, w, bias, .. } = &*self;
                product.launch(bucket, &self.count, x, w, self.shape, bias.as_ref(), self.finish(end))?;
                self.look("product", bucket, rows, end, check)?;
                let Some(hopper) = hopper.as_ref().filter(|hopper| hopper.takes(bucket, self.shape.0)) else {
                    continue;
                };
                self.poison(rows, end)?;
                let Self { x, w, bias, .. } = &*self;
                hopper.launch(bucket, &self.count, x, w, self.shape, bias.as_ref(), self.finish(end))?;
                self.look("hopper", bucket, rows, end, check)?;
            }
        }
        Ok(())
    }

    fn few(&mut self, skinny: &Skinny, check: &mut Check) -> Result<(), Failure> {
        for class in Class::ALL {
            for m in 1..=MAX_ROWS {
                for end in self.ends() {
                    self.poison(m, end)?;
                    let (n, k) = self.shape;
                    let Self { x, w, bias, .. } = &*self;
                    skinny.finish(class, (m, n, k), x, w, bias.as_ref(), self.finish(end))?;
                    self.look(class.name(), m, m, end, check)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self, end: End) -> Finish<'_> {
        match end.activation() {
            None if end == End::Add => Finish::Add(&self.sums),
            None => Finish::Set(&self.sums),
            Some(activation) => Finish::Gate(activation, &self.gated),
        }
    }

    /// Those of the sample that are among the first `rows`.
    fn sample(&self, rows: usize) -> Vec<usize> {
        self.rows.iter().copied().filter(|row| *row < rows).collect()
    }

    /// NaN where rows of the sample are to be written, or what is to be added to.
    fn poison(&self, rows: usize, end: End) -> Result<(), DeviceError> {
        let n = self.shape.0;
        for row in self.sample(rows) {
            match end.activation() {
                None => {
                    let value = if end == End::Add { BEFORE } else { f32::NAN };
                    self.sums.part(row * n, n).put(0, &vec![value; n])?;
                }
                Some(_) => self.gated.part(row * n / 2, n / 2).put(0, &vec![bf16::NAN; n / 2])?,
            }
        }
        Ok(())
    }

    fn look(
        &mut self,
        class: &'static str,
        bucket: usize,
        rows: usize,
        end: End,
        check: &mut Check,
    ) -> Result<(), Failure> {
        let n = self.shape.0;
        check.launches += 1;
        for row in self.sample(rows) {
            let got: Vec<f32> = match end.activation() {
                None => self.sums.part(row * n, n).get()?,
                Some(_) => self.gated.part(row * n / 2, n / 2).get()?.iter().map(|v| v.to_f32()).collect(),
            };
            check.rows += 1;
            let what = || format!("{:?} {class} {end:?}, row {row} of {bucket}", self.shape);
            if got.iter().any(|value| !value.is_finite()) {
                check.fail(format!("{}: not every number was written", what()));
                continue;
            }
            let apart = self.apart(row, end, &got);
            let gated = end.activation().is_some();
            let worst = &mut check.worst[usize::from(gated)];
            *worst = worst.max(apart);
            if apart.is_nan() || apart >= if gated { 4e-3 } else { 1e-5 } {
                check.fail(format!("{}: {apart:.1e} off", what()));
            }
            let got = bits(&got);
            let is_same = match self.first.get(&(class, end, row)) {
                Some(first) => *first == got,
                None => {
                    self.first.insert((class, end, row), got);
                    true
                }
            };
            if !is_same {
                check.fail(format!(
                    "{:?} {class} {end:?}, row {row} of {bucket}: other bits than before",
                    self.shape
                ));
            }
        }
        Ok(())
    }

    /// Norm of the sample's errors over the norm of what is wanted.
    fn apart(&self, row: usize, end: End, got: &[f32]) -> f64 {
        let n = self.shape.0;
        let (mut off, mut size) = (0.0, 0.0);
        let mut add = |got: f32, wanted: f64| {
            off += (f64::from(got) - wanted).powi(2);
            size += wanted.powi(2);
        };
        for turn in &self.turns {
            let sums = &self.wanted[&(row, *turn)];
            match end.activation() {
                None => {
                    let before = if end == End::Add { f64::from(BEFORE) } else { 0.0 };
                    (*turn..n.min(turn + TURN)).for_each(|j| add(got[j], sums[j - turn] + before));
                }
                Some(activation) => (turn / 2..turn / 2 + TURN / 2).for_each(|j| {
                    let (gate, up) = gate_row(j);
                    add(got[j], bend(activation, sums[gate - turn]) * sums[up - turn]);
                }),
            }
        }
        (off / size).sqrt()
    }
}

fn bias_of(j: usize) -> f32 {
    number(j as u32, 5, 0.5).to_f32()
}

pub fn bend(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

/// Small checkpoints with the heads of every family, through mixed steps.
fn decoders(bench: &Bench) -> Result<Value, Failure> {
    let families = if bench.quick { &[FAMILIES[0], FAMILIES[8]][..] } else { &FAMILIES[..] };
    let mut wrong = Vec::new();
    let mut rows = Vec::new();
    for family in families {
        let (_dir, checkpoint) = checkpoint(*family);
        let options = |strict, graphs| Options { strict, graphs, ..rig::OPTIONS };
        let device = |strict, graphs| Rig::on(&bench.device, &checkpoint, options(strict, graphs));
        let apart = compare(&mut device(false, true), &mut Rig::cpu(&checkpoint));
        let captured = same_captured(&mut device(false, true), &mut device(false, false));
        let alone = same_alone(&mut device(true, true), &mut device(true, true));
        let chained = same_chained(&mut device(false, true))?;
        let is_right = apart.is_near() && captured && alone && chained != Some(false);
        let said = |same| if same { "the same bits" } else { "OTHER BITS" };
        let name = family.0;
        println!(
            "decoder {name:<20} {apart}, captured {}, alone {}, chained {}{}",
            said(captured),
            said(alone),
            chained.map_or("not here", said),
            if is_right { "" } else { ": WRONG" }
        );
        if !is_right {
            wrong.push(name);
        }
        rows.push(decoder_json(family, &apart, (captured, alone), chained));
    }
    Ok(json!({ "families": rows, "wrong": wrong }))
}

fn decoder_json(
    (name, q, kv, dim): &Family,
    apart: &Apart,
    (captured, alone): (bool, bool),
    chained: Option<bool>,
) -> Value {
    let worst = apart.worst.is_finite().then_some(apart.worst);
    json!({
        "family": name, "query_heads": q, "key_heads": kv, "head_dim": dim, "rows": apart.rows, "worst": worst,
        "strays": apart.strays,
        "captured_is_eager": captured, "alone_is_batch": alone, "chained_is_plain": chained,
    })
}

/// Whether captured steps give the bits of steps that are enqueued: enqueued the first time, captured the second, replayed
/// the third.
fn same_captured(captured: &mut Rig, eager: &mut Rig) -> bool {
    let (mut here, mut there) = (sequences(), sequences());
    let mut same = true;
    for _ in 0..3 {
        for turns in schedule() {
            let (here, there) = (captured.step(&mut here, &turns), eager.step(&mut there, &turns));
            same &= here.iter().zip(&there).all(|(here, there)| bits(here) == bits(there));
        }
        here.iter_mut().chain(&mut there).for_each(rig::Sequence::begin_anew);
    }
    same
}

/// Whether chained launches give the bits of launches that wait for one another, many times over; none where the device
/// has none. Where they differ the device chains no more.
fn same_chained(rig: &mut Rig) -> Result<Option<bool>, Failure> {
    let Rig::Device(decoder) = rig else { return Ok(None) };
    if let Some(differs) = decoder.unchained() {
        println!("{differs}");
        return Ok(Some(false));
    }
    if !decoder.device().chains() {
        return Ok(None);
    }
    let differs = decoder.check_chain(CHAINED_ROUNDS)?;
    differs.iter().for_each(|differs| println!("{differs}"));
    Ok(Some(differs.is_none()))
}

/// Packed weights against the same weights widened beforehand: near where few rows stream them, the same bits where all
/// rows take the tensor cores. Then keys and values in fp8.
fn packed(bench: &Bench) -> Result<Value, Failure> {
    let mut wrong = Vec::new();
    let formats = if bench.quick { &[Format::Int4][..] } else { &Format::ALL[..] };
    let of = |family: Family| formats.iter().map(move |format| (family, *format));
    let experts = of(FAMILIES[8]);
    for (family, format) in of(FAMILIES[0]).chain(experts) {
        // Blocks of 256 numbers want widths that divide into them.
        let (dir, checkpoint) = if format.blocks().is_some() { rig::wide() } else { checkpoint(family) };
        let (_other, widened) = rig::widened(&checkpoint, dir.path(), format);
        let packed = |strict| {
            let options = Options { quantize: Some(format), strict, ..rig::OPTIONS };
            Rig::on(&bench.device, &checkpoint, options)
        };
        let wide = |strict| Rig::on(&bench.device, &widened, Options { strict, ..rig::OPTIONS });
        let apart = compare(&mut packed(false), &mut wide(false));
        let same = same_captured(&mut packed(true), &mut wide(true));
        let is_right = apart.is_near() && same;
        println!(
            "packed {:<20} {:<8} {apart}, strict {}{}",
            family.0,
            format.title(),
            if same { "the same bits" } else { "OTHER BITS" },
            if is_right { "" } else { ": WRONG" }
        );
        if !is_right {
            wrong.push(format!("{} {}", family.0, format.title()));
        }
    }
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let fp8 =
        |strict| Rig::on(&bench.device, &checkpoint, Options { kv: KvType::Fp8, strict, ..rig::OPTIONS });
    let apart = compare(&mut fp8(false), &mut Rig::cpu(&checkpoint));
    let same = same_alone(&mut fp8(true), &mut fp8(true));
    let is_right = apart.worst < FP8 && same;
    println!("keys and values in fp8: {apart}{}", if is_right { "" } else { ": WRONG" });
    if !is_right {
        wrong.push("keys and values in fp8".to_owned());
    }
    Ok(json!({ "wrong": wrong }))
}

/// Whether a row has the same bits beside others as alone.
fn same_alone(batch: &mut Rig, alone: &mut Rig) -> bool {
    let (mut together, mut apart) = (sequences(), sequences());
    let mut same = true;
    for turns in schedule() {
        let rows = batch.step(&mut together, &turns);
        for (turn, row) in turns.iter().zip(rows) {
            same &= bits(&alone.step(&mut apart, &[*turn])[0]) == bits(&row);
        }
    }
    same
}
