//! The binary as a black box: it serves ember, completes, inspects, and says what is wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

const KEY: &str = "a-key-for-this-test-0123";

fn hearth(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command
        .args(arguments)
        .env_clear()
        .env("HEARTH_KEY", KEY)
        .env("HEARTH__SERVER__METRICS", "")
        .env("STATE_DIRECTORY", concat!(env!("CARGO_TARGET_TMPDIR"), "/serve"))
        .env("HEARTH__CONSOLE__LISTEN", "")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output: Output = hearth(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A running `hearth serve`.
struct Running {
    child: Child,
    address: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let all = [&["serve", "--listen", "127.0.0.1:0"], arguments].concat();
        let mut child = hearth(&all).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self { child, address: String::new(), stderr };
        let mut told = String::new();
        while running.address.is_empty() {
            let mut line = String::new();
            assert!(running.stderr.read_line(&mut line).unwrap() > 0, "it ended: {told}");
            if let Some((_, address)) = line.trim().split_once(" at http://") {
                running.address = address.to_owned();
            }
            told += &line;
        }
        running
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\ncontent-type: \
             application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
        (status, reply.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn complete(&self, fields: Value) -> Value {
        let (status, body) = self.ask("POST", "/v1/completions", &fields.to_string());
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Sends a signal and waits; the exit code and what was said meanwhile.
    fn signal(mut self, name: &str) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ember_is_served_completes_fills_gaps_and_drains() {
    let server = Running::start(&[]);
    assert_eq!(server.ask("GET", "/health/ready", "").0, 200);
    let (status, list) = server.ask("GET", "/v1/models", "");
    assert_eq!(status, 200);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["data"][0]["id"], "ember-demo");
    assert!(list["data"][0]["notice"].as_str().unwrap().contains("not useful for work"));
    let greedy = json!({"model": "ember-demo", "prompt": "def main(", "max_tokens": 24, "temperature": 0});
    let first = server.complete(greedy.clone());
    assert!(!first["choices"][0]["text"].as_str().unwrap().is_empty());
    let again = server.complete(greedy.clone());
    assert_eq!(first["choices"], again["choices"], "the same request, the same bytes");
    let gap = json!({"model": "ember-demo", "prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))\n",
                     "max_tokens": 16, "temperature": 0});
    assert!(server.complete(gap)["usage"]["completion_tokens"].as_u64().unwrap() >= 1);
    let mut stream = greedy;
    stream["stream"] = json!(true);
    let (_, events) = server.ask("POST", "/v1/completions", &stream.to_string());
    let text: String = events
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l.strip_prefix("data: ")?).ok())
        .filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, first["choices"][0]["text"].as_str().unwrap());
    assert!(events.contains("data: [DONE]"));
    let chat =
        json!({"model": "ember-demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    assert_eq!(server.ask("POST", "/v1/chat/completions", &chat.to_string()).0, 200);
    let (code, said) = server.signal("-TERM");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("draining") && said.contains("stopped"), "{said}");
    assert!(said.contains("route=/v1/completions") && said.contains("status=200"), "{said}");
    for secret in [KEY, "def main", "def add"] {
        assert!(!said.contains(secret), "{secret} is in the log: {said}");
    }
}

#[test]
fn connections_are_files_and_it_opens_as_many_as_it_may() {
    let few = "ulimit -S -n 64; exec \"$0\" serve --listen 127.0.0.1:0 --state-dir \"$1\"";
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", few, env!("CARGO_BIN_EXE_hearth")]).arg(state.path());
    command.env("HEARTH__SERVER__METRICS", "").env("HEARTH__CONSOLE__LISTEN", "");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let serves = lines.into_iter().any(|line| line.starts_with("hearth "));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let files: Vec<&str> =
        limits.lines().find(|l| l.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert!(serves);
    assert_eq!(files[3], files[4], "{limits}");
}

#[test]
fn two_models_are_served_beside_each_other() {
    let other = format!("small={}", root().join("models/ember").display());
    let server = Running::start(&["--model", "ember-demo", "--model", &other, "--context", "512"]);
    for name in ["ember-demo", "small"] {
        let answer =
            server.complete(json!({"model": name, "prompt": "import ", "max_tokens": 4, "temperature": 0}));
        assert_eq!(answer["model"], name);
    }
    let long = json!({"model": "small", "prompt": "x ", "max_tokens": 600}).to_string();
    let (status, body) = server.ask("POST", "/v1/completions", &long);
    assert_eq!(status, 400);
    assert!(body.contains("600 more are asked for; the model's context is 512 tokens"), "{body}");
    assert_eq!(server.signal("-INT").0, Some(0));
}

#[test]
fn the_key_is_made_at_the_first_start_and_never_logged() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").display().to_string();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--metrics", "", "--state-dir", &state])
            .env_clear();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("key: in") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        said
    };
    let said = start();
    let key = std::fs::read_to_string(Path::new(&state).join("key")).unwrap();
    assert!(key.starts_with("hearth_") && !said.contains(key.trim()), "{said}");
    start();
    assert_eq!(std::fs::read_to_string(Path::new(&state).join("key")).unwrap(), key);
}

#[test]
fn complete_and_chat_answer_on_standard_output() {
    let (code, text, said) = run(&["complete", "--max-tokens", "8", "def main("]);
    assert_eq!(code, 0, "{said}");
    assert!(text.ends_with('\n') && text.len() > 1);
    assert!(said.contains("keys and values") && said.contains(" tokens in "), "{said}");
    assert_eq!(run(&["complete", "--max-tokens", "8", "def main("]).1, text, "greedy is repeatable");
    let (code, filled, said) = run(&["complete", "--max-tokens", "8", "--suffix", "return a", "def f(a):\n"]);
    assert_eq!(code, 0, "{said}");
    assert!(!filled.is_empty());
    let mut chat =
        hearth(&["chat", "--max-tokens", "4"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"hi\n\nthere\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!output.stdout.is_empty());
}

#[test]
fn inspect_says_what_a_checkpoint_is() {
    let ember = root().join("models/ember").display().to_string();
    let (code, text, said) = run(&["models", "inspect", &ember]);
    assert_eq!(code, 0, "{said}");
    for words in [
        "(family mistral)",
        "parameters           4.0 M",
        "fill-in-the-middle   yes, as fim_prefix",
        "chat                 yes",
        "keys and values",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    let (_, text, _) = run(&["models", "inspect", "--json", &ember]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["spec"]["context"], 2048);
    assert_eq!(report["bytes_by_type"].as_object().unwrap().len(), 1);
    let golden = root().join("tests/golden/checkpoints/mixtral-8x7b-v0.1").display().to_string();
    let (code, text, _) = run(&["models", "inspect", "--json", &golden]);
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["spec"]["experts"]["top_k"], 2);
    assert!(report["text_error"].as_str().unwrap().contains("tokenizer.json"));
    assert!(run(&["models", "list"]).1.starts_with("ember-demo\tbuilt in"));
}

#[test]
fn failures_say_what_where_and_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let empty = tempfile::tempdir().unwrap();
    let bare = empty.path().display().to_string();
    let golden: PathBuf = root().join("tests/golden/checkpoints/mistral-v0.1");
    let golden = golden.display().to_string();
    for (arguments, code, words) in [
        (vec!["serve", "--model", "nothing"], 4, "there is no model nothing"),
        (vec!["serve", "--model", &bare], 4, "config.json"),
        (vec!["serve", "--model", &golden], 4, "tokenizer.json"),
        (vec!["serve", "--listen", &address], 7, "cannot listen on"),
        (
            vec!["serve", "--listen", "127.0.0.1:0", "--metrics", &address, "--model", &bare],
            7,
            "cannot listen on",
        ),
        (vec!["serve", "--listen", "here"], 3, "an address with a port"),
        (
            vec!["serve", "--model", "ember-demo", "--model", "ember-demo"],
            2,
            "two models are named ember-demo",
        ),
        (vec!["serve", "--kv", "9000TiB"], 6, "not enough memory"),
        (vec!["serve", "--context", "5000"], 3, "the checkpoint's own is 2048"),
        (vec!["serve", "--threads", "1000"], 3, "1000 threads"),
        (vec!["serve", "--quantize", "q2"], 2, "q2"),
        (
            vec!["serve", "--device", "cpu", "--quantize", "int8"],
            3,
            "on the CPU there are q8_0, q6_k and q4_k",
        ),
        (vec!["serve", "--device", "tpu"], 3, "one of auto, cpu, cuda"),
        (vec!["complete", "--temperature", "9", "x"], 2, "from 0 to 2"),
        (vec!["complete", "--temperature", "nan", "--model", &bare, "x"], 2, "from 0 to 2"),
        (vec!["complete", "--max-tokens", "0", "x"], 2, "at least 1"),
        (vec!["complete", "--stop", "", "x"], 2, "--stop is empty"),
        (vec!["chat", "--max-tokens", "0"], 2, "at least 1"),
        (vec!["complete", "--max-tokens", "100000", "x"], 2, "lower --max-tokens"),
        (vec!["complete", ""], 2, "give some text"),
        (vec!["complete"], 2, "TEXT"),
        (vec!["models", "inspect", "/nowhere"], 4, "/nowhere"),
    ] {
        let (exit, data, error) = run(&arguments);
        assert_eq!(exit, code, "{arguments:?}: {error}");
        assert!(
            data.is_empty() && error.contains("error: ") && error.contains(words),
            "{arguments:?}: {error}"
        );
    }
    // Where the build serves GPUs it is for the host to say.
    if cfg!(not(feature = "cuda")) {
        let (exit, _, error) = run(&["serve", "--device", "cuda"]);
        assert!(exit == 5 && error.contains("--device cpu"), "{exit}: {error}");
    }
}
