//! A second Hearth as upstream of the first.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::served::{KEY, Served};

/// A Hearth that serves ember itself, and the second one's ember as `far`.
fn first(second: &Served) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hearth.toml");
    let text = format!(
        "[[model]]\nname = \"ember-demo\"\n[[upstream]]\nname = \"second\"\nurl = \"{}/v1\"\nkey = \"{KEY}\"\nmodels = \
         [\"far=ember-demo\"]\nfill = \"suffix\"\n[gitlab]\nbypass = \"all\"\n",
        second.url
    );
    std::fs::write(&path, text).unwrap();
    Served::start(&["--config", path.to_str().unwrap()])
}

#[test]
fn it_answers_as_if_it_were_here() {
    let second = Served::start(&["--threads", "1"]);
    let first = first(&second);
    let texts = |served: &Served, model: &str| {
        let prompt = "def add(a, b):\n    ";
        let complete = json!({"model": model, "prompt": prompt, "suffix": "\n\nprint(add(1, 2))", "max_tokens": 16, "temperature": 0});
        let (status, answer) = served.post("/v1/completions", &complete);
        assert_eq!(status, 200, "{answer}");
        let messages = json!([{"role": "user", "content": "hello"}]);
        let chat = json!({"model": model, "messages": messages, "max_tokens": 16, "temperature": 0});
        let (status, turn) = served.post("/v1/chat/completions", &chat);
        assert_eq!(status, 200, "{turn}");
        let mut streamed = complete;
        streamed["stream"] = json!(true);
        let streamed = served.stream(&streamed, |_| true);
        assert!(streamed.done && streamed.error.is_none(), "{streamed:?}");
        assert_eq!(json!(streamed.text), answer["choices"][0]["text"]);
        (answer["choices"][0]["text"].clone(), turn["choices"][0]["message"]["content"].clone())
    };
    let there = texts(&second, "ember-demo");
    assert_eq!(texts(&first, "far"), there);
    assert_eq!(texts(&first, "ember-demo"), there);
    let (_, models) = first.get("/v1/models");
    let models: Value = serde_json::from_str(&models).unwrap();
    let owners: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["owned_by"])).collect();
    assert_eq!(owners, [(&json!("ember-demo"), &json!("hearth")), (&json!("far"), &json!("second"))]);
}

/// A completion as GitLab 18.9 asks for it.
fn gap(served: &Served, identifier: &str) -> (u16, Value) {
    let body = json!({
        "prompt_version": 2,
        "prompt": null,
        "current_file": {
            "file_name": "test.rb", "content_above_cursor": "def hello_world", "content_below_cursor": "\nend\n",
        },
        "model_provider": "litellm",
        "model_name": "llama3",
        "model_endpoint": "http://me:password@192.0.2.1/v1",
        "model_api_key": "secret-key",
        "model_identifier": identifier,
    });
    served.post("/v2/code/completions", &body)
}

#[test]
fn gitlab_is_answered_by_either() {
    let second = Served::start(&["--threads", "1"]);
    let first = first(&second);
    let ask = |identifier: &str| {
        let metadata = json!({"provider": "openai", "name": "general", "identifier": identifier, "api_key": "secret-key",
            "endpoint": "http://me:password@192.0.2.1/v1"});
        let (status, check) = first.post(
            "/v1/prompts/model_configuration%2Fcheck",
            &json!({"inputs": {}, "model_metadata": metadata}),
        );
        assert_eq!(status, 200, "{check}");
        check
    };
    assert_eq!(ask("custom_openai/far"), ask("custom_openai/ember-demo"));
    let (far, here) = (gap(&first, "custom_openai/far"), gap(&first, "custom_openai/ember-demo"));
    assert_eq!(far.0, 200, "{}", far.1);
    assert_eq!(far.1["choices"], here.1["choices"]);
    assert!(far.1["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()), "{}", far.1);
    assert_eq!(gap(&first, "custom_openai/no-such-model"), (503, json!({"detail": "Inference failed"})));
    let log = first.log.lock().unwrap().clone();
    assert!(!log.contains("secret-key") && !log.contains("password"), "{log}");
    assert_eq!(log.matches("never dialled").count(), 1, "told once: {log}");
}

#[test]
fn when_it_is_killed_in_the_middle_of_a_stream_the_first_says_so_and_keeps_serving() {
    let second = Served::start(&["--threads", "1"]);
    let first = first(&second);
    let body = json!({
        "model": "far", "prompt": "x", "max_tokens": 1900, "temperature": 0, "stream": true, "ignore_eos": true,
    });
    let mut line = TcpStream::connect(first.url.strip_prefix("http://").unwrap()).unwrap();
    line.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = body.to_string();
    write!(
        line,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut lines = BufReader::new(line).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("data: ")), "the stream has begun");
    drop(second);
    let rest: Vec<String> = lines.filter(|line| line.starts_with("data: ")).collect();
    let last = rest.last().expect("an event after the kill");
    assert!(last.contains("\"error\"") && last.contains("The upstream \\\"second\\\""), "{last}");
    assert!(!rest.iter().any(|line| line == "data: [DONE]"));
    let complete =
        |model: &str| first.post("/v1/completions", &json!({"model": model, "prompt": "x", "max_tokens": 4}));
    let (status, error) = complete("far");
    assert_eq!(status, 502);
    assert!(error["error"]["message"].as_str().unwrap().contains("cannot be reached"), "{error}");
    assert_eq!(gap(&first, "custom_openai/far"), (503, json!({"detail": "Inference failed"})));
    assert_eq!(gap(&first, "custom_openai/ember-demo").0, 200);
    let (status, answer) = complete("ember-demo");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(first.get("/health/ready").0, 200);
}
