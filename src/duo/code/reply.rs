//! Answers of the code routes as their readers expect them (step 10 in the life of a request): JSON, raw text, or
//! server-sent events. A failure before the first byte is a status; later it cuts the body.

use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};

use super::events;
use super::written::{Text, Written};
use crate::duo::error::DuoError;
use crate::duo::stream::{EVENT_STREAM, response};
use crate::openai::answers::now;
use crate::served::ask::Failure;

/// What the original says where nothing else is configured. It is a label to the readers.
const REGION: &str = "us-central1";
/// The original's title of its prompt for generations.
pub const GENERATIONS: &str = "Code Generations";

/// The model as answers name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub engine: String,
    pub name: String,
    pub language: &'static str,
}

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `/v2/code/completions`
    Completion,
    /// `/v2/code/generations`
    Generation,
    /// `/v3/code/completions`
    Components,
    /// `/v4/code/suggestions`
    Events,
}

/// How an answer goes out.
#[derive(Clone, Debug)]
pub struct Reply {
    pub shape: Shape,
    pub shown: Shown,
    pub flags: Vec<String>,
    /// Context texts that came, and that were used.
    pub contexts: usize,
    /// A stream was asked for.
    pub stream: bool,
    /// The model's pieces may go out as they come.
    pub pieces: bool,
}

impl Reply {
    /// Sends an answer; `None` is one for which no model was asked.
    pub async fn send(self, written: Option<Written>) -> Result<Response, DuoError> {
        let Some(written) = written else { return Ok(self.json(&Text::default())) };
        if !self.stream {
            let text = written.whole().await.map_err(|f| DuoError::inference(&f))?;
            return Ok(self.json(&text));
        }
        if self.shape == Shape::Events {
            return events::send(self.begin(), pieces(written, self.pieces)).await;
        }
        let mut pieces = Box::pin(pieces(written, self.pieces).fuse());
        // Nothing is sent before there is something: until then a failure has a status.
        let first = pieces.next().await.transpose().map_err(|f| DuoError::inference(&f))?;
        let all = stream::iter(first.map(Ok)).chain(pieces);
        Ok(response(EVENT_STREAM, all.map(|piece| piece.map(Bytes::from))))
    }

    fn json(&self, text: &Text) -> Response {
        let choices = match text.text.as_str() {
            "" => json!([]),
            text => json!([{"text": text, "index": 0, "finish_reason": "length"}]),
        };
        let body = match self.shape {
            Shape::Completion => self.version_2(choices, self.consumption(text)),
            Shape::Generation => self.version_2(choices, Value::Null),
            Shape::Components | Shape::Events => json!({
                "choices": choices,
                "metadata": {
                    "model": self.model(),
                    "timestamp": now(),
                    "enabled_feature_flags": self.flags,
                    "region": null,
                },
                "model": self.model(),
            }),
        };
        axum::Json(body).into_response()
    }

    fn version_2(&self, choices: Value, consumption: Value) -> Value {
        let mut model = self.model();
        model["tokens_consumption_metadata"] = consumption;
        model["region"] = json!(REGION);
        json!({
            "id": "id",
            "model": model,
            "experiments": [],
            "object": "text_completion",
            "created": now(),
            "choices": choices,
            "metadata": {"enabled_feature_flags": self.flags},
        })
    }

    fn model(&self) -> Value {
        json!({"engine": self.shown.engine, "name": self.shown.name, "lang": self.shown.language})
    }

    fn consumption(&self, text: &Text) -> Value {
        if text.text.is_empty() {
            return Value::Null;
        }
        json!({
            "input_tokens": text.usage.map(|usage| usage.input),
            "output_tokens": text.usage.map(|usage| usage.output),
            "max_output_tokens_used": text.full,
            "context_tokens_sent": (self.contexts == 0).then_some(0),
            "context_tokens_used": (self.contexts == 0).then_some(0),
        })
    }

    /// What the first event says.
    fn begin(&self) -> Value {
        json!({"metadata": {
            "model": {"engine": self.shown.engine, "name": self.shown.name},
            "timestamp": now(),
            "enabled_feature_flags": self.flags,
            "region": REGION,
        }})
    }
}

/// The pieces of an answer, or one piece of it all.
fn pieces(written: Written, pieces: bool) -> impl Stream<Item = Result<String, Failure>> + Send + 'static {
    stream::unfold(Some(written), move |written| async move {
        let mut written = written?;
        if !pieces {
            let text = written.whole().await.map(|text| text.text);
            let empty = text.as_ref().is_ok_and(String::is_empty);
            return (!empty).then_some((text, None));
        }
        let piece = written.next().await?;
        let failed = piece.is_err();
        Some((piece, (!failed).then_some(written)))
    })
}
