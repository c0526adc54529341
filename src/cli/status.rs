//! `hearth status`: what the running server is doing, on one screen.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use axum::http::Method;
use clap::Args;

use super::admin::{Line, Which};
use super::{CliError, Common, Exit};
use crate::admin::status::{self as document, Figures, minutes};

#[derive(Args)]
pub struct Status {
    /// Again every second, until interrupted
    #[arg(short, long)]
    watch: bool,
    /// One JSON object; with --watch one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

pub fn run(verb: Status, common: &Common) -> Result<(), CliError> {
    let settings = verb.which.settings(common)?;
    let mut out = std::io::stdout();
    let screen = out.is_terminal();
    super::runtime()?.block_on(async {
        let line = Line::open(&settings).await?;
        if !verb.watch {
            let status = line.ask(Method::GET, "/admin/status", None).await?;
            match verb.json {
                true => writeln!(out, "{status:#}")?,
                false => write!(out, "{}", whole(&read(&status.to_string())?))?,
            }
            return Ok(());
        }
        line.events("/admin/status/stream", |event| {
            match (verb.json, screen) {
                (true, _) => writeln!(out, "{event}")?,
                // Home, and what was there is cleared line by line: a screen that is wiped first flickers.
                (false, true) => {
                    let text = whole(&read(event)?).replace('\n', "\x1b[K\n");
                    write!(out, "\x1b[H{text}\x1b[J")?;
                }
                (false, false) => writeln!(out, "{}", brief(&read(event)?))?,
            }
            out.flush()?;
            Ok(true)
        })
        .await
    })
}

fn read(text: &str) -> Result<document::Status, CliError> {
    serde_json::from_str(text).map_err(|e| {
        CliError::new(Exit::Failed, format!("the server's status cannot be read: {e}"))
            .fix("use the `hearth` of the server's own version")
    })
}

fn ms(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.1} ms"),
        Some(ms) if ms < 10_000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.1} s", ms / 1e3),
    }
}

/// One line, for a pipe.
fn brief(status: &document::Status) -> String {
    let now = &status.now;
    format!(
        "{} {} tokens/s={:.0} running={} queued={} kv={:.0}% first_token_p95={}",
        status.time,
        status.state,
        now.tokens_per_s,
        now.running,
        now.waiting,
        now.kv_ratio * 100.0,
        ms(now.first_token_ms.p95),
    )
}

fn row(text: &mut String, name: &str, figures: &Figures) {
    let _ = writeln!(
        text,
        "  {name:<24} {:>9.0} {:>8} {:>7} {:>5.0} % {:>10} {:>10} {:>10}",
        figures.tokens_per_s,
        figures.running,
        figures.waiting,
        figures.kv_ratio * 100.0,
        ms(figures.first_token_ms.p50),
        ms(figures.first_token_ms.p95),
        ms(figures.between_tokens_ms.p95),
    );
}

/// The screen.
fn whole(status: &document::Status) -> String {
    let mut text = String::new();
    let uptime = minutes(status.uptime_s);
    let _ = writeln!(text, "hearth {} · {} · up {uptime} · {}", status.version, status.state, status.api);
    let _ = writeln!(
        text,
        "{} · {:.1} GiB in memory",
        status.device,
        status.resident as f64 / f64::from(1u32 << 30)
    );
    for gpu in &status.gpus {
        let held = if gpu.throttled.is_empty() {
            String::new()
        } else {
            format!(" · held back by {}", gpu.throttled.join(", "))
        };
        let _ = writeln!(text, "GPU {} {} · {}{held}", gpu.gpu, gpu.name, gpu.words());
    }
    if let Some(gitlab) = &status.gitlab {
        let age = status
            .gitlab_keys_age_s
            .map_or("not fetched yet".to_owned(), |age| format!("{} old", minutes(age)));
        let _ = writeln!(text, "GitLab {gitlab} · its keys are {age}");
    }
    for banner in &status.banners {
        let _ = writeln!(text, "! {}", banner.text);
    }
    let _ = writeln!(
        text,
        "\n  {:<24} {:>9} {:>8} {:>7} {:>7} {:>10} {:>10} {:>10}",
        "model", "tokens/s", "running", "queued", "KV", "first p50", "p95", "next p95"
    );
    for model in &status.models {
        row(&mut text, &model.name, &model.figures);
    }
    if status.models.len() > 1 {
        row(&mut text, "all", &status.now);
    }
    for upstream in &status.upstreams {
        let _ = writeln!(
            text,
            "  {:<24} upstream: {} running, {} requests, {} failed ({})",
            upstream.name,
            upstream.running,
            upstream.requests,
            upstream.failures,
            upstream.models.join(", ")
        );
    }
    for model in &status.models {
        let papers = &model.papers;
        let _ = writeln!(text, "\n  {}: {} · {}", model.name, papers.format, papers.licence());
        let _ = writeln!(text, "    {}", papers.provenance());
        let _ = writeln!(text, "    {}", papers.digest.as_deref().unwrap_or("its files cannot be read"));
    }
    if !status.troubles.is_empty() {
        let _ = writeln!(text, "\n  troubles, the latest first");
    }
    for trouble in status.troubles.iter().take(8) {
        let time = trouble.time.get(11..19).unwrap_or_default();
        let times = if trouble.times > 1 { format!(" ×{}", trouble.times) } else { String::new() };
        let line = format!("{time} {:<5} {}{times} {}", trouble.level, trouble.message, trouble.detail);
        let _ = writeln!(text, "  {}", line.chars().take(150).collect::<String>());
    }
    text
}
