//! Who may come in, for every route of the table.

use hearth::server::dialect::Dialect;
use hearth::server::guard::Access;
use hearth::server::routes::table;
use serde_json::{Value, json};

use super::client::{Line, Reply, request};
use super::site::{KEY, Site};

fn ask(site: &Site, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    Line::open(site.address, &request(method, path, headers, "")).reply()
}

#[test]
fn the_table_of_routes() {
    // The GitLab dialect's rows have a table of their own, with a test for each.
    let own = table().into_iter().filter(|r| r.dialect == Dialect::OpenAi);
    let rows: Vec<_> = own.map(|r| (r.method, r.path, r.access)).collect();
    use Access::{Key, Open, Page};
    assert_eq!(
        rows,
        [
            ("POST", "/v1/completions", Key),
            ("POST", "/v1/chat/completions", Key),
            ("GET", "/v1/models", Key),
            ("GET", "/v1/models/{*id}", Key),
            ("GET", "/v1/v1/models", Key),
            ("POST", "/tokenize", Key),
            ("POST", "/detokenize", Key),
            ("GET", "/openapi.json", Page),
            ("GET", "/docs", Page),
            ("GET", "/docs/{*file}", Page),
            ("GET", "/health/live", Open),
            ("GET", "/health/ready", Open),
            ("GET", "/health/startup", Open),
        ]
    );
}

#[test]
fn every_route_asks_for_its_credential() {
    let site = Site::start();
    let right = format!("Bearer {KEY}");
    let longer = format!("Bearer {KEY}x");
    let basic = format!("Basic {KEY}");
    for route in table() {
        let path = route.path.replace("{*id}", "ember").replace("{*file}", "index.html");
        for (headers, code) in [
            (vec![], "missing_api_key"),
            (vec![("authorization", "Bearer wrong")], "invalid_api_key"),
            (vec![("authorization", longer.as_str())], "invalid_api_key"),
            (vec![("authorization", basic.as_str())], "invalid_api_key"),
            (vec![("authorization", KEY)], "invalid_api_key"),
            (vec![("authorization", "Bearer")], "invalid_api_key"),
            (vec![("authorization", "")], "invalid_api_key"),
            (vec![("x-api-key", "")], "invalid_api_key"),
            // A wrong key beside a right one is a mistake that should show.
            (vec![("authorization", "Bearer wrong"), ("x-api-key", KEY)], "invalid_api_key"),
        ] {
            for method in [route.method, "DELETE"] {
                let reply = ask(&site, method, &path, &headers);
                match route.access {
                    Access::Open => assert_ne!(reply.status, 401, "{method} {path}"),
                    Access::GitLab => {
                        assert_eq!(reply.status, 401, "{method} {path} {headers:?}");
                        assert!(reply.json()["error"].is_string(), "{method} {path} {}", reply.body);
                    }
                    Access::Key | Access::Page => {
                        assert_eq!(reply.status, 401, "{method} {path} {headers:?}");
                        assert_eq!(reply.json()["error"]["code"], code, "{method} {path} {headers:?}");
                        let scheme = if route.access == Access::Key { "Bearer" } else { "Basic " };
                        assert!(reply.header("www-authenticate").unwrap().starts_with(scheme));
                    }
                }
            }
        }
        if route.dialect == Dialect::GitLab {
            continue;
        }
        for headers in [[("authorization", right.as_str())], [("x-api-key", KEY)]] {
            assert_ne!(ask(&site, route.method, &path, &headers).status, 401, "{path}");
            let other = ask(&site, "DELETE", &path, &headers);
            assert_eq!(other.status, 405, "{path}");
            assert!(other.message().contains(&format!("use {}", route.method)), "{}", other.message());
        }
    }
}

#[test]
fn what_is_not_in_the_table_says_nothing_to_strangers() {
    let site = Site::start();
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v2",
        "/v1/completions/",
        "/v1/../v1/models",
        "/health",
        "/metrics",
        "/health/live/x",
        "/V1/models",
        "/v1%2Fother",
        "//v1/other",
    ] {
        for method in ["GET", "POST"] {
            let reply = ask(&site, method, path, &[]);
            assert_eq!(reply.status, 401, "{method} {path}");
            assert_eq!(reply.json(), json!({"error": "No authorization header presented"}));
            let reply = ask(&site, method, path, &[("authorization", "Bearer wrong")]);
            assert_eq!(reply.status, 401, "{method} {path}");
            let reply = ask(&site, method, path, &[("x-api-key", KEY)]);
            assert_eq!(reply.status, 404, "{method} {path}");
            assert_eq!(reply.json()["error"]["code"], "unknown_url");
        }
    }
    for (path, words) in [
        ("/completions", "did you mean /v1/completions?"),
        ("/v1/completions/", "did you mean /v1/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/audio/transcriptions", "the paths are /v1/completions, "),
    ] {
        let reply = ask(&site, "POST", path, &[("x-api-key", KEY)]);
        assert!(reply.message().contains(words), "{path}: {}", reply.message());
    }
}

#[test]
fn a_request_keeps_its_id_if_it_is_sane() {
    let site = Site::start();
    let id = |headers: &[(&str, &str)]| {
        ask(&site, "GET", "/health/live", headers).header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id(&[("x-request-id", "a-B_1.2:3")]), "a-B_1.2:3");
    for odd in ["", "with space", &"x".repeat(129)] {
        let made = id(&[("x-request-id", odd)]);
        assert!(made != odd && made.len() == 32, "{made}");
    }
    assert_ne!(id(&[]), id(&[]));
    let body = json!({"model": "ember", "prompt": "a@"}).to_string();
    let headers = [("x-api-key", KEY), ("x-request-id", "mine"), ("content-type", "application/json")];
    let reply = Line::open(site.address, &request("POST", "/v1/completions", &headers, &body)).reply();
    assert_eq!(reply.json()["id"], Value::from("cmpl-mine"));
}

#[test]
fn the_pages_take_the_key_as_a_browser_sends_it() {
    use base64::Engine;
    let site = Site::start();
    let basic = |pair: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let get = |path: &str, value: &str| ask(&site, "GET", path, &[("authorization", value)]);
    assert_eq!(get("/docs", &basic(&format!("anybody:{KEY}"))).status, 308);
    let page = get("/docs/index.html", &basic(&format!(":{KEY}")));
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'self'"));
    assert!(!page.body.contains("https://"), "the page loads from elsewhere: {}", page.body);
    assert_eq!(get("/docs/none.js", &basic(&format!(":{KEY}"))).status, 404);
    for wrong in [basic(KEY), basic("anybody:wrong"), "Basic !".to_owned()] {
        assert_eq!(get("/docs", &wrong).status, 401, "{wrong}");
    }
    // The other routes take the key as a key only.
    assert_eq!(get("/v1/models", &basic(&format!(":{KEY}"))).status, 401);
}

#[test]
fn the_openapi_document_names_every_row_of_the_table_and_nothing_else() {
    let site = Site::start();
    let document = site.get("/openapi.json").json();
    let mut written: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            written.push((method.to_uppercase(), path.clone()));
        }
    }
    let plain = |path: &str| path.replace("{*", "{");
    let mut rows: Vec<_> = table().iter().map(|r| (r.method.to_owned(), plain(r.path))).collect();
    written.sort();
    rows.sort();
    assert_eq!(written, rows);
}
