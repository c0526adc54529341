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
use serde_json::Value;

use crate::served::ask::Failure;

pub const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";
pub const NDJSON: &str = "application/x-ndjson; charset=utf-8";

/// JSON in ASCII: a reader that takes chunks as they come never sees half a character.
pub fn ascii(value: &Value) -> String {
    use std::fmt::Write;
    let json = value.to_string();
    if json.is_ascii() {
        return json;
    }
    let mut out = String::with_capacity(json.len() * 2);
    // Outside of strings JSON is ASCII already.
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}").expect("bug: a string takes everything");
        }
    }
    out
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_in_ascii_is_the_same_json() {
        let value = serde_json::json!({"text": "größer 🦊 \"quoted\"\n"});
        let line = ascii(&value);
        assert!(line.is_ascii() && !line.contains('\n'));
        assert_eq!(line, r#"{"text":"gr\u00f6\u00dfer \ud83e\udd8a \"quoted\"\n"}"#);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }
}
