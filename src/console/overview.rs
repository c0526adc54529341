//! The first page: four lanes with the last quarter of an hour, the models, this server, and what went wrong.
//!
//! It is written here alone. A script asks for [`stream`], which sends the same pieces of the page again every second,
//! and puts in those that changed.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{Html, Response};
use futures::stream;
use maud::{Markup, html};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::guard::Listener;
use super::layout;
use super::sessions::Session;
use crate::admin::Admin;
use crate::admin::status::{Figures, ModelStatus, Status, UpstreamStatus, minutes};
use crate::log::recent::Trouble;
use crate::openai::sse;
use crate::store::Papers;

pub async fn page(
    State(admin): State<Arc<Admin>>,
    Extension(session): Extension<Arc<Session>>,
) -> Html<String> {
    let status = Status::of(&admin);
    let body = html! {
        div data-live="banners" { (layout::banners(&status.banners)) }
        section.lanes aria-label="The last 15 minutes" {
            @for lane in lanes(&status.now) {
                div.lane {
                    div.figure data-live=(lane.name) { (lane.figure()) }
                    div.strip data-strip=(lane.name) { noscript { span.soft { "Charts need JavaScript." } } }
                }
            }
            div.axis aria-hidden="true" { span { "15 min ago" } span { "10" } span { "5" } span { "now" } }
        }
        div.columns {
            div.stack {
                section.card data-live="models" { (models(&status.models, &status.upstreams)) }
                section.card data-live="troubles" { (troubles(&status.troubles)) }
            }
            section.card {
                h2 { "This server" }
                div data-live="facts" { (facts(&status)) }
                (actions(&session, &status))
            }
        }
    };
    layout::page(&admin, &session, "/", Some("/console.js"), body)
}

/// The page's pieces and the charts' newest second, once a second while the session lasts.
pub async fn stream(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let listener = Listener::of(&request);
    sse::response(stream::unfold((admin, listener, Instant::now()), |(admin, listener, next)| async move {
        sleep_until(next).await;
        if !listener.may_stay(&admin) {
            return None;
        }
        let status = Status::of(&admin);
        let mut pieces = serde_json::Map::new();
        let mut piece = |name: &str, markup: Markup| {
            pieces.insert(name.to_owned(), markup.into_string().into());
        };
        piece("banners", layout::banners(&status.banners));
        for lane in lanes(&status.now) {
            piece(lane.name, lane.figure());
        }
        piece("models", models(&status.models, &status.upstreams));
        piece("facts", facts(&status));
        piece("troubles", troubles(&status.troubles));
        let now = &status.now;
        let line = json!({
            "pieces": pieces,
            "tokens": [now.tokens_per_s],
            "requests": [now.running, now.waiting],
            "kv": [now.kv_ratio * 100.0],
            "first": [now.first_token_ms.p95],
        });
        Some((line.to_string(), (admin, listener, next + Duration::from_secs(1))))
    }))
}

/// One of the four: a large number and what belongs to it.
struct Lane {
    name: &'static str,
    title: &'static str,
    number: String,
    unit: &'static str,
    more: String,
    /// How the second curve is called, where there is one.
    second: Option<String>,
}

impl Lane {
    fn figure(&self) -> Markup {
        html! {
            h2 { (self.title) }
            p.number { (self.number) " " span.unit { (self.unit) } }
            p.more {
                @if let Some(second) = &self.second { span.key { (second) } " " }
                (self.more)
            }
        }
    }
}

fn lanes(now: &Figures) -> [Lane; 4] {
    let queued = match now.queued_tokens {
        0 => String::new(),
        tokens => format!("with {} tokens", count(tokens)),
    };
    let cached = now.cached_ratio.map(|share| format!(" · {:.0} % cached", share * 100.0));
    let (number, unit) = time(now.first_token_ms.p95);
    [
        Lane {
            name: "tokens",
            title: "Answers",
            number: count(now.tokens_per_s.round() as u64),
            unit: "tokens/s",
            more: format!(
                "{} prompt tokens/s · {:.1} requests/s",
                count(now.prompt_tokens_per_s.round() as u64),
                now.requests_per_s
            ),
            second: None,
        },
        Lane {
            name: "requests",
            title: "Requests",
            number: now.running.to_string(),
            unit: "running",
            more: queued,
            second: Some(format!("{} queued", now.waiting)),
        },
        Lane {
            name: "kv",
            title: "Keys and values",
            number: format!("{:.0}", now.kv_ratio * 100.0),
            unit: "% used",
            more: format!(
                "{} of {} blocks{}",
                count(now.blocks_used.into()),
                count(now.blocks.into()),
                cached.unwrap_or_default()
            ),
            second: None,
        },
        Lane {
            name: "first",
            title: "First token, p95",
            number,
            unit,
            more: format!(
                "p50 {} · next {} · queue {}",
                text(now.first_token_ms.p50),
                text(now.between_tokens_ms.p95),
                text(now.queue_wait_ms.p95)
            ),
            second: None,
        },
    ]
}

/// Groups of three digits.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn time(ms: Option<f64>) -> (String, &'static str) {
    match ms {
        None => ("–".to_owned(), ""),
        Some(ms) if ms < 10.0 => (format!("{ms:.1}"), "ms"),
        Some(ms) if ms < 1000.0 => (format!("{ms:.0}"), "ms"),
        Some(ms) => (format!("{:.1}", ms / 1e3), "s"),
    }
}

fn text(ms: Option<f64>) -> String {
    let (number, unit) = time(ms);
    format!("{number} {unit}").trim_end().to_owned()
}

fn models(models: &[ModelStatus], upstreams: &[UpstreamStatus]) -> Markup {
    html! {
        h2 { "Models" }
        div.scroll { table.models {
            thead { tr {
                th { "Model" }
                th.n { "Tokens/s" }
                th.n { "Running" }
                th.n { "Queued" }
                th.n { "KV" }
                th.n { "First p50" }
                th.n { "First p95" }
                th.n { "Next p95" }
            } }
            tbody {
                @for model in models {
                    @let now = &model.figures;
                    tr {
                        th scope="row" {
                            span.model { (model.name) }
                            @if model.state != "ok" { " " span.mark.fail { (model.state) } }
                            div.soft {
                                (model.family) " · " (count(model.context.into())) " tokens"
                                @if model.fills { " · fills gaps" }
                                @if model.chats { " · chats" }
                            }
                            (papers(&model.papers))
                        }
                        td.n { (count(now.tokens_per_s.round() as u64)) }
                        td.n { (now.running) }
                        td.n { (now.waiting) }
                        td.n { (format!("{:.0} %", now.kv_ratio * 100.0)) }
                        td.n { (text(now.first_token_ms.p50)) }
                        td.n { (text(now.first_token_ms.p95)) }
                        td.n { (text(now.between_tokens_ms.p95)) }
                    }
                }
            }
        } }
        @if !upstreams.is_empty() {
            div.scroll { table.models {
                thead { tr { th { "Upstream" } th.n { "Running" } th.n { "Requests" } th.n { "Failed" } } }
                tbody { @for upstream in upstreams { tr {
                    th scope="row" { span.model { (upstream.name) } div.soft { (upstream.models.join(", ")) } }
                    td.n { (upstream.running) }
                    td.n { (count(upstream.requests)) }
                    td.n { (count(upstream.failures)) }
                } } }
            } }
        }
    }
}

/// What it is, whose, and whether it was looked at.
fn papers(papers: &Papers) -> Markup {
    html! {
        div.soft {
            (papers.format) " · "
            @if papers.production == Some(false) { span.mark.warn { (papers.licence()) } } @else { (papers.licence()) }
        }
        div.soft { (papers.provenance()) }
        @if let Some(digest) = &papers.digest {
            // As much as tells two apart; all of it for who holds the pointer on it, and in `hearth status`.
            div.soft { code title=(digest) { (digest.get(..19).unwrap_or(digest)) "…" } }
        }
    }
}

fn facts(status: &Status) -> Markup {
    let keys = status
        .gitlab_keys_age_s
        .map_or("its keys are not fetched yet".to_owned(), |age| format!("keys {} old", minutes(age)));
    html! {
        dl {
            dt { "State" }
            dd { span class={ "mark " (state(&status.state)) } { (status.state) } " for " (minutes(status.uptime_s)) }
            dt { "API" } dd { code { (status.api) } }
            dt { "Metrics" } dd { @match &status.metrics { Some(at) => code { (at) }, None => "off" } }
            dt { "GitLab" }
            dd { @match &status.gitlab { Some(url) => { code { (url) } div.soft { (keys) } }, None => "none is configured" } }
            dt { "Computes on" } dd { (status.device) }
            @for gpu in &status.gpus {
                dt { "GPU " (gpu.gpu) }
                dd {
                    (gpu.words())
                    @for reason in &gpu.throttled { " " span.mark.warn[reason != "power_limit"] { (reason.replace('_', " ")) } }
                    div.soft { (gpu.name) }
                }
            }
            dt { "Memory" } dd { (format!("{:.2} GiB", status.resident as f64 / f64::from(1u32 << 30))) }
            dt { "Since start" }
            dd { (count(status.now.requests)) " requests, " (count(status.now.answer_tokens)) " tokens" }
            @if let Some(reload) = &status.last_reload {
                dt { "Last reload" }
                dd {
                    span.mark.ok[reload.error.is_none()].fail[reload.error.is_some()] {
                        @if reload.error.is_none() { "done" } @else { "refused" }
                    }
                    " " (clock(&reload.time)) " by " (reload.by)
                }
            }
        }
    }
}

fn state(state: &str) -> &'static str {
    match state {
        "ready" => "ok",
        "draining" => "warn",
        _ => "fail",
    }
}

/// Hours, minutes and seconds of an RFC 3339 time.
fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

fn actions(session: &Session, status: &Status) -> Markup {
    html! {
        div.actions {
            form method="post" action="/reload" { (layout::csrf(session)) button { "Reload settings" } }
            @if status.prompts_logged_s.is_some() {
                form method="post" action="/prompts" {
                    (layout::csrf(session)) input type="hidden" name="minutes" value="0";
                    button { "Stop logging prompts" }
                }
            } @else {
                details {
                    summary { "Log prompts…" }
                    form method="post" action="/prompts" {
                        (layout::csrf(session))
                        p { "Prompts and answers of all users go into the log, and the audit log says so." }
                        select name="minutes" aria-label="For how long" {
                            option value="15" { "for 15 minutes" }
                            option value="60" { "for an hour" }
                            option value="240" { "for 4 hours" }
                        }
                        " " button.danger { "Log prompts" }
                    }
                }
            }
            @if status.state != "draining" {
                details {
                    summary { "Drain…" }
                    form method="post" action="/drain" {
                        (layout::csrf(session))
                        p { "Readiness says no until the server is restarted, so that balancers send nothing more." }
                        button.danger { "Drain now" }
                    }
                }
            }
        }
    }
}

fn troubles(troubles: &[Trouble]) -> Markup {
    html! {
        h2 { "Troubles" }
        @if troubles.is_empty() {
            p.empty { "Nothing went wrong since the start." }
        } @else {
            div.scroll { table.troubles {
                thead { tr { th { "Last (UTC)" } th { "" } th { "What" } th.n { "Times" } } }
                tbody { @for trouble in troubles { tr {
                    td { time datetime=(trouble.time) { (clock(&trouble.time)) } }
                    td { span class={ "mark " (level(&trouble.level)) } { (trouble.level) } }
                    td {
                        (trouble.message)
                        div.soft {
                            (trouble.detail)
                            @if let Some(id) = &trouble.correlation_id { " " span.id { "id " code { (id) } } }
                        }
                    }
                    td.n { (trouble.times) }
                } } }
            } }
        }
    }
}

fn level(level: &str) -> &'static str {
    match level {
        "error" => "fail",
        "warn" => "warn",
        _ => "note",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (1_234_567, "1\u{202f}234\u{202f}567")]
        {
            assert_eq!(count(number), text);
        }
        assert_eq!(time(None), ("–".to_owned(), ""));
        assert_eq!(text(Some(3.21)), "3.2 ms");
        assert_eq!(text(Some(1250.0)), "1.2 s");
    }
}
