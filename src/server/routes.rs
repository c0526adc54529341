//! The table of routes. The router is built from it and from nothing else, and a row without an [`Access`] does not
//! compile; tests walk the same table.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use super::guard::{self, Access};
use super::{Limits, Shared, health, track};
use crate::duo::{self, error::DuoError};
use crate::openai;
use crate::openai::error::ApiError;

/// One row.
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
    /// Refused while the server is draining.
    pub work: bool,
    endpoint: MethodRouter<Shared>,
}

impl Route {
    /// A row of the GitLab dialect that makes a model work.
    pub fn gitlab(method: &'static str, path: &'static str, endpoint: MethodRouter<Shared>) -> Self {
        Self { method, path, access: Access::GitLab, work: true, endpoint }
    }
}

/// Every path that this server answers. Anything else is [`guard::elsewhere`].
pub fn table() -> Vec<Route> {
    use Access::{Key, Open};
    let row = |method, path, access, work, endpoint| Route { method, path, access, work, endpoint };
    let mut table = vec![
        row("POST", "/v1/completions", Key, true, post(openai::completions::post)),
        row("POST", "/v1/chat/completions", Key, true, post(openai::chat::post)),
        row("GET", "/v1/models", Key, false, get(openai::models::list)),
        row("GET", "/v1/models/{id}", Key, false, get(openai::models::get)),
        row("POST", "/tokenize", Key, true, post(openai::tokenize::tokenize)),
        row("POST", "/detokenize", Key, true, post(openai::tokenize::detokenize)),
        row("GET", "/health/live", Open, false, get(health::live)),
        row("GET", "/health/ready", Open, false, get(health::ready)),
        row("GET", "/health/startup", Open, false, get(health::startup)),
    ];
    table.extend(duo::rows());
    table
}

pub fn router(shared: Shared, limits: Limits) -> Router {
    let mut router = Router::new();
    for route in table() {
        let (method, access) = (route.method, route.access);
        let mut endpoint = route.endpoint.fallback(move |request: Request| async move {
            if access == Access::GitLab {
                return ([(header::ALLOW, method)], DuoError::method()).into_response();
            }
            let path: String = request.uri().path().chars().take(100).collect();
            ApiError::method(request.method().as_str(), &path, method).into_response()
        });
        if route.work {
            endpoint = endpoint.layer(from_fn_with_state(shared.clone(), refuse_draining));
        }
        let guarded = endpoint.layer(from_fn_with_state((access, shared.clone()), guard::check));
        router = router.route(route.path, guarded);
    }
    let reached = shared.clone();
    let known: Arc<[&str]> = table().iter().map(|route| route.path).collect();
    let elsewhere = move |request: Request| guard::elsewhere(reached.clone(), known.clone(), request);
    router
        .fallback(elsewhere)
        .layer(from_fn_with_state(limits, track::body_limit))
        .layer(from_fn(track::panics))
        .layer(from_fn_with_state(shared.clone(), track::request))
        .with_state(shared)
}

async fn refuse_draining(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match shared.health.draining() {
        true => ApiError::draining().into_response(),
        false => next.run(request).await,
    }
}
