//! What every path has in common: the order of checks, slashes, browsers' questions, ids and times.

use serde_json::json;

use super::client::{Line, Reply, request};
use super::site::{KEY, Site};

fn ask(site: &Site, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    Line::open(site.address, &request(method, path, headers, "")).reply()
}

/// A row that is in the table whatever else is.
const ROW: &str = "/v1/embeddings/code_embeddings";

#[test]
fn fact_1_a_stranger_gets_the_text_that_the_installation_guide_tells_to_look_for() {
    let site = Site::closed();
    for (method, path) in [("GET", "/"), ("POST", "/"), ("GET", "/nowhere"), ("POST", ROW), ("GET", ROW)] {
        let reply = ask(&site, method, path, &[]);
        assert_eq!(reply.status, 401, "{method} {path}");
        assert_eq!(reply.body, r#"{"error":"No authorization header presented"}"#, "{method} {path}");
    }
    assert_eq!(Line::open(site.address, &request("HEAD", "/", &[], "")).status(), 401);
}

#[test]
fn probes_answer_anybody_and_only_to_get() {
    let site = Site::closed();
    for path in
        ["/monitoring/healthz", "/monitoring/ready", "/v1/models/definitions", "/v1/models%2Fdefinitions"]
    {
        let reply = ask(&site, "GET", path, &[]);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.json().is_object(), "{path}");
        assert_eq!(ask(&site, "POST", path, &[]).status, 405, "{path}");
        assert_eq!(Line::open(site.address, &request("HEAD", path, &[], "")).status(), 405, "{path}");
    }
    let definitions = ask(&site, "GET", "/v1/models/definitions", &[]);
    assert_eq!(definitions.json(), json!({"models": [], "unit_primitives": []}));
}

#[test]
fn the_token_is_checked_first_then_the_route_then_the_body_then_the_scope() {
    let closed = Site::closed();
    assert_eq!(ask(&closed, "DELETE", ROW, &[]).status, 401);
    let site = Site::open();
    let reply = ask(&site, "DELETE", ROW, &[]);
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(reply.body, r#"{"detail":"Method Not Allowed"}"#);
    let reply = ask(&site, "GET", "/v9/nothing", &[]);
    assert_eq!((reply.status, reply.body.as_str()), (404, r#"{"detail":"Not Found"}"#));
    let reply = ask(&site, "POST", ROW, &[]);
    assert_eq!((reply.status, reply.body.as_str()), (422, r#"{"detail":"Validation error"}"#));
}

#[test]
fn a_body_is_json_in_utf8_with_its_content_type() {
    let site = Site::open();
    let send = |kind: &str, body: &[u8]| {
        let mut bytes = request("POST", ROW, &[("content-type", kind)], &"x".repeat(body.len()));
        let end = bytes.len() - body.len();
        bytes[end..].copy_from_slice(body);
        Line::open(site.address, &bytes).reply()
    };
    for kind in ["application/json", " application/json", "application/json; charset=utf-8"] {
        let reply = send(kind, b"{}");
        assert_eq!(reply.status, 400, "{kind}");
        assert!(reply.body.contains("Embeddings are not served here"), "{}", reply.body);
    }
    for (kind, body) in [("text/plain", &b"{}"[..]), ("application/json", b"{"), ("application/json", b"[]")]
    {
        assert_eq!(send(kind, body).status, 422, "{kind} {body:?}");
    }
    let reply = send("application/json", b"{\"a\": \"\xff\"}");
    assert_eq!(reply.status, 400);
    assert_eq!(reply.body, r#"{"detail":"There was an error parsing the body"}"#);
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(9 << 20));
    assert_eq!(send("application/json", large.as_bytes()).status, 413);
}

#[test]
fn slashes_may_be_doubled_in_front_encoded_or_left_over_at_the_end() {
    let site = Site::open();
    for path in ["//v1/embeddings/code_embeddings", "/v1%2Fembeddings%2fcode_embeddings"] {
        assert_eq!(site.post(path, &json!({})).status, 400, "{path}");
    }
    let reply = site.post("/v1/embeddings/code_embeddings/?a=b", &json!({}));
    assert_eq!(reply.status, 307);
    assert_eq!(reply.header("location"), Some("/v1/embeddings/code_embeddings?a=b"));
    assert_eq!(Site::closed().post("/v1/embeddings/code_embeddings/", &json!({})).status, 401);
}

#[test]
fn browsers_may_ask_before_they_post() {
    let site = Site::closed();
    let origin = ("origin", "https://gitlab.example.com");
    let method = |name| ("access-control-request-method", name);
    let reply = ask(
        &site,
        "OPTIONS",
        "/v2/completions",
        &[origin, method("POST"), ("access-control-request-headers", "authorization,x-gitlab-realm")],
    );
    assert_eq!((reply.status, reply.body.as_str()), (200, "OK"));
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(reply.header("access-control-allow-methods"), Some("POST"));
    assert_eq!(reply.header("access-control-max-age"), Some("600"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("authorization,x-gitlab-realm"));
    let reply = ask(&site, "OPTIONS", "/anything", &[origin, method("POST")]);
    assert_eq!((reply.status, reply.header("access-control-allow-headers")), (200, None));
    let reply = ask(&site, "OPTIONS", "/v2/completions", &[origin, method("GET")]);
    assert_eq!((reply.status, reply.body.as_str()), (400, "Disallowed CORS method"));
    assert_eq!(ask(&site, "OPTIONS", "/v2/completions", &[]).status, 401);
    let refused = ask(&site, "POST", ROW, &[origin]);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
    assert_eq!(ask(&site, "POST", ROW, &[]).header("access-control-allow-origin"), None);
}

#[test]
fn every_answer_has_the_callers_id_and_its_own_time() {
    let site = Site::closed();
    for (path, status) in [("/monitoring/healthz", 200), ("/", 401), ("/v1/models", 401)] {
        let reply = ask(&site, "GET", path, &[("x-request-id", "01JD0:correlation/id")]);
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("x-request-id"), Some("01JD0:correlation/id"));
        let seconds: f64 = reply.header("x-process-time").unwrap().parse().unwrap();
        assert!((0.0..60.0).contains(&seconds));
        let made = ask(&site, "GET", path, &[]).header("x-request-id").unwrap().to_owned();
        assert!(made.len() == 32 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{made}");
    }
}

#[test]
fn the_model_list_stands_where_gitlab_looks_for_it() {
    let site = Site::closed();
    for path in ["/v1/models", "/v1/v1/models"] {
        assert_eq!(ask(&site, "GET", path, &[]).status, 401);
        let reply = ask(&site, "GET", path, &[("authorization", &format!("Bearer {KEY}"))]);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["data"][0]["id"], "ember");
    }
}

#[test]
fn figures_have_the_names_of_the_original_gateway() {
    let site = Site::closed();
    ask(&site, "GET", "/monitoring/healthz", &[]);
    let text = Line::open(site.metrics, &request("GET", "/metrics", &[], "")).reply().body;
    let handler =
        r#"http_request_duration_seconds_count{handler="/monitoring/healthz",method="GET",status="200"} 1"#;
    assert!(text.contains(handler), "{text}");
    for name in [
        "model_inferences_in_flight",
        "model_max_total_tokens",
        "model_inferences",
        "inference_request_duration_seconds",
        "inference_input_tokens",
        "inference_output_tokens",
        "inference_total_tokens",
    ] {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} in {text}");
    }
}
