//! `/v1/prompts/{id}` and `/v2/prompts/{id}` (steps 3 and 10 in the life of a request): GitLab names a prompt, gives its
//! inputs and gets the model's text.
//!
//! | | whole | streamed |
//! |---|---|---|
//! | v1 | a JSON string | raw text |
//! | v2 | `{"content", "usage"}` | such an object a line, the last one with the usage |
//!
//! An answer of a given form is read as a whole by GitLab; it is sent whole even where a stream was asked for.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, Value, json};

use super::{Prompt, PromptError, find};
use crate::duo::Gateway;
use crate::duo::body::{self, Object};
use crate::duo::choice::Feature;
use crate::duo::client::Version;
use crate::duo::error::DuoError;
use crate::duo::fit;
use crate::duo::identity::Caller;
use crate::duo::stream::{self, EVENT_STREAM, ascii};
use crate::served::Model;
use crate::served::ask::{Answer, Ask, Failure, Piece, Usage, Whole};
use crate::server::RequestId;
use crate::server::routes::Route;
use crate::text::date;

pub fn rows() -> Vec<Route> {
    vec![
        Route::gitlab("POST", "/v1/prompts/{*id}", post(v1)),
        Route::gitlab("POST", "/v2/prompts/{*id}", post(v2)),
    ]
}

type Named = Result<Path<String>, axum::extract::rejection::PathRejection>;

async fn v1(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    name: Named,
    request: Request,
) -> Result<Response, DuoError> {
    answer(&gateway, &caller, id, name, request, Shape::V1).await
}

async fn v2(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    name: Named,
    request: Request,
) -> Result<Response, DuoError> {
    answer(&gateway, &caller, id, name, request, Shape::V2).await
}

/// A request that is understood.
struct Asked {
    prompt: &'static Prompt,
    model: Model,
    ask: Ask,
    stream: bool,
}

async fn answer(
    gateway: &Gateway,
    caller: &Caller,
    id: RequestId,
    name: Named,
    request: Request,
    shape: Shape,
) -> Result<Response, DuoError> {
    let Path(name) = name.map_err(|_| DuoError::not_found())?;
    let headers = request.headers().clone();
    let body = body::read(request).await?;
    let asked = understand(gateway, caller, id, name.trim_end_matches('/'), &body).await?;
    let Asked { prompt, model, mut ask, stream } = asked;
    let family = model.family().name();
    if stream && gateway.streaming && prompt.form.is_none() {
        let answer = gateway.ask(&model, ask).await.map_err(|failure| DuoError::model(&failure))?;
        return Ok(shape.stream(answer, model.name().to_owned()));
    }
    let patience = patience(gateway, prompt, Version::gitlab(&headers));
    ask.patience = Some(patience);
    // A moment before GitLab gives up, so that it reads an answer.
    let whole = tokio::time::timeout(patience.mul_f32(0.95), whole(gateway, prompt, &model, ask)).await;
    let late =
        |_| Err(Failure::Late(format!("no answer within {} s, for which GitLab waits", patience.as_secs())));
    let whole = whole.unwrap_or_else(late).map_err(|failure| DuoError::model(&failure))?;
    Ok(match stream {
        true => shape.one_piece(whole, model.name()),
        false => shape.whole(whole, family),
    })
}

async fn understand(
    gateway: &Gateway,
    caller: &Caller,
    id: RequestId,
    name: &str,
    body: &Object,
) -> Result<Asked, DuoError> {
    let mut inputs = body.required_object("inputs")?.fields().clone();
    let stream = body.bool("stream")?.unwrap_or(false);
    let version = body.string("prompt_version", usize::MAX)?;
    // The scopes of a prompt do not depend on the family, so the token is checked before a model is looked for.
    let any = crate::served::family::Family::General;
    let known = find(name, any).ok_or_else(|| refused(PromptError::Unknown(name.to_owned())))?;
    if !known.routed {
        let text = format!("Prompt '{}' is not supported", known.id);
        return Err(DuoError::detail(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let scopes: Vec<&str> = known.scopes.iter().map(String::as_str).collect();
    caller.require(&scopes, known.forbidden.clone())?;
    let model = gateway.choose(body, Feature::Chat).map_err(|failure| DuoError::model(&failure))?;
    let prompt = find(name, model.family()).expect("bug: a prompt without its base");
    if version.as_deref().is_some_and(|asked| !asked.contains(&prompt.version)) {
        tracing::debug!(prompt = prompt.id, has = %prompt.version, asked = version, "other prompt version");
    }
    inputs.entry("current_date").or_insert_with(|| today().into());
    let ask = fitted(prompt, &model, inputs, id).await?;
    Ok(Asked { prompt, model, ask, stream })
}

/// The prompt for this model, its longest inputs cut where they do not fit into the model's context.
async fn fitted(
    prompt: &'static Prompt,
    model: &Model,
    mut inputs: Map<String, Value>,
    id: RequestId,
) -> Result<Ask, DuoError> {
    let mut rendered = prompt.render(&inputs).map_err(refused)?;
    let room = fit::room(model.context(), rendered.max_tokens);
    for _ in 0..fit::TRIES {
        let text: usize = rendered.messages.iter().map(|m| m.content.len()).sum();
        if text <= room as usize {
            break;
        }
        let texts = rendered.messages.iter().map(|m| m.content.as_str());
        let Some(excess) = fit::excess(model, texts, room).await else { break };
        let mut strings = Vec::new();
        inputs.values_mut().for_each(|value| fit::strings(value, &mut strings));
        if !fit::cut(strings, excess) {
            break;
        }
        tracing::info!(prompt = prompt.id, room, excess, "inputs cut to the model's context");
        rendered = prompt.render(&inputs).map_err(refused)?;
    }
    Ok(rendered.ask(id.0))
}

fn refused(error: PromptError) -> DuoError {
    let status = match error {
        PromptError::Unknown(_) => StatusCode::BAD_REQUEST,
        PromptError::Missing { .. } | PromptError::Template { .. } => StatusCode::UNPROCESSABLE_ENTITY,
    };
    DuoError::detail(status, error.to_string())
}

fn today() -> String {
    date::format("%B %d, %Y", date::today()).expect("bug: a date format")
}

/// How long GitLab waits for an answer that is not streamed.
fn patience(gateway: &Gateway, prompt: &Prompt, gitlab: Version) -> Duration {
    const SHORT: Duration = Duration::from_secs(3);
    let own = prompt.patience.unwrap_or(gateway.patience);
    match gitlab < Version::new(19, 0, 0) {
        // The test of a connection, in an administrator's browser.
        true if prompt.id == "model_configuration/check" => SHORT,
        // No prompt had more time than the others.
        true => own.min(gateway.patience),
        false => own,
    }
}

async fn whole(gateway: &Gateway, prompt: &Prompt, model: &Model, ask: Ask) -> Result<Whole, Failure> {
    let mut whole = gateway.ask(model, ask).await?.whole().await?;
    if let Some(form) = prompt.form {
        whole.text = form.complete(whole.text, &whole.end)?;
    }
    Ok(whole)
}

#[derive(Clone, Copy)]
enum Shape {
    V1,
    V2,
}

impl Shape {
    fn whole(self, whole: Whole, family: &str) -> Response {
        match self {
            Shape::V1 => axum::Json(Value::String(whole.text)).into_response(),
            Shape::V2 => axum::Json(json!({"content": whole.text, "usage": usage(family, whole.usage)}))
                .into_response(),
        }
    }

    fn stream(self, answer: Answer, model: String) -> Response {
        let pieces = answer.filter_map(move |piece| {
            let bytes = match piece {
                Ok(piece) => self.piece(piece, &model).map(Ok),
                Err(failure) => Some(Err(failure)),
            };
            std::future::ready(bytes)
        });
        stream::response(EVENT_STREAM, pieces)
    }

    fn one_piece(self, whole: Whole, model: &str) -> Response {
        let pieces = [Piece::Text(whole.text), Piece::End { end: whole.end, usage: whole.usage }];
        let mut bytes = Vec::new();
        pieces.into_iter().filter_map(|piece| self.piece(piece, model)).for_each(|b| bytes.extend(b));
        stream::response(EVENT_STREAM, futures::stream::iter([Ok(bytes.into())]))
    }

    fn piece(self, piece: Piece, model: &str) -> Option<Bytes> {
        let line = |value: Value| Bytes::from(ascii(&value) + "\n");
        match (self, piece) {
            (Shape::V1, Piece::Text(text)) => Some(text.into()),
            (Shape::V1, Piece::End { .. }) => None,
            (Shape::V2, Piece::Text(text)) => Some(line(json!({"content": text}))),
            (Shape::V2, Piece::End { usage: tokens, .. }) => {
                Some(line(json!({"content": "", "usage": usage(model, tokens)})))
            }
        }
    }
}

/// Tokens as GitLab reads them, under a name that it does not look at.
pub fn usage(name: &str, usage: Usage) -> Value {
    json!({name: {"input_tokens": usage.input, "output_tokens": usage.output}})
}
