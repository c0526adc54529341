//! Who may come in (step 2 in the life of a request). The decision is made on the matched route, never on a path.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Shared;
use super::accept::Peer;
use super::body::With;
use crate::access::permitted::Held;
use crate::access::{Access as Keys, Class, Full, Permit, Refusal};
use crate::duo::error::DuoError;
use crate::duo::identity::claims::Claims;
use crate::duo::identity::{Caller, Issuer};
use crate::openai::error::ApiError;

/// What a route asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// The API key, as `Authorization: Bearer KEY` or `x-api-key: KEY`. Refusals are OpenAI's error object.
    Key,
    /// The API key, also as the password of HTTP's basic scheme, so that a browser can ask for it.
    Page,
    /// A token that GitLab signed, or one of the gateway's own for editors. Refusals are `{"error"}`. The route asks
    /// for scopes itself, after it has read the body.
    GitLab,
}

/// The key that a request brought. What is there and cannot be read is a wrong one.
fn key(headers: &HeaderMap) -> Option<&str> {
    let given = match (headers.get(header::AUTHORIZATION), headers.get("x-api-key")) {
        (None, None) => return None,
        (Some(value), _) => value.to_str().ok().and_then(bearer),
        (None, Some(value)) => value.to_str().ok(),
    };
    Some(given.unwrap_or_default())
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Makes a browser ask for a name, which does not matter, and for the key.
const ASK: HeaderValue = HeaderValue::from_static("Basic realm=\"hearth: the API key is the password\"");

/// The same where a browser may have brought it.
fn page_key(headers: &HeaderMap) -> Option<String> {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then_some(given.trim())
    });
    let Some(basic) = basic else { return key(headers).map(str::to_owned) };
    let decoded = BASE64.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Some(decoded.as_deref().and_then(|pair| pair.split_once(':')).map_or("", |(_, key)| key).to_owned())
}

/// Who issued the token, for the line in the log: of two that GitLab may send, the customers portal's and its own.
#[derive(Clone)]
pub struct TokenIssuer(Arc<Claims>);

impl TokenIssuer {
    pub fn name(&self) -> &str {
        &self.0.issuer
    }
}

/// Lets a request through to its route, or not.
pub async fn check(
    State((access, shared)): State<(Access, Shared)>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    match access {
        Access::Open => next.run(request).await,
        Access::Key | Access::Page => {
            let given = match access {
                Access::Page => page_key(request.headers()),
                _ => key(request.headers()).map(str::to_owned),
            };
            match shared.access.admit(given.as_deref(), peer, Class::OpenAi) {
                Ok(pass) => {
                    request.extensions_mut().insert(Held::from(&pass));
                    // The answer's last byte ends what counts as running.
                    next.run(request).await.map(|body| With::body(body, pass))
                }
                Err(refusal) => {
                    let ask = access == Access::Page && refusal.unauthorized();
                    let mut response = ApiError::from(refusal).into_response();
                    if ask {
                        response.headers_mut().insert(header::WWW_AUTHENTICATE, ASK);
                    }
                    response
                }
            }
        }
        Access::GitLab => match shared.duo.identity.check(request.headers()).await {
            Ok(caller) => {
                let permit = match user(&shared, &caller) {
                    Ok(permit) => permit,
                    Err(full) => return limited(full).into_response(),
                };
                let issuer = TokenIssuer(caller.claims.clone());
                request.extensions_mut().insert(caller);
                let mut response = next.run(request).await.map(|body| With::body(body, permit));
                response.extensions_mut().insert(issuer);
                response
            }
            Err(refusal) => refusal.into_response(),
        },
    }
}

/// Asks for a key of class `metrics`: Prometheus sends it as a bearer token or as a password.
pub async fn metrics(State(keys): State<Arc<Keys>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    match keys.admit(page_key(request.headers()).as_deref(), peer, Class::Metrics) {
        Ok(_pass) => next.run(request).await,
        Err(refusal) => ApiError::from(refusal).into_response(),
    }
}

/// A place for the user of a request. A user is known by a token, or by GitLab's word in a request with GitLab's token; who
/// proved nothing has no limits of its own, only the server's.
fn user(shared: &Shared, caller: &Caller) -> Result<Option<Permit>, Full> {
    match caller.issuer {
        Issuer::Bypass => Ok(None),
        _ if caller.user.is_empty() => Ok(None),
        _ => shared.access.admit_user(&caller.user),
    }
}

/// A GitLab user's limit, in the contract's words; the log has the limit.
fn limited(full: Full) -> DuoError {
    let (reason, retry_after) = match full {
        Full::Requests { limit, retry_after } => {
            (format!("the user's {limit} requests a minute are used up (limits.user_requests)"), retry_after)
        }
        Full::Concurrent { limit } => {
            (format!("{limit} requests of the user run (limits.user_concurrent)"), 1)
        }
        Full::Tokens { limit, retry_after } => {
            (format!("the user's {limit} tokens a minute are used up"), retry_after)
        }
    };
    let mut error = DuoError::crowded(&reason);
    error.retry_after = Some(retry_after);
    error
}

/// What is not in the table: without a credential a request does not learn that.
pub async fn elsewhere(shared: Shared, known: Arc<[(&str, Access)]>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let path = request.uri.path();
    let peer = request.extensions.get::<Peer>().map(|peer| peer.0);
    // GitLab's tokens come in the same header. They are no keys, and no wrong ones.
    let gitlab = request.headers.contains_key("x-gitlab-authentication-type");
    let holder = match key(&request.headers).filter(|_| !gitlab) {
        None => None,
        given => match shared.access.recognise(given, peer) {
            Ok(holder) => Some(holder),
            Err(refusal @ Refusal::Stranger { .. }) => return ApiError::from(refusal).into_response(),
            Err(_) => None,
        },
    };
    if holder.is_some() {
        let path: String = path.chars().take(100).collect();
        let known: Vec<&str> = known.iter().map(|(path, _)| *path).collect();
        return ApiError::no_such_path(request.method.as_str(), &path, &known).into_response();
    }
    if let Err(refusal) = shared.duo.identity.check(&request.headers).await {
        return refusal.into_response();
    }
    let shorter = path.strip_suffix('/').unwrap_or_default();
    if known.iter().any(|(path, access)| *path == shorter && *access == Access::GitLab) {
        let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        return Redirect::temporary(&format!("{shorter}{query}")).into_response();
    }
    DuoError::not_found().into_response()
}
