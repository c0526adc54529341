//! The OpenAI dialect (steps 3 and 10 in the life of a request): one file an endpoint.
//!
//! Nothing is ignored in silence: a field that would change the answer and is not honoured is refused by name, and so
//! is a field that nobody knows.

pub mod answers;
pub mod asked;
pub mod chat;
pub mod completions;
pub mod error;
pub mod fields;
pub mod models;
pub mod sse;
mod strict;
pub mod tokenize;

use std::error::Error;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use http_body_util::BodyExt;

use error::ApiError;
use fields::Fields;

/// A body that stopped coming; made by the server's time limit.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive in time")]
pub struct BodyTimeout;

/// A body longer than it may be, which had not said so; made by the server's limit.
#[derive(Debug, thiserror::Error)]
#[error("the body is larger than {limit} bytes")]
pub struct TooLarge {
    pub limit: usize,
}

/// No room for the next piece of a body among all that are read; made by the server's limit on them.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} bytes of requests are being worked on; try again in a moment")]
pub struct Crowded {
    pub limit: usize,
}

/// The JSON object in a request's body.
async fn body(request: Request) -> Result<Fields, ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    if let Some(other) = content_type.filter(|kind| !is_json(kind)) {
        return Err(ApiError::media_type(other));
    }
    Fields::parse(&read(request.into_body()).await?)
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if caused_by::<BodyTimeout>(&e) => Err(ApiError::body_too_slow()),
        Err(e) if caused_by::<Crowded>(&e) => Err(ApiError::crowded(&e.to_string())),
        Err(e) => Err(match cause::<TooLarge>(&e) {
            Some(TooLarge { limit }) => ApiError::body_too_large(*limit),
            None => ApiError::body("The body could not be read to its end."),
        }),
    }
}

/// The error of this kind that is behind another.
pub(crate) fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

pub(crate) fn caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    cause::<E>(error).is_some()
}
