//! Same request, same bytes: on small checkpoints of the true architectures, the tokens and the log probabilities of a
//! request are those it gets alone, bit for bit, whatever else the engine does.

use std::path::Path;

use hearth::engine::handle::{Config, Engine, Status, Tokens};
use hearth::engine::local::Local;
use hearth::engine::request::{Event, Request, Sampling};
use hearth_kernels::Context;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::decoder::{Decoder, Options};

const FAMILIES: [&str; 5] =
    ["mistral-v0.1", "mixtral-8x7b-v0.1", "codegemma-2b", "qwen2.5-coder-7b", "llama-3.1-8b"];

struct Model {
    ctx: Context,
    checkpoint: Checkpoint,
}

impl Model {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoints").join(name);
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|error| panic!("{error}"));
        Self { ctx: Context::cpu(None).unwrap(), checkpoint }
    }

    fn executor(&self, rows: usize, blocks: usize) -> Box<Local> {
        let options = Options { quantize: None, rows, logits: rows.min(64), context: 120, blocks, kv: None };
        let decoder = Decoder::load(&self.ctx, &self.checkpoint, &options, &mut |_| {});
        Box::new(Local::new(&self.ctx, decoder.unwrap_or_else(|error| panic!("{error}"))))
    }

    /// Plays `requests` in rounds and gives what each heard in the last of them.
    fn play(&self, rows: usize, blocks: usize, config: Config, rounds: usize) -> (Vec<Vec<Event>>, Status) {
        let (handle, mut engine) = Engine::inline(self.executor(rows, blocks), config);
        let mut heard = Vec::new();
        for _ in 0..rounds {
            let mut streams: Vec<Tokens> =
                (0..32).map(|i| handle.submit(request(i)).unwrap_or_else(|e| panic!("{e}"))).collect();
            while engine.turn() {}
            heard = streams.iter_mut().map(hear).collect();
        }
        (heard, handle.status())
    }
}

/// What the stream said, less how much of it came from the cache, and each choice's events together.
fn hear(stream: &mut Tokens) -> Vec<Event> {
    let mut events: Vec<Event> = std::iter::from_fn(|| stream.next_blocking()).collect();
    for event in &mut events {
        match event {
            Event::Prompt { cached, .. } => *cached = 0,
            Event::Failed { error } => panic!("{error}"),
            _ => {}
        }
    }
    events.sort_by_key(|event| match event {
        Event::Token { choice, .. } | Event::Finished { choice, .. } => choice + 1,
        _ => 0,
    });
    events
}

/// One of 32 requests: lengths from 1 to 94, beginnings in common, greedy and seeded, some scored, some twice.
fn request(i: u32) -> Request {
    let prompt: Vec<u32> = (0..1 + i * 3).map(|p| 3 + (p * 7 + if p < 40 { 0 } else { i }) % 300).collect();
    let sampling = match i % 3 {
        0 => Sampling { logprobs: Some(2), ..Sampling::default() },
        1 => Sampling { temperature: 1.0, seed: i.into(), logprobs: Some(0), ..Sampling::default() },
        _ => Sampling {
            temperature: 0.7,
            top_p: 0.9,
            top_k: 50,
            repetition_penalty: 1.2,
            seed: i.into(),
            logprobs: Some(1),
            ..Sampling::default()
        },
    };
    Request {
        choices: 1 + u32::from(i.is_multiple_of(5)),
        sampling,
        max_tokens: 26,
        prompt_logprobs: (i.is_multiple_of(7)).then_some(1),
        ..Request::new(prompt)
    }
}

fn cold() -> Config {
    Config { prefix_cache: false, ..Config::default() }
}

#[test]
fn alone_and_in_a_batch_and_in_chunks_and_cached_and_after_preemption_are_the_same_bytes() {
    for family in FAMILIES {
        let model = Model::open(family);
        let (handle, mut engine) = Engine::inline(model.executor(128, 64), cold());
        let alone: Vec<Vec<Event>> = (0..32)
            .map(|i| {
                let mut stream = handle.submit(request(i)).unwrap();
                while engine.turn() {}
                hear(&mut stream)
            })
            .collect();
        let same = |what: &str, heard: Vec<Vec<Event>>| {
            for (i, (heard, alone)) in heard.iter().zip(&alone).enumerate() {
                assert_eq!(heard, alone, "{family}, {what}, request {i}");
            }
        };
        let (batch, status) = model.play(128, 512, cold(), 1);
        assert_eq!(status.preemptions, 0);
        same("in a batch of 32", batch);
        let (chunks, _) = model.play(37, 512, Config { chunk: Some(3), ..cold() }, 1);
        same("in chunks of 3 rows", chunks);
        let (cached, status) = model.play(128, 512, Config::default(), 2);
        assert!(status.prefix_hits > 800, "{status:?}");
        same("with the prefix cached", cached);
        let (preempted, status) = model.play(64, 16, Config::default(), 1);
        assert!(status.preemptions > 0, "{status:?}");
        same("after preemption", preempted);
    }
}

#[test]
fn what_is_left_of_a_crowd_that_comes_and_goes_is_the_same_bytes() {
    let model = Model::open("mistral-v0.1");
    let (handle, mut engine) = Engine::inline(model.executor(128, 64), cold());
    let mut alone = |i: u32| {
        let mut stream = handle.submit(request(i)).unwrap();
        while engine.turn() {}
        hear(&mut stream)
    };
    let alone: Vec<Vec<Event>> = (0..32).map(&mut alone).collect();
    let (handle, mut engine) = Engine::inline(model.executor(29, 13), Config::default());
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below) as usize
    };
    let mut open: Vec<(usize, Tokens)> = Vec::new();
    let mut compared = 0;
    for _ in 0..300 {
        let i = random(32);
        open.push((i, handle.submit(request(i as u32)).unwrap()));
        (0..random(16)).for_each(|_| {
            engine.turn();
        });
        if open.len() > 10 {
            let (i, mut stream) = open.swap_remove(random(open.len() as u64));
            if random(4) == 0 {
                while engine.turn() {}
                assert_eq!(hear(&mut stream), alone[i], "request {i}");
                compared += 1;
            }
        }
    }
    drop(open);
    while engine.turn() {}
    assert!(compared > 50 && handle.status().preemptions > 3, "{compared}, {:?}", handle.status());
    assert_eq!(handle.status().blocks_used, 0);
}
