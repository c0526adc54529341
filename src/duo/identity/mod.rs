//! Whose request it is (step 2 in the life of a request): a token that GitLab signed, or one that this gateway signed
//! for an editor.

mod caller;

use axum::http::HeaderMap;

pub use caller::{Caller, Issuer};

use super::error::DuoError;

/// Who may come in without a token. Only loopback listeners may have anything but [`Bypass::Off`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    Off,
    /// Everybody.
    All,
}

/// Checks tokens.
pub struct Identity {
    bypass: Bypass,
}

impl Identity {
    pub fn new(bypass: Bypass) -> Self {
        Self { bypass }
    }

    /// Whose request this is, or the refusal in the contract's words.
    pub async fn check(&self, headers: &HeaderMap) -> Result<Caller, DuoError> {
        if self.bypass == Bypass::All {
            return Ok(Caller::debug());
        }
        match headers.get("authorization") {
            None => Err(DuoError::unauthorized("No authorization header presented", "no token")),
            Some(_) => Err(DuoError::unauthorized("Forbidden by auth provider", "no keys are known")),
        }
    }
}
