//! What the device can do: the bandwidth of its memory, and the rate of one large product of ours.
//!
//! Predicted for an H200 (4.8 TB/s by its data sheet, 989 TFLOP/s bf16):
//!
//! - copy of 1 GiB to another: 4.3 TB/s read and written, 90 % of the data sheet; reading alone 1.00 to 1.05 of it.
//! - product 8192 x 8192 x 8192: 350 to 450 TFLOP/s. The sm_80 products of the tensor cores end at 60 to 65 % of Hopper's
//!   peak (600 TFLOP/s); a block of 128 x 256 reads 24 KiB of shared memory for 64 columns and 4.2 MFLOP, three
//!   stages hide the loads, and 2048 tiles are 15.5 waves of 132: 3 % lost at the end. A third is lost to waiting at
//!   barriers with one block of 256 threads a multiprocessor.

use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::product::{Finish, Product};
use serde_json::{Value, json};

use crate::Failure;
use crate::device::Bench;

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
    println!("verdict: ceilings copy {copy_gb_s:.0} GB/s, product {product_tflop_s:.0} TFLOP/s");
    Ok(ceilings.json())
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
    let us =
        bench.time(4, || Ok(product.launch(side, &count, &x, &w, (side, side), None, Finish::Set(&y))?))?;
    Ok(Ceilings {
        copy_gb_s: 2.0 * bytes / copy / 1e3,
        read_gb_s: bytes / read / 1e3,
        product_tflop_s: 2.0 * (side as f64).powi(3) / us / 1e6,
        side,
    })
}
