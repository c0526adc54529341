//! What GitLab and its administrators ask without a token: is it there, is it ready, which models does it know.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::error::DuoError;
use crate::server::Shared;
use crate::server::routes::Route;

pub fn rows() -> Vec<Route> {
    vec![
        Route::open("GET", "/monitoring/healthz", get(healthz).head(not_head)),
        Route::open("GET", "/monitoring/ready", get(ready).head(not_head)),
        Route::open("GET", "/v1/models/definitions", get(definitions).head(not_head)),
    ]
}

/// The original registers GET alone, and probes are written after it.
async fn not_head() -> Response {
    ([("allow", "GET")], DuoError::method()).into_response()
}

/// The process is up. GitLab prints `status` where its version reads one.
async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Every model answers, GitLab's keys are known where a GitLab is configured, and the server is not shutting down.
async fn ready(State(shared): State<Shared>) -> Response {
    let status = match shared.duo.ready() && !shared.health.draining() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(json!({}))).into_response()
}

/// The models that GitLab manages in its own cloud: none are here.
async fn definitions() -> Json<Value> {
    Json(json!({"models": [], "unit_primitives": []}))
}
