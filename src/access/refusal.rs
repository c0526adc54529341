//! Why a key does not open what was asked for, in OpenAI's words.

use std::net::IpAddr;

use axum::http::StatusCode;

use super::first::FIRST;
use super::grant::Class;
use super::rates::Full;
use crate::openai::error::ApiError;

/// A refusal. What it says of a key is said only to those who have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No key at all.
    None,
    /// None that is known here.
    Wrong,
    Expired {
        id: String,
    },
    Revoked {
        id: String,
    },
    /// It may not be used from there.
    Address {
        id: String,
        peer: Option<IpAddr>,
    },
    /// It does not open this kind of route.
    Class {
        id: String,
        class: Class,
    },
    Full {
        id: String,
        full: Full,
    },
    /// Too many wrong keys came from there.
    Stranger {
        retry_after: u32,
    },
}

impl Refusal {
    /// For figures: from a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Wrong => "wrong",
            Self::Expired { .. } => "expired",
            Self::Revoked { .. } => "revoked",
            Self::Address { .. } => "address",
            Self::Class { .. } => "class",
            Self::Full { .. } => "limit",
            Self::Stranger { .. } => "too_many",
        }
    }

    /// Whether it says that there is no good key: what browsers ask for one after.
    pub fn unauthorized(&self) -> bool {
        matches!(self, Self::None | Self::Wrong | Self::Expired { .. } | Self::Revoked { .. })
    }
}

/// How a key is called in messages.
fn named(id: &str) -> String {
    match id {
        FIRST => "The first key".to_owned(),
        id => format!("The key {id}"),
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        use StatusCode as Status;
        let error = |status, code, message: String| ApiError {
            status,
            message,
            kind: match status {
                Status::TOO_MANY_REQUESTS => "rate_limit_error",
                Status::FORBIDDEN => "permission_error",
                _ => "invalid_request_error",
            },
            param: None,
            code: Some(code),
            retry_after: None,
        };
        match refusal {
            Refusal::None => ApiError::no_key(),
            Refusal::Wrong => ApiError::wrong_key(),
            Refusal::Expired { id } => {
                let message = format!(
                    "{} has expired; ask for a new one (`hearth keys rotate`, `hearth keys create`).",
                    named(&id)
                );
                error(Status::UNAUTHORIZED, "expired_api_key", message)
            }
            Refusal::Revoked { id } => {
                let message =
                    format!("{} was revoked; ask for a new one (`hearth keys create`).", named(&id));
                error(Status::UNAUTHORIZED, "revoked_api_key", message)
            }
            Refusal::Address { id, peer } => {
                let peer =
                    peer.map_or("an unknown address".to_owned(), |peer| peer.to_canonical().to_string());
                let message = format!(
                    "{} may not be used from {peer}; its addresses are in `hearth keys list`. Behind a proxy, the server's \
                     `server.trusted_proxies` must name it.",
                    named(&id)
                );
                error(Status::FORBIDDEN, "address_not_allowed", message)
            }
            Refusal::Class { id, class } => {
                let message = format!(
                    "{} does not open this: it lacks the class `{}` (`hearth keys create --class {}`).",
                    named(&id),
                    class.word(),
                    class.word()
                );
                error(Status::FORBIDDEN, "not_permitted", message)
            }
            Refusal::Full { id, full } => {
                let (what, wait) = match full {
                    Full::Requests { limit, retry_after } => {
                        (format!("{limit} requests a minute"), retry_after)
                    }
                    Full::Tokens { limit, retry_after } => (format!("{limit} tokens a minute"), retry_after),
                    Full::Concurrent { limit } => (format!("{limit} requests at the same time"), 1),
                };
                let message = format!("{} has used up its limit of {what}; retry in {wait} s.", named(&id));
                ApiError {
                    retry_after: Some(wait),
                    ..error(Status::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
                }
            }
            Refusal::Stranger { retry_after } => {
                let message = format!(
                    "Too many wrong API keys came from this address; retry in {retry_after} s. If the address is a proxy's, \
                     the server's `server.trusted_proxies` must name it."
                );
                ApiError {
                    retry_after: Some(retry_after),
                    ..error(Status::TOO_MANY_REQUESTS, "too_many_wrong_keys", message)
                }
            }
        }
    }
}

/// The model exists, and the key does not open it.
pub fn not_this_model(id: &str, model: &str, open: &[String]) -> ApiError {
    let open = match open {
        [] => "none that is served here".to_owned(),
        open => open.join(", "),
    };
    ApiError {
        status: StatusCode::FORBIDDEN,
        message: format!("{} does not open the model `{model}`; it opens {open}.", named(id)),
        kind: "permission_error",
        param: Some("model".to_owned()),
        code: Some("model_not_allowed"),
        retry_after: None,
    }
}
