//! Clients that hold connections: each is closed in its limit, and others do not notice.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hearth::server::Limits;
use serde_json::json;

use super::client::{Line, request};
use super::site::{ANSWER, KEY, Options, Site};

/// One after the other in every pace: a second, so that the probes take their time and the test does not.
fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits { first_byte: second, headers: second, body: second, idle: second, ..Limits::default() }
}

/// Connections that were refused or ended for a reason, as the metrics tell it; empty: for any.
pub fn refused(site: &Site, reason: &str) -> u64 {
    let figures = Line::open(site.metrics, &request("GET", "/metrics", &[], "")).reply().body;
    let rows = figures.lines().filter(|row| row.starts_with("hearth_connections_refused_total{"));
    let rows = rows.filter(|row| reason.is_empty() || row.contains(&format!("reason=\"{reason}\"")));
    rows.map(|row| row.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Waits until so many were.
pub fn counted(site: &Site, reason: &str, connections: u64) {
    let end = Instant::now() + Duration::from_secs(60);
    while refused(site, reason) < connections {
        assert!(Instant::now() < end, "{reason}: only {} of {connections}", refused(site, reason));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends `first`, then `drop` every 100 ms, until the server has closed; how long that took. After a minute the probe has won.
fn held(address: SocketAddr, first: &[u8], drop: &[u8]) -> Duration {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let _ = stream.write_all(first);
    let mut bytes = [0; 4096];
    while begin.elapsed() < Duration::from_secs(60) {
        match stream.read(&mut bytes) {
            Ok(0) => return begin.elapsed(),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stream.write_all(drop).is_err() {
                    return begin.elapsed();
                }
            }
            Err(_) => return begin.elapsed(),
        }
    }
    panic!("{:?} held its connection for a minute", String::from_utf8_lossy(first));
}

#[test]
fn every_way_to_hold_a_connection_ends_in_its_limit_and_good_traffic_goes_on() {
    let site = Site::with(Options { limits: limits(), ..Options::default() });
    let keyed = |path: &str, headers: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n{headers}\r\n")
    };
    let length = keyed("/v1/completions", "content-type: application/json\r\ncontent-length: 100000\r\n");
    let chunked =
        keyed("/v1/completions", "content-type: application/json\r\ntransfer-encoding: chunked\r\n");
    let probes: Vec<(&str, Vec<u8>, &[u8])> = vec![
        ("silence", Vec::new(), b""),
        ("half a header", b"GET /health/live HTTP/1.1\r\nhost: x\r\n".to_vec(), b""),
        ("a header that drips", b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-slow: ".to_vec(), b"a"),
        ("header after header", b"GET /health/live HTTP/1.1\r\n".to_vec(), b"a: b\r\n"),
        ("blank lines", Vec::new(), b"\r\n"),
        ("half a preface of HTTP/2", b"PRI * HTTP/2.0\r\n".to_vec(), b""),
        ("an idle connection", b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), b""),
        ("a body that stops", length.clone().into_bytes(), b""),
        ("a body that drips", length.into_bytes(), b" "),
        ("chunks that drip", chunked.into_bytes(), b"1\r\n \r\n"),
        (
            "a body for nobody",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n".to_vec(),
            b" ",
        ),
    ];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut served = 0;
            while !over.load(Relaxed) {
                let reply = site.complete(json!({"max_tokens": 100, "stream": true}));
                let text: String = reply
                    .chunks()
                    .iter()
                    .map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned())
                    .collect();
                assert_eq!(text, ANSWER);
                served += 1;
            }
            served
        });
        let held: Vec<_> = probes
            .iter()
            .flat_map(|probe| std::iter::repeat_n(probe, 8))
            .map(|(name, first, drop)| (name, scope.spawn(|| held(site.address, first, drop))))
            .collect();
        for (name, held) in held {
            held.join().unwrap_or_else(|_| panic!("{name} was not closed"));
        }
        over.store(true, Relaxed);
        assert!(good.join().unwrap() > 0);
    });
    site.quiet();
    // Each was counted once, but for the idle ones and those who asked without a key: nothing was wrong with them.
    let all = 8 * (probes.len() as u64 - 2);
    counted(&site, "", all);
    assert_eq!(refused(&site, ""), all);
    for reason in ["first_byte", "headers", "body", "malformed"] {
        assert!(refused(&site, reason) > 0, "none for {reason}");
    }
}

#[test]
fn more_headers_than_anybody_needs_are_refused() {
    let site = Site::with(Options { limits: limits(), ..Options::default() });
    let many: String = (0..1000).map(|i| format!("x-{i}: y\r\n")).collect();
    let large = format!("x-large: {}\r\n", "y".repeat(200_000));
    for bomb in [many, large] {
        let text = format!("GET /health/live HTTP/1.1\r\nhost: x\r\n{bomb}\r\n");
        // What is still being sent when the server refuses can cost the client the answer, never the server.
        if let Some(reply) = Line::open(site.address, text.as_bytes()).reply_or_end() {
            assert_eq!(reply.status, 431);
        }
        assert_eq!(site.get("/health/live").status, 200);
    }
    counted(&site, "header_bytes", 2);
    let some: String = (0..60).map(|i| format!("x-{i}: {}\r\n", "y".repeat(200))).collect();
    let text = format!("GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{some}\r\n");
    assert_eq!(Line::open(site.address, text.as_bytes()).reply().status, 200, "a token and its headers fit");
}

#[test]
fn limits_that_are_set_hold() {
    let limits = Limits { header_count: 16, header_bytes: 8 << 10, body_bytes: 64 << 10, ..limits() };
    let site = Site::with(Options { limits, ..Options::default() });
    let ask = |headers: &str| {
        let text = format!("GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        Line::open(site.address, text.as_bytes()).reply().status
    };
    let some = |count: usize, bytes: usize| -> String {
        (0..count).map(|i| format!("x-{i}: {}\r\n", "y".repeat(bytes))).collect()
    };
    assert_eq!((ask(&some(14, 100)), ask(&some(15, 100)), ask(&some(5, 2000))), (200, 431, 431));

    let body = |bytes: usize| json!({"model": "ember", "prompt": "a@"}).to_string() + &" ".repeat(bytes);
    assert_eq!(site.post_text("/v1/completions", &body(60 << 10)).status, 200);
    let announced = site.post_text("/v1/completions", &body(70 << 10));
    assert_eq!((announced.status, announced.message().contains("65536 bytes")), (413, true));
    let (headers, body) = ([("x-api-key", KEY), ("transfer-encoding", "chunked")], body(70 << 10));
    let mut line = Line::open(site.address, &request("POST", "/v1/completions", &headers, ""));
    line.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
    let unannounced = line.reply();
    assert_eq!((unannounced.status, unannounced.message().contains("65536 bytes")), (413, true));
}

#[test]
fn a_connection_is_kept_between_requests_for_longer_than_headers_may_take() {
    let limits = Limits { headers: Duration::from_millis(100), ..Limits::default() };
    let site = Site::with(Options { limits, ..Options::default() });
    let ask = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut line = Line::open(site.address, ask);
    for _ in 0..3 {
        assert_eq!(line.next_reply().status, 200);
        std::thread::sleep(Duration::from_millis(400));
        line.send(ask);
    }
    assert_eq!(line.next_reply().status, 200);
}

#[test]
fn when_places_are_scarce_nobody_keeps_one_that_is_not_in_use() {
    let limits = Limits { connections: 8, ..Limits::default() };
    let site = Site::with(Options { limits, ..Options::default() });
    // Eight idle connections for two minutes each would be the end of service for everybody else.
    let ask = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held: Vec<Line> = (0..8).map(|_| Line::open(site.address, ask)).collect();
    held.iter_mut().for_each(|line| assert_eq!(line.next_reply().status, 200));
    let reply = Line::open(site.address, &request("GET", "/health/live", &[], "")).reply();
    assert_eq!(reply.status, 200, "one of the idle ones was closed for it");
}
