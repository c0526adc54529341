//! What a request costs beside the model: the way from its bytes on a socket to tokens in the engine, and from the engine's
//! tokens to the bytes of the answer's events. `cargo bench --bench request`.
//!
//! The server of the HTTP tests: listener, guard, endpoints, ember's tokenizer, scheduler; a scripted device answers at
//! once (and checks each step, which is in the figures). Each request is a connection of its own. The difference between
//! the whole answer and the answer of one token, by the tokens between them, is what a streamed token costs.
//!
//! Predicted before it was measured: 300 us for a connection and a short request, most of it threads that wake each other;
//! 20 us more for each streamed token; 8 KiB of text tokenized in 3 ms; a stranger without a key turned away in 150 us.

#[path = "../tests/http/client.rs"]
mod client;
#[path = "../tests/http/site.rs"]
#[allow(dead_code)] // the tests use the rest
mod site;

use client::{Line, request};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use site::{Site, with};

/// Fits the test server's context.
const CODE: &str = "def walk(root):\n    for entry in sorted(root.iterdir()):\n        if entry.is_dir():\n            yield from walk(entry)\n@";

fn requests(criterion: &mut Criterion) {
    let site = Site::start();
    let completion = |fields: Value| {
        (
            "/v1/completions",
            with(json!({"model": "ember", "prompt": CODE, "temperature": 0, "stream": true}), fields),
        )
    };
    let talk =
        json!([{"role": "system", "content": "You help with code."}, {"role": "user", "content": CODE}]);
    let cases = [
        ("a completion of one token", completion(json!({"max_tokens": 1}))),
        ("a completion of all tokens of the answer", completion(json!({"max_tokens": 100}))),
        ("a gap, one token", completion(json!({"max_tokens": 1, "suffix": "\n\nwalk(here)\n"}))),
        (
            "a turn of chat, one token",
            (
                "/v1/chat/completions",
                json!({"model": "ember", "messages": talk, "max_tokens": 1, "temperature": 0, "stream": true}),
            ),
        ),
        (
            "8 KiB of text tokenized",
            ("/tokenize", json!({"model": "ember", "prompt": CODE.repeat(8192 / CODE.len() + 1)[..8192]})),
        ),
    ];
    let mut group = criterion.benchmark_group("request");
    for (name, (path, body)) in cases {
        let first = site.post(path, &body);
        assert_eq!(first.status, 200, "{}", first.body);
        let events = first.body.matches("data: {").count();
        group.bench_function(BenchmarkId::from_parameter(format!("{name}, {events} events")), |bencher| {
            bencher.iter(|| site.post(path, &body).body.len());
        });
    }
    let refused = request("POST", "/v1/completions", &[("content-type", "application/json")], "{}");
    let ask = || Line::open(site.address, &refused).reply().status;
    assert_eq!(ask(), 401);
    group.bench_function(BenchmarkId::from_parameter("a stranger turned away"), |bencher| bencher.iter(ask));
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
