//! A server whose answers are written by the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::{Value, json};

pub struct Fake {
    pub url: String,
}

pub struct Request {
    pub path: String,
    pub body: Value,
    /// Which of all requests with this path it is.
    pub number: u64,
}

/// The bytes of an answer; the connection ends with it.
pub type Bytes = String;

impl Fake {
    pub fn start(answer: impl Fn(&Request) -> Bytes + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answer, completions) = (Arc::new(answer), Arc::new(AtomicU64::new(0)));
        std::thread::spawn(move || {
            for line in listener.incoming() {
                let (line, answer, completions) = (line.unwrap(), answer.clone(), completions.clone());
                std::thread::spawn(move || {
                    let Some((path, body)) = read(&line) else { return };
                    let number =
                        if path == "/v1/completions" { completions.fetch_add(1, Relaxed) } else { 0 };
                    let _ = (&line).write_all(answer(&Request { path, body, number }).as_bytes());
                });
            }
        });
        Self { url }
    }
}

fn read(line: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(line);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

pub fn plain(status: u16, body: &str) -> Bytes {
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A whole stream of events.
pub fn stream(pieces: &[&str]) -> Bytes {
    let events: String = pieces.iter().map(|piece| event(piece)).collect();
    let end = json!({"choices": [{"text": "", "finish_reason": "stop"}]});
    let body = format!("{events}data: {end}\n\ndata: [DONE]\n\n");
    format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A stream that breaks off: fewer bytes come than were promised.
pub fn cut(pieces: &[&str]) -> Bytes {
    let events: String = pieces.iter().map(|piece| event(piece)).collect();
    format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n{events}"
    )
}

fn event(piece: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"text": piece, "finish_reason": null}]}))
}
