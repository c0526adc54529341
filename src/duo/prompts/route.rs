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
use tokio::time::{Instant, timeout_at};

use super::{Prompt, PromptError, find};
use crate::duo::Gateway;
use crate::duo::body::{self, Object};
use crate::duo::choice::Feature;
use crate::duo::client::Version;
use crate::duo::error::DuoError;
use crate::duo::fit;
use crate::duo::identity::Caller;
use crate::duo::stream::{self, EVENT_STREAM, ascii};
use crate::duo::thought;
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
    inputs: Map<String, Value>,
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
    let begin = Instant::now();
    let gitlab = Version::gitlab(request.headers());
    let body = body::read(request).await?;
    let asked = understand(gateway, caller, name.trim_end_matches('/'), &body)?;
    let Asked { prompt, model, inputs, stream } = asked;
    let patience = patience(gateway, prompt, gitlab);
    // A moment before GitLab gives up, so that it reads an answer.
    let last = begin + patience.mul_f32(0.95);
    let late = || {
        let text = format!("no answer within {} s, for which GitLab waits", patience.as_secs());
        DuoError::model(&Failure::Late(text))
    };
    let fitted = timeout_at(last, fitted(prompt, &model, inputs, id)).await;
    let mut ask = fitted.unwrap_or_else(|_| Err(late()))?;
    ask.begin = Some(last - Instant::now());
    if stream && gateway.streaming && prompt.form.is_none() {
        let answer = gateway.ask(&model, ask).await.map_err(|failure| DuoError::model(&failure))?;
        return Ok(shape.stream(thought::without(model.family(), answer), model.name().to_owned()));
    }
    ask.patience = Some(patience.saturating_sub(begin.elapsed()));
    let whole = timeout_at(last, whole(gateway, prompt, &model, ask)).await.map_err(|_| late())?;
    let whole = whole.map_err(|failure| DuoError::model(&failure))?;
    Ok(match stream {
        true => shape.one_piece(whole, model.name()),
        false => shape.whole(whole, model.family().name()),
    })
}

fn understand(gateway: &Gateway, caller: &Caller, name: &str, body: &Object) -> Result<Asked, DuoError> {
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
    // What no template shows is neither counted nor cut.
    inputs.retain(|name, _| prompt.takes(name));
    Ok(Asked { prompt, model, inputs, stream })
}

/// Tokens of an answer around an input that it gives back.
const BESIDE: u64 = 600;

/// The prompt for this model, its longest inputs cut where they do not fit into the model's context.
async fn fitted(
    prompt: &'static Prompt,
    model: &Model,
    mut inputs: Map<String, Value>,
    id: RequestId,
) -> Result<Ask, DuoError> {
    let mut rendered = prompt.render(&inputs).map_err(refused)?;
    // The test of a connection takes what comes.
    if model.family().thinks() && prompt.id != "model_configuration/check" {
        rendered.max_tokens += thought::TOKENS;
    }
    let mut counter = fit::Counter::new(model);
    let kept = kept(prompt, &mut counter, &mut inputs).await;
    let answer = if kept > 0 { kept + BESIDE } else { 0 };
    let context = u64::from(model.context());
    let room = u64::from(fit::room(model.context(), rendered.max_tokens));
    // The answer repeats what is kept.
    let room = room.min(context.saturating_sub(answer + u64::from(fit::AROUND))) as u32;
    let too_long = || {
        let text = format!(
            "{} has {kept} tokens, which stand in the prompt and again in the answer; the model {} holds {context} tokens \
             and answers of {} tokens at most: assign a model with a larger context to the feature, or use a smaller file",
            prompt.whole.join(", "),
            model.name(),
            prompt.max_tokens
        );
        Err(DuoError::model(&Failure::TooLong(text)))
    };
    if answer > u64::from(prompt.max_tokens) || kept > u64::from(room) {
        return too_long();
    }
    loop {
        let texts: Vec<&str> = rendered.messages.iter().map(|m| m.content.as_str()).collect();
        let Some(excess) = counter.excess(&texts, room).await else { break };
        let mut strings = Vec::new();
        let cuttable = inputs.iter_mut().filter(|(name, _)| !prompt.whole.contains(name));
        cuttable.for_each(|(_, value)| fit::strings(value, &mut strings));
        if !fit::cut(strings, excess) {
            if kept > 0 {
                return too_long();
            }
            break;
        }
        tracing::info!(prompt = prompt.id, room, excess, "inputs cut to the model's context");
        rendered.messages = prompt.render(&inputs).map_err(refused)?.messages;
    }
    Ok(rendered.ask(id.0))
}

/// Tokens of the inputs that are never cut.
async fn kept(prompt: &Prompt, counter: &mut fit::Counter<'_>, inputs: &mut Map<String, Value>) -> u64 {
    let mut strings = Vec::new();
    let whole = inputs.iter_mut().filter(|(name, _)| prompt.whole.contains(name));
    whole.for_each(|(_, value)| fit::strings(value, &mut strings));
    let mut total = 0;
    for text in strings {
        total += counter.tokens(text).await;
    }
    total
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
    let answer = gateway.ask(model, ask).await?;
    let mut whole = thought::without(model.family(), answer).whole().await?;
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
