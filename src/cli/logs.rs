//! `hearth logs`: the last lines of the running server's log, and the switch for prompts in it.

use std::io::Write;
use std::time::Duration;

use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::admin::{Line, Which};
use super::{CliError, Common, Exit};
use crate::admin::status::minutes;
use crate::log::prompts::LONGEST;

#[derive(Args)]
pub struct Logs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Lines to show at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: u64,
    /// Go on with what is logged from now on
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    which: Which,
}

#[derive(Subcommand)]
enum Verb {
    /// Prompts and answers in the log: on for a time, off, or whether they are
    Verbose {
        #[command(subcommand)]
        verb: Verbose,
    },
}

#[derive(Subcommand)]
enum Verbose {
    /// Log prompts and answers from now on; it ends by itself
    On {
        /// For how long, like 15m; 24h at most
        #[arg(long = "for", value_name = "TIME")]
        time: String,
    },
    /// Stop logging prompts and answers
    Off,
    /// Say whether prompts and answers are logged
    Status,
}

/// Seconds in `90s`, `15m` or `2h`.
fn seconds(text: &str) -> Result<u64, CliError> {
    let unit = |c: char| match c {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        _ => None,
    };
    let parsed = text.chars().last().and_then(unit).and_then(|unit| {
        let number: u64 = text[..text.len() - 1].parse().ok()?;
        number.checked_mul(unit)
    });
    parsed.filter(|seconds| (1..=LONGEST.as_secs()).contains(seconds)).ok_or_else(|| {
        CliError::new(Exit::Usage, format!("--for is {text:?}"))
            .fix("give a time like 90s, 15m or 2h; 24h at most")
    })
}

pub fn run(verb: Logs, common: &Common) -> Result<(), CliError> {
    let settings = verb.which.settings(common)?;
    let asked = match &verb.verb {
        None => None,
        Some(Verb::Verbose { verb: Verbose::On { time } }) => {
            Some((Method::POST, Some(json!({"seconds": seconds(time)?}))))
        }
        Some(Verb::Verbose { verb: Verbose::Off }) => Some((Method::DELETE, None)),
        Some(Verb::Verbose { verb: Verbose::Status }) => Some((Method::GET, None)),
    };
    super::runtime()?.block_on(async {
        let line = Line::open(&settings).await?;
        let Some((method, body)) = asked else { return show(&line, verb.lines, verb.follow).await };
        let answer = line.ask(method, "/admin/prompts", body).await?;
        let told = match answer["seconds_left"].as_u64() {
            Some(left) => format!("prompts and answers go into the log for {} more", minutes(left.max(1))),
            None => "prompts and answers do not go into the log".to_owned(),
        };
        writeln!(std::io::stdout(), "{told}")?;
        Ok(())
    })
}

async fn show(line: &Line, most: u64, follow: bool) -> Result<(), CliError> {
    let mut out = std::io::stdout();
    let mut path = format!("/admin/log?most={most}");
    loop {
        let answer = line.ask(Method::GET, &path, None).await?;
        for text in answer["lines"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            writeln!(out, "{text}")?;
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
        path = format!("/admin/log?from={}", answer["seen"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_an_end() {
        assert_eq!(seconds("15m").unwrap(), 900);
        assert_eq!(seconds("24h").unwrap(), 86_400);
        for wrong in ["", "15", "m", "25h", "0s", "-1m", "1d", "99999999999999999999h", "1µ"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
