//! What a step costs beside the device: plan, batch, commit and one event per sequence, in a step in which every
//! sequence decodes one token. `cargo bench --bench scheduler`.
//!
//! Predicted before it was measured: 100 ns of fixed cost and 150 ns a sequence (an entry, one row, the table of
//! 64 blocks, the row to sample, a token into the ring and out of it), so 0.3, 5 and 40 us. The scripted executor's
//! own share, about 20 ns a row, is in the figures.

use criterion::{Criterion, criterion_group, criterion_main};
use futures::{FutureExt, StreamExt};
use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine};
use hearth::engine::request::Request;
use hearth::engine::scripted::Scripted;

fn steps(criterion: &mut Criterion) {
    for count in [1u32, 32, 256] {
        let capacity = Capacity {
            blocks: count * 4096,
            block_size: 16,
            rows: 1024,
            logits: 256,
            context: 65_536,
            vocab: 32_000,
        };
        let config = Config { sequences: 256, queue_tokens: 1 << 20, ..Config::default() };
        let start = || {
            let executor = Box::new(Scripted::new(capacity).unchecked());
            let (handle, mut engine) = Engine::inline(executor, config.clone());
            let streams: Vec<_> = (0..count)
                .map(|salt| {
                    let request = Request { salt: salt.into(), ..Request::new(vec![1; 1000]) };
                    handle.submit(request).unwrap()
                })
                .collect();
            while handle.status().tokens_out < u64::from(count) {
                engine.turn();
            }
            (handle, engine, streams)
        };
        let (mut handle, mut engine, mut streams) = start();
        criterion.bench_function(&format!("decode step of {count} sequences"), |bencher| {
            bencher.iter(|| {
                engine.turn();
                for stream in &mut streams {
                    while stream.next().now_or_never().flatten().is_some() {}
                }
            });
            assert_eq!(handle.status().running, count, "the sequences came to the end of their context");
            (handle, engine, streams) = start();
        });
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
