//! Browsers ask first (a Web IDE calls the gateway from a page of GitLab's): any origin may send POST, with whatever
//! headers it needs. That gives nothing away: a request still needs its token, and cookies mean nothing here.
//!
//! While requests need no token it would give all away, as any page that is open on this machine could ask: then no
//! browser is told that it may.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;

const ANY: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderValue = HeaderValue::from_static("POST");
/// Seconds for which a browser need not ask again.
const AGE: HeaderValue = HeaderValue::from_static("600");

pub async fn check(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if headers.get(header::ORIGIN).is_none() || shared.duo.identity.bypassed() {
        return next.run(request).await;
    }
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let preflight = method
        .filter(|_| request.method() == Method::OPTIONS)
        .map(|method| preflight(method, headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS)));
    let mut response = match preflight {
        Some(answer) => answer,
        None => next.run(request).await,
    };
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    response
}

fn preflight(method: &HeaderValue, headers: Option<&HeaderValue>) -> Response {
    let mut answer = HeaderMap::new();
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, AGE);
    if let Some(headers) = headers {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
    }
    match method == "POST" {
        true => (StatusCode::OK, answer, "OK").into_response(),
        false => (StatusCode::BAD_REQUEST, answer, "Disallowed CORS method").into_response(),
    }
}
