//! A running `hearth serve` with its admin socket and console, and verbs that ask it.

#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const KEY: &str = "a-key-for-this-test-0123";

pub struct Watched {
    child: Child,
    /// `address:port` of the API, the metrics and the console.
    pub api: String,
    pub metrics: String,
    pub console: String,
    said: Arc<Mutex<String>>,
    state: tempfile::TempDir,
}

/// What a verb did.
pub struct Done {
    pub code: i32,
    pub out: String,
    pub said: String,
}

/// What a listener answered.
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(arguments).env_clear().env("HEARTH_KEY", KEY).stdin(Stdio::null());
    command
}

impl Watched {
    pub fn start(environment: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let listen = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--console", "127.0.0.1:0"];
        let mut child = command(&["serve"])
            .args(listen)
            .arg("--state-dir")
            .arg(state.path())
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let kept = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let mut watched =
            Self { child, api: String::new(), metrics: String::new(), console: String::new(), said, state };
        watched.until("  key: ");
        let said = watched.said();
        let after = |mark: &str| {
            let rest = said.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in {said}")).1;
            rest.split(|c: char| c.is_whitespace() || c == '/').next().unwrap().to_owned()
        };
        watched.metrics = after("metrics: http://");
        watched.console = after("console: http://");
        watched.api = after(" at http://");
        watched
    }

    pub fn state(&self) -> &Path {
        self.state.path()
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it has said that.
    pub fn until(&self, words: &str) {
        let end = Instant::now() + Duration::from_secs(120);
        while !self.said().contains(words) {
            assert!(Instant::now() < end, "never said {words:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A verb of the command line for this server.
    pub fn verb(&self, arguments: &[&str]) -> Done {
        let state = self.state.path().display().to_string();
        verb(&[arguments, &["--state-dir", &state]].concat())
    }

    /// A request to one of its listeners.
    pub fn ask(
        &self,
        address: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        ask(address, method, path, headers, body)
    }

    /// A session at the console: the cookie, and the token of its forms.
    pub fn session(&self) -> (String, String) {
        let link = self.verb(&["console"]).out;
        let path = link.trim().split_once(&self.console).expect("the link leads to the console").1;
        let entered = self.ask(&self.console, "GET", path, &[], "");
        let cookie = entered.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
        let page = self.ask(&self.console, "GET", "/", &[("cookie", &cookie)], "");
        let csrf = page.body.split_once("name=\"csrf\" content=\"").expect("a token").1;
        (cookie, csrf.split('"').next().unwrap().to_owned())
    }

    /// A completion through the API.
    pub fn complete(&self, prompt: &str, headers: &[(&str, &str)]) -> Reply {
        let key = format!("Bearer {KEY}");
        let all =
            [&[("authorization", key.as_str()), ("content-type", "application/json")], headers].concat();
        let body = serde_json::json!({"model": "ember-demo", "prompt": prompt, "max_tokens": 8}).to_string();
        self.ask(&self.api, "POST", "/v1/completions", &all, &body)
    }

    pub fn signal(&self, name: &str) {
        Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
    }

    /// SIGTERM; what it said until its end.
    pub fn stop(mut self) -> String {
        self.signal("-TERM");
        self.child.wait().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        self.said()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn verb(arguments: &[&str]) -> Done {
    let output = command(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), out: text(output.stdout), said: text(output.stderr) }
}

pub fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        text += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    let _ = stream.write_all((text + "\r\n" + body).as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {reply:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}
