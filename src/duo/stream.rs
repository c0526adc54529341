//! The formats in which answers stream (step 10 in the life of a request). There are four:
//!
//! | routes | content type | body |
//! |---|---|---|
//! | `/v2` and `/v3` code, `/v1/prompts`, `/v1/chat` | `text/event-stream` | raw text, no framing |
//! | `/v2/prompts` | `text/event-stream` | a JSON object a line |
//! | `/v2/chat/agent` | `application/x-ndjson` | an event a line |
//! | `/v4/code/suggestions` | `text/event-stream` | server-sent events, lines end with CRLF |
//!
//! None has a place for an error in the middle except the third: a body that fails is cut, so that the reader sees an
//! unexpected end and not a short answer.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;

use crate::served::ask::Failure;

pub const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";
pub const NDJSON: &str = "application/x-ndjson; charset=utf-8";

/// A response whose body is sent as it is made; a failure cuts it. The stream is dropped when the client leaves.
pub fn response(
    content_type: &'static str,
    pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx holds streams back unless told otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
