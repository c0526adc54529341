//! The report: one HTML file with everything in it. No script, nothing is fetched, light and dark, made for printing too.
//!
//! Every figure names where it stands in its JSON (`data-from`: the number of the file, then a JSON pointer), so that
//! anybody can compare the two; a test does.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::arrivals::{Arrivals, figure};
use super::limits::Verdict;
use super::plot::{Axis, Line, Plot};
use super::profile::Kind;
use super::result::{Knee, Results, Run, Times};
use super::sizing::{columns, grouped, milliseconds, rate_of, sentence, users_of};
use super::summary::{left_out, notes};

const STYLE: &str = include_str!("report.css");

/// The whole page. `users` are the GitLab users to answer for.
pub fn page(files: &[(String, Results)], users: Option<u64>) -> String {
    let title = match files {
        [(_, one)] => format!("Sizing: {} requests to {}", one.workload.profile, one.server.model),
        _ => format!("Sizing: {} results", files.len()),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (title) } p.made { "Made by hearth bench " (env!("CARGO_PKG_VERSION")) } }
                @if let Some(users) = users { (answers(files, users)) }
                @for (number, (name, results)) in files.iter().enumerate() { (file(number, name, results)) }
                (explained())
            }
        }
    };
    page.into_string()
}

fn answers(files: &[(String, Results)], users: u64) -> Markup {
    html! {
        section.answer {
            h2 { (grouped(users)) " GitLab users" }
            p { "By GitLab's figure for sizing, 7 requests a second for 1,000 users: " (figure(rate_of(users))) " requests/s." }
            ul { @for (_, results) in files { li {
                strong { (sentence(results, users)) }
                span.dim { " (" (place(results)) ")" }
            } } }
        }
    }
}

fn place(results: &Results) -> String {
    let machine = &results.machine;
    match (&results.server.url, results.server.here, &machine.gpu) {
        (Some(url), false, _) => format!("{url}, another machine"),
        (_, _, Some(gpu)) => gpu.clone(),
        _ => format!("{} cores of {}", machine.cores, machine.processor),
    }
}

/// A figure with its place in the JSON.
fn from(number: usize, pointer: &str, text: &str) -> Markup {
    html! { span data-from=(format!("{number}{pointer}")) { (text) } }
}

fn file(number: usize, name: &str, results: &Results) -> Markup {
    let machine = &results.machine;
    let gib = machine.memory_bytes as f64 / f64::from(1u32 << 30);
    let sweep = results.knee.is_some() || results.runs.len() > 1;
    html! {
        section {
            h2 { (results.server.model) ", " (results.workload.profile) ": " (place(results)) }
            @if let Some(why) = &results.partial { p.warn { strong { "Partial: " } (why) ". What follows was measured before." } }
            @if results.quick { p.warn { strong { "A quick look: " } "percentiles of few requests are no measurement." } }
            @if let Some(knee) = &results.knee { (knee_words(number, knee)) }
            dl {
                dt { "Machine" } dd {
                    (machine.processor) ", " (from(number, "/machine/cores", &machine.cores.to_string())) " cores, vectors: " (machine.vectors)
                    (format!(", {gib:.1} GiB of memory"))
                    @if let Some(gpu) = &machine.gpu { "; " (gpu) }
                    "; " (machine.system)
                    @if !results.server.here { " (of who asked; of the server's nothing is known here)" }
                }
                dt { "Busy before" } dd { (from(number, "/machine/load_before", &machine.load_before.to_string())) " processes on average (load of the minute before)" }
                dt { "Server" } dd {
                    @match &results.server.url {
                        Some(url) => { (url) @if results.server.here { ", the same machine as who asked" } }
                        None => { "Hearth " (results.hearth) ", started for this, on the same machine as who asked" }
                    }
                }
                dt { "Model" } dd { (results.server.model) @if let Some(digest) = &results.server.digest { br; code { (digest) } } }
                dt { "Requests" } dd { (workload_words(results)) }
                dt { "Limits" } dd { (limits_words(results)) }
                dt { "Date" } dd { (results.date) }
                dt { "Command" } dd { code { (results.command) } }
                dt { "File" } dd { code { (name) } }
            }
            @if results.runs.iter().any(|run| !run.is_empty()) { (table(number, results)) }
            @for run in &results.runs {
                @if run.is_empty() { p.note { "Left out: " (left_out(run)) "." } }
                @else if !sweep || run.first_failure.is_some() {
                    @for note in notes(results, run) { p.note { @if sweep { (run.arrivals) ": " } (note) } }
                }
            }
            @if sweep { (sweep_plots(results)) } @else { @for run in results.runs.iter().filter(|run| !run.is_empty()) { (run_plots(results, run)) } }
        }
    }
}

fn knee_words(number: usize, knee: &Knee) -> Markup {
    html! {
        p.knee { @match knee.rate {
            Some(rate) => {
                strong { @if knee.at_least { "At least " } (from(number, "/knee/rate", &rate.to_string())) " requests/s" } " hold the limits"
                span.dim { " – as many as " (grouped(users_of(rate))) " GitLab users make. Beyond: " (knee.beyond) "." }
            }
            None => { strong { "No rate held the limits" } ": " (knee.beyond) "." }
        } }
    }
}

fn workload_words(results: &Results) -> String {
    let work = &results.workload;
    let kinds = work.profile.kinds().iter().map(|kind| {
        let (prompt, output) = work.means(*kind);
        let gap = match kind {
            Kind::Completion if work.fills => ", filling a gap",
            Kind::Completion => ", continuing a text",
            Kind::Chat => "",
        };
        format!("{kind}: about {prompt} tokens of prompt and {output} of answer{gap}")
    });
    let whole = if work.whole_answers {
        "answers of the length asked for"
    } else {
        "answers end where the model ends them"
    };
    let kinds: Vec<String> = kinds.collect();
    format!(
        "{}; {:.0} % of the prompts begin as others do; {whole}; seed {}",
        kinds.join("; "),
        work.shared * 100.0,
        work.seed
    )
}

fn limits_words(results: &Results) -> String {
    let limits = &results.limits;
    let kinds = results.workload.profile.kinds().iter();
    let first: Vec<String> = kinds.map(|kind| format!("{} ms ({kind})", limits.first(*kind))).collect();
    format!(
        "p95 of the first token {}; p95 of the time per token {} ms; no request lost",
        first.join(", "),
        limits.token_ms
    )
}

fn table(number: usize, results: &Results) -> Markup {
    let mut order: Vec<usize> = (0..results.runs.len()).filter(|i| !results.runs[*i].is_empty()).collect();
    let rate = |i: &usize| match results.runs[*i].arrivals {
        Arrivals::Poisson(rate) => rate,
        Arrivals::Concurrent(n) => n as f64,
    };
    order.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    html! {
        div.wide { table {
            thead {
                tr { th rowspan="2" { "load" } th rowspan="2" { "limits" } th rowspan="2" { "kind" } th rowspan="2" { "answered" } th rowspan="2" { "lost" } th rowspan="2" { "answers/s" }
                    th rowspan="2" { "tokens/s" } th colspan="5" { "first token, ms" } th colspan="2" { "per token, ms" } th colspan="2" { "whole answer, ms" }
                }
                tr { th { "p50" } th { "p90" } th { "p95" } th { "p99" } th { "longest" } th { "p50" } th { "p95" } th { "p50" } th { "p95" } }
            }
            tbody { @for index in order { (rows(number, index, results)) } }
        } }
    }
}

fn rows(number: usize, index: usize, results: &Results) -> Markup {
    let run = &results.runs[index];
    let at = |field: &str| format!("/runs/{index}/{field}");
    let span = run.kinds.len().max(1).to_string();
    // A word here, the reason for who points at it: a sentence would make the table wider than paper.
    let (class, verdict, why) = match results.limits.judge(run) {
        Verdict::Holds => ("holds", "hold", String::new()),
        Verdict::Breaks(why) => ("breaks", "break", why),
        Verdict::Open(why) => ("open", "not known", why),
    };
    let knee = results.knee.as_ref().is_some_and(|knee| knee.run == Some(index));
    html! {
        @if run.kinds.is_empty() {
            tr { th { (run.arrivals) } td class=(class) title=(why) { (verdict) } td {} (counts(number, run, &at, "1")) @for _ in 0..9 { td { "–" } } }
        }
        @for (i, (kind, times)) in run.kinds.iter().enumerate() {
            tr.knee[knee] {
                @if i == 0 { th rowspan=(span) { (run.arrivals) } td class=(class) title=(why) rowspan=(span) { (verdict) } }
                td { (kind) }
                @if i == 0 { (counts(number, run, &at, &span)) }
                (times_cells(number, *kind, times, &at))
            }
        }
    }
}

fn counts(number: usize, run: &Run, at: &dyn Fn(&str) -> String, span: &str) -> Markup {
    html! {
        td rowspan=(span) { (from(number, &at("requests"), &run.requests.to_string())) }
        td rowspan=(span) { (from(number, &at("refused"), &run.refused.to_string())) "+" (from(number, &at("failed"), &run.failed.to_string())) }
        td rowspan=(span) { (from(number, &at("requests_per_s"), &format!("{:.2}", run.requests_per_s))) }
        td rowspan=(span) { (from(number, &at("output_tokens_per_s"), &format!("{:.0}", run.output_tokens_per_s))) }
    }
}

fn times_cells(number: usize, kind: Kind, times: &Times, at: &dyn Fn(&str) -> String) -> Markup {
    let cell = |what: &str, name: &str, value: Option<f64>| {
        html! {
            td { @match value {
                Some(ms) => (from(number, &at(&format!("kinds/{kind}/{what}/{name}")), &milliseconds(ms))),
                None => "–",
            } }
        }
    };
    let names = ["p50", "p90", "p95", "p99", "max"];
    html! {
        @for (name, value) in names.iter().zip(columns(&times.first_ms)) { (cell("first_ms", name, value)) }
        (cell("token_ms", "p50", times.token_ms.p50)) (cell("token_ms", "p95", times.token_ms.p95))
        (cell("whole_ms", "p50", times.whole_ms.p50)) (cell("whole_ms", "p95", times.whole_ms.p95))
    }
}

/// First tokens, tokens and throughput over the rates that were tried.
fn sweep_plots(results: &Results) -> Markup {
    let mut runs: Vec<(f64, &Run)> = results
        .runs
        .iter()
        .filter(|run| !run.is_empty())
        .filter_map(|run| match run.arrivals {
            Arrivals::Poisson(rate) => Some((rate, run)),
            Arrivals::Concurrent(_) => None,
        })
        .collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let over = |of: &dyn Fn(&Run) -> Option<f64>| -> Vec<(f64, f64)> {
        runs.iter().filter_map(|(rate, run)| Some((*rate, of(run)?))).collect()
    };
    let kinds = results.workload.profile.kinds();
    let rate = || Axis { label: "requests/s asked for", tenfold: false };
    let marks: Vec<(String, f64)> =
        results.knee.iter().filter_map(|knee| Some(("knee".to_owned(), knee.rate?))).collect();
    let limit = |ms: f64| (format!("limit {ms} ms"), ms);
    let firsts = kinds.iter().flat_map(|kind| {
        let of = |name: &str, of: fn(&Times) -> Option<f64>| Line {
            label: format!("{kind} {name}"),
            points: over(&|run: &Run| of(run.kinds.get(kind)?)),
        };
        [of("p50", |times| times.first_ms.p50), of("p95", |times| times.first_ms.p95)]
    });
    let tokens = kinds.iter().map(|kind| Line {
        label: format!("{kind} p95"),
        points: over(&|run: &Run| run.kinds.get(kind)?.token_ms.p95),
    });
    let plots = [
        Plot {
            title: "Time to the first token by rate".into(),
            x: rate(),
            y: Axis { label: "ms", tenfold: true },
            lines: firsts.collect(),
            limits: kinds.iter().map(|kind| limit(results.limits.first(*kind))).collect(),
            marks: marks.clone(),
        },
        Plot {
            title: "Time per token by rate".into(),
            x: rate(),
            y: Axis { label: "ms", tenfold: false },
            lines: tokens.collect(),
            limits: vec![limit(results.limits.token_ms)],
            marks: marks.clone(),
        },
        Plot {
            title: "Tokens a second by rate".into(),
            x: rate(),
            y: Axis { label: "tokens/s", tenfold: false },
            lines: vec![Line {
                label: "tokens/s".into(),
                points: over(&|run: &Run| Some(run.output_tokens_per_s)),
            }],
            limits: Vec::new(),
            marks,
        },
    ];
    html! { div.plots { @for plot in plots.iter().filter(|plot| plot.lines.iter().any(|line| !line.points.is_empty())) { figure { (plot.svg()) } } } }
}

/// How times spread, and how the run went.
fn run_plots(results: &Results, run: &Run) -> Markup {
    let mut plots = Vec::new();
    for (kind, times) in &run.kinds {
        let line = |label: &str, curve: &[(f64, f64)]| Line {
            label: label.to_owned(),
            points: curve.iter().map(|(share, ms)| (share * 100.0, *ms)).collect(),
        };
        plots.push(Plot {
            title: format!("{kind}: share of requests done within a time"),
            x: Axis { label: "% of requests", tenfold: false },
            y: Axis { label: "ms", tenfold: true },
            lines: vec![
                line("first token", &times.first_ms.curve),
                line("whole answer", &times.whole_ms.curve),
            ],
            limits: vec![(
                format!("limit of the first token {} ms", results.limits.first(*kind)),
                results.limits.first(*kind),
            )],
            marks: vec![("p95".into(), 95.0)],
        });
    }
    plots.retain(|plot| plot.lines.iter().any(|line| !line.points.is_empty()));
    let over = |title: &str, label: &'static str, of: fn(&super::result::Slice) -> f64| Plot {
        title: title.to_owned(),
        x: Axis { label: "s", tenfold: false },
        y: Axis { label, tenfold: false },
        lines: vec![Line {
            label: label.to_owned(),
            points: run.timeline.iter().map(|slice| (slice.at, of(slice))).collect(),
        }],
        limits: Vec::new(),
        marks: Vec::new(),
    };
    if run.timeline.len() > 1 {
        plots.push(over("First token over the run, mean", "ms", |slice| slice.first_ms));
        plots.push(over("Tokens a second over the run", "tokens/s", |slice| slice.output_tokens_per_s));
    }
    html! { div.plots { @for plot in &plots { figure { (plot.svg()) } } } }
}

fn explained() -> Markup {
    html! {
        footer {
            h2 { "How to read this" }
            ul {
                li { strong { "Load. " } "At random times: requests come as those of many independent people do (a Poisson process), whether or not the server keeps up. \
                    A request's times count from when it should have been made, so nothing is hidden by waiting." }
                li { strong { "First token. " } "Until the first text of the answer is there." }
                li { strong { "Per token. " } "From the first text to the last, divided by the tokens between them; one figure for each request." }
                li { strong { "Percentiles. " } "Shown when the run has 1,000 requests and ten of them lie beyond; p95 of 500 ms: 95 of 100 requests took 500 ms or less." }
                li { strong { "Warm-up. " } "Requests of a run's first seconds are in no figure." }
                li { strong { "Lost. " } "Refused with 429 + failed otherwise." }
                li { strong { "Prompts. " } "Made-up code of the lengths above. A site whose files are longer, or that chats more, measures with its own lengths." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sizing::tests::sweep;
    use crate::bench::summary;

    #[test]
    fn a_run_that_was_interrupted_before_anything_was_counted_is_named_and_drawn_nowhere() {
        let whole = sweep(10.0);
        let mut cut = whole.clone();
        let ended = Some("interrupted".to_owned());
        // As files of before have it: an empty sum with its sign.
        cut.runs.push(Run {
            arrivals: Arrivals::Poisson(13.6),
            ended,
            output_tokens_per_s: -0.0,
            ..Run::default()
        });
        let made = |results: &Results| page(&[("a.json".into(), results.clone())], None);
        let (before, after) = (made(&whole), made(&cut));
        let counts = |page: &str| ["<tr", "<circle", "data-from"].map(|what| page.matches(what).count());
        assert_eq!(counts(&before), counts(&after));
        assert!(!after.contains(">-0<"), "{after}");
        let said = "13.6 requests/s at random times: nothing was counted (interrupted)";
        assert!(after.contains(&format!("Left out: {said}.")), "{after}");
        let lines = summary::sweep(&cut);
        assert!(lines.contains(said) && !lines.contains(" 0.00 answers/s"), "{lines}");

        // Alone it has no table and no plot either.
        let alone = Results { runs: cut.runs.split_off(3), knee: None, ..cut };
        let page = made(&alone);
        assert_eq!((page.matches("<table").count(), page.matches("<svg").count()), (0, 0));
        assert!(
            page.contains("Left out: ")
                && summary::run(&alone, &alone.runs[0]).contains("nothing was counted")
        );
    }
}
