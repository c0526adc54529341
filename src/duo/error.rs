//! Errors as GitLab reads them: `{"error"}` when the token was refused, `{"detail"}` for everything else.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::served::ask::Failure;

/// A refusal. The texts are the contract's: GitLab and its administrators' guides compare them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuoError {
    pub status: StatusCode,
    pub text: Cow<'static, str>,
    key: &'static str,
    /// Seconds.
    pub retry_after: Option<u32>,
    /// What the log says besides; never in the answer.
    pub reason: Option<String>,
}

impl DuoError {
    fn new(status: StatusCode, key: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into(), key, retry_after: None, reason: None }
    }

    /// With a reason for the log, which the answer does not carry.
    pub fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// The token was refused.
    pub fn unauthorized(text: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "error", text).because(reason)
    }

    /// `{"detail"}` with any status.
    pub fn detail(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, "detail", text)
    }

    /// The token lacks a scope.
    pub fn forbidden(text: impl Into<Cow<'static, str>>) -> Self {
        Self::detail(StatusCode::FORBIDDEN, text)
    }

    pub fn bad_request(text: impl Into<Cow<'static, str>>) -> Self {
        Self::detail(StatusCode::BAD_REQUEST, text)
    }

    pub fn not_found() -> Self {
        Self::detail(StatusCode::NOT_FOUND, "Not Found")
    }

    pub fn too_large(limit: usize) -> Self {
        let text = format!("The request body is larger than {limit} bytes; send less context");
        Self::detail(StatusCode::PAYLOAD_TOO_LARGE, text)
    }

    /// Too much at once, for a reason that is not the model's.
    pub fn crowded(reason: &str) -> Self {
        let text = "Too many requests. Please try again later.";
        let error = Self::detail(StatusCode::TOO_MANY_REQUESTS, text).because(reason);
        Self { retry_after: Some(1), ..error }
    }

    pub fn method() -> Self {
        Self::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
    }

    /// A field that is missing, of another type, or over its limit. `field` is its place, like
    /// `current_file.file_name`; `problem` says what is wrong. GitLab gets the contract's two words unless its
    /// administrator switched AI logs on (`verbose`).
    pub fn validation(field: &str, problem: &str, verbose: bool) -> Self {
        let reason = format!("{field}: {problem}");
        let text = match verbose {
            true => Cow::from(json!([{"loc": field, "msg": problem}]).to_string()),
            false => Cow::from("Validation error"),
        };
        Self::detail(StatusCode::UNPROCESSABLE_ENTITY, text).because(reason)
    }

    /// The model failed a prompt: GitLab shows what it finds after the status as the model server's word.
    pub fn model(failure: &Failure) -> Self {
        let status = failure.status();
        let reason = status.canonical_reason().unwrap_or("Unknown");
        let text = format!("{}: {reason}", status.as_u16());
        Self::detail(StatusCode::MISDIRECTED_REQUEST, text).because(failure.to_string())
    }

    /// The model failed a code request or raw chat.
    pub fn inference(failure: &Failure) -> Self {
        let error = match failure {
            Failure::Busy { retry_after, .. } => Self {
                retry_after: Some(*retry_after),
                ..Self::detail(StatusCode::TOO_MANY_REQUESTS, "Too many requests. Please try again later.")
            },
            _ => Self::detail(StatusCode::SERVICE_UNAVAILABLE, "Inference failed"),
        };
        error.because(failure.to_string())
    }
}

impl IntoResponse for DuoError {
    fn into_response(self) -> Response {
        let reason = self.reason.as_deref().unwrap_or_default();
        tracing::info!(status = self.status.as_u16(), text = %self.text, reason, "refused");
        let mut response = (self.status, axum::Json(json!({self.key: self.text}))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
