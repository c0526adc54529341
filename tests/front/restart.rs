//! Restarts under load behind a passed socket: nobody is refused, no answer is cut.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::json;

use super::client::{Line, request};
use super::service::{Manager, Over, times};
use super::site::KEY;

fn completion(tokens: u32) -> Vec<u8> {
    let body = json!({"model": "ember-demo", "prompt": "def main(", "max_tokens": tokens, "ignore_eos": true,
                      "temperature": 0, "stream": true});
    let headers = [("x-api-key", KEY), ("content-type", "application/json")];
    request("POST", "/v1/completions", &headers, &body.to_string())
}

#[test]
fn restarts_under_load_refuse_nobody_and_cut_nothing() {
    let manager = Manager::new();
    let (served, asking, over) = (AtomicU64::new(0), AtomicU64::new(6), AtomicBool::new(false));
    let address = manager.address();
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..6 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    // Each of these panics where a connection is refused, reset or closed, or the answer is not whole.
                    let chunks = Line::open(address, &completion(16)).reply().chunks();
                    let last = &chunks.last().unwrap()["choices"][0]["finish_reason"];
                    assert_eq!(last, "length", "{chunks:?}");
                    served.fetch_add(1, Relaxed);
                }
                asking.fetch_sub(1, Relaxed);
            });
        }
        let mut lives = 0;
        let restarts = times("HEARTH_RESTARTS", 3);
        while lives <= restarts {
            let life = manager.start(&[]);
            let told = manager.until("READY=1");
            assert!(told.contains("STATUS=loading ember-demo"), "{told}");
            let before = served.load(Relaxed);
            while served.load(Relaxed) < before + 12 {
                std::thread::sleep(Duration::from_millis(5));
            }
            lives += 1;
            if lives > restarts {
                // The last one ends when nobody asks any more, or who asks would wait for a next one.
                over.store(true, Relaxed);
                while asking.load(Relaxed) > 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            life.signal("-TERM");
            let told = manager.until("STOPPING=1");
            assert!(told.contains("EXTEND_TIMEOUT_USEC="), "{told}");
            assert_eq!(life.ended(), Some(0));
        }
    });
}

#[test]
fn answers_that_do_not_end_in_the_drain_time_are_told_so() {
    for (drain, again) in [("0", false), ("600", true)] {
        let manager = Manager::new();
        let life = manager.start(&["--drain", drain]);
        manager.until("READY=1");
        let mut lines: Vec<Line> =
            (0..16).map(|_| Line::open(manager.address(), &completion(1900))).collect();
        lines.iter_mut().for_each(|line| line.until("data: "));
        life.signal("-TERM");
        if again {
            // Two signals that come together would be one.
            manager.until("STOPPING=1");
            life.signal("-TERM");
        }
        let ends: Vec<String> = lines.into_iter().map(Line::rest).collect();
        for end in &ends {
            // The last chunk of the body is there: its events are whole, and the last one is an end.
            assert!(end.ends_with("0\r\n\r\n"), "cut: {end:?}");
            assert!(end.contains("data: [DONE]") || end.contains("data: {\"error\""), "{end:?}");
        }
        assert!(ends.iter().any(|end| end.contains("data: {\"error\"")), "--drain {drain} cut nothing short");
        assert_eq!(life.ended(), Some(0));
    }
}
