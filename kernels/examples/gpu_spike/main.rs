//! The first hour on a GPU, in half a minute: does the one binary find the device, what can its memory do, how near does
//! one product of ours come, and does a captured graph replay it. On a host without CUDA it says so, computes on the CPU
//! and exits 0.
//!
//!     gpu_spike [--quick] [--out FILE.json]        --quick: small shapes, no timings (for compute-sanitizer)
//!
//! Predicted before anything was measured, as shares of the device's own copy bandwidth (bytes read + written) in the
//! same run; the weights rotate through 1 GiB, so that the L2 (50 MB) helps nothing:
//!
//! - copy: 90 % of the data sheet (3.0 TB/s on an H100 SXM, 4.3 on an H200); reading alone: 1.00 to 1.05 of the copy.
//! - skinny, 1 and 2 rows: 0.80. A weight of 117 MB takes 39 us at 3.0 TB/s; filling and draining the device costs 3 to
//!   5 us of it, and each lane's 8 loads of 16 bytes in flight cover the latency.
//! - 4 rows: 0.75. 8 rows: 0.60 on an H100, 0.50 on an H200: about 12 instructions a weight and lane take as long as the
//!   read itself (24 us of 39 if they overlapped perfectly); beyond 4 rows the tensor cores have to take over.
//! - class `block` beats `warp` at [4096, 14336] by 10 to 20 % (128 blocks of `warp` leave 4 of 132 multiprocessors idle
//!   and put 8 warps on each of the others) and is level or behind elsewhere.
//! - candle (cuBLAS): 0.6 to 0.85 at one row, 0.8 at 8 rows, where tensor cores do the arithmetic.
//! - a launch: eager 2 to 3 us when the kernel is shorter than that, in a graph 1.0 to 1.5 us; of a chain of products
//!   nothing, since each hides the next one's launch: graph and eager within 2 %.
#![allow(clippy::print_stdout)] // a measurement prints its table

mod graph;
mod product;
mod timing;

use std::process::ExitCode;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::device::{self, Absent};
use hearth_kernels::cuda::driver;
use hearth_kernels::cuda::gpu::Gpu;
use hearth_kernels::cuda::skinny::{Class, Skinny};
use hearth_kernels::cuda::stream::Stream;
use serde_json::{Value, json};

use timing::Clock;

pub type Failure = Box<dyn std::error::Error>;

/// What every part measures with.
pub struct Bench {
    /// candle's, for its own product.
    pub device: Device,
    /// The same device and stream behind our seam.
    pub gpu: driver::Device,
    pub stream: Stream,
    pub skinny: Skinny,
    pub clock: Clock,
    pub quick: bool,
}

fn main() -> ExitCode {
    let mut quick = false;
    let mut out = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--out" => out = arguments.next(),
            _ => {
                eprintln!("error: {argument} is not known: gpu_spike [--quick] [--out FILE.json]");
                return ExitCode::from(2);
            }
        }
    }
    let (result, failed) = match device::open(0) {
        Err(absent) => on_cpu(&absent),
        Ok(device) => match on_gpu(device, quick) {
            Ok(result) => {
                let failed = result["right"] != json!(true);
                (result, failed)
            }
            Err(error) => {
                eprintln!("error: {error}");
                (json!({ "device": "cuda", "error": error.to_string() }), true)
            }
        },
    };
    if let Some(path) = out
        && let Err(error) = std::fs::write(&path, format!("{result:#}\n"))
    {
        eprintln!("error: {path}: {error}");
        return ExitCode::FAILURE;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// No device: the same binary computes on the CPU.
fn on_cpu(absent: &Absent) -> (Value, bool) {
    println!("no NVIDIA device: {absent}");
    let product = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)
        .and_then(|a| a.matmul(&a)?.to_vec2::<f32>())
        .is_ok_and(|product| product == [[7.0, 10.0], [15.0, 22.0]]);
    println!(
        "running on the CPU: {}",
        if product { "a product came out right" } else { "a product came out wrong" }
    );
    (json!({ "device": "cpu", "absent": absent.to_string(), "right": product }), !product)
}

fn on_gpu(device: Device, quick: bool) -> Result<Value, Failure> {
    let ours = Arc::new(Gpu::on(device.as_cuda_device()?)?);
    let facts = ours.facts().clone();
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    println!(
        "{}: capability {}.{}, {} multiprocessors, L2 {} MiB, {:.1} of {:.1} GiB free, driver knows CUDA {}.{}",
        facts.name,
        facts.capability.0,
        facts.capability.1,
        facts.multiprocessors,
        facts.l2_bytes >> 20,
        gib(facts.memory_free),
        gib(facts.memory_total),
        facts.driver_cuda / 1000,
        facts.driver_cuda % 1000 / 10,
    );
    let gpu: driver::Device = ours.clone();
    let bench = Bench {
        stream: Stream::load(&gpu)?,
        skinny: Skinny::load(&gpu)?,
        clock: Clock(gpu.clone()),
        device,
        gpu,
        quick,
    };
    for class in Class::ALL {
        for (rows, kernel) in (1..).zip(bench.skinny.kernels(class)) {
            let (registers, local) = ours.resources(*kernel)?;
            if local > 0 {
                println!("skinny {} {rows}: {registers} registers, {local} bytes spilled", class.name());
            }
        }
    }
    let (right, products, shares) = {
        let ceilings = if quick { None } else { Some(ceilings(&bench)?) };
        let copy = ceilings.as_ref().and_then(|c| c["copy_gb_s"].as_f64());
        let (right, products) = product::run(&bench, copy)?;
        (right, products, ceilings)
    };
    let (replayed, graph) = graph::run(&bench)?;
    Ok(json!({
        "device": "cuda",
        "name": facts.name,
        "capability": format!("{}.{}", facts.capability.0, facts.capability.1),
        "multiprocessors": facts.multiprocessors,
        "l2_bytes": facts.l2_bytes,
        "memory_bytes": facts.memory_total,
        "driver_cuda": facts.driver_cuda,
        "right": right && replayed,
        "ceilings": shares,
        "products": products,
        "graph": graph,
    }))
}

/// Copy and read bandwidth over 1 GiB, and a large bf16 product: what the shares below are shares of.
fn ceilings(bench: &Bench) -> Result<Value, Failure> {
    const NUMBERS: usize = 1 << 29;
    const BYTES: f64 = 2.0 * NUMBERS as f64;
    let from = Buffer::<bf16>::new(&bench.gpu, NUMBERS)?;
    let to = Buffer::<bf16>::new(&bench.gpu, NUMBERS)?;
    let sink = Buffer::<u32>::new(&bench.gpu, 1)?;
    bench.stream.fill(&from, 1, 1.0)?;

    let copy = bench.clock.measure(4, |_| Ok(bench.stream.copy(&from, &to)?))?;
    let read = bench.clock.measure(8, |_| Ok(bench.stream.read(&from, &sink)?))?;
    let (copy, read) = (copy.gb_s(2.0 * BYTES), read.gb_s(BYTES));
    drop((from, to));

    const SIDE: usize = 8192;
    let (a, b) = (bench.tensor(SIDE, SIDE)?, bench.tensor(SIDE, SIDE)?);
    let product = bench.clock.measure(4, |_| {
        a.matmul(&b.t()?)?;
        Ok(())
    })?;
    let tflops = 2.0 * (SIDE as f64).powi(3) / product.median_us / 1e6;

    println!("copy {copy:.0} GB/s, read {read:.0} GB/s, product {tflops:.0} TFLOP/s bf16");
    Ok(json!({ "copy_gb_s": copy, "read_gb_s": read, "product_8192_tflop_s": tflops }))
}

impl Bench {
    /// Random numbers [n, k] that keep the size of a row through a product.
    pub fn weight(&self, n: usize, k: usize, seed: u32) -> Result<Buffer<bf16>, Failure> {
        let weight = Buffer::new(&self.gpu, n * k)?;
        self.stream.fill(&weight, seed, product::scale(k))?;
        Ok(weight)
    }

    /// The like for candle, with numbers of its own.
    pub fn tensor(&self, n: usize, k: usize) -> Result<Tensor, Failure> {
        Ok(Tensor::randn(0f32, product::scale(k), (n, k), &self.device)?
            .to_dtype(candle_core::DType::BF16)?)
    }

    /// f32 numbers that are NaN until something writes them.
    pub fn poisoned(&self, count: usize) -> Result<Buffer<f32>, Failure> {
        Ok(Buffer::of(&self.gpu, &vec![f32::NAN; count])?)
    }
}
