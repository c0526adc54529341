//! Request lines and headers that want to be read as something else: another path for the check of credentials than for the
//! route, another host, another method, another address. Each is sent as raw bytes for a route of every class, without a
//! credential and with a key that does not open it, and must not be let in.

use hearth::access::change::Wanted;
use hearth::access::{Class, Quotas};

use super::access::{Rig, named};
use super::client::Line;

/// Lines for a path that must not be reached with method GET or POST: the request line, then headers. `{p}` is the path, `{m}`
/// its method.
const LINES: &[&str] = &[
    // Paths that begin or end like an open one.
    "{m} /health/live/..{p} HTTP/1.1\nhost: hearth",
    "{m} /health/live/../..{p} HTTP/1.1\nhost: hearth",
    "{m} {p}/../health/live HTTP/1.1\nhost: hearth",
    "{m} {p}/../../health/live HTTP/1.1\nhost: hearth",
    "{m} {p}?/health/live HTTP/1.1\nhost: hearth",
    "{m} {p}?path=/health/live HTTP/1.1\nhost: hearth",
    "{m} {p};/health/live HTTP/1.1\nhost: hearth",
    "{m} {p}%3f/health/live HTTP/1.1\nhost: hearth",
    "{m} {p}%23/health/live HTTP/1.1\nhost: hearth",
    "{m} /health/live%2f..%2f..{p} HTTP/1.1\nhost: hearth",
    "{m} /health/live/%2e%2e/%2e%2e{p} HTTP/1.1\nhost: hearth",
    "{m} /health/live\\..\\..{p} HTTP/1.1\nhost: hearth",
    "{m} /%2e{p} HTTP/1.1\nhost: hearth",
    "{m} /.{p} HTTP/1.1\nhost: hearth",
    // More slashes, encoded ones, other letters.
    "{m} /{p} HTTP/1.1\nhost: hearth",
    "{m} //{p} HTTP/1.1\nhost: hearth",
    "{m} /%2f{p} HTTP/1.1\nhost: hearth",
    "{m} /%2F%2F{p} HTTP/1.1\nhost: hearth",
    "{m} {p}/ HTTP/1.1\nhost: hearth",
    "{m} {p}// HTTP/1.1\nhost: hearth",
    "{m} {p}%2f HTTP/1.1\nhost: hearth",
    "{m} {p}%00 HTTP/1.1\nhost: hearth",
    "{m} {p}%0a HTTP/1.1\nhost: hearth",
    "{m} {p}%20 HTTP/1.1\nhost: hearth",
    "{m} {p}. HTTP/1.1\nhost: hearth",
    // A whole address in the request line.
    "{m} http://localhost{p} HTTP/1.1\nhost: hearth",
    "{m} http://hearth/health/live@{p} HTTP/1.1\nhost: hearth",
    "{m} https://127.0.0.1:5052{p} HTTP/1.1\nhost: localhost",
    "{m} //health/live{p} HTTP/1.1\nhost: hearth",
    // The host.
    "{m} {p} HTTP/1.1\nhost: hearth/health/live",
    "{m} {p} HTTP/1.1\nhost: hearth/health/live?",
    "{m} {p} HTTP/1.1\nhost: hearth/health/live#",
    "{m} {p} HTTP/1.1\nhost: localhost",
    "{m} {p} HTTP/1.1\nhost: ",
    "{m} {p} HTTP/1.1\nhost: a\nhost: localhost",
    "{m} {p} HTTP/1.1\nhost: @/health/live",
    "{m} {p} HTTP/1.0",
    // Headers that proxies set, and some programs believe.
    "{m} {p} HTTP/1.1\nhost: hearth\nx-original-url: /health/live",
    "{m} {p} HTTP/1.1\nhost: hearth\nx-rewrite-url: /health/live",
    "{m} /health/live HTTP/1.1\nhost: hearth\nx-original-url: {p}\nx-must-be: live",
    "{m} {p} HTTP/1.1\nhost: hearth\nx-forwarded-host: localhost\nx-forwarded-proto: https",
    "{m} {p} HTTP/1.1\nhost: hearth\nx-forwarded-for: 192.0.2.7\nx-real-ip: 192.0.2.7",
    "{m} {p} HTTP/1.1\nhost: hearth\nforwarded: for=192.0.2.7;host=localhost",
    "{m} {p} HTTP/1.1\nhost: hearth\nx-http-method-override: OPTIONS",
    // Other methods, which browsers ask first with and guards like to let pass.
    "OPTIONS {p} HTTP/1.1\nhost: hearth",
    "HEAD {p} HTTP/1.1\nhost: hearth",
    "TRACE {p} HTTP/1.1\nhost: hearth",
    "get {p} HTTP/1.1\nhost: hearth",
    "{m}X {p} HTTP/1.1\nhost: hearth",
    "CONNECT hearth{p} HTTP/1.1\nhost: hearth",
    // Credentials that look like one.
    "{m} {p} HTTP/1.1\nhost: hearth\nauthorization: Bearer",
    "{m} {p} HTTP/1.1\nhost: hearth\nauthorization: Bearer \nauthorization: Bearer x",
    "{m} {p} HTTP/1.1\nhost: hearth\nauthorization: Basic Og==",
    "{m} {p} HTTP/1.1\nhost: hearth\ncookie: key=x; session=x",
    "{m} {p}?key=x&api_key=x&access_token=x HTTP/1.1\nhost: hearth",
    // Two bodies in one.
    "{m} {p} HTTP/1.1\nhost: hearth\ncontent-length: 0\ntransfer-encoding: chunked\n\n0\n\nGET /v1/models HTTP/1.1\nhost: x",
];

/// What was answered, status by status: one line may be read as two requests.
fn statuses(rig: &Rig, line: &str) -> Vec<u16> {
    let bytes = format!("{}\r\nconnection: close\r\n\r\n", line.replace('\n', "\r\n"));
    let text = Line::open(rig.site.address, bytes.as_bytes()).rest();
    let found = text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok());
    found.collect()
}

#[test]
fn no_request_line_and_no_header_opens_a_route() {
    let rig = Rig::start(Quotas::default());
    let metrics = rig.key(&Wanted { classes: vec![Class::Metrics], ..named("metrics") });
    let elsewhere = rig.key(&Wanted { addresses: vec!["192.0.2.7".to_owned()], ..named("elsewhere") });
    let mut sent = 0;
    for (method, path) in [
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("GET", "/openapi.json"),
        ("GET", "/docs/index.html"),
        ("POST", "/v2/code/completions"),
        ("POST", "/v1/prompts/model_configuration/check"),
    ] {
        for line in LINES {
            for credential in ["", &format!("\nx-api-key: {metrics}"), &format!("\nx-api-key: {elsewhere}")] {
                let mut line = line.replace("{m}", method).replace("{p}", path);
                if !line.contains("\n\n") {
                    line += credential;
                }
                let statuses = statuses(&rig, &line);
                // The one line that asks for what is open: it gets that, and not what its header names.
                let open = line.contains("x-must-be: live");
                for status in statuses {
                    assert!(status >= 400 || open, "{line:?} was answered with {status}");
                }
                sent += 1;
            }
        }
    }
    assert!(LINES.len() >= 40 && sent == LINES.len() * 6 * 3);
    assert_eq!(statuses(&rig, "GET /health/live HTTP/1.1\nhost: hearth"), [200], "the open door stays open");
    let key = rig.key(&named("good"));
    let good = format!("GET /v1/models HTTP/1.1\nhost: hearth\nx-api-key: {key}");
    assert_eq!(statuses(&rig, &good), [200], "and a good key opens");
}
