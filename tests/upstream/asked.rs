//! What the gateway asks of an upstream, and what becomes of its answers.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::time::Duration;

use hearth::served::ask::{Answer, Ask, End, Failure, Input, Message, Piece, Usage, Whole};
use hearth::upstream::Model;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::scripted::{Scripted, events, model, streamed};

fn fill() -> Ask {
    Ask::new("an-id".into(), Input::Fill { prefix: "a".into(), suffix: "b".into() }, 32)
}

fn chat(begun: &str) -> Ask {
    let message = Message { role: "user".into(), content: "hi".into() };
    Ask::new("an-id".into(), Input::Chat { messages: vec![message], begun: begun.into() }, 32)
}

async fn whole(model: &Model, ask: Ask) -> Result<Whole, Failure> {
    model.ask(ask).await?.whole().await
}

async fn text_then_failure(mut answer: Answer) -> (String, Failure) {
    let mut text = String::new();
    loop {
        match answer.next().await.expect("a failure before the end") {
            Ok(Piece::Text(piece)) => text += &piece,
            Ok(end) => panic!("{end:?}"),
            Err(failure) => return (text, failure),
        }
    }
}

#[tokio::test]
async fn gaps_and_turns_are_asked_in_the_form_that_the_settings_say() {
    let server = Scripted::says(streamed(&events(&["x"])));
    for (settings, ask, path, has) in [
        ("fill = \"suffix\"", fill(), "/v1/completions", json!({"prompt": "a", "suffix": "b"})),
        ("fill = \"codestral\"", fill(), "/v1/completions", json!({"prompt": "[SUFFIX]b[PREFIX]a"})),
        (
            "family = \"codegemma\"",
            fill(),
            "/v1/completions",
            json!({"prompt": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"}),
        ),
        ("", chat(""), "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]})),
        (
            "family = \"mistral\"",
            chat("So:"),
            "/v1/chat/completions",
            json!({
                "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So:"}],
                "continue_final_message": true,
                "add_generation_prompt": false,
            }),
        ),
    ] {
        let model = server.model(&format!("key = \"the-key-of-the-cluster\"\n{settings}"));
        assert_eq!(whole(&model, ask).await.unwrap().text, "x");
        let seen = server.request();
        assert!(seen.head.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{}", seen.head);
        assert!(seen.head.contains("authorization: Bearer the-key-of-the-cluster\r\n"), "{}", seen.head);
        assert!(seen.head.contains("x-request-id: an-id\r\n"), "{}", seen.head);
        let mut expected = json!({
            "model": "there/far-7b",
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": 32,
            "temperature": 0.0,
        });
        expected.as_object_mut().unwrap().extend(has.as_object().unwrap().clone());
        assert_eq!(seen.body, expected, "{settings}");
    }
    let model = server.model("fill = \"suffix\"");
    let end = Input::Fill { prefix: "a".into(), suffix: String::new() };
    whole(&model, Ask::new("an-id".into(), end, 32)).await.unwrap();
    assert_eq!(server.request().body["suffix"], "\n", "the end of a file is a gap too");
    let model = server.model("");
    whole(&model, fill()).await.unwrap();
    let asked = server.request().body["messages"].to_string();
    assert!(asked.contains("<before>a</before>") && asked.contains("<after>b</after>"), "{asked}");
    let stops: Vec<String> = (0..9).map(|i| format!("stop {i}")).collect();
    whole(&model, Ask { stops: stops.clone(), ..chat("") }).await.unwrap();
    assert_eq!(server.request().body["stop"], json!(stops[..4]), "OpenAI takes four");
    assert_eq!(model.count("four words of text"), 6);
}

#[tokio::test]
async fn an_answer_is_the_text_of_its_events_with_its_end_and_its_count() {
    let counted = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9}}\n\n";
    let length = "data: {\"choices\":[{\"text\":\"x\",\"finish_reason\":\"length\"}]}\r\n\r\n";
    let usage = |input, output| Usage { input, output };
    for (body, ask, expected) in [
        (events(&["hé", "llo"]), chat(""), ("héllo", End::Stop, usage(1, 2))),
        (
            format!(": a comment\n\n{length}{counted}data: [DONE]\n\n"),
            fill(),
            ("x", End::Length, usage(7, 9)),
        ),
        (length.to_owned(), fill(), ("x", End::Length, usage(1, 1))),
        (events(&[]), fill(), ("", End::Stop, usage(1, 0))),
        (
            events(&["one EN", "D two"]),
            Ask { stops: vec!["END".into()], ..fill() },
            ("one ", End::Stop, usage(1, 2)),
        ),
        (
            events(&["one EN"]),
            Ask { stops: vec!["END".into()], ..fill() },
            ("one EN", End::Stop, usage(1, 1)),
        ),
        (events(&["Thou", "ght: yes"]), chat("Thought:"), (" yes", End::Stop, usage(4, 2))),
    ] {
        let server = Scripted::says(streamed(&body));
        let answer = whole(&server.model("fill = \"suffix\""), ask).await.unwrap();
        assert_eq!((answer.text.as_str(), answer.end, answer.usage), expected, "{body}");
    }
}

#[tokio::test]
async fn every_way_to_answer_wrongly_has_its_error() {
    let refused = |status: &str, headers: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
    };
    let cut =
        events(&["x"]).split_once("data: {\"choices\":[{\"index\":0,\"delta\":{}").unwrap().0.to_owned();
    for (says, status, words) in [
        (
            refused("404 Not Found", "", r#"{"error":{"message":"no such model"}}"#),
            404,
            "404 Not Found: no such model",
        ),
        (refused("400 Bad Request", "", "{\"object\":\"error\",\"message\":\"too long\"}"), 400, "too long"),
        (
            refused("401 Unauthorized", "", r#"{"error":{"message":"key sk-12*** is wrong"}}"#),
            401,
            "take the key",
        ),
        (refused("500 Internal Server Error", "", "<html>oops</html>"), 500, "no reason in OpenAI's form"),
        (
            refused("302 Found", "location: http://169.254.169.254/\r\n", ""),
            502,
            "redirects elsewhere, which is not followed",
        ),
        (
            refused("200 OK", "content-type: text/html\r\n", "<html>"),
            502,
            "\"text/html\" instead of a stream",
        ),
        (refused("200 OK", "", "{}"), 502, "instead of a stream"),
        ("SSH-2.0-OpenSSH_9.2p1\r\n".to_owned(), 502, "cannot be reached"),
        (String::new(), 502, "cannot be reached"),
        (streamed(""), 502, "broke off"),
        (streamed("data: <html>\n\n"), 502, "not JSON"),
        (streamed(&format!("data: {}", "x".repeat(2 << 20))), 502, "more than 1048576 bytes"),
        (streamed("data: {\"error\":{\"message\":\"out of memory\"}}\n\n"), 502, "out of memory"),
        (streamed(&cut), 502, "broke off in the middle"),
    ] {
        let server = Scripted::says(says.clone());
        let model = server.model("fill = \"suffix\"\nkey = \"the-key-of-the-cluster\"");
        let failure = whole(&model, fill()).await.unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.status().as_u16(), status, "{says}: {text}");
        assert!(text.starts_with("the upstream \"cluster\" ") && text.contains(words), "{says}: {text}");
        assert!(!text.contains("the-key-of") && !text.contains("sk-12"), "{text}");
        assert!(!text.contains("169.254"), "where a redirect leads is not the client's affair: {text}");
        assert_eq!((model.upstream.status().requests, model.upstream.status().failures), (1, 1), "{says}");
    }
    let plain = Scripted::says(streamed(&events(&["x"])));
    let failure = whole(&model(&format!("https://{}", plain.address), ""), fill()).await.unwrap_err();
    assert_eq!(failure.status().as_u16(), 502);
    assert!(failure.to_string().contains("cannot be reached: "), "{failure}");
    let server = Scripted::says(refused("429 Too Many Requests", "retry-after: 7\r\n", "{}"));
    let busy = whole(&server.model(""), fill()).await.unwrap_err();
    assert!(matches!(busy, Failure::Busy { retry_after: 7, .. }), "{busy:?}");
}

#[tokio::test]
async fn what_was_said_before_a_failure_is_there() {
    let cut = events(&["one", " two"]).replace("data: [DONE]\n\n", "").replace("\"stop\"", "null");
    let server = Scripted::says(streamed(&cut));
    let answer = server.model("").ask(chat("")).await.unwrap();
    let (text, failure) = text_then_failure(answer).await;
    assert_eq!(text, "one two");
    assert!(failure.to_string().contains("broke off in the middle of an answer"), "{failure}");
}

#[tokio::test]
async fn silence_ends_after_its_time_and_a_slow_answer_when_its_reader_is_gone() {
    let silent = |begin: String| {
        Scripted::new(move |stream, _| {
            let _ = stream.write_all(begin.as_bytes());
            std::thread::park();
        })
    };
    for begin in [String::new(), streamed("data: {\"choices\":[{\"text\":\"x\"}]}\n\n")] {
        let server = silent(begin);
        let failure = whole(&server.model("idle_timeout = 1"), fill()).await.unwrap_err();
        assert_eq!(failure.status().as_u16(), 504);
        assert!(failure.to_string().contains("sent nothing for 1 s"), "{failure}");
        let patience = Some(Duration::from_millis(50));
        let failure = whole(&server.model(""), Ask { patience, ..fill() }).await.unwrap_err();
        assert!(matches!(failure, Failure::Late(_)), "{failure:?}");
        let failure = whole(&server.model("timeout = 1"), fill()).await.unwrap_err();
        assert!(matches!(failure, Failure::Late(_)), "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upstream_learns_that_nobody_waits_any_more() {
    let (gone, told) = channel();
    let server = Scripted::new(move |stream, _| {
        let _ = stream.write_all(streamed("").as_bytes());
        let event = events(&["x"]).split_once("\n\n").unwrap().0.to_owned() + "\n\n";
        while stream.write_all(event.as_bytes()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = gone.send(());
    });
    let model = server.model("");
    let mut answer = model.ask(chat("")).await.unwrap();
    assert_eq!(answer.next().await, Some(Ok(Piece::Text("x".into()))));
    assert_eq!(model.upstream.status().running, 1);
    drop(answer);
    told.recv_timeout(Duration::from_secs(60)).expect("the connection is closed");
    assert_eq!(model.upstream.status().running, 0);
    // The same at a stop string that the upstream does not know.
    let stops: Vec<String> = (0..5).map(|i| if i == 4 { "xx".to_owned() } else { format!("{i}") }).collect();
    let stopped = whole(&model, Ask { stops, ..chat("") }).await.unwrap();
    assert_eq!((stopped.text.as_str(), stopped.end), ("", End::Stop));
    told.recv_timeout(Duration::from_secs(60)).expect("the connection is closed");
    // The same before the first byte.
    let (gone, told) = channel();
    let server = Scripted::new(move |stream, _| {
        let _ = gone.send(std::io::Read::read(stream, &mut [0; 1]).unwrap_or(0));
    });
    let model = server.model("");
    let mut asking = Box::pin(model.ask(chat("")));
    let request = tokio::select! {
        _ = &mut asking => panic!("an answer of a silent server"),
        request = tokio::task::spawn_blocking(move || (server.request(), server)) => request.unwrap(),
    };
    drop(asking);
    assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(0), "{:?}", request.0);
}

#[tokio::test]
async fn more_requests_than_an_upstream_may_have_are_refused() {
    let server = Scripted::new(|stream, _| {
        let _ = stream.write_all(streamed("data: {\"choices\":[{\"text\":\"x\"}]}\n\n").as_bytes());
        std::thread::park();
    });
    let model = server.model("concurrent = 1");
    let first = model.ask(fill()).await.unwrap();
    let busy = whole(&model, fill()).await.unwrap_err();
    assert!(
        matches!(&busy, Failure::Busy { message, .. } if message.contains("has 1 requests already")),
        "{busy:?}"
    );
    drop(first);
    assert!(model.ask(fill()).await.is_ok());
}

#[tokio::test]
async fn a_server_that_is_away_is_not_asked_by_everybody() {
    // A port that is taken and does not listen.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let model = model(&format!("http://{address}"), "");
    for _ in 0..5 {
        let failure = whole(&model, fill()).await.unwrap_err();
        assert!(failure.to_string().contains("refused"), "{failure}");
    }
    // It is back, and the next request does not try yet.
    socket.listen(8).unwrap();
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true).unwrap();
    let failure = whole(&model, fill()).await.unwrap_err();
    assert_eq!(failure.status().as_u16(), 502);
    assert!(failure.to_string().contains("the next attempt is in"), "{failure}");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_server_that_swallows_everything_is_not_waited_for_by_everybody() {
    // Connections stand, as the system makes them, and nobody ever takes one.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let model = model(&format!("http://{}", listener.local_addr().unwrap()), "");
    let patient = |millis: u64| Ask { patience: Some(Duration::from_millis(millis)), ..fill() };
    // Keystrokes that are taken back say nothing about the server.
    for _ in 0..5 {
        let left = tokio::time::timeout(Duration::from_millis(50), model.ask(patient(1100))).await;
        assert!(left.is_err(), "an answer of a silent server");
    }
    let in_vain: [_; 5] = std::array::from_fn(|_| whole(&model, patient(1100)));
    for failure in futures::future::join_all(in_vain).await {
        assert!(matches!(failure, Err(Failure::Late(_))), "{failure:?}");
    }
    let failure = whole(&model, patient(1000)).await.unwrap_err();
    assert_eq!(failure.status().as_u16(), 502);
    assert!(failure.to_string().contains("does not answer; the next attempt is in"), "{failure}");
    // It may be slow and not away: whoever waits longer than they did still asks.
    let longer = whole(&model, patient(3000)).await.unwrap_err();
    assert!(matches!(longer, Failure::Late(_)), "{longer:?}");
    drop(listener);
}

#[tokio::test]
async fn clients_that_leave_a_silent_server_after_a_while_count_as_having_waited() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let model = model(&format!("http://{}", listener.local_addr().unwrap()), "");
    let time = Duration::from_millis(1100);
    let leaves = || tokio::time::timeout(time, model.ask(fill()));
    let left: [_; 5] = std::array::from_fn(|_| leaves());
    assert!(futures::future::join_all(left).await.iter().all(Result::is_err));
    let failure = whole(&model, Ask { patience: Some(time / 2), ..fill() }).await.unwrap_err();
    assert!(failure.to_string().contains("the next attempt is in"), "{failure}");
}

#[tokio::test]
async fn models_that_think_first_have_another_name_for_the_limit() {
    let server = Scripted::says(streamed(&events(&["x"])));
    for (name, thinks) in [("gpt-5-mini", true), ("o3", true), ("gpt-4.1", false), ("o1x", false)] {
        let mut entry = super::scripted::entry(&format!("http://{}/v1", server.address), "");
        entry.models = vec![("far".into(), name.into())];
        whole(&Model::all(&entry).unwrap()[0], chat("")).await.unwrap();
        let body = server.request().body;
        let limit = if thinks { "max_completion_tokens" } else { "max_tokens" };
        assert_eq!(
            (&body[limit], body["temperature"] == Value::Null),
            (&json!(32), thinks),
            "{name}: {body}"
        );
    }
}
