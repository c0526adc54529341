//! What the terminal verbs share with a user: a stream of text on standard output, progress on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use futures::StreamExt;
use hearth_models::memory::Size;
use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, Exit};
use crate::supervisor;
use crate::text::generation::{Generation, Output};

/// Bytes of a load: a bar on a terminal, one line at the end otherwise.
pub struct Progress {
    what: String,
    bytes: u64,
    bar: Option<ProgressBar>,
    begin: Instant,
}

impl Progress {
    pub fn new(what: &str, bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
            let style = ProgressStyle::with_template(style).expect("bug: the bar's template is valid");
            ProgressBar::new(bytes).with_style(style).with_message(what.to_owned())
        });
        Self { what: what.to_owned(), bytes, bar, begin: Instant::now() }
    }

    pub fn at(&self, bytes: u64) {
        supervisor::loading(&self.what, bytes, self.bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    pub fn done(self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: {} read in {:.1} s", self.what, Size(bytes), self.begin.elapsed().as_secs_f64());
    }
}

/// Writes an answer as it is made. Returns its text.
pub async fn write(mut answer: Generation) -> Result<String, CliError> {
    let mut out = std::io::stdout();
    let mut whole = String::new();
    let begin = Instant::now();
    let mut first: Option<Duration> = None;
    let mut tokens = 0u32;
    while let Some(output) = answer.next().await {
        match output {
            Output::Prompt { .. } => {}
            Output::Piece { text, .. } => {
                first.get_or_insert_with(|| begin.elapsed());
                tokens += 1;
                out.write_all(text.as_bytes())?;
                out.flush()?;
                whole += &text;
            }
            Output::Finished { text, .. } => {
                out.write_all(text.as_bytes())?;
                whole += &text;
            }
            Output::Failed { error } => return Err(CliError::new(Exit::Failed, error)),
        }
    }
    if !whole.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    let (first, all) = (first.unwrap_or_default().as_secs_f64(), begin.elapsed().as_secs_f64());
    eprintln!("{tokens} tokens in {all:.2} s, the first after {:.0} ms", first * 1e3);
    Ok(whole)
}
