//! An editor's session on the whole binary: the language server asks GitLab for a way to the gateway, completes at four
//! keystrokes a second and takes back what the next keystroke makes stale, gets its token anew before it ends, and has
//! code generated as a stream of events through GitLab. A few seconds in the gate; `HEARTH_EDITOR_SECONDS=60` is the
//! long run.

mod gitlab;
mod served;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gitlab::GitLab;
use serde_json::{Value, json};
use served::Served;

/// Between two keystrokes.
const KEYSTROKE: Duration = Duration::from_millis(250);
/// Generous: a session that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A token is asked for anew so many seconds before its end.
const BEFORE: u64 = 40;
/// GitLab says that tokens end after so many seconds, so that a short session sees some end.
const TOLD: u64 = BEFORE + 1;

const TYPED: &str = "import json\n\n\ndef read_settings(path):\n    with open(path) as file:\n        return json.load(file)\n\n\n\
                     def names(settings):\n    return [entry[\"name\"] for entry in settings[\"entries\"]]\n\n\n\
                     class Counter:\n    def __init__(self):\n        self.count = 0\n\n    def add(self, number):\n        ";

/// An answer: status, headers in lower case, body.
type Reply = (u16, String, String);

/// A request on its way.
struct Sent(TcpStream, Vec<u8>);

impl Sent {
    fn new(base: &str, path: &str, headers: &[(String, String)], body: &str) -> Self {
        let address = base.trim_start_matches("http://");
        let mut text = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(address).expect("the server takes connections");
        stream.write_all(text.as_bytes()).expect("a request is sent");
        Self(stream, Vec::new())
    }

    /// The answer, if it is whole within this time.
    fn within(&mut self, time: Duration) -> Option<Reply> {
        let end = Instant::now() + time;
        loop {
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.0.set_read_timeout(Some(left)).expect("a time limit is set");
            let mut piece = [0; 4096];
            match self.0.read(&mut piece) {
                Ok(0) => return Some(self.read()),
                Ok(n) => self.1.extend_from_slice(&piece[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(e) => panic!("the connection broke: {e}"),
            }
        }
    }

    fn read(&self) -> Reply {
        let text = String::from_utf8(self.1.clone()).expect("an answer is text");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no headers in {text:?}"));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("an answer has a status");
        let head = head.to_ascii_lowercase();
        match head.contains("transfer-encoding: chunked") {
            true => (status, head, chunks(body)),
            false => (status, head, body.to_owned()),
        }
    }
}

fn chunks(mut body: &str) -> String {
    let mut text = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n").expect("a chunk has a length");
        let length = usize::from_str_radix(length, 16).expect("a length is a number");
        if length == 0 {
            return text;
        }
        text += &rest[..length];
        body = &rest[length + 2..];
    }
}

/// The way to the gateway that GitLab gives to an editor.
struct Way {
    base: String,
    headers: Vec<(String, String)>,
    refresh_at: u64,
}

impl Way {
    fn ask(gitlab: &GitLab) -> Self {
        let json = [("content-type".to_owned(), "application/json".to_owned())];
        let mut sent = Sent::new(&gitlab.url(), "/api/v4/code_suggestions/direct_access", &json, "{}");
        let (status, _, body) = sent.within(PATIENCE).expect("GitLab answers");
        assert_eq!(status, 201, "{body}");
        let way: Value = serde_json::from_str(&body).expect("GitLab answers JSON");
        let text = |name: &str| way[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
        let public = way["headers"].as_object().expect("headers for the editor");
        let mut headers: Vec<(String, String)> = public
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        for (name, value) in [
            ("authorization", format!("Bearer {}", text("token"))),
            ("x-gitlab-language-server-version", "7.43.0".to_owned()),
            ("user-agent", "vs-code-gitlab-workflow/6.20.0 (gitlab-language-server:7.43.0)".to_owned()),
            // The language server sends it with the space.
            ("content-type", " application/json".to_owned()),
        ] {
            headers.push((name.to_owned(), value));
        }
        let refresh_at = way["expires_at"].as_u64().expect("an end") - BEFORE;
        Self { base: text("base_url"), headers, refresh_at }
    }

    /// What the language server sends for a keystroke.
    fn complete(&self, typed: &str) -> Sent {
        let body = json!({
            "prompt_version": 1, "project_path": "", "project_id": -1, "choices_count": 1, "intent": "completion",
            "current_file": {"file_name": "settings.py", "content_above_cursor": typed,
                             "content_below_cursor": "\n\n\nif __name__ == \"__main__\":\n    print(names({}))\n"},
            "context": [{"type": "file", "name": "counter.py", "content": "class Total:\n    pass\n"}],
        });
        Sent::new(&self.base, "/v2/completions", &self.headers, &body.to_string())
    }
}

/// A completion that was not taken back.
fn completed((status, _, body): &Reply) {
    assert_eq!(*status, 200, "{body}");
    let answer: Value = serde_json::from_str(body).expect("a completion is JSON");
    for choice in answer["choices"].as_array().expect("choices are a list") {
        assert!(choice["text"].is_string(), "{body}");
    }
    for name in ["engine", "name", "lang"] {
        assert!(answer["model"][name].is_string(), "{body}");
    }
    assert_eq!(answer["model"]["lang"], "python");
}

/// What Workhorse sends when a person asks for code, and what the language server makes of the answer.
fn generate(gitlab: &GitLab, base: &str) {
    let mut headers = gitlab.rails();
    headers.push(("content-type".to_owned(), "application/json".to_owned()));
    headers.push(("x-supports-sse-streaming".to_owned(), "true".to_owned()));
    let body = json!({
        "prompt_components": [{"type": "code_editor_generation", "payload": {
            "file_name": "settings.py", "content_above_cursor": TYPED, "content_below_cursor": "",
            "language_identifier": "Python", "stream": true,
            "prompt_id": "code_suggestions/generations", "prompt_version": "^1.0.0",
            "prompt_enhancer": {"user_instruction": "Add the number to the count.", "libraries": ["json"]},
        }}],
        "intent": "generation", "stream": true,
    });
    let mut sent = Sent::new(base, "/v4/code/suggestions", &headers, &body.to_string());
    let (status, head, body) = sent.within(PATIENCE).expect("a generation ends in time");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("x-streaming-format: sse"), "{head}");
    let events: Vec<(&str, Value)> = body
        .split("\r\n\r\n")
        .filter(|message| !message.is_empty() && !message.starts_with(':'))
        .map(|message| {
            let (event, data) =
                message.split_once("\r\n").unwrap_or_else(|| panic!("half an event: {message:?}"));
            let name = event.strip_prefix("event: ").unwrap_or_else(|| panic!("no name: {message:?}"));
            let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("no data: {message:?}"));
            (name, serde_json::from_str(data).unwrap_or_else(|e| panic!("{e} in {data:?}")))
        })
        .collect();
    assert_eq!(events.first().expect("a stream has a beginning").0, "stream_start");
    let (name, data) = events.last().expect("a stream has an end");
    assert_eq!((*name, data), ("stream_end", &Value::Null));
    for (name, data) in &events[1..events.len() - 1] {
        assert_eq!(*name, "content_chunk");
        assert!(data["choices"][0]["delta"]["content"].is_string(), "{data}");
    }
}

#[test]
fn a_session_of_the_language_server() {
    let seconds: u64 = std::env::var("HEARTH_EDITOR_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let gitlab = GitLab::start();
    let served = Served::start_with(&[], &[("AIGW_GITLAB_URL", gitlab.url().as_str())]);
    gitlab.gateway(&served.url);
    gitlab.shorten(3600 - TOLD);
    let mut way = Way::ask(&gitlab);
    let (mut keystrokes, mut answers, mut taken_back, mut refreshes, mut generations) =
        (0u32, 0u32, 0u32, 0u32, 0u32);
    let start = Instant::now();
    let mut pending: Option<Sent> = None;
    // On a busy machine longer than that: until each thing has happened.
    while start.elapsed() < Duration::from_secs(seconds) || [taken_back, refreshes, generations].contains(&0)
    {
        if gitlab.now() as u64 >= way.refresh_at {
            way = Way::ask(&gitlab);
            refreshes += 1;
        }
        // The next keystroke makes the request before it stale: its connection is closed.
        taken_back += u32::from(pending.take().is_some());
        let at = TYPED.len() / 2 + keystrokes as usize % (TYPED.len() / 2);
        let mut sent = way.complete(&TYPED[..at]);
        keystrokes += 1;
        // Every third keystroke is followed by another at once.
        let pause = if keystrokes % 3 == 0 { Duration::from_millis(5) } else { KEYSTROKE };
        let next = Instant::now() + pause;
        match sent.within(pause) {
            Some(reply) => {
                completed(&reply);
                answers += 1;
            }
            None => pending = Some(sent),
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        if keystrokes % 20 == 4 {
            generate(&gitlab, &served.url);
            generations += 1;
        }
    }
    drop(pending);
    // The last one is waited for, as by a person who stopped typing.
    completed(&way.complete(TYPED).within(PATIENCE).expect("a completion ends"));
    served.idle();
    eprintln!(
        "{seconds} s: {keystrokes} keystrokes, {answers} answered, {taken_back} taken back, {refreshes} tokens anew, \
         {generations} generations"
    );
    let log = served.log.lock().expect("the log is not poisoned").clone();
    for line in log.lines() {
        assert!(!line.contains("ERROR") && !line.contains("WARN"), "the log complains: {line}");
    }
    for issuer in ["gitlab-ai-gateway", gitlab.url().as_str()] {
        assert!(
            log.contains(&format!("token_issuer=\"{issuer}\"")),
            "the log does not say who issued a token"
        );
    }
    assert!(!log.contains("eyJ"), "a token is in the log");
    assert!(served.stop().success(), "it did not stop cleanly");
}
