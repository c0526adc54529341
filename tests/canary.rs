//! Prompts, answers, keys and tokens appear nowhere but where they belong: not in the log at its most talkative, not in
//! figures, the audit log, the console, the support bundle, or the words of a failure.

mod watched;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use hearth::access::{Access, FirstKey};
use hearth::config::Origin;
use hearth::config::state::Secret;
use hearth::duo::Gateway;
use hearth::duo::choice::Defaults;
use hearth::duo::identity::{Identity, Rules};
use hearth::duo::search::Docs;
use hearth::log::{self, RECENT};
use hearth::served::Models;
use hearth::server::dialect::Dialect;
use hearth::server::{Door, Health, Limits, Listener, Metrics, Shared, accept, track};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use watched::{KEY, Watched};

const PROMPT: &str = "canary_prompt_5d41402a";
const WRONG_KEY: &str = "canary_wrong_key_7d793037";
const TOKEN: &str = "eyJjYW5hcnkiOiJ0b2tlbiJ9.canary_token_a0788f6a.sig";

/// Requests with canaries in every place where a person's text can be, good and bad ones.
fn sing(server: &Watched) -> Vec<(String, u16)> {
    let key = format!("Bearer {KEY}");
    let ask = |path: &str, key: &str, body: &Value| {
        let headers = [("authorization", key), ("content-type", "application/json")];
        (path.to_owned(), server.ask(&server.api, "POST", path, &headers, &body.to_string()).status)
    };
    let mut done = Vec::new();
    for body in [
        json!({"model": "ember-demo", "prompt": PROMPT, "max_tokens": 4}),
        json!({"model": "ember-demo", "prompt": PROMPT, "max_tokens": 4, "stream": true}),
        json!({"model": "ember-demo", "prompt": PROMPT, "suffix": PROMPT, "max_tokens": 4}),
        json!({"model": "ember-demo", "prompt": PROMPT.repeat(4000), "max_tokens": 4}),
        json!({"model": "ember-demo", "prompt": {"text": PROMPT}}),
        json!({"model": PROMPT, "prompt": PROMPT}),
        json!({"model": "ember-demo", "prompt": PROMPT, "stop": PROMPT, "user": PROMPT, "echo": true, "max_tokens": 4}),
        json!({"model": "ember-demo", "prompt": PROMPT, PROMPT: PROMPT}),
    ] {
        done.push(ask("/v1/completions", &key, &body));
    }
    for body in [
        json!({"model": "ember-demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}),
        json!({"model": "ember-demo", "messages": [{"role": PROMPT, "content": PROMPT}]}),
        json!({"model": "ember-demo", "messages": PROMPT}),
    ] {
        done.push(ask("/v1/chat/completions", &key, &body));
    }
    done.push(ask("/tokenize", &key, &json!({"model": "ember-demo", "prompt": PROMPT})));
    done.push(ask("/v1/completions", &format!("Bearer {WRONG_KEY}"), &json!({"prompt": PROMPT})));
    done.push(ask("/v1/completions", &format!("Basic {WRONG_KEY}"), &json!({"prompt": PROMPT})));
    // GitLab's dialect, with its check switched off for this, and with a token that is none.
    let code = json!({
        "prompt_version": 1, "model_provider": "litellm", "model_name": "codestral",
        "current_file": {"file_name": "a.py", "language_identifier": "python",
                         "content_above_cursor": PROMPT, "content_below_cursor": PROMPT},
    });
    let chat = json!({"prompt_components": [{"type": "prompt", "metadata": {"source": "x", "version": "1"},
        "payload": {"content": PROMPT, "provider": "litellm", "model": "codestral"}}], "stream": false});
    let prompt = json!({"inputs": {"content": PROMPT, "question": PROMPT, "title": PROMPT}});
    for (path, body) in [
        ("/v2/code/completions", &code),
        ("/v2/code/generations", &code),
        ("/v1/chat/agent", &chat),
        ("/v1/prompts/chat/explain_code", &prompt),
        ("/v1/prompts/model_configuration%2Fcheck", &prompt),
        ("/v1/prompts/nothing", &prompt),
        ("/v2/chat/agent", &json!({"messages": [{"role": "user", "content": PROMPT}]})),
    ] {
        let headers = [
            ("authorization", format!("Bearer {TOKEN}")),
            ("x-gitlab-authentication-type", "oidc".to_owned()),
            ("content-type", "application/json".to_owned()),
        ];
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        done.push((
            path.to_owned(),
            server.ask(&server.api, "POST", path, &headers, &body.to_string()).status,
        ));
    }
    // A path is anybody's text too.
    done.push(ask(&format!("/v1/{PROMPT}"), &key, &json!({})));
    done
}

fn silent(place: &str, text: &str) {
    for canary in [PROMPT, "canary_prompt", KEY, WRONG_KEY, TOKEN, "canary_token"] {
        assert!(!text.contains(canary), "{canary} is in {place}:\n{text}");
    }
}

#[test]
fn canaries_are_heard_nowhere() {
    for bypass in ["off", "all"] {
        let server = Watched::start(&[
            ("HEARTH__LOG__LEVEL", "trace"),
            ("HEARTH__LOG__FORMAT", "json"),
            ("HEARTH__GITLAB__BYPASS", bypass),
            ("HEARTH__GITLAB__URL", "http://127.0.0.1:9"),
        ]);
        let done = sing(&server);
        let good = done.iter().filter(|(_, status)| *status == 200).count();
        let bad = done.iter().filter(|(_, status)| (400..500).contains(status)).count();
        assert!(good >= 6 && bad >= 6, "good and bad requests both: {done:?}");
        assert!(done.iter().all(|(_, status)| *status < 500), "{done:?}");

        silent("the figures", &server.ask(&server.metrics, "GET", "/metrics", &[], "").body);
        silent("the status", &server.verb(&["status", "--json"]).out);
        silent("the log that is kept", &server.verb(&["logs", "-n", "100000"]).out);
        let (cookie, _) = server.session();
        silent("the console", &server.ask(&server.console, "GET", "/", &[("cookie", &cookie)], "").body);
        silent("the audit log", &std::fs::read_to_string(server.state().join("audit.jsonl")).unwrap());

        let bundle = server.state().join("bundle.tar.zst");
        let path = bundle.display().to_string();
        let preview = server.verb(&["support-bundle", "--preview"]);
        assert!(preview.code == 0 && preview.out.contains("log.jsonl"), "{}{}", preview.out, preview.said);
        assert_eq!(server.verb(&["support-bundle", "--output", &path]).code, 0);
        let file = std::fs::File::open(&bundle).unwrap();
        let mut names = Vec::new();
        for entry in tar::Archive::new(zstd::Decoder::new(file).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            silent(&name, &text);
            names.push(name.split_once('/').unwrap().1.to_owned());
        }
        for name in ["version.txt", "settings.txt", "doctor.txt", "status.json", "log.jsonl", "metrics.txt"] {
            assert!(names.iter().any(|known| known == name), "no {name} among {names:?}");
        }
        let said = server.stop();
        assert!(said.contains("\"level\":\"debug\""), "the log was talkative: {said}");
        silent("the log", &said);
    }
}

/// Routes that break on what they are sent, before and in their answer, between the layers that are around every route.
fn breaking() -> Router {
    async fn breaks(body: String) -> String {
        panic!("cannot go on with {body}")
    }
    async fn breaks_late(body: String) -> Body {
        Body::from_stream(futures::stream::unfold(0, move |piece| {
            let body = body.clone();
            async move {
                // What was sent before goes out.
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(piece < 2, "cannot go on with {body}");
                Some((Ok::<_, std::io::Error>("a piece "), piece + 1))
            }
        }))
    }
    let models = Models::new(Vec::new());
    let metrics = Metrics::default();
    let key = Secret::checked(KEY, &Origin::Default).unwrap();
    let shared = Shared {
        duo: Arc::new(Gateway {
            identity: Identity::new(Rules::default(), None).unwrap(),
            models: models.clone(),
            defaults: Defaults::default(),
            docs: Docs::default(),
            figures: metrics.duo.clone(),
            streaming: true,
            patience: Duration::from_secs(60),
        }),
        models,
        access: Arc::new(Access::single(FirstKey::chosen(key))),
        health: Arc::new(Health::default()),
        metrics,
    };
    let limits = (Limits::default(), Arc::new(Semaphore::new(1 << 20)), Dialect::OpenAi);
    Router::new()
        .route("/breaks", post(breaks))
        .route("/breaks/late", post(breaks_late))
        .route("/works", get(|| async { "it works" }))
        .layer(from_fn_with_state(limits, track::body_limit))
        .layer(from_fn_with_state(Dialect::OpenAi, track::panics))
        .layer(from_fn_with_state(shared.clone(), track::request))
}

#[test]
fn a_route_that_breaks_costs_one_answer_and_what_it_broke_on_is_heard_nowhere() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let address = runtime.block_on(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().unwrap().to_string();
        let door = Door::default();
        tokio::spawn(accept::run(
            vec![listener],
            door,
            breaking(),
            Limits::default(),
            std::future::pending(),
        ));
        address
    });
    let ask = |method: &str, path: &str, id: &str, body: &str| {
        watched::ask(&address, method, path, &[("x-request-id", id)], body)
    };
    // The log's own way with panics, as in the server; the other test's is put back before anything is checked.
    let usual = std::panic::take_hook();
    log::start("trace", log::Format::Json);
    let broken: Vec<_> =
        (0..3).map(|number| ask("POST", "/breaks", &format!("broken-{number}"), PROMPT)).collect();
    let late = ask("POST", "/breaks/late", "broken-late", PROMPT);
    let works = ask("GET", "/works", "works", "");
    std::panic::set_hook(usual);

    for (number, reply) in broken.iter().enumerate() {
        assert_eq!(reply.status, 500, "{}", reply.body);
        assert_eq!(reply.header("x-request-id"), Some(format!("broken-{number}").as_str()));
        assert_eq!(reply.json()["error"]["type"], "server_error");
        silent("the answer", &format!("{}{}", reply.head, reply.body));
    }
    // Its status was sent before it broke: the answer is cut, and nothing says that it is whole.
    assert!(late.body.contains("a piece ") && !late.body.ends_with("0\r\n\r\n"), "{}", late.body);
    silent("the cut answer", &late.body);
    assert_eq!((works.status, works.body.contains("it works")), (200, true));
    let (lines, _) = RECENT.lines(0, usize::MAX);
    let places = lines.iter().filter(|line| line.contains("our own code broke")).count();
    assert_eq!(places, 4, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("broken-1") && line.contains("500")), "{lines:?}");
    silent("the log that is kept", &lines.join("\n"));
}
