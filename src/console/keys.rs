//! The keys' page: who may call, made and revoked. A new key's text is shown in the answer that made it, and never again.

use std::collections::HashMap;
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
use crate::admin::endpoints::blocking;
use crate::admin::status::minutes;
use crate::admin::{Admin, AdminError};
use crate::audit::Who;

/// Until a key expires that nobody has chosen a time for, and the longest time that can be chosen.
const DAYS: i64 = 90;
const MOST_DAYS: i64 = 3650;

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

/// What a form asks for. What cannot be read is refused: a limit that somebody mistyped must not become none.
fn wanted(fields: &HashMap<String, String>) -> Result<Wanted, String> {
    let text = |name: &str| fields.get(name).map_or("", |text| text.trim()).to_owned();
    let list = |name: &str| -> Vec<String> {
        text(name).split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
    };
    let number = |name: &str, label: &str| {
        match text(name).as_str() {
        "" => Ok(None),
        text => text.parse::<u32>().map(Some).map_err(|_| {
            format!(
                "“{label}” is {text:?}. Fix: write a whole number from 0 (any number) to {}, or nothing for what the \
                 settings say",
                u32::MAX
            )
        }),
    }
    };
    let days = match text("days").as_str() {
        "" => DAYS,
        text => text
            .parse::<i64>()
            .ok()
            .filter(|days| (0..=MOST_DAYS).contains(days))
            .ok_or_else(|| format!("“Expires” is {text:?}. Fix: choose 0 (never) to {MOST_DAYS} days"))?,
    };
    let classes = Class::WORDS.iter().filter(|(word, _)| fields.contains_key(*word));
    let classes: Vec<Class> = classes.map(|(_, class)| *class).collect();
    if classes.is_empty() {
        return Err("it would open nothing. Fix: tick at least one box of “Opens”".to_owned());
    }
    Ok(Wanted {
        name: text("name"),
        owner: text("owner"),
        classes,
        models: list("models"),
        addresses: list("addresses"),
        expires: (days > 0).then(|| Timestamp::now() + (24 * days).hours()),
        requests: number("requests", "Requests a minute")?,
        tokens: number("tokens", "Tokens a minute")?,
        concurrent: number("concurrent", "At the same time")?,
    })
}

pub async fn create(
    State(admin): At,
    Extension(session): Extension<Arc<Session>>,
    Extension(who): Extension<Who>,
    request: Request,
) -> Result<Response, AdminError> {
    let refused = |why: String| {
        session.tell(false, format!("No key was made: {why}."));
        Ok(Redirect::to("/keys").into_response())
    };
    let wanted = match wanted(&forms::fields(request).await?) {
        Ok(wanted) => wanted,
        Err(why) => return refused(why),
    };
    let keys = Keys::at(&admin.settings.state_dir);
    match blocking(move || keys.create(&who, &wanted)).await {
        Ok((record, key)) => {
            let text = key.expose().to_owned();
            Ok(show(&admin, &session, Some((record, text))).await.into_response())
        }
        Err(e) => refused(format!("{e}. Fix: {}", e.fix())),
    }
}

pub async fn revoke(
    State(admin): At,
    Extension(session): Extension<Arc<Session>>,
    Extension(who): Extension<Who>,
    request: Request,
) -> Result<Redirect, AdminError> {
    let id = forms::fields(request).await?.remove("id").unwrap_or_default();
    let keys = Keys::at(&admin.settings.state_dir);
    match blocking(move || keys.revoke(&who, &id)).await {
        Ok(records) => {
            let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
            session.tell(true, format!("{} is revoked; within a second it opens nothing.", names.join(", ")));
        }
        Err(e) => session.tell(false, format!("Nothing was revoked: {e}. Fix: {}.", e.fix())),
    }
    Ok(Redirect::to("/keys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> Result<Wanted, String> {
        wanted(&fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_left_empty_is_the_default_and_what_cannot_be_read_is_refused() {
        let good = [("name", "ci"), ("openai", "on"), ("requests", " 7 "), ("tokens", ""), ("days", "0")];
        let wanted = of(&good).unwrap();
        assert_eq!((wanted.requests, wanted.tokens, wanted.concurrent), (Some(7), None, None));
        assert_eq!((wanted.classes, wanted.expires), (vec![Class::OpenAi], None));
        assert!(of(&good[..2]).unwrap().expires.is_some(), "a key does not live for ever by itself");
        for (name, value, words) in [
            ("requests", "1O0", "“Requests a minute” is \"1O0\""),
            ("tokens", "-1", "“Tokens a minute” is \"-1\""),
            ("concurrent", "4294967296", "to 4294967295"),
            ("days", "a year", "“Expires” is \"a year\""),
            ("days", "99999", "to 3650 days"),
        ] {
            let error = of(&[("name", "ci"), ("openai", "on"), (name, value)]).unwrap_err();
            assert!(error.contains(words), "{name}={value}: {error}");
        }
        assert!(of(&[("name", "ci")]).unwrap_err().contains("tick at least one"));
    }
}
