//! Results in a terminal: what was asked, what came of it, and what cannot be said.

use std::fmt::Write;

use super::latency::ENOUGH;
use super::limits::Verdict;
use super::result::{Results, Run};
use super::sizing::{columns, grouped, milliseconds};

/// One run, as lines.
pub fn run(results: &Results, run: &Run) -> String {
    if run.is_empty() {
        return format!("{}, {}\n", results.workload.profile, left_out(run));
    }
    let mut text = format!(
        "{}, {}: {} requests answered in {:.1} s, {} refused, {} failed\n",
        results.workload.profile,
        run.arrivals,
        grouped(run.requests),
        run.seconds,
        run.refused,
        run.failed
    );
    let prompt = run.prompt_tokens.map_or("an unknown number of".to_owned(), |tokens| format!("{tokens:.0}"));
    let mut line = |words: String| writeln!(text, "{words}").expect("bug: writing to a string failed");
    line(format!(
        "  {:.2} answers/s, {:.0} tokens/s; a prompt has {prompt} tokens, an answer {:.0}; at most {} in flight",
        run.requests_per_s, run.output_tokens_per_s, run.output_tokens, run.most_in_flight
    ));
    for (kind, times) in &run.kinds {
        line(format!(
            "\n  {:<16}{:>11}{:>11}{:>11}{:>11}{:>11}",
            kind.to_string(),
            "p50",
            "p90",
            "p95",
            "p99",
            "longest"
        ));
        let rows = [
            ("first token", &times.first_ms),
            ("per token", &times.token_ms),
            ("between pieces", &times.gap_ms),
            ("whole answer", &times.whole_ms),
        ];
        for (what, latency) in rows {
            let cell = |value: Option<f64>| match value {
                Some(ms) => format!("{:>8} ms", milliseconds(ms)),
                None => format!("{:>11}", "–"),
            };
            let cells: String = columns(latency).map(cell).concat();
            line(format!("  {what:<16}{cells}   mean {} ms", milliseconds(latency.mean)));
        }
    }
    for note in notes(results, run) {
        line(format!("\n  {note}"));
    }
    text
}

/// What a reader must know before believing a run's figures.
pub fn notes(results: &Results, run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    if results.quick {
        notes.push(format!(
            "QUICK: percentiles of {} requests are a look, not a measurement; without --quick there are {} at least.",
            run.requests,
            grouped(ENOUGH)
        ));
    } else if run.requests < ENOUGH && !run.late {
        notes.push(format!(
            "No percentiles: {} requests were counted and {} are needed. Let it run longer, or take a look with --quick.",
            run.requests,
            grouped(ENOUGH)
        ));
    }
    if let Some(why) = &run.ended {
        notes.push(format!("Ended early: {why}."));
    }
    if let Some(first) = &run.first_failure {
        let classes: Vec<String> = run.failures.iter().map(|(class, n)| format!("{n} x {class}")).collect();
        notes.push(format!("Not answered: {}. The first: {first}", classes.join(", ")));
    }
    if run.late_ms > 50.0 {
        notes.push(format!(
            "Who asked was itself late, by up to {:.0} ms: its machine was busy. That is in the times above.",
            run.late_ms
        ));
    }
    notes
}

/// What is said of a run without a figure, instead of zeros that nobody measured.
pub fn left_out(run: &Run) -> String {
    let why = run.ended.as_deref().unwrap_or("it asked nothing");
    format!("{}: nothing was counted ({why})", run.arrivals)
}

/// A sweep: a line for each run, then the knee.
pub fn sweep(results: &Results) -> String {
    let mut text = String::new();
    for run in &results.runs {
        text += &if run.is_empty() { left_out(run) } else { step(results, run) };
        text.push('\n');
    }
    if let Some(knee) = &results.knee {
        text += &match knee.rate {
            Some(rate) => format!(
                "\nknee: {}{rate} requests/s hold the limits; beyond: {}\n",
                if knee.at_least { "at least " } else { "" },
                knee.beyond
            ),
            None => format!("\nknee: no rate held the limits: {}\n", knee.beyond),
        };
    }
    if let Some(why) = &results.partial {
        text += &format!("\nPARTIAL: {why}\n");
    }
    if results.quick {
        text += "\nQUICK: percentiles of few requests are a look, not a measurement.\n";
    }
    text
}

/// One run of a sweep in a line.
pub fn step(results: &Results, run: &Run) -> String {
    let mut line = format!("{:>28}  {:>8.2} answers/s", run.arrivals.to_string(), run.requests_per_s);
    for (kind, times) in &run.kinds {
        let p95 =
            |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{} ms", milliseconds(ms)));
        let (first, token) = (p95(times.first_ms.p95), p95(times.token_ms.p95));
        line += &format!("  {kind}: first token p95 {first:>9}, per token p95 {token:>8}");
    }
    match results.limits.judge(run) {
        Verdict::Holds => line + "  holds",
        Verdict::Breaks(why) => format!("{line}  breaks: {why}"),
        Verdict::Open(why) => format!("{line}  not known: {why}"),
    }
}
