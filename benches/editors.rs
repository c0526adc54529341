//! 32 editors typing at once on the embedded model: the time to the first token of a completion, with the prefix cache and
//! without it, and what was computed for keystrokes that the next one made void.
//!
//!     cargo bench --bench editors
//!
//! Each editor has a file of its own of about 1,400 tokens and types at its end, four keystrokes a second; a keystroke
//! whose predecessor's answer is still coming drops that connection first, as editors do. A file's first request, which no
//! cache can know, is waited for and not counted. Two editors are measured as well, because 32 without the cache ask for
//! several times what two cores compute.
//!
//! What is expected: alone, a completion takes 5 ms with the cache and 70 ms without it, so 32 editors keep the machine
//! under two thirds busy with the cache (p50 below 10 ms, p95 below 30 ms) and without it ask for nine seconds of work a
//! second, nearly all of which is void; and with the cache a dropped connection costs at most the step in flight, below
//! one row in a hundred.

#[path = "../tests/served/mod.rs"]
mod served;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use served::Served;

/// Room for the keys and values of all files at once.
const KV: &str = "256MiB";
const KEYSTROKE: Duration = Duration::from_millis(250);

/// What the editors saw.
#[derive(Default)]
struct Seen {
    first: Mutex<Vec<Duration>>,
    keystrokes: AtomicU64,
    void: AtomicU64,
    errors: AtomicU64,
}

fn main() {
    // `cargo test --benches` runs this too: a short pass that shows it works.
    let quick = !std::env::args().any(|a| a == "--bench");
    let seconds: f64 = std::env::var("HEARTH_BENCH_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(if quick { 1.0 } else { 20.0 });
    report(
        "editors  prefix cache  keystrokes  void  errors  first token p50/p95 ms  prompt tokens from the cache  wasted rows",
    );
    for (editors, cache) in [(2, true), (2, false), (32, true), (32, false)] {
        let switch = cache.to_string();
        let environment =
            [("HEARTH__GITLAB__BYPASS", "all"), ("HEARTH__ENGINE__PREFIX_CACHE", switch.as_str())];
        let served = Served::start_with(&["--context", "2048", "--kv", KV], &environment);
        let seen = Seen::default();
        let opened = Barrier::new(editors as usize + 1);
        let before = std::thread::scope(|scope| {
            for editor in 0..editors {
                let (served, seen, opened) = (&served, &seen, &opened);
                scope.spawn(move || {
                    let mut editor = Editor::open(editor, served);
                    opened.wait();
                    // Editors do not type in step with each other.
                    std::thread::sleep(KEYSTROKE.mul_f64(editor.number as f64 / editors as f64));
                    editor.type_for(Duration::from_secs_f64(seconds), served, seen);
                });
            }
            opened.wait();
            served.metrics().1
        });
        let after = served.metrics().1;
        let figure = |name: &str| total(&after, name) - total(&before, name);
        let mut first = seen.first.into_inner().expect("no panic holds it");
        first.sort_unstable();
        let at = |share: f64| match first.len() {
            0 => f64::NAN,
            n => first[((n - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3,
        };
        report(&format!(
            "{editors:>7}  {:>12}  {:>10}  {:>4}  {:>6}  {:>10.1} / {:<9.1}  {:>27.1}%  {:>10.2}%",
            if cache { "on" } else { "off" },
            seen.keystrokes.load(Relaxed),
            seen.void.load(Relaxed),
            seen.errors.load(Relaxed),
            at(0.5),
            at(0.95),
            100.0 * figure("hearth_prefix_cache_hit_tokens_total")
                / figure("hearth_prefix_cache_query_tokens_total").max(1.0),
            100.0 * figure("hearth_wasted_rows_total") / figure("hearth_rows_total").max(1.0),
        ));
        served.stop();
    }
}

/// The sum of a figure over its labels.
fn total(figures: &str, name: &str) -> f64 {
    let rows = figures.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    rows.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// One person and the file under the cursor.
struct Editor {
    number: u64,
    text: String,
}

impl Editor {
    /// Opens the file: its first completion is waited for, however long it takes.
    fn open(number: u64, served: &Served) -> Self {
        let text = (0..40)
            .map(|line| format!("def step_{number}_{line}(value):\n    return value + {line} * {number}\n\n"))
            .collect();
        let editor = Self { number, text };
        let patience = Instant::now() + Duration::from_secs(60);
        let first =
            complete(&served.url, &editor.body(), patience).expect("the first completion is answered");
        assert!(first.whole, "the first completion ends");
        editor
    }

    /// A keystroke, a request, and the answer until the next keystroke.
    fn type_for(&mut self, time: Duration, served: &Served, seen: &Seen) {
        let typed = "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n";
        let end = Instant::now() + time;
        for key in typed.chars().cycle() {
            let begin = Instant::now();
            if begin >= end {
                return;
            }
            self.text.push(key);
            seen.keystrokes.fetch_add(1, Relaxed);
            match complete(&served.url, &self.body(), begin + KEYSTROKE) {
                Ok(first) => {
                    // No token before the next keystroke counts as one that came with it: so late it is worth nothing.
                    seen.first.lock().expect("no panic holds it").push(first.time.unwrap_or(KEYSTROKE));
                    seen.void.fetch_add(u64::from(!first.whole), Relaxed);
                }
                Err(_) => {
                    seen.errors.fetch_add(1, Relaxed);
                }
            }
            std::thread::sleep((begin + KEYSTROKE).saturating_duration_since(Instant::now()));
        }
    }

    fn body(&self) -> String {
        let file =
            json!({"file_name": "total.py", "content_above_cursor": self.text, "content_below_cursor": "\n"});
        json!({"prompt_version": 1, "project_path": "", "project_id": -1, "stream": true, "choices_count": 1,
            "current_file": file})
        .to_string()
    }
}

struct First {
    time: Option<Duration>,
    whole: bool,
}

/// Sends a completion and reads until its end or until `until`, when the connection is dropped.
fn complete(url: &str, body: &str, until: Instant) -> std::io::Result<First> {
    let begin = Instant::now();
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    let request = format!(
        "POST /v2/completions HTTP/1.1\r\nhost: hearth\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut answer = First { time: None, whole: false };
    let late = |e: &std::io::Error| {
        matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    };
    let wait = |reader: &BufReader<TcpStream>| {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        reader.get_ref().set_read_timeout(Some(left))
    };
    // Headers.
    loop {
        wait(&reader)?;
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if line.starts_with("HTTP/1.1 ") && !line.starts_with("HTTP/1.1 200") => {
                return Err(std::io::Error::other(line));
            }
            Ok(_) if line == "\r\n" => break,
            Ok(_) => {}
            Err(e) if late(&e) => return Ok(answer),
            Err(e) => return Err(e),
        }
    }
    let mut piece = [0; 4096];
    loop {
        wait(&reader)?;
        match reader.read(&mut piece) {
            Ok(0) => return Ok(First { whole: true, ..answer }),
            Ok(_) => answer.time = answer.time.or(Some(begin.elapsed())),
            Err(e) if late(&e) => return Ok(answer),
            Err(e) => return Err(e),
        }
    }
}

#[allow(clippy::print_stdout)] // the figures are what this program is for
fn report(line: &str) {
    println!("{line}");
}
