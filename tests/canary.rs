//! Prompts, answers, keys and tokens appear nowhere but where they belong: not in the log at its most talkative, not in
//! figures, the audit log, the console, the support bundle, or the words of a failure.

mod watched;

use serde_json::{Value, json};
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
