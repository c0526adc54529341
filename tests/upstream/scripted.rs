//! A server whose every byte is written by the test.

#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hearth::config::{Layers, Origin, UpstreamEntry};
use hearth::upstream::Model;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The first line and the headers.
    pub head: String,
    pub body: serde_json::Value,
}

pub struct Scripted {
    pub address: SocketAddr,
    pub seen: Receiver<Seen>,
}

impl Scripted {
    /// Does the same with every request. The connection closes when `answer` returns.
    pub fn new(answer: impl Fn(&mut TcpStream, &Seen) + Send + Sync + Clone + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (told, seen) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, told, answer) = (stream.unwrap(), told.clone(), answer.clone());
                std::thread::spawn(move || {
                    while let Some(request) = read(&stream) {
                        let _ = told.send(request.clone());
                        answer(&mut stream, &request);
                        let _ = stream.shutdown(std::net::Shutdown::Write);
                    }
                });
            }
        });
        Self { address, seen }
    }

    /// Writes the same bytes to everybody, and closes.
    pub fn says(text: impl Into<Vec<u8>>) -> Self {
        let bytes = text.into();
        Self::new(move |stream, _| {
            let _ = stream.write_all(&bytes);
        })
    }

    /// The request that came next.
    pub fn request(&self) -> Seen {
        self.seen.recv_timeout(Duration::from_secs(60)).expect("a request")
    }

    /// Its model, with more settings of the entry.
    pub fn model(&self, settings: &str) -> Model {
        model(&format!("http://{}/v1", self.address), settings)
    }
}

/// The entry with these settings besides name, address and one model.
pub fn entry(url: &str, settings: &str) -> UpstreamEntry {
    let text = format!(
        "[[upstream]]\nname = \"cluster\"\nurl = \"{url}\"\nmodels = [\"far=there/far-7b\"]\n{settings}\n"
    );
    let mut layers = Layers::new();
    layers.toml(&text, &Origin::Default).unwrap();
    layers.upstreams()[0].clone()
}

pub fn model(url: &str, settings: &str) -> Model {
    Model::all(&entry(url, settings)).unwrap().remove(0)
}

fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { head, body: serde_json::from_slice(&body).ok()? })
}

/// An answer of 200 whose body ends with the connection.
pub fn streamed(events: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{events}")
}

/// Events that say each text, and the end.
pub fn events(texts: &[&str]) -> String {
    let event = |text: &&str| {
        let event = serde_json::json!({"choices": [{"index": 0, "text": text, "delta": {"content": text}}]});
        format!("data: {event}\n\n")
    };
    let end =
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    texts.iter().map(event).collect::<String>() + end
}
