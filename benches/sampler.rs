//! A token drawn from a row of logits, on one thread, by way of drawing: `cargo bench --bench sampler`.
//!
//! Rows have the shape of a trained model's: a few tokens stand out and the rest lies well below. Predicted before it was
//! measured, for 32,000 logits: greedy two passes of 128 KB from the second-level cache, 10 us; temperature adds an exponential of
//! each, 60 us; top-p, top-k and min-p cut the list first, no more than that; penalties copy the row once, 10 us more. 128,000 logits:
//! four times as long.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hearth_kernels::sample::{SampleRow, Sampling, Scratch, sample};

/// Logits with a tail: numbers between -12 and 0, and one in two thousand up to 8 above.
fn logits(vocab: usize) -> Vec<f32> {
    let spread =
        |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u64 << 24) as f32;
    (0..vocab).map(|i| if i % 2003 == 7 { 8.0 * spread(i) } else { -12.0 * spread(i) }).collect()
}

fn ways() -> Vec<(&'static str, Sampling)> {
    let warm = || Sampling { temperature: 0.8, seed: 7, ..Sampling::default() };
    vec![
        ("greedy", Sampling::default()),
        ("temperature", warm()),
        ("top-p 0.95", Sampling { top_p: 0.95, ..warm() }),
        ("top-k 50", Sampling { top_k: 50, ..warm() }),
        ("top-k 50, top-p 0.95", Sampling { top_k: 50, top_p: 0.95, ..warm() }),
        ("min-p 0.05", Sampling { min_p: 0.05, ..warm() }),
        (
            "penalties over 1,000 tokens",
            Sampling { repetition_penalty: 1.1, frequency_penalty: 0.2, ..Sampling::default() },
        ),
        ("greedy, 5 log probabilities", Sampling { logprobs: Some(5), ..Sampling::default() }),
    ]
}

fn rows(criterion: &mut Criterion) {
    for vocab in [32_000usize, 128_000] {
        let mut group = criterion.benchmark_group(format!("{vocab} logits"));
        group.throughput(Throughput::Elements(vocab as u64));
        let logits = logits(vocab);
        let seen: Vec<(u32, u32)> = (0..1000).map(|i| (i * 31 % vocab as u32, i % 3)).collect();
        for (name, sampling) in ways() {
            let seen: &[(u32, u32)] = if sampling.repetition_penalty == 1.0 { &[] } else { &seen };
            let mut scratch = Scratch::default();
            let mut position = 0;
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    let row = SampleRow {
                        row: 0,
                        sampling: &sampling,
                        choice: 0,
                        position,
                        seen,
                        mask: None,
                        forced: None,
                    };
                    sample(std::hint::black_box(&logits), &row, &mut scratch)
                });
            });
        }
        // A grammar that allows one token in eight.
        let (mask, sampling) = (vec![0x0101_0101u32; vocab.div_ceil(32)], Sampling::default());
        let mut scratch = Scratch::default();
        group.bench_function(BenchmarkId::from_parameter("greedy under a mask"), |bencher| {
            bencher.iter(|| {
                let row = SampleRow {
                    row: 0,
                    sampling: &sampling,
                    choice: 0,
                    position: 1,
                    seen: &[],
                    mask: Some(&mask),
                    forced: None,
                };
                sample(std::hint::black_box(&logits), &row, &mut scratch)
            });
        });
        group.finish();
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
