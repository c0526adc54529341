//! What a step costs beside the device: plan, batch, commit and one event per sequence, in a step in which every
//! sequence decodes one token. `cargo bench --bench scheduler`.
//!
//! Predicted before it was measured: 100 ns of fixed cost and 150 ns a sequence (an entry, one row, a table of 100
//! blocks, the row to sample, a token into the ring and out of it), so 0.3, 5 and 40 us. Measured on two cores of a
//! Sapphire Rapids machine that others kept busy: 0.66, 8.9 and 99 us, twice that, about 0.3 us a sequence. The
//! scripted executor's own share is in the figures. A decode step of the smallest model takes milliseconds.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use futures::{FutureExt, StreamExt};
use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine, Tokens};
use hearth::engine::request::Request;
use hearth::engine::scripted::Scripted;

/// Long enough that nobody ends while the last prompts are computed, 256 rows a step.
const CONTEXT: u32 = 4096;

fn steps(criterion: &mut Criterion) {
    for count in [1u32, 32, 256] {
        let capacity = Capacity {
            blocks: count * CONTEXT / 16,
            block_size: 16,
            rows: 1024,
            logits: 256,
            context: CONTEXT,
            vocab: 32_000,
            strict: false,
        };
        let config = Config { sequences: 256, queue_tokens: 1 << 20, ..Config::default() };
        criterion.bench_function(&format!("decode step of {count} sequences"), |bencher| {
            bencher.iter_custom(|mut steps| {
                let mut taken = Duration::ZERO;
                while steps > 0 {
                    // From 1,024 tokens of context to 2,048; then anew.
                    let now = steps.min(1024);
                    taken += decode(capacity, config.clone(), count, now);
                    steps -= now;
                }
                taken
            });
        });
    }
}

/// The time of `steps` steps of `count` sequences with prompts of 1,024 tokens, once all of them decode.
fn decode(capacity: Capacity, config: Config, count: u32, steps: u64) -> Duration {
    let (handle, mut engine) = Engine::inline(Box::new(Scripted::new(capacity).unchecked()), config);
    let mut streams: Vec<_> = (0..count)
        .map(|salt| handle.submit(Request { salt: salt.into(), ..Request::new(vec![1; 1024]) }).unwrap())
        .collect();
    let mut turn = || {
        engine.turn();
        let heard = |stream: &mut Tokens| stream.next().now_or_never().flatten().is_some();
        for stream in &mut streams {
            while heard(stream) {}
        }
    };
    let tokens = || handle.status().tokens_out;
    // The first to decode wait for the last prompt.
    let mut before = 0;
    while tokens() - before < count.into() {
        before = tokens();
        turn();
    }
    let (started, before) = (Instant::now(), tokens());
    (0..steps).for_each(|_| turn());
    let taken = started.elapsed();
    assert_eq!(tokens() - before, steps * u64::from(count), "every step gives every sequence a token");
    taken
}

criterion_group!(benches, steps);
criterion_main!(benches);
