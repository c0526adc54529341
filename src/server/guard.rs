//! Who may come in (step 2 in the life of a request). The decision is made on the matched route, never on a path.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq;

use super::Shared;
use crate::duo::error::DuoError;
use crate::duo::identity::claims::Claims;
use crate::openai::error::ApiError;

/// The key of the API. It is never printed and never compared with `==`.
pub struct ApiKey(String);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey")
    }
}

impl ApiKey {
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// In a time that depends on lengths only.
    fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

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

/// What a request brought.
enum Credential {
    None,
    Wrong,
    Right,
}

fn credential(key: &ApiKey, headers: &HeaderMap) -> Credential {
    let given = match (headers.get(header::AUTHORIZATION), headers.get("x-api-key")) {
        (None, None) => return Credential::None,
        (Some(value), _) => value.to_str().ok().and_then(bearer),
        (None, Some(value)) => value.to_str().ok(),
    };
    match given.is_some_and(|given| key.is(given)) {
        true => Credential::Right,
        false => Credential::Wrong,
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Makes a browser ask for a name, which does not matter, and for the key.
const ASK: HeaderValue = HeaderValue::from_static("Basic realm=\"hearth: the API key is the password\"");

fn page_credential(key: &ApiKey, headers: &HeaderMap) -> Credential {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then_some(given.trim())
    });
    let Some(basic) = basic else { return credential(key, headers) };
    let decoded = BASE64.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')).is_some_and(|(_, given)| key.is(given)) {
        true => Credential::Right,
        false => Credential::Wrong,
    }
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
    match access {
        Access::Open => next.run(request).await,
        Access::Key => match credential(&shared.key, request.headers()) {
            Credential::Right => next.run(request).await,
            Credential::Wrong => ApiError::wrong_key().into_response(),
            Credential::None => ApiError::no_key().into_response(),
        },
        Access::Page => match page_credential(&shared.key, request.headers()) {
            Credential::Right => next.run(request).await,
            refused => {
                let error = match refused {
                    Credential::Wrong => ApiError::wrong_key(),
                    _ => ApiError::no_key(),
                };
                let mut response = error.into_response();
                response.headers_mut().insert(header::WWW_AUTHENTICATE, ASK);
                response
            }
        },
        Access::GitLab => match shared.duo.identity.check(request.headers()).await {
            Ok(caller) => {
                let issuer = TokenIssuer(caller.claims.clone());
                request.extensions_mut().insert(caller);
                let mut response = next.run(request).await;
                response.extensions_mut().insert(issuer);
                response
            }
            Err(refusal) => refusal.into_response(),
        },
    }
}

/// What is not in the table: without a credential a request does not learn that.
pub async fn elsewhere(shared: Shared, known: Arc<[(&str, Access)]>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let path = request.uri.path();
    if matches!(credential(&shared.key, &request.headers), Credential::Right) {
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
