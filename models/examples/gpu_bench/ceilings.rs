//! What the device can do: the bandwidth of its memory, the rate of one large product of ours, and that of two products
//! of a layer of Mistral 7B with 512, 2,048 and 8,192 rows, by the kernels of all generations and by those of Hopper. Then
//! the same of rows grouped by expert (`grouped.rs` says what is predicted of those).
//!
//! Predicted for an H200 (4.8 TB/s by its data sheet, 989 TFLOP/s bf16):
//!
//! - copy of 1 GiB to another: 4.3 TB/s read and written, 90 % of the data sheet; reading alone 1.00 to 1.05 of it.
//! - product 8192 x 8192 x 8192: 350 to 450 TFLOP/s. The sm_80 products of the tensor cores end at 60 to 65 % of Hopper's
//!   peak (600 TFLOP/s); a block of 128 x 256 reads 24 KiB of shared memory for 64 columns and 4.2 MFLOP, three
//!   stages hide the loads, and 2048 tiles are 15.5 waves of 132: 3 % lost at the end. A third is lost to waiting at
//!   barriers with one block of 256 threads a multiprocessor.
//! - on Hopper, where its own kernels set the rate: 500 to 620 TFLOP/s there and at 8,192 rows, 450 to 580 at 2,048
//!   (256 tiles on 132 multiprocessors), 350 to 480 at 512, where a round of narrow tiles is all the work there is.

use half::bf16;
use hearth_kernels::Activation;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::hopper::Hopper;
use hearth_kernels::cuda::product::{Finish, Product};
use serde_json::{Value, json};

use crate::Failure;
use crate::device::Bench;
use crate::grouped;

#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes read and bytes written.
    pub copy_gb_s: f64,
    pub read_gb_s: f64,
    pub product_tflop_s: f64,
    /// Of the product.
    side: usize,
}

impl Ceilings {
    /// Microseconds in which as many bytes are copied.
    pub fn microseconds(&self, bytes: f64) -> f64 {
        bytes / self.copy_gb_s / 1e3
    }

    pub fn json(&self) -> Value {
        let Self { copy_gb_s, read_gb_s, product_tflop_s, side } = self;
        json!({
            "copy_gb_s": copy_gb_s, "read_gb_s": read_gb_s, "product_tflop_s": product_tflop_s,
            "product_side": side,
        })
    }
}

pub fn run(bench: &Bench) -> Result<Value, Failure> {
    let ceilings = bench.ceilings()?;
    let Ceilings { copy_gb_s, read_gb_s, product_tflop_s, side } = ceilings;
    println!("copy {copy_gb_s:.0} GB/s, read {read_gb_s:.0} GB/s ({:.2} of the copy)", read_gb_s / copy_gb_s);
    println!("product {side} x {side} x {side}: {product_tflop_s:.1} TFLOP/s");
    let many = many_rows(bench)?;
    let grouped = grouped::rates(bench)?;
    println!("verdict: ceilings copy {copy_gb_s:.0} GB/s, product {product_tflop_s:.0} TFLOP/s");
    let mut figures = ceilings.json();
    figures["many_rows"] = json!(many);
    figures["grouped"] = json!(grouped);
    Ok(figures)
}

/// Products of a layer of Mistral 7B, n and k: gate and up, bent; down, added to the residual.
const LAYER: [(&str, usize, usize); 2] = [("gate_up", 28672, 4096), ("down", 4096, 14336)];
const ROWS: [usize; 3] = [512, 2048, 8192];

fn many_rows(bench: &Bench) -> Result<Vec<Value>, Failure> {
    let device = &bench.device;
    let (product, hopper) = (Product::load(device)?, Hopper::load(device)?);
    let mut all = Vec::new();
    for (name, n, k) in LAYER {
        let (n, k) = if bench.is_emulated { (n / 64, k / 64) } else { (n, k) };
        for rows in ROWS {
            let rows = if bench.is_emulated { rows / 32 } else { rows };
            let (x, w) = (Buffer::<bf16>::new(device, rows * k)?, Buffer::<bf16>::new(device, n * k)?);
            bench.stream.fill(&x, 1, 1.0)?;
            bench.stream.fill(&w, 2, 1.0)?;
            let count = Buffer::of(device, &[rows as u32])?;
            let is_gate = name == "gate_up";
            let sums = Buffer::<f32>::zeros(device, if is_gate { 0 } else { rows * n })?;
            let gated = Buffer::<bf16>::new(device, if is_gate { rows * n / 2 } else { 0 })?;
            let finish = || if is_gate { Finish::Gate(Activation::Silu, &gated) } else { Finish::Add(&sums) };
            let rate = |us: f64| 2.0 * (rows * n * k) as f64 / us / 1e6;
            let of_all =
                rate(bench.time(4, || Ok(product.launch(rows, &count, &x, &w, (n, k), None, finish())?))?);
            let of_hopper = match &hopper {
                None => None,
                Some(hopper) => Some(rate(
                    bench.time(4, || Ok(hopper.launch(rows, &count, &x, &w, (n, k), None, finish())?))?,
                )),
            };
            let said = of_hopper.map_or("not here".to_owned(), |rate| format!("{rate:.1} TFLOP/s"));
            println!("{name} {n} x {k}, {rows} rows: {of_all:.1} TFLOP/s, by Hopper's own {said}");
            all.push(json!({
                "product": name, "n": n, "k": k, "rows": rows, "tflop_s": of_all, "hopper_tflop_s": of_hopper,
            }));
        }
    }
    Ok(all)
}

pub fn measure(bench: &Bench) -> Result<Ceilings, Failure> {
    let (numbers, side) = if bench.is_emulated { (1 << 16, 128) } else { (1 << 29, 8192) };
    let device = &bench.device;
    let (copy, read) = {
        let (from, to) = (Buffer::<bf16>::new(device, numbers)?, Buffer::<bf16>::new(device, numbers)?);
        let sink = Buffer::<u32>::new(device, 1)?;
        bench.stream.fill(&from, 1, 1.0)?;
        let copy = bench.time(4, || Ok(bench.stream.copy(&from, &to)?))?;
        (copy, bench.time(8, || Ok(bench.stream.read(&from, &sink)?))?)
    };
    let bytes = 2.0 * numbers as f64;

    let (x, w) = (Buffer::<bf16>::new(device, side * side)?, Buffer::<bf16>::new(device, side * side)?);
    bench.stream.fill(&x, 1, 1.0)?;
    bench.stream.fill(&w, 2, 1.0)?;
    let y = Buffer::<f32>::new(device, side * side)?;
    let count = Buffer::of(device, &[side as u32])?;
    let product = Product::load(device)?;
    let mut us =
        bench.time(4, || Ok(product.launch(side, &count, &x, &w, (side, side), None, Finish::Set(&y))?))?;
    if let Some(hopper) = Hopper::load(device)? {
        let finish = Finish::Set(&y);
        let own = bench.time(4, || Ok(hopper.launch(side, &count, &x, &w, (side, side), None, finish)?))?;
        us = us.min(own);
    }
    Ok(Ceilings {
        copy_gb_s: 2.0 * bytes / copy / 1e3,
        read_gb_s: bytes / read / 1e3,
        product_tflop_s: 2.0 * (side as f64).powi(3) / us / 1e6,
        side,
    })
}
