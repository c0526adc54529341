//! The admin API's answers: JSON, through either door.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http_body_util::LengthLimitError;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::status::Status;
use super::{Admin, AdminError};
use crate::access::Keys;
use crate::access::grant::Record;
use crate::audit::Who;
use crate::console::guard::Listener;
use crate::doctor;
use crate::log::RECENT;
use crate::log::prompts::{LONGEST, PROMPTS};
use crate::openai::{BodyTimeout, caused_by, sse};

/// Bytes of a body at most: none of them is long.
pub const BODY: usize = 64 << 10;

type At = State<Arc<Admin>>;

pub async fn status(State(admin): At) -> Json<Status> {
    Json(Status::of(&admin))
}

/// The status once a second, for as long as somebody listens who may.
pub async fn stream(State(admin): At, request: Request) -> Response {
    let listener = Listener::of(&request);
    sse::response(stream::unfold((admin, listener, Instant::now()), |(admin, listener, next)| async move {
        sleep_until(next).await;
        listener.may_stay(&admin).then(|| {
            let line = serde_json::to_string(&Status::of(&admin)).expect("bug: the status is JSON");
            (line, (admin, listener, next + Duration::from_secs(1)))
        })
    }))
}

/// The charts' seconds in columns, the oldest first.
pub async fn history(State(admin): At) -> Json<Value> {
    let samples = admin.history.samples();
    let round = |value: f64, digits: f64| (value * digits).round() / digits;
    Json(json!({
        "step_s": 1,
        "tokens_per_s": samples.iter().map(|s| round(s.tokens, 10.0)).collect::<Vec<_>>(),
        "prompt_tokens_per_s": samples.iter().map(|s| round(s.prompt, 10.0)).collect::<Vec<_>>(),
        "running": samples.iter().map(|s| s.running).collect::<Vec<_>>(),
        "waiting": samples.iter().map(|s| s.waiting).collect::<Vec<_>>(),
        "kv_ratio": samples.iter().map(|s| round(s.kv, 1000.0)).collect::<Vec<_>>(),
        "first_token_ms": samples.iter().map(|s| s.first.map(|v| round(v, 10.0))).collect::<Vec<_>>(),
    }))
}

/// A parameter of the query.
pub fn parameter(request: &Request, name: &str) -> Option<String> {
    let query = request.uri().query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into())
}

/// The last lines of the log: `?from=` what an answer before called `seen`, `?most=` how many.
pub async fn log(request: Request) -> Json<Value> {
    let number = |name| parameter(&request, name).and_then(|text| text.parse::<u64>().ok());
    let (lines, seen) = RECENT.lines(number("from").unwrap_or(0), number("most").unwrap_or(10_000) as usize);
    Json(json!({"lines": lines, "seen": seen}))
}

/// What Prometheus is told, for support bundles of hosts where its port is closed.
pub async fn metrics(State(admin): At) -> Response {
    let text = crate::server::metrics::text_of(&admin.shared);
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// Who may call: entries of the key store, without anything that a key could be told by.
pub async fn keys(State(admin): At) -> Result<Json<Value>, AdminError> {
    let keys = Keys::at(&admin.settings.state_dir);
    let listed = blocking(move || keys.list()).await.map_err(|e| {
        let fix = e.fix();
        AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string(), fix)
    })?;
    let (used, now) = (admin.shared.access.used(), jiff::Timestamp::now());
    let row = |key: &Record| {
        json!({
            "id": key.id, "name": key.name, "owner": key.owner, "state": key.state(now).to_string(),
            "classes": key.classes, "models": key.models, "addresses": key.addresses,
            "created": key.created, "expires": key.expires,
            "used": used.get(&key.id).and_then(|time| jiff::Timestamp::from_second(*time).ok()).map(|t| t.to_string()),
        })
    };
    Ok(Json(json!({"keys": listed.iter().map(row).collect::<Vec<_>>()})))
}

pub async fn doctor(State(admin): At) -> Json<Value> {
    Json(json!({"findings": findings(&admin).await}))
}

/// Every check of `hearth doctor`, as it sees this server's own settings.
pub async fn findings(admin: &Admin) -> Vec<Value> {
    let row = |finding: &doctor::Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.word(),
            "what": finding.what,
            "effect": finding.effect,
            "fix": finding.fix,
        })
    };
    doctor::examine(&admin.settings).await.iter().map(row).collect()
}

/// Reads the settings again. `?wait=false` answers before it is done.
pub async fn reload(
    State(admin): At,
    Extension(who): Extension<Who>,
    request: Request,
) -> Result<Response, AdminError> {
    let wait = parameter(&request, "wait").is_none_or(|wait| wait != "false");
    let running = spawn_blocking(move || admin.reload(&who));
    if !wait {
        return Ok((StatusCode::ACCEPTED, Json(json!({"reloading": true}))).into_response());
    }
    match running.await {
        Ok(parts) => Ok(Json(json!({"reloaded": parts?})).into_response()),
        Err(_) => Err(AdminError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the reload broke; what it had not swapped is as before",
            "see the log, and restart the server",
        )),
    }
}

pub async fn drain(State(admin): At, Extension(who): Extension<Who>) -> Json<Value> {
    let in_flight = blocking(move || admin.drain(&who)).await;
    Json(json!({"draining": true, "in_flight": in_flight}))
}

/// What waits for the disk, off the threads that serve.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("bug: a change of the admin's panicked")
}

pub async fn prompts() -> Json<Value> {
    Json(switch())
}

fn switch() -> Value {
    json!({"logged": PROMPTS.left().is_some(), "seconds_left": PROMPTS.left().map(|left| left.as_secs_f64().ceil() as u64)})
}

/// `{"seconds": …}`; there is no way to ask for it without an end.
pub async fn prompts_on(
    State(admin): At,
    Extension(who): Extension<Who>,
    request: Request,
) -> Result<Json<Value>, AdminError> {
    let body = json_body(request.into_body()).await?;
    let seconds =
        body["seconds"].as_u64().filter(|s| (1..=LONGEST.as_secs()).contains(s)).ok_or_else(|| {
            let fix = format!("send {{\"seconds\": N}} with N from 1 to {}", LONGEST.as_secs());
            AdminError::wrong("`seconds` says for how long, and must be there", fix)
        })?;
    blocking(move || admin.log_prompts(&who, Duration::from_secs(seconds))).await?;
    Ok(Json(switch()))
}

pub async fn prompts_off(State(admin): At, Extension(who): Extension<Who>) -> Json<Value> {
    blocking(move || admin.stop_logging_prompts(&who)).await;
    Json(switch())
}

/// A way into the console that works once.
pub async fn link(State(admin): At, Extension(who): Extension<Who>) -> Result<Json<Value>, AdminError> {
    let Some(address) = &admin.addresses.console else {
        return Err(AdminError::new(
            StatusCode::CONFLICT,
            "this server has no console: console.listen is empty, or its port was in use",
            "set console.listen, like 127.0.0.1:5053, and restart the server",
        ));
    };
    let link = admin.sessions.link(who, admin.shared.access.first());
    Ok(Json(json!({"url": format!("http://{address}/login?t={link}")})))
}

pub async fn json_body(body: Body) -> Result<Value, AdminError> {
    serde_json::from_slice(&whole(body).await?)
        .map_err(|e| AdminError::wrong(format!("the body is not JSON: {e}"), "send a JSON object"))
}

/// All of a body.
pub async fn whole(body: Body) -> Result<Bytes, AdminError> {
    to_bytes(body, BODY).await.map_err(|e| {
        let (status, what, fix) = match () {
            () if caused_by::<BodyTimeout>(&e) => {
                let fix = "send it at once; `server.body_timeout` is the time between two pieces of it";
                (StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".to_owned(), fix)
            }
            () if caused_by::<LengthLimitError>(&e) => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY} bytes"), "send less")
            }
            () => (StatusCode::BAD_REQUEST, format!("the body broke off: {e}"), "send all of it"),
        };
        AdminError::new(status, what, fix)
    })
}
