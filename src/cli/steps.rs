//! How far something long has come, for whoever waits: a bar on a terminal, a line a stage in a pipe, JSON on request.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use hearth_models::memory::Size;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::store::Watch;

/// JSON has at most one line of progress in this time.
const PACE: Duration = Duration::from_millis(500);

/// Goes to standard error, as JSON to standard output.
pub struct Steps {
    json: bool,
    terminal: bool,
    stage: Option<Stage>,
}

struct Stage {
    name: String,
    total: Option<u64>,
    done: u64,
    begin: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Steps {
    pub fn new(json: bool) -> Self {
        Self { json, terminal: std::io::stderr().is_terminal() && !json, stage: None }
    }

    /// One line of JSON. A reader that went away is told by the last line, which is written with its error looked at.
    pub fn tell(&self, event: &serde_json::Value) {
        if self.json {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{event}").and_then(|()| out.flush());
        }
    }

    /// The stage is over.
    pub fn end(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
        }
        let seconds = stage.begin.elapsed().as_secs_f64();
        if self.json {
            let (step, done) = (&stage.name, stage.done);
            self.tell(&json!({"event": "done", "step": step, "done": done, "seconds": seconds}));
        } else if stage.done > 0 {
            eprintln!("{}: {} in {seconds:.1} s", stage.name, Size(stage.done));
        }
    }
}

impl Watch for Steps {
    fn begin(&mut self, name: &str, total: Option<u64>) {
        self.end();
        let bar = (self.terminal && total.is_some()).then(|| {
            let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).expect("bug: the bar's template is valid");
            ProgressBar::new(total.unwrap_or_default()).with_style(style).with_message(name.to_owned())
        });
        let now = Instant::now();
        self.stage = Some(Stage { name: name.to_owned(), total, done: 0, begin: now, told: now - PACE, bar });
    }

    fn at(&mut self, done: u64) {
        let Some(stage) = &mut self.stage else { return };
        stage.done = done;
        if let Some(bar) = &stage.bar {
            bar.set_position(done);
        }
        if self.json && stage.told.elapsed() >= PACE {
            stage.told = Instant::now();
            let event = json!({"event": "progress", "step": stage.name, "done": done, "total": stage.total});
            self.tell(&event);
        }
    }

    fn note(&mut self, text: &str) {
        match self.json {
            true => self.tell(&json!({"event": "note", "text": text})),
            false => match self.stage.as_ref().and_then(|stage| stage.bar.as_ref()) {
                Some(bar) => bar.suspend(|| eprintln!("{text}")),
                None => eprintln!("{text}"),
            },
        }
    }
}
