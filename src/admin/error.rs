//! What the admin API answers when something cannot be done: what, where, what to do.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::audit::AuditError;
use crate::config::ConfigError;

/// `{"error": {"what", "at", "fix"}}`.
#[derive(Clone, Debug)]
pub struct AdminError {
    pub status: StatusCode,
    pub said: Said,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Said {
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct Object {
    pub error: Said,
}

impl AdminError {
    pub fn new(status: StatusCode, what: impl Into<String>, fix: impl Into<String>) -> Self {
        let said = Said { what: what.into(), at: None, fix: Some(fix.into()) };
        Self { status, said }
    }

    /// What was asked for is not what can be asked for.
    pub fn wrong(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, what, fix)
    }
}

impl From<ConfigError> for AdminError {
    fn from(error: ConfigError) -> Self {
        let said = Said { what: error.what, at: Some(error.origin), fix: Some(error.fix) };
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, said }
    }
}

impl From<AuditError> for AdminError {
    fn from(error: AuditError) -> Self {
        let text = format!("nothing was changed, because it could not be recorded: {error}");
        Self::new(StatusCode::INSUFFICIENT_STORAGE, text, error.fix())
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        (self.status, axum::Json(Object { error: self.said })).into_response()
    }
}
