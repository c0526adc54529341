//! `POST /v1/embeddings/code_embeddings*`: asked since 19.x where an administrator chose a self-hosted model for code
//! embeddings. No model here makes embeddings, and that is said at once.

use axum::Extension;
use axum::extract::Request;
use axum::routing::post;

use super::body;
use super::error::DuoError;
use super::identity::Caller;
use crate::server::routes::Route;

pub fn rows() -> Vec<Route> {
    let paths = [
        "/v1/embeddings/code_embeddings",
        "/v1/embeddings/code_embeddings/index",
        "/v1/embeddings/code_embeddings/search",
    ];
    paths.map(|path| Route::gitlab("POST", path, post(refuse))).into()
}

async fn refuse(Extension(caller): Extension<Caller>, request: Request) -> DuoError {
    match body::read(request).await {
        Err(error) => error,
        Ok(_) => match caller.require(&["generate_embeddings_codebase"], "Unauthorized to access embeddings")
        {
            Err(error) => error,
            Ok(()) => DuoError::bad_request(
                "Embeddings are not served here: none of the models makes them. In GitLab, give the feature \
                 'Code embeddings' a model of another server, or switch it off",
            ),
        },
    }
}
