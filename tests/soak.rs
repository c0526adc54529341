//! Many streams at once, some of whose readers leave: nothing fails, nothing is cut short, memory stays, and every block
//! comes back. A few seconds in the gate; `HEARTH_SOAK_SECONDS=60` is the long run.

mod served;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use served::Served;

const STREAMS: u64 = 64;

/// A small generator so that a run can be repeated: splitmix64.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[test]
fn streams_at_once_with_readers_that_leave() {
    let seconds: u64 = std::env::var("HEARTH_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let served = Served::start(&[]);
    let (whole, left, tokens) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let start = Instant::now();
    let mut early = 0;
    std::thread::scope(|scope| {
        for stream in 0..STREAMS {
            let (served, whole, left, tokens, over) = (&served, &whole, &left, &tokens, &over);
            scope.spawn(move || {
                let mut state = stream;
                while !over.load(Relaxed) {
                    let leaves = draw(&mut state) % 10 < 3;
                    let after = draw(&mut state) % 20;
                    let length = 8 + draw(&mut state) % 25;
                    let prompt = format!("# {}\ndef f{}(", "padding ".repeat((draw(&mut state) % 40) as usize), draw(&mut state) % 100);
                    let body = json!({"model": "ember-demo", "prompt": prompt, "max_tokens": length, "ignore_eos": true, "temperature": 0.8,
                        "seed": stream, "stream": true, "stream_options": {"include_usage": true}});
                    let mut events = 0;
                    let seen = served.stream(&body, |_| {
                        events += 1;
                        !(leaves && events > after)
                    });
                    assert_eq!(seen.error, None, "a stream failed");
                    if seen.done {
                        assert_eq!(seen.tokens, length, "a stream was cut short: {seen:?}");
                        assert_eq!(seen.finish.as_deref(), Some("length"), "{seen:?}");
                        whole.fetch_add(1, Relaxed);
                        tokens.fetch_add(seen.tokens, Relaxed);
                    } else {
                        assert!(leaves, "a stream ended without its end: {seen:?}");
                        left.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        let early_at = Duration::from_secs(seconds.min(60) / 6).max(Duration::from_secs(2));
        while start.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(100));
            if early == 0 && start.elapsed() >= early_at {
                early = served.resident();
            }
        }
        over.store(true, Relaxed);
    });
    let late = served.resident();
    eprintln!(
        "{} s, {STREAMS} streams: {} whole, {} left early, {} tokens, resident {:.1} MiB early and {:.1} MiB late ({:.3} x)",
        seconds,
        whole.load(Relaxed),
        left.load(Relaxed),
        tokens.load(Relaxed),
        early as f64 / 1048576.0,
        late as f64 / 1048576.0,
        late as f64 / early as f64
    );
    assert!(whole.load(Relaxed) > STREAMS, "hardly anything was served");
    assert!(left.load(Relaxed) > 0, "nobody left");
    // Memory is judged on the long run only: in seconds the allocator has not seen every size yet.
    if seconds >= 60 {
        assert!(late as f64 <= 1.05 * early as f64, "resident memory grew from {early} to {late} bytes");
    }
    served.idle();
    assert!(served.stop().success(), "it did not stop cleanly");
}
