//! `POST /v1/code/user_access_token`: GitLab asks for a token that an editor then completes code with, without GitLab
//! in between.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, routing};
use serde_json::json;

use super::error::DuoError;
use super::identity::Caller;
use super::{Gateway, client};
use crate::server::routes::Route;

pub fn rows() -> Vec<Route> {
    vec![Route::gitlab("POST", "/v1/code/user_access_token", routing::post(post)).without_model()]
}

/// What an editor's token may carry, of what GitLab's own token grants.
const SCOPES: [&str; 2] = ["complete_code", "ai_gateway_model_provider_proxy"];

async fn post(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response, DuoError> {
    // The token names whose it is, and is good only together with the same header.
    if caller.user.is_empty() {
        return Err(DuoError::validation("X-Gitlab-Global-User-Id", "is missing", client::verbose(&headers)));
    }
    let refusal = "Unauthorized to create user access token";
    caller.require(&SCOPES, refusal)?;
    let scopes: Vec<&str> = SCOPES.into_iter().filter(|scope| caller.can(scope)).collect();
    let minted = gateway.identity.mint(&caller.user, &scopes, &caller.claims);
    let failed = || DuoError::detail(StatusCode::INTERNAL_SERVER_ERROR, "Failed to generate JWT");
    let minted = minted.ok_or_else(failed)?;
    Ok(Json(json!({"token": minted.token, "expires_at": minted.expires_at})).into_response())
}
