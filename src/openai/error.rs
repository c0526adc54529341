//! OpenAI's error object: what clients of `/v1/*` get instead of an answer.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::request::Refused;
use crate::nearest::nearest;
use crate::served::ask::Failure;
use crate::text::chat::ChatError;
use crate::text::tokenizer::TokenizerError;

/// An error as clients see it. The message names the field, the value, the limit and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds.
    pub retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: Some(code), retry_after: None }
    }

    /// A field that cannot be taken as it is.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_value", message);
        Self { param: Some(param.into()), ..error }
    }

    /// A field that is understood and not honoured.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// A field nobody knows.
    pub fn unknown(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unknown_parameter"), ..Self::invalid(param, message) }
    }

    pub fn missing(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("missing_required_parameter"), ..Self::invalid(param, message) }
    }

    /// A body that is no JSON object.
    pub fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_json", message)
    }

    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("The request body is larger than {limit} bytes; send a shorter prompt.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large", message)
    }

    /// Too much at once, for a reason that is not the model's.
    pub fn crowded(reason: &str) -> Self {
        let message = sentence(reason);
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "too_many_bytes", message);
        Self { retry_after: Some(1), ..error }
    }

    pub fn body_too_slow() -> Self {
        let message = "The request body did not arrive in time.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "body_timeout", message)
    }

    pub fn media_type(found: &str) -> Self {
        let found: String = found.chars().take(60).collect();
        let message = format!("The body must be JSON, not {found:?}: send `Content-Type: application/json`.");
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "unsupported_media_type",
            message,
        )
    }

    pub fn no_such_model(name: &str, known: &[&str]) -> Self {
        let message = format!("The model `{name}` does not exist here. Known models: {}.", known.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found", message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// `known` are the paths that there are.
    pub fn no_such_path(method: &str, path: &str, known: &[&str]) -> Self {
        let instead = match nearest(path, known.iter().copied()) {
            Some(known) => format!("did you mean {known}?"),
            None => format!("the paths are {}.", known.join(", ")),
        };
        let message = format!("There is no {method} {path} here; {instead}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_url", message)
    }

    pub fn method(method: &str, path: &str, allowed: &str) -> Self {
        let message = format!("{method} is not possible on {path}; use {allowed}.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
    }

    pub fn no_key() -> Self {
        let message = "No API key was given: send `Authorization: Bearer KEY` or `x-api-key: KEY`. `hearth keys create` \
                       makes one; the first one is in HEARTH_KEY or in the file `key` of the server's state directory.";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", "missing_api_key", message)
    }

    pub fn wrong_key() -> Self {
        let message = "The API key is not valid here: send one that `hearth keys create` made, or the first one \
                       (HEARTH_KEY, or the file `key` of the server's state directory), as `Authorization: Bearer KEY` \
                       or `x-api-key: KEY`.";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", "invalid_api_key", message)
    }

    pub fn draining() -> Self {
        let message = "The server is shutting down; send the request again.";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "shutting_down", message);
        Self { retry_after: Some(5), ..error }
    }

    /// A step that failed, or the engine being stopped, while an answer was being made.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "generation_failed", message)
    }

    /// An upstream that does not answer, or not to the end.
    pub fn upstream(failure: &Failure) -> Self {
        let message = sentence(&failure.to_string());
        match failure {
            Failure::Busy { retry_after, .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let error = Self::new(status, "rate_limit_error", "upstream_busy", message);
                Self { retry_after: Some(*retry_after), ..error }
            }
            _ => {
                // The key of this server's settings is no affair of the client's.
                let status = match failure.status() {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => StatusCode::BAD_GATEWAY,
                    status => status,
                };
                Self::new(status, "server_error", "upstream_failed", message)
            }
        }
    }

    /// The error object.
    pub fn object(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    /// A refusal of the engine, for the field that holds the prompt.
    pub fn refused(refused: Refused, prompt: &str, max_tokens: &str) -> Self {
        let message = sentence(&refused.to_string());
        match refused {
            Refused::Full { retry_after, .. } => {
                let error =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", message);
                Self { retry_after: Some(retry_after), ..error }
            }
            Refused::TooLong { .. } | Refused::TooBig { .. } => {
                let message = format!("{message} Shorten `{prompt}` or lower `{max_tokens}`.");
                Self { code: Some("context_length_exceeded"), ..Self::invalid(prompt, message) }
            }
            Refused::Late { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", "too_late", message)
            }
            Refused::Stopping => Self::draining(),
            Refused::Empty => Self::invalid(prompt, format!("{message} Send some text in `{prompt}`.")),
            Refused::UnknownToken { .. } => Self::invalid(prompt, message),
        }
    }

    /// A text that cannot become tokens, for the field that holds it.
    pub fn text(error: TokenizerError, param: &str) -> Self {
        let message = sentence(&error.to_string());
        match error {
            TokenizerError::TooLong { .. } => {
                let message = format!("{message} Shorten `{param}`.");
                Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
            }
            _ => Self::invalid(param, message),
        }
    }

    /// Messages that cannot become a prompt.
    pub fn chat(error: ChatError) -> Self {
        match error {
            ChatError::Tokenizer(e) => Self::text(e, "messages"),
            other => Self::invalid("messages", sentence(&other.to_string())),
        }
    }
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let mut out: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    out.push_str(chars.as_str());
    if !out.ends_with(['.', '!', '?']) {
        out.push('.');
    }
    out
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.object())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
