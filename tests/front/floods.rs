//! HTTP/2 as a weapon: streams opened to be reset, headers without an end, frames that only cost. Each connection is ended,
//! nothing of it reaches the engine or stays in memory, and good traffic goes on.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hearth::server::tls::{Material, Tls};
use hearth::server::{Door, Limits};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::ClientConfig;

use super::authority::{Authority, Secure};
use super::client::request;
use super::hostile::counted;
use super::service::Over;
use super::site::{ANSWER, KEY, Options, Site};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// Nobody's.
const UNKNOWN: u8 = 0x77;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Headers of a completion with a good key, as literals.
fn headers() -> Vec<u8> {
    // POST, https, then a path and an authority by the number of their names.
    let mut block = vec![0x83, 0x87];
    for (name, value) in [(4, "/v1/completions"), (1, "hearth.test")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    for (name, value) in [("x-api-key", KEY), ("content-type", "application/json")] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

/// One flood: what is sent once, and what is sent again and again, by number.
struct Flood {
    name: &'static str,
    first: Vec<u8>,
    again: fn(u32) -> Vec<u8>,
}

/// Without a body, so that nothing could be worked on.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &headers())
}

fn floods() -> Vec<Flood> {
    let flood = |name, first: Vec<u8>, again| Flood { name, first, again };
    vec![
        flood("rapid resets", Vec::new(), |number| {
            [open(2 * number + 1), frame(RST_STREAM, 0, 2 * number + 1, &8u32.to_be_bytes())].concat()
        }),
        flood("streams without an end", Vec::new(), |number| open(2 * number + 1)),
        flood("headers without an end", frame(HEADERS, 0, 1, &headers()), |_| {
            let header = [&[0, 1, b'x', 100][..], &[b'y'; 100]].concat();
            frame(CONTINUATION, 0, 1, &header.repeat(50))
        }),
        flood("empty continuations", frame(HEADERS, 0, 1, &headers()), |_| frame(CONTINUATION, 0, 1, b"")),
        flood("pings", Vec::new(), |number| frame(PING, 0, 0, &u64::from(number).to_be_bytes())),
        flood("pings beside a request", open(1), |number| {
            frame(PING, 0, 0, &u64::from(number).to_be_bytes())
        }),
        flood("settings", Vec::new(), |number| {
            // Windows that grow and shrink.
            frame(SETTINGS, 0, 0, &[&[0, 4][..], &(number % 2 * 65_535).to_be_bytes()].concat())
        }),
        flood("room in sips", open(1), |number| frame(WINDOW_UPDATE, 0, number % 2, &1u32.to_be_bytes())),
        flood("priorities", Vec::new(), |number| frame(PRIORITY, 0, 2 * number + 1, &[0, 0, 0, 0, 9])),
        flood("empty pieces of a body", open(1), |_| frame(DATA, 0, 1, b"")),
        flood("frames of no kind", Vec::new(), |_| frame(UNKNOWN, 0, 0, &[0; 64])),
    ]
}

/// Sends a flood and reads what comes, until the server has ended it; how many rounds it was.
async fn held(site: &Site, config: &Arc<ClientConfig>, flood: &Flood) -> u32 {
    let stream = tokio::net::TcpStream::connect(site.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let stream = connector.connect("hearth.test".try_into().unwrap(), stream).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    let mut rounds = 0;
    let write = async {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut bytes = [preface, frame(SETTINGS, 0, 0, b""), flood.first.clone()].concat();
        loop {
            for _ in 0..100 {
                bytes.extend((flood.again)(rounds));
                rounds += 1;
            }
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                return;
            }
            bytes.clear();
        }
    };
    let read = async {
        let mut bytes = vec![0; 1 << 16];
        while matches!(from.read(&mut bytes).await, Ok(1..)) {}
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    rounds
}

fn site(authority: &Authority) -> Site {
    let limits = Limits { body: Duration::from_secs(2), ..Limits::default() };
    let tls = Tls::new(Material::read(&authority.files(false)).unwrap());
    let door = Door { tls: Some(tls), ..Door::default() };
    Site::with(Options { limits, door, ..Options::default() })
}

/// A completion that is meant, over HTTP/1.1.
fn complete(site: &Site, config: &Arc<ClientConfig>) {
    let body = json!({"model": "ember", "prompt": "a@", "temperature": 0, "max_tokens": 100}).to_string();
    let headers = [("x-api-key", KEY), ("content-type", "application/json")];
    let asked = request("POST", "/v1/completions", &headers, &body);
    let reply = Secure::open(site.address, config).unwrap().ask(&asked).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains(ANSWER.trim_end()), "{reply}");
}

/// Bytes of this process, in which the server runs too.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn every_flood_is_ended_reaches_no_engine_and_good_traffic_goes_on() {
    let authority = Authority::new();
    let site = site(&authority);
    let over = AtomicBool::new(false);
    let good = authority.trusting(&["http/1.1"], None);
    complete(&site, &good);
    let (prompt, before) = (site.engine.status().tokens_in, resident());
    let flooding = authority.trusting(&["h2"], None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let served = std::thread::scope(|scope| {
        let _over = Over(&over);
        let served = scope.spawn(|| {
            let mut served = 0;
            while !over.load(Relaxed) {
                complete(&site, &good);
                served += 1;
            }
            served
        });
        for flood in floods() {
            let floods = futures::future::join_all((0..4).map(|_| held(&site, &flooding, &flood)));
            let ended =
                runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), floods).await });
            assert!(ended.is_ok(), "{} went on for a minute", flood.name);
        }
        over.store(true, Relaxed);
        served.join().unwrap()
    });
    assert!(served > 0);
    // What the engine saw is what was meant, and nothing else.
    assert_eq!(site.engine.status().tokens_in, prompt * (served + 1));
    site.quiet();
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes of memory for floods that are over");
    counted(&site, "http2", 4 * floods().len() as u64);
}

#[test]
fn whole_requests_that_are_reset_at_once_are_hardly_worked_on() {
    let authority = Authority::new();
    let site = site(&authority);
    complete(&site, &authority.trusting(&["http/1.1"], None));
    let prompt = site.engine.status().tokens_in;
    let body = json!({"model": "ember", "prompt": "a@", "max_tokens": 100}).to_string();
    let whole = move |stream: u32| {
        let body = frame(DATA, END_STREAM, stream, body.as_bytes());
        [open(stream), body, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    };
    let all: Vec<u8> = (0..2000).flat_map(|number| whole(2 * number + 1)).collect();
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, b"")].concat();
    let config = authority.trusting(&["h2"], None);
    for _ in 0..4 {
        let mut secure = Secure::open(site.address, &config).unwrap();
        // The server closes before it has read it all.
        let _ = secure.0.write_all(&[preface.clone(), all.clone()].concat());
        let _ = secure.0.flush();
        let mut rest = Vec::new();
        let _ = secure.0.read_to_end(&mut rest);
    }
    site.quiet();
    let begun = site.engine.status().tokens_in / prompt - 1;
    assert!(begun <= 4 * 128, "{begun} of 8,000 requests that nobody waits for were begun");
    counted(&site, "http2", 4);
}
