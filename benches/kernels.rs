//! Products with a weight of 14336 x 4096, as in a 7 B model's feed-forward layer, on all cores:
//!
//! ```text
//! cargo bench --bench kernels
//! ```
//!
//! Weights rotate through four copies (470 MB of bf16), so that they come from memory as they do in a model. All rows of
//! the table run in one process one after another: on a shared machine compare them with `read`, the time that
//! reading the same bytes with vectors takes, not with other machines.
//!
//! Predicted before measuring: one row at 80 % of `read` or more, eight rows within 1.3 of the time of one; 512 rows
//! at 1 TFLOP/s or more with AMX, at half the peak of AVX-512 (200 GFLOP/s on two cores) without; candle's bf16 ten
//! times slower for one row, its q8_0 twice as fast (half the bytes), its f32 half as fast.
//!
//! Measured on two idle cores of a virtual machine (Xeon, family 6, model 207, AVX-512, no AMX offered): `read` 26.0 GB/s; one
//! row 22.5 GB/s, 86 % of it; eight rows in 1.16 of the time of one; 64 and 512 rows at 237 and 230 GFLOP/s. On a busy machine one
//! row falls to 57 to 72 % of a `read` taken at another time. candle on the busier machine: bf16 148 ms for one row and 65 GFLOP/s for
//! 512, f32 26 ms and 73 GFLOP/s, q8_0 4.3 ms and 216 GFLOP/s. A machine with AMX is still to be measured.

use std::time::Duration;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hearth_kernels::{Context, View, Weight, Write, linear, read_through};

const OUTPUTS: usize = 14336;
const INPUTS: usize = 4096;
const COPIES: usize = 4;
const ROWS: [usize; 6] = [1, 2, 4, 8, 64, 512];

fn input(rows: usize) -> Tensor {
    Tensor::rand(-1f32, 1f32, (rows, INPUTS), &Device::Cpu).expect("a random input")
}

/// One product of `rows` rows is as many bytes of weight, or as many operations when rows are many.
fn throughput(rows: usize) -> Throughput {
    if rows <= 8 {
        Throughput::Bytes((OUTPUTS * INPUTS * 2) as u64)
    } else {
        Throughput::Elements((2 * rows * OUTPUTS * INPUTS) as u64)
    }
}

fn ours(c: &mut Criterion) {
    let ctx = Context::cpu(None).expect("a context");
    ctx.pin_caller().expect("the first core");
    let bytes: Vec<u8> = (0..OUTPUTS * INPUTS * 2)
        .map(|i| if i % 2 == 0 { (i.wrapping_mul(0x9e37_79b1) >> 13) as u8 } else { 0x3c })
        .collect();
    let view = View { dtype: DType::BF16, rows: OUTPUTS, cols: INPUTS, bytes: &bytes };
    let weights: Vec<Weight> =
        (0..COPIES).map(|_| Weight::pack(&ctx, &[view]).expect("a packed weight")).collect();
    let mut turn = (0..COPIES).cycle();
    let mut next = || &weights[turn.next().expect("an endless cycle")];

    let mut group = c.benchmark_group(format!("bf16 {} {} threads", ctx.isa().name(), ctx.threads()));
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    group.throughput(throughput(1));
    group.bench_function("read", |b| b.iter(|| read_through(&ctx, next()).expect("a read")));
    for rows in ROWS {
        let x = input(rows);
        let out = Tensor::zeros((rows, OUTPUTS), DType::F32, &Device::Cpu).expect("an output");
        group.throughput(throughput(rows));
        group.bench_with_input(BenchmarkId::new("rows", rows), &rows, |b, rows| {
            b.iter(|| linear(&ctx, &x, *rows, next(), None, &out, Write::Set).expect("a product"));
        });
    }
    group.finish();
}

fn candle(c: &mut Criterion) {
    let weight = Tensor::rand(-1f32, 1f32, (OUTPUTS, INPUTS), &Device::Cpu).expect("a weight");
    let q8 = QTensor::quantize(&weight, GgmlDType::Q8_0).expect("a quantized weight");
    let q8 = QMatMul::from_qtensor(q8).expect("a quantized product");
    let f32 = weight.t().expect("a transposed weight");
    let bf16 = weight.to_dtype(DType::BF16).and_then(|weight| weight.t()).expect("a bf16 weight");

    let mut group = c.benchmark_group("candle");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for rows in [1, 8, 512] {
        let x = input(rows);
        let narrow = x.to_dtype(DType::BF16).expect("a bf16 input");
        group.throughput(throughput(rows));
        group
            .bench_function(BenchmarkId::new("f32", rows), |b| b.iter(|| x.matmul(&f32).expect("a product")));
        group.bench_function(BenchmarkId::new("bf16", rows), |b| {
            b.iter(|| narrow.matmul(&bf16).expect("a product"));
        });
        group.bench_function(BenchmarkId::new("q8_0", rows), |b| {
            b.iter(|| q8.forward(&x).expect("a product"))
        });
    }
    group.finish();
}

criterion_group!(benches, ours, candle);
criterion_main!(benches);
