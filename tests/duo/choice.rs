//! Which model answers what GitLab asks for, and that nothing else is ever connected to.

use std::io::{ErrorKind, Write};
use std::net::TcpListener;

use hearth::duo::Gateway;
use hearth::duo::choice::Defaults;
use hearth::duo::identity::{Bypass, Rules};
use hearth::upstream::Model;
use serde_json::{Value, json};

use super::scripted::{Scripted, entry, events, streamed};
use super::site::Site;

const CHECK: &str = "/v1/prompts/model_configuration%2Fcheck";

fn open() -> Rules {
    Rules { bypass: Bypass::All, ..Rules::default() }
}

/// Models that answer with the name under which they were asked.
fn site(defaults: [&str; 3]) -> Site {
    let server = Scripted::new(|stream, seen| {
        let _ = stream.write_all(streamed(&events(&[seen.body["model"].as_str().unwrap()])).as_bytes());
    });
    let far = |models: &str, settings: &str| {
        let mut entry = entry(&format!("http://{}/v1", server.address), settings);
        entry.models = models.split(' ').map(|name| (name.to_owned(), format!("far {name}"))).collect();
        Model::all(&entry).unwrap()
    };
    let mut models = far("mistral-7b org/mistral-large", "family = \"mistral\"\naliases = \"Ministral\"");
    models.extend(far("codestral-22b", "family = \"codestral\""));
    let defaults = Defaults::new(defaults);
    let site = Site::shaped(open(), |gateway| Gateway {
        models: gateway.models.clone().with_upstreams(models),
        defaults,
        ..gateway
    });
    site.answers("local");
    site
}

fn answer(site: &Site, body: &Value) -> String {
    let reply = site.post(CHECK, body);
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    reply.json().as_str().unwrap().to_owned()
}

#[test]
fn a_model_is_found_by_its_name_then_by_its_family_then_by_the_feature() {
    let site = site(["", "", ""]);
    let asked = |name: &str, identifier: Value| {
        let metadata = json!({"provider": "openai", "name": name, "identifier": identifier, "api_key": null});
        answer(&site, &json!({"inputs": {}, "model_metadata": metadata}))
    };
    for (family, identifier, answered) in [
        ("mistral", "custom_openai/mistral-7b", "far mistral-7b"),
        ("gpt", "custom_openai/mistral-7b", "far mistral-7b"),
        ("gpt", "mistral-7b", "far mistral-7b"),
        ("gpt", "custom_openai/MISTRAL-7B", "far mistral-7b"),
        ("gpt", "litellm_proxy/openai/mistral-7b", "far mistral-7b"),
        ("gpt", "custom_openai/ministral", "far mistral-7b"),
        ("gpt", "custom_openai/org/mistral-large", "far org/mistral-large"),
        ("gpt", " codestral-22b ", "far codestral-22b"),
        ("no family", "bedrock/codestral-22b", "far codestral-22b"),
        ("codestral", "custom_openai/no-such-model", "far codestral-22b"),
        ("codestral", "", "far codestral-22b"),
        ("mistral", "", "far mistral-7b"),
        ("llama3", "", "local"),
        ("no family", "", "local"),
        ("gpt", "custom_openai/ember", "local"),
    ] {
        assert_eq!(asked(family, json!(identifier)), answered, "{family} {identifier}");
    }
    assert_eq!(asked("codestral", json!(null)), "far codestral-22b");
    for body in [
        json!({"inputs": {}}),
        json!({"inputs": {}, "model_metadata": null}),
        json!({"inputs": {}, "model_metadata": "mistral"}),
        json!({"inputs": {}, "model_metadata": {"name": "mistral"}}),
        json!({"inputs": {}, "model_metadata": {"provider": "openai", "name": "m".repeat(256)}}),
        json!({"inputs": {}, "model_metadata": {"provider": "gitlab", "feature_setting": "duo_chat", "identifier": "x"}}),
        json!({"inputs": {}, "model_metadata": {"provider": "gitlab", "name": "codestral"}}),
    ] {
        assert_eq!(answer(&site, &body), "local", "{body}");
    }
}

#[test]
fn the_settings_say_which_model_answers_when_gitlab_names_none() {
    let by_name = site(["", "", "codestral-22b"]);
    assert_eq!(answer(&by_name, &json!({"inputs": {}})), "far codestral-22b");
    let by_alias = site(["ember", "ember", "Ministral"]);
    assert_eq!(answer(&by_alias, &json!({"inputs": {}})), "far mistral-7b");
}

#[test]
fn an_unknown_model_is_a_404_of_the_model_server() {
    let site = site(["", "", ""]);
    for (family, identifier) in
        [("llama3", "custom_openai/no-such-model"), ("general", "no-such-model"), ("x", "y/z")]
    {
        let metadata = json!({"provider": "openai", "name": family, "identifier": identifier});
        let reply = site.post(CHECK, &json!({"inputs": {}, "model_metadata": metadata}));
        assert_eq!(reply.status, 421, "{}", reply.body);
        assert_eq!(reply.json(), json!({"detail": "404: Not Found"}));
    }
}

#[test]
fn an_endpoint_in_a_request_is_never_dialled() {
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}/v1", canary.local_addr().unwrap());
    let site = site(["", "", ""]);
    let metadata = |identifier: &str, family: &str| json!({"provider": "openai", "name": family, "identifier": identifier, "endpoint": endpoint, "api_key": "secret"});
    for (identifier, family) in [
        ("custom_openai/mistral-7b", "mistral"),
        ("custom_openai/no-such-model", "llama3"),
        ("", "mistral"),
        (endpoint.as_str(), "general"),
        ("bedrock/x", "claude_3"),
    ] {
        for (path, body) in [
            (CHECK, json!({"inputs": {}, "model_metadata": metadata(identifier, family)})),
            (
                "/v2/prompts/chat/explain_code",
                json!({"inputs": {}, "stream": true, "model_metadata": metadata(identifier, family)}),
            ),
            (
                "/v2/code/completions",
                json!({
                    "prompt_version": 1,
                    "current_file": {"file_name": "a.rb", "content_above_cursor": "def a", "content_below_cursor": ""},
                    "model_provider": "litellm", "model_name": "mistral", "model_identifier": identifier,
                    "model_endpoint": endpoint, "model_api_key": "secret",
                }),
            ),
        ] {
            site.post(path, &body);
        }
    }
    assert_eq!(canary.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}
