//! A request of the OpenAI dialect for an upstream's model: passed on as it came, under the name that the model has
//! over there, and so is the answer.

use std::io;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde_json::{Map, Value};

use super::Model;
use super::events::Events;
use super::line::Line;
use crate::access::Meter;
use crate::openai::error::ApiError;
use crate::served::ask::Failure;

impl Model {
    /// Sends a request's fields. Status, kind and body of the answer come back as the upstream gives them; what it
    /// cannot give is an error of this server's.
    pub async fn forward(
        &self,
        id: &str,
        path: &str,
        mut fields: Map<String, Value>,
        meter: &Meter,
    ) -> Result<Response, ApiError> {
        fields.insert("model".to_owned(), Value::String(self.remote.clone()));
        let body = Value::Object(fields).to_string();
        // The tokenizer is over there, and an answer may not say what it took: tokens are estimated.
        let asked = u64::from(self.count(&body));
        let body = Bytes::from(body);
        let mut line = self.upstream.open(id, path, body, None).await.map_err(failed)?;
        let status = line.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(failed(line.refusal().await));
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            line.count_failure();
        }
        let mut response = match line.streams() {
            true => Response::new(Body::empty()),
            // Whole or not at all: half an object helps nobody.
            false => {
                let mut body = Vec::new();
                while let Some(piece) = line.piece().await.map_err(failed)? {
                    body.extend_from_slice(&piece);
                }
                meter.tokens(tokens(&body, asked));
                body.into_response()
            }
        };
        if line.streams() {
            meter.tokens(asked);
        }
        *response.status_mut() = status;
        for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
            match line.header(name.clone()) {
                Some(value) => response.headers_mut().insert(name, value.clone()),
                None => response.headers_mut().remove(name),
            };
        }
        if line.streams() {
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            // nginx holds streams back unless told otherwise.
            response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
            *response.body_mut() = events(line, meter.clone());
        }
        Ok(response)
    }
}

/// What an answer says that it took, or what it looks like.
fn tokens(body: &[u8], asked: u64) -> u64 {
    let said = serde_json::from_slice::<Value>(body).ok();
    let said = said.as_ref().and_then(|body| body["usage"]["total_tokens"].as_u64());
    said.unwrap_or_else(|| asked + body.len() as u64 / 3)
}

fn failed(failure: Failure) -> ApiError {
    ApiError::upstream(&failure)
}

/// A stream of events, passed on event by event, so that an error of ours can be the next one.
struct Passing {
    line: Line,
    events: Events,
    /// Bytes of an event that has not ended.
    held: Vec<u8>,
    done: bool,
    /// An event is about a token.
    meter: Meter,
}

fn events(line: Line, meter: Meter) -> Body {
    let passing = Passing { line, events: Events::default(), held: Vec::new(), done: false, meter };
    Body::from_stream(stream::unfold(Some(passing), |passing| async move {
        let mut passing = passing?;
        match passing.next().await {
            Ok(Some(bytes)) => Some((Ok::<_, io::Error>(bytes), Some(passing))),
            Ok(None) => None,
            Err(failure) => {
                let error = ApiError::upstream(&failure).object();
                Some((Ok(Bytes::from(format!("data: {error}\n\n"))), None))
            }
        }
    }))
}

impl Passing {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some(bytes) = self.line.piece().await? else {
                return match self.done {
                    true => Ok(None),
                    false => Err(self.line.broken("broke off in the middle of an answer".to_owned())),
                };
            };
            let looked_at = self.held.len().saturating_sub(3);
            self.held.extend_from_slice(&bytes);
            self.events.push(&bytes).map_err(|e| self.line.broken(format!("sent {e}")))?;
            while let Some(event) = self.events.next() {
                self.meter.tokens(1);
                self.done |= event.trim() == "[DONE]";
            }
            if let Some(end) = whole(&self.held[looked_at..]) {
                let rest = self.held.split_off(looked_at + end);
                return Ok(Some(Bytes::from(std::mem::replace(&mut self.held, rest))));
            }
        }
    }
}

/// Where the last whole event ends.
fn whole(bytes: &[u8]) -> Option<usize> {
    let end = |mark: &[u8]| bytes.windows(mark.len()).rposition(|w| w == mark).map(|at| at + mark.len());
    [end(b"\n\n"), end(b"\r\n\r\n")].into_iter().flatten().max()
}
