//! A small HTTP client that shows what really came over the line.

#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Generous: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }

    /// The error object's message.
    pub fn message(&self) -> String {
        self.json()["error"]["message"]
            .as_str()
            .unwrap_or_else(|| panic!("no message in {}", self.body))
            .to_owned()
    }

    /// The `data:` events.
    pub fn events(&self) -> Vec<String> {
        let events: Vec<&str> = self.body.split("\n\n").filter(|e| !e.is_empty()).collect();
        assert!(self.body.ends_with("\n\n"), "a cut event in {:?}", self.body);
        let data =
            |e: &&str| e.strip_prefix("data: ").unwrap_or_else(|| panic!("no data in {e:?}")).to_owned();
        events.iter().filter(|e| !e.starts_with(':')).map(data).collect()
    }

    /// The events' JSON, without the closing `[DONE]`, which must be there.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.body);
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

/// A connection whose answer is read piece by piece.
pub struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    pub fn open(address: SocketAddr, request: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may refuse and close before all of it is written.
        let _ = stream.write_all(request);
        Self { reader: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// Reads lines until one contains `text`.
    pub fn until(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(self.reader.read_line(&mut line).unwrap() > 0, "closed before {text:?}");
        }
    }

    /// The status alone: an answer to HEAD has no body however long it says it is.
    pub fn status(mut self) -> u16 {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// What comes until the connection ends, as it is.
    pub fn rest(mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.reader.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether the server closed the connection without an answer.
    pub fn closed(mut self) -> bool {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }

    /// The answer, and then the connection is closed.
    pub fn reply(mut self) -> Reply {
        self.next_reply()
    }

    /// The next answer on a connection that is kept.
    pub fn next_reply(&mut self) -> Reply {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let status =
            line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Reply { status, headers, body: String::new() };
        let mut body = Vec::new();
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                line.clear();
                self.reader.read_line(&mut line).unwrap();
                let length =
                    usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("cut at {line:?}"));
                let mut chunk = vec![0; length + 2];
                self.reader.read_exact(&mut chunk).unwrap();
                body.extend_from_slice(&chunk[..length]);
                if length == 0 {
                    break;
                }
            }
        } else {
            let length = reply.header("content-length").map_or(0, |l| l.parse().unwrap());
            body.resize(length, 0);
            self.reader.read_exact(&mut body).unwrap();
        }
        reply.body = String::from_utf8(body).unwrap();
        reply
    }
}

/// A request as bytes; the connection closes after it.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: hearth\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    (text + "\r\n" + body).into_bytes()
}

impl Line {
    /// The reply, or `None` when the server closed the connection without one.
    pub fn reply_or_end(mut self) -> Option<Reply> {
        match self.reader.fill_buf() {
            Ok(bytes) if !bytes.is_empty() => Some(self.reply()),
            _ => None,
        }
    }
}
