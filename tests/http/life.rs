//! Overload, failure, clients that leave or dawdle, and the end of the server.

use std::time::Duration;

use hearth::engine::clock::Manual;
use hearth::engine::handle::{Config, Stopped};
use hearth::engine::scripted::Fault;
use hearth::server::Limits;
use serde_json::json;

use super::client::{Line, request};
use super::site::{ANSWER, KEY, Options, Site};

fn endless() -> serde_json::Value {
    json!({"model": "ember", "prompt": "a@", "temperature": 0, "max_tokens": 200, "ignore_eos": true, "stream": true})
}

#[test]
fn a_client_that_leaves_takes_its_sequence_along() {
    let site = Site::start();
    site.controls.delay(Duration::from_millis(5));
    let mut line = site.open("/v1/completions", &endless());
    line.until("data: ");
    assert!(site.engine.status().running == 1);
    drop(line);
    site.quiet();
    assert!(site.controls.steps() < 200, "the answer was not made to its end");
    // Also when the answer is not streamed, and nothing was sent yet.
    let mut whole = endless();
    whole["stream"] = json!(false);
    let line = site.open("/v1/completions", &whole);
    while site.engine.status().running == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(line);
    site.quiet();
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let config = Config { queue_requests: 1, sequences: 1, ..Config::default() };
    let site = Site::with(Options { config, ..Options::default() });
    // One step, after which the engine says what it is doing; the next one waits.
    site.controls.allow(1);
    let first = site.open("/v1/completions", &endless());
    while site.engine.status().running == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = site.open("/v1/completions", &endless());
    while site.engine.status().waiting == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let refused = site.complete(json!({}));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    site.controls.run();
    for line in [first, second] {
        assert!(line.reply().chunks().len() > 10);
    }
    assert_eq!(site.complete(json!({"max_tokens": 100})).json()["choices"][0]["text"], ANSWER);
}

#[test]
fn many_streams_at_once_are_all_whole() {
    let site = Site::start();
    std::thread::scope(|scope| {
        for client in 0..24 {
            let site = &site;
            scope.spawn(move || {
                let prompt = format!("{}b@", "w ".repeat(client));
                let reply = site.complete(json!({"prompt": prompt, "max_tokens": 100, "stream": true}));
                let text: String = reply
                    .chunks()
                    .iter()
                    .map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned())
                    .collect();
                assert_eq!(text, ANSWER);
            });
        }
    });
    site.quiet();
}

#[test]
fn the_probes_need_no_key() {
    let site = Site::start();
    for (path, word) in [("live", "live"), ("ready", "ready"), ("startup", "started")] {
        let reply = Line::open(site.address, &request("GET", &format!("/health/{path}"), &[], "")).reply();
        assert_eq!((reply.status, reply.json()), (200, json!({"status": word})));
    }
    site.engine.stop(Duration::ZERO).into_iter().for_each(Stopped::wait);
    let reply = site.get("/health/ready");
    assert_eq!((reply.status, reply.json()), (503, json!({"status": "an engine has stopped"})));
    // Nothing brings an engine back but a new process.
    let reply = site.get("/health/live");
    assert_eq!((reply.status, reply.json()), (503, json!({"status": "an engine has died"})));
}

#[test]
fn a_shutdown_is_told_first_then_takes_no_connections_and_lets_answers_end() {
    let limits = Limits { drain_delay: Duration::from_secs(2), ..Limits::default() };
    let mut site = Site::with(Options { limits, ..Options::default() });
    site.controls.allow(3);
    let mut line = site.open("/v1/completions", &endless());
    line.until("data: ");
    site.stop();
    while site.get("/health/ready").status != 503 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Until others have noticed, what they send is served; and they are asked to come anew, elsewhere.
    let reply = site.get("/v1/models");
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(site.get("/health/ready").json(), json!({"status": "draining"}));
    assert_eq!(site.get("/health/live").status, 200);
    while std::net::TcpStream::connect(site.address).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    site.controls.run();
    line.until("[DONE]");
    site.ended();
}

#[test]
fn a_connection_that_was_there_at_shutdown_still_has_its_request_answered() {
    let mut site = Site::start();
    let mut line = Line::open(site.address, b"GET /health/live HTTP/1.1\r\nhost: x\r\n");
    // Its connection is being served, as the answer to another one after it shows.
    assert_eq!(site.get("/health/ready").status, 200);
    site.stop();
    while std::net::TcpStream::connect(site.address).is_ok() {
        std::thread::sleep(Duration::from_millis(1));
    }
    line.send(b"\r\n");
    assert_eq!(line.reply().status, 200);
    site.ended();
}

#[test]
fn a_step_that_does_not_end_is_no_life() {
    let clock = Manual::default();
    let config = Config { clock: std::sync::Arc::new(clock.clone()), ..Config::default() };
    let step = Duration::from_secs(120);
    let site = Site::with(Options { config, step, ..Options::default() });
    site.controls.allow(0);
    let _line = site.open("/v1/completions", &endless());
    let mut passed = 0;
    let sick = loop {
        clock.advance(Duration::from_secs(10));
        passed += 10;
        let reply = site.get("/health/live");
        if reply.status != 200 {
            break reply;
        }
    };
    assert!(passed > 120, "until then it may just be slow: {passed}");
    assert_eq!(
        (sick.status, sick.json()),
        (503, json!({"status": "an engine has been in one step for 130 s"}))
    );
    site.controls.run();
    while site.get("/health/live").status != 200 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn silent_and_slow_connections_are_closed() {
    let short = Duration::from_millis(100);
    let limits = Limits { first_byte: short, headers: short, body: short, ..Limits::default() };
    let site = Site::with(Options { limits, ..Options::default() });
    assert!(Line::open(site.address, b"").closed(), "not a byte");
    let halves = Line::open(site.address, b"GET /health/live HTTP/1.1\r\nhost: x\r\n");
    let end = halves.reply_or_end();
    assert!(end.is_none_or(|reply| reply.status == 408), "half a header");
    let headers = [("x-api-key", KEY), ("content-length", "10"), ("content-type", "application/json")];
    let slow = Line::open(site.address, &request("POST", "/v1/completions", &headers, "")).reply();
    assert_eq!(slow.status, 408);
    assert_eq!(slow.json()["error"]["code"], "body_timeout");
    assert_eq!(site.get("/health/live").status, 200);
}

#[test]
fn connections_over_the_limit_wait_for_their_turn() {
    let limits = Limits { connections: 1, first_byte: Duration::from_millis(200), ..Limits::default() };
    let site = Site::with(Options { limits, ..Options::default() });
    let _silent = Line::open(site.address, b"");
    assert_eq!(site.get("/health/live").status, 200, "served when the silent one was closed");
}

#[test]
fn what_does_not_end_in_the_drain_time_is_told_so() {
    let limits = Limits { drain: Duration::from_millis(50), ..Limits::default() };
    let mut site = Site::with(Options { limits, ..Options::default() });
    site.controls.delay(Duration::from_millis(20));
    let mut line = site.open("/v1/completions", &endless());
    line.until("data: ");
    site.stop();
    line.until("\"error\"");
    site.ended();
}

#[test]
fn a_step_that_fails_ends_its_answer_with_an_error_and_nothing_else() {
    let site = Site::start();
    site.controls.fail(3, Fault::Collect);
    let reply = site.complete(json!({"max_tokens": 100, "stream": true}));
    assert_eq!(reply.status, 200, "the answer had begun");
    let events = reply.events();
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    assert!(last["error"]["message"].as_str().unwrap().contains("scripted"), "{last}");
    assert!(events.len() > 1 && !events.contains(&"[DONE]".to_owned()));
    site.controls.fail(site.controls.steps(), Fault::Launch);
    let whole = site.complete(json!({"max_tokens": 100}));
    assert_eq!((whole.status, whole.json()["error"]["code"].as_str()), (500, Some("generation_failed")));
    assert_eq!(site.complete(json!({"max_tokens": 100})).json()["choices"][0]["text"], ANSWER);
    site.quiet();
}

#[test]
fn the_figures_count_requests_and_tokens() {
    let site = Site::start();
    site.complete(json!({"max_tokens": 5}));
    site.complete(json!({"n": 0}));
    site.quiet();
    let figures = || Line::open(site.metrics, &request("GET", "/metrics", &[], "")).reply();
    let mut reply = figures();
    // A request is counted when its answer is out, which the client may know before the server does.
    while !reply.body.contains("status=\"400\"") || !reply.body.contains("status=\"200\"") {
        reply = figures();
    }
    for line in [
        "hearth_requests_total{route=\"/v1/completions\",status=\"200\"} 1",
        "hearth_requests_total{route=\"/v1/completions\",status=\"400\"} 1",
        "hearth_request_duration_seconds_count{route=\"/v1/completions\"} 2",
        "hearth_generated_tokens_total{model=\"ember\"} 5",
        "hearth_generated_tokens_total{model=\"plain\"} 0",
        "hearth_kv_blocks{model=\"ember\",state=\"free\"} 512",
        "# EOF",
    ] {
        assert!(reply.body.lines().any(|l| l == line), "no {line} in\n{}", reply.body);
    }
    let elsewhere = Line::open(site.metrics, &request("GET", "/v1/models", &[], "")).reply();
    assert_eq!(elsewhere.status, 404);
}
