//! Requests of OpenAI's clients that are passed on to an upstream, through the binary.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::json;

use super::scripted::{Scripted, events, streamed};
use super::served::{KEY, Served};

/// A Hearth with no model but the upstream's. The settings are read when it starts.
pub fn only(address: &str, settings: &str) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hearth.toml");
    let text = format!(
        "[[upstream]]\nname = \"cluster\"\nurl = \"http://{address}/v1\"\nmodels = [\"far=there/far-7b\"]\naliases = \
         [\"distant\"]\nkey = \"the-key-of-the-cluster\"\n{settings}\n"
    );
    std::fs::write(&path, text).unwrap();
    Served::start(&["--config", path.to_str().unwrap()])
}

/// An answer as it comes over the line, to its end.
fn raw(url: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

#[test]
fn a_request_goes_out_under_the_upstreams_name_and_key_and_its_answer_comes_back_as_it_is() {
    let answer = r#"{"choices": [{"text": "x"}], "anything": true}"#;
    let server = Scripted::says(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nset-cookie: a=b\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    ));
    let hearth = only(&server.address.to_string(), "");
    for name in ["far", "distant"] {
        let sent = json!({"model": name, "prompt": "a", "guided_regex": "x*", "seed": 7});
        let (status, body) = hearth.post("/v1/completions", &sent);
        assert_eq!(
            (status, body.to_string()),
            (200, serde_json::from_str::<serde_json::Value>(answer).unwrap().to_string())
        );
        let seen = server.request();
        assert!(seen.head.starts_with("POST /v1/completions HTTP/1.1\r\n"), "{}", seen.head);
        assert!(
            seen.head.contains("Bearer the-key-of-the-cluster") && !seen.head.contains(KEY),
            "{}",
            seen.head
        );
        assert_eq!(
            seen.body,
            json!({"model": "there/far-7b", "prompt": "a", "guided_regex": "x*", "seed": 7})
        );
    }
    let (_, list) = hearth.get("/v1/models");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "no model is built in beside it: {list}");
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["owned_by"]), (&json!("far"), &json!("cluster")));
    let (status, refused) = hearth.post("/tokenize", &json!({"model": "far", "prompt": "a"}));
    assert_eq!(status, 400);
    assert!(refused.to_string().contains("served by the upstream `cluster`"), "{refused}");
    let (_, figures) = hearth.metrics();
    for line in [
        "hearth_upstream_requests_total{upstream=\"cluster\"} 2",
        "hearth_upstream_failures_total{upstream=\"cluster\"} 0",
    ] {
        assert!(figures.contains(line), "no {line} in\n{figures}");
    }
    assert!(!hearth.log.lock().unwrap().contains("the-key-of"), "the key is in no log");
}

#[test]
fn refusals_come_back_and_the_upstreams_own_key_stays_out_of_them() {
    for (upstream, status, words) in [
        ("400 Bad Request", 400, "its own words"),
        ("404 Not Found", 404, "its own words"),
        ("429 Too Many Requests", 429, "its own words"),
        ("503 Service Unavailable", 503, "its own words"),
        ("401 Unauthorized", 502, "does not take the key"),
        ("302 Found", 502, "redirects elsewhere, which is not followed"),
    ] {
        let body = r#"{"error": {"message": "its own words"}}"#;
        let server = Scripted::says(format!(
            "HTTP/1.1 {upstream}\r\ncontent-type: application/json\r\nretry-after: 9\r\nlocation: http://x/\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let hearth = only(&server.address.to_string(), "");
        let (got, body) = hearth.post("/v1/chat/completions", &json!({"model": "far", "messages": []}));
        assert_eq!(got, status, "{body}");
        let said = body["error"]["message"].as_str().unwrap_or_default().to_lowercase();
        assert!(said.contains(&words.to_lowercase()), "{upstream}: {body}");
    }
}

#[test]
fn a_redirect_is_a_bad_gateway_and_where_it_leads_stays_in_the_log() {
    let (near, far) = (Scripted::says(streamed(&events(&["lured"]))), "there.internal.example/v1");
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let to = format!("http://{}/{far}", near.address);
        let server = Scripted::says(format!(
            "HTTP/1.1 {status}\r\nlocation: {to}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ));
        let hearth = only(&server.address.to_string(), "");
        for stream in [false, true] {
            let body = json!({"model": "far", "prompt": "a", "stream": stream}).to_string();
            let mut said = String::new();
            raw(&hearth.url, "/v1/completions", &body).read_to_string(&mut said).unwrap();
            assert!(said.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{status}: {said}");
            let text = r#""message":"The upstream \"cluster\" redirects elsewhere, which is not followed: "#;
            assert!(said.contains(text), "{status}: {said}");
            assert!(!said.contains("there.internal") && !said.to_lowercase().contains("location:"), "{said}");
        }
        // The administrator is told where it leads.
        while !hearth.log.lock().unwrap().contains(&to) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(near.seen.try_recv().is_err(), "{status} was followed");
    }
}

#[test]
fn a_stream_that_breaks_ends_with_an_error_and_a_whole_answer_that_breaks_is_one() {
    let begun = events(&["x"]).split_once("\n\n").unwrap().0.to_owned();
    let server = Scripted::says(streamed(&format!("{begun}\n\ndata: {{\"choi")));
    let hearth = only(&server.address.to_string(), "");
    let mut said = String::new();
    let body = json!({"model": "far", "prompt": "a", "stream": true}).to_string();
    raw(&hearth.url, "/v1/completions", &body).read_to_string(&mut said).unwrap();
    assert!(said.contains("content-type: text/event-stream") && said.contains(&begun), "{said}");
    let (_, error) = said.split_once("data: {\"error\":").expect("an error in an event of its own");
    assert!(error.contains("broke off in the middle of an answer") && said.ends_with("0\r\n\r\n"), "{said}");
    let server = Scripted::says(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"a\":",
    );
    let hearth = only(&server.address.to_string(), "");
    let (status, body) = hearth.post("/v1/completions", &json!({"model": "far", "prompt": "a"}));
    assert_eq!((status, &body["error"]["code"]), (502, &json!("upstream_failed")), "{body}");
}

#[test]
fn a_client_that_leaves_ends_the_upstreams_work() {
    let (gone, told) = channel();
    let server = Scripted::new(move |stream, _| {
        let _ = stream.write_all(streamed("").as_bytes());
        let event = events(&["x"]).split_once("\n\n").unwrap().0.to_owned() + "\n\n";
        while stream.write_all(event.as_bytes()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = gone.send(());
    });
    let hearth = only(&server.address.to_string(), "");
    let body = json!({"model": "far", "prompt": "a", "stream": true}).to_string();
    let mut line = raw(&hearth.url, "/v1/completions", &body);
    line.read_exact(&mut [0; 400]).unwrap();
    drop(line);
    told.recv_timeout(Duration::from_secs(60)).expect("the connection is closed");
}

#[test]
fn tokens_of_an_upstream_are_paid_for_by_the_key_that_asked() {
    let answer = json!({"choices": [{"text": "x"}], "usage": {"total_tokens": 90_000}}).to_string();
    let server = Scripted::says(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    ));
    // This address asks with the key before the server knows it.
    let hearth = only(&server.address.to_string(), "\n[limits]\nfailures = 0");
    let create = ["keys", "create", "ci", "--print", "--tokens", "100"];
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth"));
    let made = command.args(create).env("STATE_DIRECTORY", hearth.state()).output().unwrap();
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let ask = || {
        let request = agent.post(format!("{}/v1/completions", hearth.url)).header("x-api-key", &key);
        let answer = request.send_json(json!({"model": "far", "prompt": "a"})).unwrap();
        (answer.status().as_u16(), answer.into_body().read_to_string().unwrap())
    };
    // The server sees the new key within a second.
    let mut tries = 0;
    let first = loop {
        let reply = ask();
        tries += 1;
        if reply.0 != 401 || tries > 600 {
            break reply;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(first.0, 200, "{}", first.1);
    let (status, refused) = ask();
    assert!(status == 429 && refused.contains("100 tokens a minute"), "{status} {refused}");
    let others = hearth.post("/v1/completions", &json!({"model": "far", "prompt": "a"}));
    assert_eq!(others.0, 200, "the first key has no limits");
}
