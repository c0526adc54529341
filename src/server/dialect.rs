//! In whose words the server itself refuses: a client of OpenAI's reads `{"error": {…}}`, GitLab `{"detail"}`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::duo::error::DuoError;
use crate::openai::Crowded;
use crate::openai::error::ApiError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    GitLab,
}

impl Dialect {
    /// Another method than the row's.
    pub fn method(self, method: &str, path: &str, allowed: &'static str) -> Response {
        match self {
            Dialect::OpenAi => ApiError::method(method, path, allowed).into_response(),
            Dialect::GitLab => ([(header::ALLOW, allowed)], DuoError::method()).into_response(),
        }
    }

    pub fn draining(self) -> Response {
        match self {
            Dialect::OpenAi => ApiError::draining().into_response(),
            Dialect::GitLab => {
                let text = "The gateway is shutting down. Please try again later.";
                DuoError::detail(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
            }
        }
    }

    pub fn too_large(self, limit: usize) -> Response {
        match self {
            Dialect::OpenAi => ApiError::body_too_large(limit).into_response(),
            Dialect::GitLab => DuoError::too_large(limit).into_response(),
        }
    }

    /// All bodies together are more than fits.
    pub fn crowded(self, limit: usize) -> Response {
        let text = Crowded { limit }.to_string();
        match self {
            Dialect::OpenAi => ApiError::crowded(&text).into_response(),
            Dialect::GitLab => DuoError::crowded(&text).into_response(),
        }
    }

    /// Our own code broke. What it said may hold pieces of the request and stays in the log.
    pub fn broken(self) -> Response {
        let text = "The server failed on this request; its log has the place.";
        match self {
            Dialect::OpenAi => ApiError::failed(text).into_response(),
            Dialect::GitLab => DuoError::detail(StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
        }
    }
}
