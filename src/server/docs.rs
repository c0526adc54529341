//! `GET /openapi.json` and `GET /docs`: what can be asked, for programs and for people. Both need the API key, which a
//! browser asks for as a password. The page and its scripts are in the binary; it loads nothing from elsewhere.

use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};
use utoipa_swagger_ui::{Config, SwaggerFile};

use crate::openai::error::ApiError;

/// Written by hand beside the table of routes; a test holds the two together.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document: Value =
        serde_json::from_str(include_str!("openapi.json")).expect("bug: openapi.json is not JSON");
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    document
});

static PAGE: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/openapi.json")));

/// Scripts and pictures of our own alone; the viewer sets styles inline.
const POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

pub async fn document() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

/// The page's own links are relative to a folder.
pub async fn page() -> Redirect {
    Redirect::permanent("/docs/index.html")
}

pub async fn file(Path(name): Path<String>) -> Response {
    match utoipa_swagger_ui::serve(&name, PAGE.clone()) {
        Ok(Some(SwaggerFile { bytes, content_type, .. })) => {
            let headers = [
                (header::CONTENT_TYPE, content_type.as_str()),
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::REFERRER_POLICY, "no-referrer"),
            ];
            (headers, bytes.into_owned()).into_response()
        }
        Ok(None) => ApiError::no_such_path("GET", "/docs/…", &["/docs"]).into_response(),
        Err(e) => {
            tracing::warn!("the page of /docs cannot be made: {e}");
            (StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be made").into_response()
        }
    }
}
