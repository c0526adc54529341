//! The skinny product: right first, then its share of the copy bandwidth, with candle's cuBLAS product beside it.

use candle_core::Tensor;
use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::skinny::{Class, MAX_ROWS};
use hearth_kernels::cuda::stream::number;
use serde_json::{Value, json};

use crate::{Bench, Failure};

/// Up and down of a 7B feed-forward, and a head: n outputs, k inputs.
const SHAPES: [(usize, usize); 3] = [(14_336, 4096), (4096, 14_336), (32_768, 4096)];
/// Partial tiles and rounds; right or wrong only.
const RAGGED: [(usize, usize); 3] = [(37, 2056), (4099, 1288), (5, 8)];
const X_SEED: u32 = 900;
const ROTATED_BYTES: usize = 1 << 30;

/// The spread that keeps the variance of a row through a product with k inputs.
pub fn scale(k: usize) -> f32 {
    (3.0 / k as f32).sqrt()
}

/// Every shape, class and row count against f64 on the host; then times. Returns whether all was right.
pub fn run(bench: &Bench, copy_gb_s: Option<f64>) -> Result<(bool, Value), Failure> {
    let mut right = true;
    let mut results = Vec::new();
    for (n, k) in RAGGED {
        right &= check(bench, (n, k))?.0;
    }
    if !bench.quick {
        println!(
            "{:>14} {:>2}  {:>22} {:>22} {:>22}",
            "[n, k]", "m", "warp us GB/s share", "block", "candle"
        );
        for (n, k) in SHAPES {
            let (shape_right, worst) = check(bench, (n, k))?;
            right &= shape_right;
            let copies = ROTATED_BYTES.div_ceil(2 * n * k);
            let weights: Vec<Buffer<bf16>> =
                (0..copies).map(|seed| bench.weight(n, k, seed as u32)).collect::<Result<_, _>>()?;
            let theirs: Vec<Tensor> = (0..copies).map(|_| bench.tensor(n, k)).collect::<Result<_, _>>()?;
            for m in 1..=MAX_ROWS {
                results.push(measure(bench, (&weights, &theirs), (m, n, k), copy_gb_s, worst)?);
            }
        }
    }
    println!("products {}", if right { "right" } else { "WRONG" });
    Ok((right, Value::Array(results)))
}

fn inputs(bench: &Bench, k: usize) -> Result<Buffer<bf16>, Failure> {
    let x = Buffer::new(&bench.gpu, MAX_ROWS * k)?;
    bench.stream.fill(&x, X_SEED, 1.0)?;
    Ok(x)
}

/// The largest error relative to the norm of a row, and whether rows are the same bits alone and in a batch.
fn check(bench: &Bench, (n, k): (usize, usize)) -> Result<(bool, f64), Failure> {
    let (x, w) = (inputs(bench, k)?, bench.weight(n, k, 0)?);
    let expected = reference(n, k);
    let (mut right, mut worst) = (true, 0f64);
    for class in Class::ALL {
        let mut first_row: Vec<f32> = Vec::new();
        for m in 1..=MAX_ROWS {
            let y = bench.poisoned(m * n)?;
            bench.skinny.launch(class, (m, n, k), &x, &w, &y)?;
            let y = y.get()?;
            for row in 0..m {
                let error = relative(&y[row * n..][..n], &expected[row * n..][..n]);
                worst = worst.max(error);
                // f32 sums: far under 1e-5. NaN (nothing written) fails.
                if error.is_nan() || error >= 1e-5 {
                    println!("[{n}, {k}] {} {m} rows: row {row} is off by {error:.1e}", class.name());
                    right = false;
                }
            }
            if m == 1 {
                first_row.clone_from(&y);
            } else if !first_row.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()) {
                println!("[{n}, {k}] {} {m} rows: the first row has other bits than alone", class.name());
                right = false;
            }
        }
    }
    Ok((right, worst))
}

fn relative(got: &[f32], expected: &[f64]) -> f64 {
    let (mut off, mut size) = (0.0, 0.0);
    for (&got, &expected) in got.iter().zip(expected) {
        off += (f64::from(got) - expected).powi(2);
        size += expected.powi(2);
    }
    (off / size).sqrt()
}

/// All rows in f64 from the numbers that the device was filled with, made anew on the host.
fn reference(n: usize, k: usize) -> Vec<f64> {
    let x: Vec<f64> = (0..MAX_ROWS * k).map(|i| number(i as u32, X_SEED, 1.0).to_f64()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = n.div_ceil(threads);
    let mut columns = vec![0f64; n * MAX_ROWS];
    std::thread::scope(|scope| {
        for (part, columns) in columns.chunks_mut(share * MAX_ROWS).enumerate() {
            let x = &x;
            scope.spawn(move || {
                for (i, column) in columns.chunks_mut(MAX_ROWS).enumerate() {
                    let first = (part * share + i) * k;
                    for j in 0..k {
                        let weight = number((first + j) as u32, 0, scale(k)).to_f64();
                        for row in 0..MAX_ROWS {
                            column[row] += x[row * k + j] * weight;
                        }
                    }
                }
            });
        }
    });
    (0..MAX_ROWS * n).map(|at| columns[at % n * MAX_ROWS + at / n]).collect()
}

fn measure(
    bench: &Bench,
    (weights, theirs): (&[Buffer<bf16>], &[Tensor]),
    (m, n, k): (usize, usize, usize),
    copy_gb_s: Option<f64>,
    worst: f64,
) -> Result<Value, Failure> {
    let x = inputs(bench, k)?;
    let bytes = (2 * n * k + 2 * m * k + 4 * m * n) as f64;
    let launches = 2 * weights.len();
    let mut row = json!({ "n": n, "k": k, "m": m, "bytes": bytes, "error": worst });
    let mut line = format!("{:>14} {m:>2}  ", format!("[{n}, {k}]"));
    let mut report = |name: &str, timing: crate::timing::Timing| {
        let gb_s = timing.gb_s(bytes);
        let share = copy_gb_s.map_or(0.0, |copy| gb_s / copy);
        line += &format!("{:>9.1} {gb_s:>6.0} {share:>5.2} ", timing.median_us);
        let mut value = timing.json();
        value["gb_s"] = json!(gb_s);
        value["share_of_copy"] = json!(share);
        row[name] = value;
    };
    for class in Class::ALL {
        let y = bench.poisoned(m * n)?;
        let timing = bench.clock.measure(launches, |i| {
            Ok(bench.skinny.launch(class, (m, n, k), &x, &weights[i % weights.len()], &y)?)
        })?;
        report(class.name(), timing);
    }
    let x = bench.tensor(m, k)?;
    let timing = bench.clock.measure(launches, |i| {
        x.matmul(&theirs[i % theirs.len()].t()?)?;
        Ok(())
    })?;
    report("candle", timing);
    println!("{line}");
    Ok(row)
}
