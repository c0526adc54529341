//! The doctor's page: the checks of `hearth doctor`, as this server sees its own settings.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{Html, Redirect};
use maud::{Markup, html};
use serde_json::Value;

use super::layout;
use super::sessions::Session;
use crate::admin::Admin;
use crate::admin::endpoints::findings;

pub async fn page(
    State(admin): State<Arc<Admin>>,
    Extension(session): Extension<Arc<Session>>,
) -> Html<String> {
    let last = admin.examined();
    let body = html! {
        div.head {
            h1 { "Doctor" }
            form method="post" action="/doctor" {
                (layout::csrf(&session))
                button.primary { @if last.is_some() { "Check again" } @else { "Check now" } }
            }
        }
        @match last {
            None => p.empty { "Every link from this host to GitLab and back to its own models is tried, as "
                code { "hearth doctor" } " does. It takes a few seconds and changes nothing." },
            Some((time, findings)) => {
                p.summary { (summary(&findings)) span.soft { " · " (time) } }
                section.card { table.findings {
                    thead { tr { th { "Check" } th { "Result" } th { "What was found" } } }
                    tbody { @for finding in &findings { (row(finding)) } }
                } }
            }
        }
    };
    layout::page(&admin, &session, "/doctor", None, body)
}

fn row(finding: &Value) -> Markup {
    let text = |name: &str| finding[name].as_str().unwrap_or_default();
    let verdict = text("verdict").to_ascii_lowercase();
    html! {
        tr {
            th scope="row" { (text("check")) }
            td { span class={ "mark " (verdict) } { (verdict) } }
            td {
                (text("what"))
                @if let Some(effect) = finding["effect"].as_str() { p.fix { b { "Effect" } " " (effect) } }
                @if let Some(fix) = finding["fix"].as_str() { p.fix { b { "Fix" } " " (fix) } }
            }
        }
    }
}

fn summary(findings: &[Value]) -> String {
    let count = |verdict: &str| findings.iter().filter(|finding| finding["verdict"] == verdict).count();
    match (count("FAIL"), count("warn")) {
        (0, 0) => format!("All {} checks are well", findings.len()),
        (failed, warned) => format!("{} checks: {failed} failed, {warned} warnings", findings.len()),
    }
}

pub async fn run(State(admin): State<Arc<Admin>>, Extension(_session): Extension<Arc<Session>>) -> Redirect {
    let found = findings(&admin).await;
    admin.examine(found);
    Redirect::to("/doctor")
}
