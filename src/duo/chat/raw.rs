//! `/v1/chat/{name}` (steps 3 and 10 in the life of a request): a text or messages for the model, and its words back.
//! GitLab itself no longer calls it; administrators' guides do, to see whether the model answers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::duo::Gateway;
use crate::duo::body::{self, Object};
use crate::duo::choice::{Feature, Wish};
use crate::duo::error::DuoError;
use crate::duo::fit;
use crate::duo::identity::Caller;
use crate::duo::stream::{self, EVENT_STREAM};
use crate::duo::thought;
use crate::served::ask::{Ask, Failure, Input, Message, Piece};
use crate::server::RequestId;

/// Names of the route and the scopes of which one opens each.
const NAMES: [(&str, &[&str]); 7] = [
    ("agent", &["duo_chat", "duo_classic_chat"]),
    ("explain_code", &["duo_chat", "duo_classic_chat"]),
    ("write_tests", &["duo_chat", "duo_classic_chat"]),
    ("refactor_code", &["duo_chat", "duo_classic_chat"]),
    ("explain_vulnerability", &["explain_vulnerability"]),
    ("summarize_comments", &["summarize_comments"]),
    ("troubleshoot_job", &["troubleshoot_job"]),
];

const CONTENT: usize = 400_000;
const MESSAGES: usize = 100;

/// What the payload asks of the model.
struct Asked {
    messages: Vec<Message>,
    /// As it came; GitLab's own models are nobody's here.
    provider: Option<String>,
    family: Option<String>,
    wish: Wish,
    max_tokens: u32,
    temperature: f32,
    top_p: f32,
    stops: Vec<String>,
    stream: bool,
}

pub async fn post(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
    request: Request,
) -> Result<Response, DuoError> {
    let last = Instant::now() + gateway.patience;
    let body = body::read(request).await?;
    let mut asked = understand(&body)?;
    let unknown = || DuoError::detail(StatusCode::NOT_FOUND, "Not found");
    let Path(name) = name.map_err(|_| unknown())?;
    let (_, scopes) = NAMES.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
    caller.require(scopes, format!("Unauthorized to access {}", scopes[0]))?;
    let failed = |failure: Failure| DuoError::inference(&failure);
    let model = gateway.resolve(&asked.wish, Feature::Chat).map_err(failed)?;
    if model.family().thinks() {
        asked.max_tokens += thought::TOKENS;
    }
    let fitted = timeout_at(last, fit::messages(&model, &mut asked.messages, asked.max_tokens)).await;
    let late = |_| {
        failed(Failure::Late("the messages could not be fitted into the model's context in time".to_owned()))
    };
    fitted.map_err(late)?;
    let left = last - Instant::now();
    let input = Input::Chat { messages: asked.messages, begun: String::new() };
    let ask = Ask {
        temperature: asked.temperature,
        top_p: asked.top_p,
        stops: asked.stops,
        patience: (!asked.stream).then_some(left),
        begin: Some(left),
        ..Ask::new(id.0, input, asked.max_tokens)
    };
    let answer = gateway.ask(&model, ask).await.map_err(failed)?;
    let answer = thought::without(model.family(), answer);
    if asked.stream && gateway.streaming {
        let pieces = answer.filter_map(|piece| {
            std::future::ready(match piece {
                Ok(Piece::Text(text)) => Some(Ok(text.into())),
                Ok(Piece::End { .. }) => None,
                Err(failure) => Some(Err(failure)),
            })
        });
        return Ok(stream::response(EVENT_STREAM, pieces));
    }
    let whole = answer.whole().await.map_err(failed)?;
    if asked.stream {
        return Ok(stream::response(EVENT_STREAM, futures::stream::iter([Ok(whole.text.into())])));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let metadata = json!({
        "provider": asked.provider.as_deref().unwrap_or("litellm"),
        "model": asked.family.as_deref().unwrap_or(model.name()),
        "timestamp": now,
    });
    Ok(axum::Json(json!({"response": whole.text, "metadata": metadata})).into_response())
}

fn understand(body: &Object) -> Result<Asked, DuoError> {
    let components = body.objects("prompt_components", 1)?;
    let [component] = &components[..] else {
        return Err(body.wrong("prompt_components", "must hold one component"));
    };
    component.required_string("type", 100)?;
    let metadata = component.required_object("metadata")?;
    metadata.required_string("source", 100)?;
    metadata.required_string("version", 100)?;
    let payload = component.required_object("payload")?;
    let provider = payload.string("provider", 255)?;
    if !matches!(provider.as_deref(), None | Some("anthropic" | "litellm")) {
        return Err(payload.wrong("provider", "must be anthropic or litellm"));
    }
    let family = payload.string("model", 255)?;
    for name in ["model_endpoint", "model_api_key", "model_identifier"] {
        payload.string(name, usize::MAX)?;
    }
    let mut asked = Asked {
        messages: messages(&payload)?,
        wish: Wish::of_payload(&payload),
        family,
        max_tokens: 2048,
        temperature: 0.2,
        top_p: 0.95,
        stops: Vec::new(),
        stream: body.bool("stream")?.unwrap_or(false),
        provider,
    };
    params(&payload, &mut asked)?;
    Ok(asked)
}

fn messages(payload: &Object) -> Result<Vec<Message>, DuoError> {
    if !payload.get("content").is_some_and(serde_json::Value::is_array) {
        let content = payload.required_string("content", CONTENT)?;
        return Ok(vec![Message { role: "user".to_owned(), content }]);
    }
    let list = payload.objects("content", MESSAGES)?;
    if list.is_empty() {
        return Err(payload.wrong("content", "must hold at least one message"));
    }
    let message = |fields: &Object| {
        let role = fields.required_string("role", 20)?;
        if !["system", "user", "assistant"].contains(&role.as_str()) {
            return Err(fields.wrong("role", "must be system, user or assistant"));
        }
        Ok(Message { role, content: fields.required_string("content", CONTENT)? })
    };
    list.iter().map(message).collect()
}

/// Limits and sampling; a self-hosted model's are fixed, and what is asked for is only checked.
fn params(payload: &Object, asked: &mut Asked) -> Result<(), DuoError> {
    let Some(params) = payload.object("params")? else { return Ok(()) };
    let max_tokens = params.integer("max_tokens_to_sample")?.unwrap_or(8192);
    if !(1..=8192).contains(&max_tokens) {
        return Err(params.wrong("max_tokens_to_sample", "must be from 1 to 8192"));
    }
    let temperature = match params.get("temperature") {
        None => Some(0.2),
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        Some(value) => value.as_f64(),
    };
    let temperature = temperature.filter(|t: &f64| (0.0..=1.0).contains(t));
    let temperature = temperature.ok_or_else(|| params.wrong("temperature", "must be from 0 to 1"))?;
    let mut stops = Vec::new();
    if let Some(list) = params.list("stop_sequences", 10)? {
        for stop in list {
            let text = stop.as_str().filter(|text| text.chars().count() <= 225);
            stops.push(
                text.ok_or_else(|| params.wrong("stop_sequences", "must be strings of 225 characters"))?,
            );
        }
        if stops.is_empty() {
            return Err(params.wrong("stop_sequences", "must hold at least one string"));
        }
    }
    if asked.provider.as_deref() != Some("litellm") {
        asked.max_tokens = max_tokens as u32;
        asked.temperature = temperature as f32;
        asked.top_p = 1.0;
        asked.stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(str::to_owned).collect();
    }
    Ok(())
}
