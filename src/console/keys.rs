//! The keys' page: who may call, made and revoked. A new key's text is shown in the answer that made it, and never again.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use jiff::{Timestamp, ToSpan};
use maud::{Markup, html};

use super::sessions::Session;
use super::{forms, layout};
use crate::access::change::Wanted;
use crate::access::grant::{Record, State as Standing};
use crate::access::{Class, Keys};
use crate::admin::Admin;
use crate::admin::endpoints::blocking;
use crate::admin::status::minutes;
use crate::audit::Who;

type At = State<Arc<Admin>>;

pub async fn page(State(admin): At, Extension(session): Extension<Arc<Session>>) -> Html<String> {
    show(&admin, &session, None).await
}

/// The page, after a new key with its text.
async fn show(admin: &Arc<Admin>, session: &Session, new: Option<(Record, String)>) -> Html<String> {
    let keys = Keys::at(&admin.settings.state_dir);
    let listed = blocking(move || keys.list()).await;
    let used = admin.shared.access.used();
    let now = Timestamp::now();
    let body = html! {
        div.head { h1 { "Keys" } }
        @if let Some((record, text)) = &new {
            div.told {
                p { "The key " b { (record.name) } " is made. Copy it now: it is shown this once." }
                input.secret aria-label="The new key" readonly value=(text);
            }
        }
        section.card {
            @match &listed {
                Err(e) => p.told.fail { "The keys cannot be read: " (e) ". " b { "Fix" } " " (e.fix()) },
                Ok(keys) => div.scroll { table.keys {
                    thead { tr {
                        th { "Name" } th { "Opens" } th { "Expires" } th { "Last used" } th { "" } th { "" }
                    } }
                    tbody {
                        tr {
                            th scope="row" { span.model { "the first key" } div.soft { "of the settings or the state directory" } }
                            td { "everything, without limits" }
                            td { "never" }
                            td { (ago(used.get("first").copied(), now)) }
                            td { span.mark.ok { "live" } }
                            td {}
                        }
                        @for key in keys.iter().rev() { (row(session, key, used.get(&key.id).copied(), now)) }
                    }
                } },
            }
        }
        section.card {
            h2 { "A new key" }
            form.new method="post" action="/keys" {
                (layout::csrf(session))
                label { "Name" input name="name" required maxlength="64" placeholder="gitlab-production"; }
                label { "Owner" input name="owner" maxlength="64" placeholder="who answers for it"; }
                label { "Expires"
                    select name="days" {
                        option value="30" { "in 30 days" }
                        option value="90" selected { "in 90 days" }
                        option value="365" { "in a year" }
                        option value="0" { "never" }
                    }
                }
                fieldset {
                    legend { "Opens" }
                    @for (word, _) in Class::WORDS {
                        label.check { input type="checkbox" name=(word) checked[word == "openai"]; (word) }
                    }
                }
                label { "Models" input name="models" placeholder="all; or names with commas"; }
                label { "From addresses" input name="addresses" placeholder="anywhere; or 10.0.0.0/8, …"; }
                label { "Requests a minute" input name="requests" type="number" min="0" placeholder="as the settings say"; }
                label { "Tokens a minute" input name="tokens" type="number" min="0" placeholder="as the settings say"; }
                label { "At the same time" input name="concurrent" type="number" min="0" placeholder="as the settings say"; }
                button.primary { "Make the key" }
            }
        }
    };
    layout::page(admin, session, "/keys", None, body)
}

fn row(session: &Session, key: &Record, used: Option<i64>, now: Timestamp) -> Markup {
    let state = key.state(now);
    let mark = if state == Standing::Live { "ok" } else { "" };
    html! {
        tr {
            th scope="row" {
                span.model { (key.name) }
                div.soft { (key.id) @if !key.owner.is_empty() { " · " (key.owner) } }
            }
            td { (key.words()) }
            td { (key.expires.as_deref().map_or("never", |time| &time[..time.len().min(10)])) }
            td { (ago(used, now)) }
            td { span class={ "mark " (mark) } { (state) } }
            td.n { @if state == Standing::Live {
                details {
                    summary { "Revoke…" }
                    form method="post" action="/keys/revoke" {
                        (layout::csrf(session))
                        input type="hidden" name="id" value=(key.id);
                        button.danger { "Revoke " (key.name) }
                    }
                }
            } }
        }
    }
}

fn ago(used: Option<i64>, now: Timestamp) -> String {
    match used {
        None => "never".to_owned(),
        Some(time) => format!("{} ago", minutes(now.as_second().saturating_sub(time).max(0) as u64)),
    }
}

pub async fn create(
    State(admin): At,
    Extension(session): Extension<Arc<Session>>,
    Extension(who): Extension<Who>,
    request: Request,
) -> Response {
    let fields = forms::fields(request).await;
    let text = |name: &str| fields.get(name).map_or("", |text| text.trim()).to_owned();
    let list = |name: &str| -> Vec<String> {
        text(name).split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
    };
    let number = |name: &str| text(name).parse::<u32>().ok();
    let days = text("days").parse::<i64>().unwrap_or(90).clamp(0, 3650);
    let wanted = Wanted {
        name: text("name"),
        owner: text("owner"),
        classes: Class::WORDS
            .iter()
            .filter(|(w, _)| fields.contains_key(*w))
            .map(|(_, class)| *class)
            .collect(),
        models: list("models"),
        addresses: list("addresses"),
        expires: (days > 0).then(|| Timestamp::now() + (24 * days).hours()),
        requests: number("requests"),
        tokens: number("tokens"),
        concurrent: number("concurrent"),
    };
    let keys = Keys::at(&admin.settings.state_dir);
    match blocking(move || keys.create(&who, &wanted)).await {
        Ok((record, key)) => {
            let text = key.expose().to_owned();
            show(&admin, &session, Some((record, text))).await.into_response()
        }
        Err(e) => {
            session.tell(false, format!("No key was made: {e}. Fix: {}.", e.fix()));
            Redirect::to("/keys").into_response()
        }
    }
}

pub async fn revoke(
    State(admin): At,
    Extension(session): Extension<Arc<Session>>,
    Extension(who): Extension<Who>,
    request: Request,
) -> Redirect {
    let id = forms::fields(request).await.remove("id").unwrap_or_default();
    let keys = Keys::at(&admin.settings.state_dir);
    match blocking(move || keys.revoke(&who, &id)).await {
        Ok(records) => {
            let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
            session.tell(true, format!("{} is revoked; within a second it opens nothing.", names.join(", ")));
        }
        Err(e) => session.tell(false, format!("Nothing was revoked: {e}. Fix: {}.", e.fix())),
    }
    Redirect::to("/keys")
}
