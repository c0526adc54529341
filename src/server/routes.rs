//! The table of routes. The router is built from it and from nothing else, and a row without an [`Access`] does not
//! compile; tests walk the same table.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::Semaphore;

use super::dialect::Dialect;
use super::guard::{self, Access};
use super::{Limits, Shared, cors, docs, health, track};
use crate::{duo, openai};

/// One row.
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
    /// In whose words it refuses.
    pub dialect: Dialect,
    /// Refused when the drain time is over.
    pub work: bool,
    endpoint: MethodRouter<Shared>,
}

impl Route {
    /// A row of the GitLab dialect that needs a token and makes a model work.
    pub fn gitlab(method: &'static str, path: &'static str, endpoint: MethodRouter<Shared>) -> Self {
        Self { method, path, access: Access::GitLab, dialect: Dialect::GitLab, work: true, endpoint }
    }

    /// The same, where no model works.
    pub fn without_model(self) -> Self {
        Self { work: false, ..self }
    }

    /// A row of the GitLab dialect that anybody may ask.
    pub fn open(method: &'static str, path: &'static str, endpoint: MethodRouter<Shared>) -> Self {
        Self { method, path, access: Access::Open, dialect: Dialect::GitLab, work: false, endpoint }
    }
}

/// Every path that this server answers. Anything else is [`guard::elsewhere`].
pub fn table() -> Vec<Route> {
    use Access::{Key, Open, Page};
    let row = |method, path, access, work, endpoint| Route {
        method,
        path,
        access,
        dialect: Dialect::OpenAi,
        work,
        endpoint,
    };
    let mut table = vec![
        row("POST", "/v1/completions", Key, true, post(openai::completions::post)),
        row("POST", "/v1/chat/completions", Key, true, post(openai::chat::post)),
        row("GET", "/v1/models", Key, false, get(openai::models::list)),
        row("GET", "/v1/models/{*id}", Key, false, get(openai::models::get)),
        // GitLab appends `/v1/models` to a model's endpoint, which its administrators enter with `/v1`.
        row("GET", "/v1/v1/models", Key, false, get(openai::models::list)),
        row("POST", "/tokenize", Key, true, post(openai::tokenize::tokenize)),
        row("POST", "/detokenize", Key, true, post(openai::tokenize::detokenize)),
        row("GET", "/openapi.json", Page, false, get(docs::document)),
        row("GET", "/docs", Page, false, get(docs::page)),
        row("GET", "/docs/{*file}", Page, false, get(docs::file)),
        row("GET", "/health/live", Open, false, get(health::live)),
        row("GET", "/health/ready", Open, false, get(health::ready)),
        row("GET", "/health/startup", Open, false, get(health::startup)),
    ];
    table.extend(duo::rows());
    table
}

pub fn router(shared: Shared, limits: Limits) -> Router {
    let mut router = Router::new();
    let bodies = Arc::new(Semaphore::new(limits.bodies));
    for route in table() {
        let (method, dialect) = (route.method, route.dialect);
        let mut endpoint = route.endpoint.fallback(move |request: Request| async move {
            let path: String = request.uri().path().chars().take(100).collect();
            dialect.method(request.method().as_str(), &path, method)
        });
        if route.work {
            endpoint = endpoint.layer(from_fn_with_state((shared.clone(), dialect), refuse_ending));
        }
        let guarded = endpoint
            .layer(from_fn_with_state((limits, bodies.clone(), dialect), track::body_limit))
            .layer(from_fn_with_state((route.access, shared.clone()), guard::check))
            .layer(from_fn_with_state(dialect, track::panics));
        router = router.route(route.path, guarded);
    }
    let reached = shared.clone();
    let known: Arc<[(&str, Access)]> = table().iter().map(|route| (route.path, route.access)).collect();
    let elsewhere = move |request: Request| guard::elsewhere(reached.clone(), known.clone(), request);
    router
        .fallback(elsewhere)
        .layer(from_fn_with_state(shared.clone(), cors::check))
        .layer(from_fn_with_state(Dialect::GitLab, track::panics))
        .layer(from_fn_with_state(shared.clone(), track::request))
        .with_state(shared)
}

async fn refuse_ending(
    State((shared, dialect)): State<(Shared, Dialect)>,
    request: Request,
    next: Next,
) -> Response {
    match shared.health.ending() {
        true => dialect.draining(),
        false => next.run(request).await,
    }
}
