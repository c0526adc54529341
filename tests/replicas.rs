//! Several replicas of one model, each on a device of its own: the scripted executor stands in for the devices, and the
//! test says when each of them steps.

mod served;

use std::sync::Arc;
use std::time::Duration;

use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine, Inline, Tokens};
use hearth::engine::replicas::Replicas;
use hearth::engine::request::{Event, Refused, Request};
use hearth::engine::scripted::Scripted;
use serde_json::json;

use served::Served;

const CAPACITY: Capacity =
    Capacity { blocks: 256, block_size: 16, rows: 64, logits: 8, context: 1024, vocab: 1000, strict: false };

struct Devices {
    model: Replicas,
    engines: Vec<Inline>,
}

fn devices(count: usize, config: &Config) -> Devices {
    let (handles, engines) =
        (0..count).map(|_| Engine::inline(Box::new(Scripted::new(CAPACITY)), config.clone())).unzip();
    Devices { model: Replicas::new(handles), engines }
}

impl Devices {
    fn ask(&self, prompt: &[u32]) -> Tokens {
        self.model.submit(request(prompt)).unwrap()
    }

    /// How many requests each device has.
    fn loads(&self) -> Vec<u32> {
        self.model.each().map(|e| e.status()).map(|s| s.running + s.waiting).collect()
    }

    fn finish(&mut self) {
        while self.engines.iter_mut().map(Inline::turn).fold(false, |any, turned| any | turned) {}
    }

    fn hits(&self) -> u64 {
        self.model.status().prefix_hits
    }
}

fn request(prompt: &[u32]) -> Request {
    Request { max_tokens: 4, ..Request::new(prompt) }
}

/// A conversation that has nothing in common with one of another number.
fn conversation(number: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (number * 97 + i * 7) % 1000).collect()
}

fn drawn(mut tokens: Tokens) -> Vec<u32> {
    let events = std::iter::from_fn(|| tokens.next_blocking());
    let token = |event| match event {
        Event::Token { token, .. } => Some(token),
        Event::Failed { error } => panic!("{error}"),
        _ => None,
    };
    events.filter_map(token).collect()
}

#[test]
fn work_is_spread_evenly_over_idle_devices() {
    let mut devices = devices(4, &Config::default());
    let streams: Vec<_> = (0..8).map(|n| devices.ask(&conversation(n, 100))).collect();
    assert_eq!(devices.loads(), [2, 2, 2, 2]);
    devices.finish();
    assert!(streams.into_iter().map(drawn).all(|tokens| tokens.len() == 4));
    assert_eq!(devices.loads(), [0, 0, 0, 0]);
}

#[test]
fn a_long_prompt_weighs_more_than_a_short_one() {
    let devices = devices(2, &Config::default());
    let _long = devices.ask(&conversation(1, 1000));
    let _short: Vec<_> = (2..6).map(|n| devices.ask(&conversation(n, 100))).collect();
    let mut loads = devices.loads();
    loads.sort_unstable();
    assert_eq!(loads, [1, 4], "four short prompts are less than the long one");
}

#[test]
fn a_conversation_comes_back_to_the_device_that_holds_its_beginning() {
    let mut devices = devices(4, &Config::default());
    // Eight conversations, each longer at every turn, in an order that changes.
    for turn in 1..=5 {
        for n in 0..8 {
            let who = (n * 3 + turn) % 8;
            let stream = devices.ask(&conversation(who, turn * 160));
            devices.finish();
            drawn(stream);
        }
    }
    // What each turn shares with the one before lies on the device that computed that, in whole blocks.
    let shared: u64 = (1..5).map(|turn| turn * 160 * 8).sum();
    assert_eq!(devices.hits(), shared);
}

#[test]
fn a_device_that_is_far_behind_loses_a_conversation_to_one_that_is_not() {
    let mut devices = devices(2, &Config::default());
    let first = devices.ask(&conversation(1, 320));
    devices.finish();
    drawn(first);
    let begun = devices.model.each().position(|e| e.status().tokens_in > 0).unwrap();
    // As long as computing it anew would take longer, it waits where its beginning is.
    let mut waiting = vec![devices.ask(&conversation(1, 400))];
    assert_eq!(devices.loads()[begun], 1);
    // Then it does not.
    while devices.loads()[1 - begun] == 0 {
        waiting.push(devices.ask(&conversation(1, 400)));
        assert!(waiting.len() < 40, "it is never given up: {:?}", devices.loads());
    }
    assert!(waiting.len() > 3, "given up at once: {:?}", devices.loads());
}

#[test]
fn a_full_queue_sends_a_request_on_and_only_full_queues_refuse_it() {
    let config = Config { queue_requests: 2, ..Config::default() };
    let devices = devices(2, &config);
    // All of them would like the device that holds their beginning.
    let held: Vec<_> = (0..4).map(|_| devices.ask(&conversation(1, 640))).collect();
    assert_eq!(devices.loads(), [2, 2]);
    let refused = devices.model.submit(request(&conversation(2, 64))).err().unwrap();
    assert!(matches!(refused, Refused::Full { queued: 2, .. }), "{refused}");
    drop(held);
}

#[test]
fn what_no_device_can_hold_is_refused_once_with_the_reason() {
    let devices = devices(3, &Config::default());
    let refused = devices.model.submit(request(&conversation(1, 1022))).err().unwrap();
    assert_eq!(refused, Refused::TooLong { prompt: 1022, max_tokens: 4, context: 1024 });
    assert_eq!(devices.loads(), [0, 0, 0]);
}

#[test]
fn a_device_that_has_stopped_is_passed_by_and_the_model_stays() {
    let mut devices = devices(2, &Config::default());
    let stopped = devices.model.each().next().unwrap().stop(Duration::ZERO);
    devices.finish();
    drop(stopped);
    let streams: Vec<_> = (0..4).map(|n| devices.ask(&conversation(n, 64))).collect();
    assert_eq!(devices.loads(), [0, 4]);
    assert!(!devices.model.status().stopping);
    devices.finish();
    assert!(streams.into_iter().map(drawn).all(|tokens| tokens.len() == 4));
    let _ = devices.model.stop(Duration::ZERO);
    let refused = devices.model.submit(request(&conversation(1, 64))).err().unwrap();
    assert_eq!(refused, Refused::Stopping);
}

#[test]
fn a_reader_that_leaves_takes_its_weight_with_it() {
    let devices = devices(2, &Config::default());
    let first = devices.ask(&conversation(1, 900));
    let second = devices.ask(&conversation(2, 100));
    let heavy = devices.model.each().position(|e| e.status().queued_tokens == 900).unwrap();
    drop(first);
    let third = devices.ask(&conversation(3, 100));
    assert_eq!(devices.model.each().nth(heavy).unwrap().status().waiting, 2, "it looks idle now");
    drop((second, third));
}

#[test]
fn the_answer_is_the_same_on_every_device() {
    let mut devices = devices(3, &Config::default());
    let streams: Vec<_> = (0..9).map(|_| devices.ask(&conversation(5, 50))).collect();
    devices.finish();
    let answers: Vec<_> = streams.into_iter().map(drawn).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

#[test]
fn engines_with_threads_of_their_own_serve_a_crowd_to_the_end() {
    let start = |_| Engine::start(Box::new(Scripted::new(CAPACITY)), Config::default()).unwrap();
    let model = Arc::new(Replicas::new((0..4).map(start).collect()));
    let askers: Vec<_> = (0..4)
        .map(|asker| {
            let model = model.clone();
            std::thread::spawn(move || {
                for n in 0..100 {
                    let stream = model.submit(request(&conversation(asker * 10 + n % 10, 70 + n))).unwrap();
                    assert_eq!(drawn(stream).len(), 4);
                }
            })
        })
        .collect();
    askers.into_iter().for_each(|asker| asker.join().unwrap());
    let served: Vec<u64> = model.each().map(|e| e.status().tokens_out).collect();
    assert_eq!(served.iter().sum::<u64>(), 1600);
    assert!(served.iter().all(|tokens| *tokens > 0), "{served:?}");
    model.stop(Duration::from_secs(3600)).into_iter().for_each(|stopped| stopped.wait());
}

#[test]
fn the_server_divides_its_work_among_the_replicas_that_the_settings_ask_for() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hearth.toml");
    let model = "[[model]]\nname = \"ember-demo\"\ncontext = 512\nkv = \"4MiB\"\nreplicas = 3\n";
    std::fs::write(&file, model).unwrap();
    let served = Served::start(&["--config", file.to_str().unwrap()]);
    let body = json!({"model": "ember-demo", "prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(|| served.post("/v1/completions", &body))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (status, answer) in &answers {
        assert_eq!(*status, 200, "{answer}");
        assert_eq!(answer["choices"], answers[0].1["choices"]);
    }
    // Four MiB of keys and values three times.
    let one = Served::start(&["--context", "512", "--kv", "4MiB"]);
    assert_eq!(served.metric("hearth_blocks{"), 3.0 * one.metric("hearth_blocks{"));
}
