//! The events of version 4, as the language server reads them.

use hearth::duo::Gateway;
use hearth::duo::identity::{Bypass, Rules};
use serde_json::{Value, json};

use super::super::site::Site;
use super::bodies::*;

/// Names and data of the events, read as the language server reads them.
fn events(body: &str) -> Vec<(String, Value)> {
    let messages = body.strip_suffix("\r\n\r\n").expect("a whole last event").split("\r\n\r\n");
    let event = |message: &str| {
        let lines: Vec<&str> = message.split("\r\n").collect();
        assert_eq!(lines.len(), 2, "{message:?}");
        let name = lines[0].strip_prefix("event: ").unwrap_or_else(|| panic!("no name first in {message:?}"));
        let data = lines[1].strip_prefix("data: ").unwrap_or_else(|| panic!("no data in {message:?}"));
        (name.to_owned(), serde_json::from_str(data).unwrap())
    };
    messages.map(event).collect()
}

#[test]
fn fact_5_a_suggestion_streams_as_events() {
    let site = Site::start();
    let text = "\n  puts \"a\\n\"\n  puts 'é'\nend";
    let generation = component(&file("a.rb", "def hello", "\n"), true);
    let completion = completion_component(&file("a.rb", "def hello", "\n"), true);
    for (begun, body, engine) in [("<new_code>", generation, "agent"), ("", completion, "openai")] {
        let reply = site.answers_after(begun, text).as_rails(V4, &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        for (name, value) in [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("x-streaming-format", "sse"),
        ] {
            assert_eq!(reply.header(name), Some(value));
        }
        // The tests' client asks for the connection to be closed, which is said besides.
        assert!(reply.header("connection").unwrap().starts_with("keep-alive"));
        let events = events(&reply.body);
        let (first, rest) = events.split_first().unwrap();
        let (last, chunks) = rest.split_last().unwrap();
        assert_eq!(first.0, "stream_start");
        let start = &first.1["metadata"];
        assert_eq!(start["model"]["engine"], engine);
        assert_eq!(
            (start["enabled_feature_flags"].clone(), &start["region"]),
            (json!([""]), &json!("us-central1"))
        );
        assert!(start["timestamp"].is_u64() && start["model"]["name"].is_string());
        assert_eq!(*last, ("stream_end".to_owned(), Value::Null));
        let mut written = String::new();
        for (name, data) in chunks {
            assert_eq!(name, "content_chunk");
            let content = data["choices"][0]["delta"]["content"].as_str().unwrap();
            assert_eq!(*data, json!({"choices": [{"delta": {"content": content}, "index": 0}]}));
            written += content;
        }
        assert_eq!(written, text);
        assert!(reply.body.ends_with("event: stream_end\r\ndata: null\r\n\r\n"));
    }
}

#[test]
fn an_empty_answer_has_a_start_and_an_end() {
    let site = Site::open();
    let reply = site.answers("  \n").post(V4, &completion_component(&file("a.rb", "x = 1", ""), true));
    let names: Vec<String> = events(&reply.body).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["stream_start", "stream_end"]);
}

#[test]
fn a_gateway_that_does_not_stream_sends_all_of_it_as_one_piece() {
    let open = Rules { bypass: Bypass::All, ..Rules::default() };
    let site = Site::shaped(open, |gateway| Gateway { streaming: false, ..gateway });
    site.answers("alpha + beta + gamma");
    let body = completion_component(&file("a.rb", "x = ", ""), true);
    let chunks: Vec<Value> = events(&site.post(V4, &body).body)
        .into_iter()
        .filter(|(n, _)| n == "content_chunk")
        .map(|(_, d)| d)
        .collect();
    assert_eq!(chunks, [json!({"choices": [{"delta": {"content": "alpha + beta + gamma"}, "index": 0}]})]);
    let raw = site.post(V3, &body);
    assert_eq!(raw.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(raw.body, "alpha + beta + gamma");
}
