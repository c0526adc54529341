//! GitLab's requests to a model that another machine runs, while that machine does as it should, breaks off, or is gone.

use std::io::Write;
use std::sync::mpsc::channel;
use std::time::Duration;

use hearth::duo::Gateway;
use hearth::duo::identity::{Bypass, Rules};
use hearth::upstream::Model;
use serde_json::{Value, json};

use super::client::request;
use super::scripted::{Scripted, entry, events, streamed};
use super::site::Site;

const EXPLAIN: &str = "/v1/prompts/chat/explain_code";

fn site(address: &str, settings: &str) -> Site {
    let models = Model::all(&entry(&format!("http://{address}/v1"), settings)).unwrap();
    let site = Site::shaped(Rules { bypass: Bypass::All, ..Rules::default() }, |gateway| Gateway {
        models: gateway.models.clone().with_upstreams(models),
        ..gateway
    });
    site.answers("local");
    site
}

/// The body with the far model in it.
fn far(mut body: Value) -> Value {
    body["model_metadata"] = json!({"provider": "openai", "name": "gpt", "identifier": "custom_openai/far"});
    body
}

fn explain(stream: bool) -> Value {
    let inputs = json!({
        "input": "/explain", "selected_text": "1 + 1", "file_content": "1 + 1", "language_info": "", "question": "?",
        "libraries_content": "", "custom_instructions": "",
    });
    json!({"inputs": inputs, "stream": stream})
}

fn agent() -> Value {
    json!({"messages": [{"role": "user", "content": "Hello"}]})
}

#[test]
fn answers_come_through_in_every_form() {
    let server = Scripted::says(streamed(&events(&["It", " adds."])));
    let site = site(&server.address.to_string(), "");
    assert_eq!(site.post(EXPLAIN, &far(explain(false))).json(), json!("It adds."));
    assert_eq!(site.post(EXPLAIN, &far(explain(true))).body, "It adds.");
    let whole = site.post("/v2/prompts/chat/explain_code", &far(explain(false))).json();
    assert_eq!(whole["content"], "It adds.");
    let server = Scripted::says(streamed(&events(&["Thought: so.\nFinal Answer: Hel", "lo."])));
    let site = self::site(&server.address.to_string(), "");
    let said = site.post("/v2/chat/agent", &far(agent())).body;
    assert!(said.contains("\"final_answer_delta\"") && said.contains("Hel"), "{said}");
}

#[test]
fn a_stream_that_breaks_is_cut_or_says_so_and_a_whole_answer_is_an_error() {
    let begun = events(&["It adds"]).split_once("\n\n").unwrap().0.to_owned() + "\n\n";
    let server = Scripted::says(streamed(&begun));
    let site = site(&server.address.to_string(), "");
    let stream = |path: &str, body: Value| {
        site.open_with("POST", path, &[], &far(body).to_string())
            .rest()
            .split_once("\r\n\r\n")
            .unwrap()
            .1
            .to_owned()
    };
    for path in [EXPLAIN, "/v2/prompts/chat/explain_code"] {
        let body = stream(path, explain(true));
        assert!(body.contains("It adds") && !body.ends_with("0\r\n\r\n"), "{path}: {body}");
    }
    let body = stream("/v2/chat/agent", agent());
    assert!(body.contains("\"error\"") && body.contains("broke off in the middle of an answer"), "{body}");
    assert!(body.ends_with("0\r\n\r\n"), "events have their own errors: {body}");
    let whole = site.post(EXPLAIN, &far(explain(false)));
    assert_eq!((whole.status, whole.json()), (421, json!({"detail": "502: Bad Gateway"})));
    let mut here = explain(false);
    here["model_metadata"] = json!({"provider": "openai", "name": "general", "identifier": "ember"});
    assert_eq!(site.post(EXPLAIN, &here).json(), json!("local"));
}

#[test]
fn the_status_of_a_refusal_is_what_the_test_of_a_connection_shows() {
    for (upstream, detail) in [
        ("404 Not Found", "404: Not Found"),
        ("401 Unauthorized", "401: Unauthorized"),
        ("429 Too Many Requests", "429: Too Many Requests"),
        ("500 Internal Server Error", "500: Internal Server Error"),
        ("302 Found", "502: Bad Gateway"),
    ] {
        let server = Scripted::says(format!("HTTP/1.1 {upstream}\r\ncontent-length: 2\r\n\r\n{{}}"));
        let site = site(&server.address.to_string(), "");
        let reply = site.post("/v1/prompts/model_configuration%2Fcheck", &far(json!({"inputs": {}})));
        assert_eq!((reply.status, reply.json()), (421, json!({"detail": detail})), "{upstream}");
    }
}

#[test]
fn when_gitlab_hangs_up_the_other_machine_stops() {
    let (gone, told) = channel();
    let server = Scripted::new(move |stream, _| {
        let _ = stream.write_all(streamed("").as_bytes());
        let event = events(&["word "]).split_once("\n\n").unwrap().0.to_owned() + "\n\n";
        while stream.write_all(event.as_bytes()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = gone.send(());
    });
    let site = site(&server.address.to_string(), "");
    for (path, body) in [(EXPLAIN, explain(true)), (EXPLAIN, explain(false))] {
        let mut line = super::client::Line::open(
            site.address,
            &request("POST", path, &[("content-type", "application/json")], &far(body.clone()).to_string()),
        );
        server.request();
        if body["stream"] == true {
            line.until("word");
        }
        drop(line);
        told.recv_timeout(Duration::from_secs(60)).expect("the connection to the other machine is closed");
    }
}
