//! Products of rows grouped by expert, each with its expert's weight: are they right, and how fast are they? By the kernels
//! of all generations and by those of Hopper.
//!
//! Predicted for an H200, the experts of Mixtral 8x7B (8 of 28672 x 4096 for gate and up, 8 of 4096 x 14336 for down), rows
//! dealt unevenly, counted without what fills the last tile of an expert:
//!
//! - 4,096 rows (2,048 tokens): 440 to 540 TFLOP/s for gate and up, 390 to 490 for down. Tiles run at the 500 to 620 of dense
//!   products; 8 experts have about 36 tiles of 128 rows where 32 would do (0.89); gate and up are 4,032 tiles of 256
//!   columns, 30.5 rounds of 132 multiprocessors (0.98), down 1,152 of 128 columns, 8.7 rounds (0.97) at 20/22 of the
//!   speed. The products of all generations, whose tiles are as tall: 265 to 355.
//! - 1,024 rows (512 tokens): 310 to 380 and 295 to 365; 12 tiles of rows where 8 would do (0.67). 1.9 GB of weights take
//!   0.44 ms, the product 0.63 to 0.78.
//! - 512 rows: 64 an expert, where the weights' 0.44 and 0.22 ms are the ceiling, 270 TFLOP/s for both, and tiles of
//!   64 rows of the products of all generations are to reach 0.6 to 0.7 of it: the class that steps of such a size take.

use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::DeviceError;
use hearth_kernels::cuda::expert_product::ExpertProduct;
use hearth_kernels::cuda::hopper_experts::HopperExperts;
use hearth_kernels::cuda::product::{Finish, gate_row};
use hearth_kernels::cuda::stream::number;
use serde_json::{Value, json};

use crate::Failure;
use crate::device::Bench;
use crate::right::{End, bend};

/// Experts of Mixtral 8x7B: n and k of gate and up, and of down.
const MIXTRAL: [(&str, usize, usize); 2] = [("gate_up", 28672, 4096), ("down", 4096, 14336)];
/// For the emulated device, and ragged.
const RAGGED: (&str, usize, usize) = ("ragged", 272, 200);
/// Rows of eight experts: some have none or a few, one has most; and all of them but one none.
const COUNTS: [[u32; 8]; 3] =
    [[0, 1, 130, 128, 0, 300, 127, 2], [0, 0, 0, 0, 0, 0, 0, 129], [16, 15, 17, 1, 0, 0, 64, 65]];
/// Of 64 rows.
const SHARES: [usize; 8] = [5, 12, 8, 9, 6, 10, 3, 11];
const ROWS: [usize; 3] = [512, 1024, 4096];

const X_SEED: u32 = 901;
const W_SEED: u32 = 18;

/// The rows and weights of eight experts, and room for the result.
struct Case {
    rows: usize,
    shape: (usize, usize),
    starts: Vec<u32>,
    on_device: Buffer<u32>,
    x: Buffer<bf16>,
    w: Buffer<bf16>,
    sums: Buffer<f32>,
    gated: Buffer<bf16>,
}

impl Case {
    fn new(bench: &Bench, counts: [u32; 8], (n, k): (usize, usize)) -> Result<Self, Failure> {
        let device = &bench.device;
        let mut starts = vec![0];
        counts.iter().for_each(|count| starts.push(starts[starts.len() - 1] + count));
        let rows = starts[8] as usize;
        let (x, w) = (Buffer::new(device, rows * k)?, Buffer::new(device, 8 * n * k)?);
        bench.stream.fill(&x, X_SEED, 1.0)?;
        bench.stream.fill(&w, W_SEED, scale(k))?;
        Ok(Self {
            rows,
            shape: (n, k),
            on_device: Buffer::of(device, &starts)?,
            starts,
            x,
            w,
            sums: Buffer::new(device, rows * n)?,
            gated: Buffer::new(device, rows * n / 2)?,
        })
    }

    fn launch(&self, kernels: &Kernels<'_>, end: End) -> Result<(), DeviceError> {
        let Self { rows, shape, on_device, x, w, .. } = self;
        let finish = match end.activation() {
            None => Finish::Set(&self.sums),
            Some(activation) => Finish::Gate(activation, &self.gated),
        };
        match kernels {
            Kernels::All(product) => product.launch(*rows, on_device, x, w, 8, *shape, finish),
            Kernels::Hopper(hopper) => hopper.launch(*rows, on_device, x, w, 8, *shape, finish),
        }
    }

    /// A row's numbers, as bits too.
    fn row(&self, row: usize, end: End) -> Result<Vec<f32>, DeviceError> {
        let n = self.shape.0;
        Ok(match end.activation() {
            None => self.sums.part(row * n, n).get()?,
            Some(_) => self.gated.part(row * n / 2, n / 2).get()?.iter().map(|v| v.to_f32()).collect(),
        })
    }

    /// First and last rows of each expert.
    fn sample(&self) -> Vec<(usize, usize)> {
        let borders = self.starts.windows(2).enumerate().filter(|(_, border)| border[0] < border[1]);
        let ends = |(expert, border): (usize, &[u32])| {
            [(expert, border[0] as usize), (expert, border[1] as usize - 1)]
        };
        borders.flat_map(ends).collect()
    }

    /// Norm of the errors of some columns over the norm of what is wanted.
    fn apart(&self, (expert, row): (usize, usize), end: End, got: &[f32]) -> f64 {
        let (n, k) = self.shape;
        let sum = |column: usize| -> f64 {
            let numbers = (0..k).map(|i| {
                let weight = number(((expert * n + column) * k + i) as u32, W_SEED, scale(k));
                number((row * k + i) as u32, X_SEED, 1.0).to_f64() * weight.to_f64()
            });
            numbers.sum()
        };
        let (mut off, mut size) = (0.0, 0.0);
        let columns = if end == End::Set { n } else { n / 2 };
        for j in [0, 7, columns / 3, columns * 2 / 3, columns - 8, columns - 1] {
            let wanted = match end.activation() {
                None => sum(j),
                Some(activation) => bend(activation, sum(gate_row(j).0)) * sum(gate_row(j).1),
            };
            off += (f64::from(got[j]) - wanted).powi(2);
            size += wanted.powi(2);
        }
        (off / size).sqrt()
    }
}

enum Kernels<'a> {
    All(&'a ExpertProduct),
    Hopper(&'a HopperExperts),
}

impl Kernels<'_> {
    fn name(&self) -> &'static str {
        match self {
            Kernels::All(_) => "all generations",
            Kernels::Hopper(_) => "hopper",
        }
    }
}

fn scale(k: usize) -> f32 {
    (3.0 / k as f32).sqrt()
}

/// Whether rows get their expert's product, and the same bits alone.
pub fn right(bench: &Bench) -> Result<Value, Failure> {
    let product = ExpertProduct::load(&bench.device)?;
    let hopper = HopperExperts::load(&bench.device)?;
    let (mut rows, mut worst, mut wrong) = (0, [0f64; 2], Vec::new());
    if let Some(hopper) = &hopper
        && let Some(differs) = hopper.check(&product)?
    {
        wrong.push(differs.to_string());
    }
    let large = if bench.quick || bench.is_emulated { &[][..] } else { &MIXTRAL[..] };
    for (name, n, k) in [RAGGED].iter().chain(large).copied() {
        for counts in COUNTS {
            let case = Case::new(bench, counts, (n, k))?;
            let classes = [Some(Kernels::All(&product)), hopper.as_ref().map(Kernels::Hopper)];
            for kernels in classes.into_iter().flatten() {
                for end in [End::Set, End::Silu, End::Gelu] {
                    case.launch(&kernels, end)?;
                    let together: Vec<_> = case
                        .sample()
                        .into_iter()
                        .map(|of| Ok((of, case.row(of.1, end)?)))
                        .collect::<Result<_, DeviceError>>()?;
                    for (of, got) in together {
                        let what = || format!("{name} {counts:?} {} {end:?}, row {}", kernels.name(), of.1);
                        let apart = case.apart(of, end, &got);
                        let (at, allowed) = if end == End::Set { (0, 1e-5) } else { (1, 4e-3) };
                        worst[at] = worst[at].max(apart);
                        rows += 1;
                        if apart.is_nan() || apart >= allowed || got.iter().any(|v| !v.is_finite()) {
                            wrong.push(format!("{}: {apart:.1e} off", what()));
                        }
                        if alone(bench, &case, &kernels, of, end)? != got {
                            wrong.push(format!("{}: other bits alone", what()));
                        }
                    }
                }
            }
        }
    }
    wrong.iter().for_each(|what| println!("WRONG: {what}"));
    println!(
        "rows by expert: {rows} rows looked at, worst {:.1e}, gated {:.1e}, {} wrong",
        worst[0],
        worst[1],
        wrong.len()
    );
    Ok(json!({ "rows": rows, "worst": worst[0], "worst_gated": worst[1], "wrong": wrong }))
}

/// The numbers of a row that is the only one. None of them is NaN.
fn alone(
    bench: &Bench,
    case: &Case,
    kernels: &Kernels<'_>,
    (expert, row): (usize, usize),
    end: End,
) -> Result<Vec<f32>, Failure> {
    let (n, k) = case.shape;
    let starts: Vec<u32> = (0..=8).map(|at| u32::from(at > expert)).collect();
    let own = Case {
        rows: 1,
        shape: case.shape,
        on_device: Buffer::of(&bench.device, &starts)?,
        starts,
        x: case.x.part(row * k, k),
        w: case.w.part(0, case.w.len()),
        sums: Buffer::new(&bench.device, n)?,
        gated: Buffer::new(&bench.device, n / 2)?,
    };
    own.launch(kernels, end)?;
    Ok(own.row(0, end)?)
}

/// How fast they are.
pub fn rates(bench: &Bench) -> Result<Vec<Value>, Failure> {
    let product = ExpertProduct::load(&bench.device)?;
    let hopper = HopperExperts::load(&bench.device)?;
    let mut all = Vec::new();
    for (name, n, k) in MIXTRAL {
        let (n, k) = if bench.is_emulated { (n / 64, k / 64) } else { (n, k) };
        for rows in ROWS {
            let rows = if bench.is_emulated { rows / 8 } else { rows };
            let counts = SHARES.map(|share| (share * rows / 64) as u32);
            let case = Case::new(bench, counts, (n, k))?;
            let end = if name == "gate_up" { End::Silu } else { End::Set };
            let rate = |kernels: Kernels<'_>| -> Result<f64, Failure> {
                let us = bench.time(4, || Ok(case.launch(&kernels, end)?))?;
                Ok(2.0 * (rows * n * k) as f64 / us / 1e6)
            };
            let of_all = rate(Kernels::All(&product))?;
            let of_hopper = hopper.as_ref().map(|hopper| rate(Kernels::Hopper(hopper))).transpose()?;
            let taken = hopper.as_ref().is_some_and(|hopper| hopper.takes(rows, 8, n));
            println!(
                "experts {name} 8 x {n} x {k}, {rows} rows: {of_all:.1} TFLOP/s, by Hopper's own {}; {}",
                of_hopper.map_or("not here".to_owned(), |rate| format!("{rate:.1} TFLOP/s")),
                if taken { "Hopper's are taken" } else { "those of all generations are taken" },
            );
            all.push(json!({
                "product": name, "experts": 8, "n": n, "k": k, "rows": rows, "tflop_s": of_all,
                "hopper_tflop_s": of_hopper, "hopper_is_taken": taken,
            }));
        }
    }
    Ok(all)
}
