//! Paths as the table of routes reads them. It happens before the route is found, so that the guard decides on what
//! will really be called.
//!
//! GitLab up to 18.9 sends `//v1/prompts/…` when its setting ends in a slash, and several callers encode the slashes of
//! a path (`/v1/prompts/model_configuration%2Fcheck`, `/v1/models%2Fdefinitions`).

use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use hyper::Request;

/// One slash at the beginning, and encoded slashes decoded. Nothing else is touched.
pub fn normalise<B>(mut request: Request<B>) -> Request<B> {
    if let Some(plain) = plain(request.uri().path()) {
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        let mut parts = request.uri().clone().into_parts();
        // A part of a valid path with slashes in it is a valid path.
        if let Ok(path) = PathAndQuery::try_from(plain + &query) {
            parts.path_and_query = Some(path);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

/// The path if it is another one.
fn plain(path: &str) -> Option<String> {
    let encoded = path.contains("%2F") || path.contains("%2f");
    if !encoded && !path.starts_with("//") {
        return None;
    }
    let decoded = path.replace("%2F", "/").replace("%2f", "/");
    Some(format!("/{}", decoded.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_beginning_and_encoded_ones() {
        for (from, to) in [
            ("/v1/models", "/v1/models"),
            ("//v1/prompts/a", "/v1/prompts/a"),
            ("///", "/"),
            ("/v1/prompts/model_configuration%2Fcheck", "/v1/prompts/model_configuration/check"),
            ("/%2F%2fv1/models", "/v1/models"),
            ("/v1%2fmodels?x=%2F", "/v1/models?x=%2F"),
            ("/a//b/%252F", "/a//b/%252F"),
            ("/", "/"),
        ] {
            let request = Request::builder().uri(from).body(()).unwrap();
            assert_eq!(normalise(request).uri().to_string(), to, "{from}");
        }
    }
}
