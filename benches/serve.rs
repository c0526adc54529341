//! Throughput and latency of the whole binary on the embedded model, at 1, 8, 32 and 64 streams.
//!
//!     cargo bench --bench serve
//!
//! A closed loop: each stream sends its next request when the last one ended. Prompts are unique, so the prefix cache does not
//! help. What is expected: tokens a second rise from 1 to 8 to 32 streams, because a step of a small model is mostly fixed
//! cost and a product of more rows reads the same weights once.

#[path = "../tests/served/mod.rs"]
mod served;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use served::Served;

const TOKENS: u64 = 128;

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted[((sorted.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3
}

fn main() {
    // `cargo test --benches` runs this too: a short pass that shows it works.
    let quick = !std::env::args().any(|a| a == "--bench");
    let seconds: f64 = std::env::var("HEARTH_BENCH_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(if quick { 0.5 } else { 8.0 });
    let served = Served::start(&[]);
    let unique = AtomicU64::new(0);
    report("streams  requests  tokens/s  first token p50/p95 ms   between tokens p50/p95 ms");
    for streams in [1u64, 8, 32, 64] {
        let (tokens, requests) = (AtomicU64::new(0), AtomicU64::new(0));
        let (first, gaps) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..streams {
                scope.spawn(|| {
                    while start.elapsed().as_secs_f64() < seconds {
                        let id = unique.fetch_add(1, Relaxed);
                        let body = json!({"model": "ember-demo", "prompt": format!("# file {id}\nimport os\n\n\ndef walk_{id}(root):\n"), "max_tokens": TOKENS,
                            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}});
                        let seen = served.stream(&body, |_| true);
                        assert_eq!(seen.error, None);
                        tokens.fetch_add(seen.tokens, Relaxed);
                        requests.fetch_add(1, Relaxed);
                        first.lock().expect("no panic holds it").extend(seen.first);
                        gaps.lock().expect("no panic holds it").extend(seen.gaps);
                    }
                });
            }
        });
        let taken = start.elapsed().as_secs_f64();
        let (mut first, mut gaps) = (first.into_inner().expect("joined"), gaps.into_inner().expect("joined"));
        first.sort_unstable();
        gaps.sort_unstable();
        report(&format!(
            "{streams:>7}  {:>8}  {:>8.0}  {:>10.1} / {:<10.1}  {:>10.2} / {:<10.2}",
            requests.load(Relaxed),
            tokens.load(Relaxed) as f64 / taken,
            percentile(&first, 0.5),
            percentile(&first, 0.95),
            percentile(&gaps, 0.5),
            percentile(&gaps, 0.95),
        ));
    }
    served.stop();
}

#[allow(clippy::print_stdout)] // the figures are what this program is for
fn report(line: &str) {
    println!("{line}");
}
