//! Completions: what each caller sends and gets, to the byte.

use serde_json::{Value, json};

use super::super::client::Reply;
use super::super::gitlab::pairs;
use super::super::site::Site;
use super::bodies::*;

fn text(reply: &Reply) -> Option<String> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["choices"].as_array().unwrap().first().map(|c| c["text"].as_str().unwrap().to_owned())
}

fn ruby() -> Value {
    file("lib/greeter.rb", "class Greeter\n  def greet\n    puts ", "\n  end\nend\n")
}

#[test]
fn every_version_of_gitlab_gets_a_completion_of_version_2() {
    let site = Site::start();
    site.answers("\"hello\"\n");
    for version in ["17.4.0", "17.9.2", "18.0.0", "18.9.0", "19.3.0"] {
        let headers = site.gitlab().with(&site.gitlab().token().sign(), version);
        let reply = site.post_with(COMPLETIONS, &pairs(&headers), &rails(ruby()));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(text(&reply).as_deref(), Some("\"hello\""), "{version}");
    }
    let mut body = site.as_rails(COMPLETIONS, &rails(ruby())).json();
    assert!(body["created"].take().as_u64().unwrap() > 1_700_000_000);
    let consumed = body["model"]["tokens_consumption_metadata"].take();
    assert!(consumed["input_tokens"].as_u64().unwrap() > 10, "{consumed}");
    assert!(consumed["output_tokens"].as_u64().unwrap() > 0, "{consumed}");
    assert_eq!(consumed["max_output_tokens_used"], json!(false));
    assert_eq!(
        body,
        json!({
            "id": "id", "object": "text_completion", "created": null, "experiments": [],
            "model": {"engine": "litellm", "name": "mistral", "lang": "ruby", "tokens_consumption_metadata": null,
                "region": "us-central1"},
            "choices": [{"text": "\"hello\"", "index": 0, "finish_reason": "length"}],
            "metadata": {"enabled_feature_flags": [""]},
        })
    );
}

#[test]
fn feature_flags_come_back() {
    let site = Site::open();
    site.answers("1");
    let flags = |headers: &[(&str, &str)]| {
        site.post_with(COMPLETIONS, headers, &rails(ruby())).json()["metadata"]["enabled_feature_flags"]
            .clone()
    };
    assert_eq!(flags(&[]), json!([]));
    assert_eq!(flags(&[("x-gitlab-enabled-feature-flags", "")]), json!([""]));
    assert_eq!(flags(&[("x-gitlab-enabled-feature-flags", "a,b")]), json!(["a", "b"]));
}

#[test]
fn fact_9_an_editor_completes_directly_without_naming_a_model_and_may_do_nothing_else() {
    let site = Site::start();
    site.answers("\"hello\"");
    let token = site.as_rails("/v1/code/user_access_token", &json!({})).json()["token"].clone();
    let mut headers = site.gitlab().with(token.as_str().unwrap(), "19.3.0");
    headers.push(("X-Gitlab-Language-Server-Version".into(), "8.0.0".into()));
    headers.push(("User-Agent".into(), "gitlab-language-server 8.0.0".into()));
    let post = |path: &str, body: &Value| site.post_with(path, &pairs(&headers), body);
    for path in [DIRECT, COMPLETIONS] {
        let reply = post(path, &language_server(ruby()));
        assert_eq!(text(&reply).as_deref(), Some("\"hello\""));
        assert_eq!(reply.json()["model"]["lang"], "ruby");
        assert!(reply.json()["model"]["engine"].is_string() && reply.json()["model"]["name"].is_string());
    }
    let generation = with(rails(ruby()), json!({"prompt": "do it"}));
    let suggestions = "Unauthorized to access code suggestions";
    for (path, body, refusal) in [
        (GENERATIONS, generation, "Unauthorized to access code generations"),
        (V3, component(&ruby(), false), suggestions),
        (V3, completion_component(&ruby(), false), suggestions),
        (V4, component(&ruby(), true), suggestions),
        (V4, completion_component(&ruby(), true), suggestions),
    ] {
        let reply = post(path, &body);
        assert_eq!((reply.status, reply.json()), (403, json!({"detail": refusal})), "{path}");
    }
    // The language server's header has a space in front.
    let spaced: Vec<(&str, &str)> =
        std::iter::once(("content-type", " application/json")).chain(pairs(&headers)).collect();
    let bytes = super::super::client::request("POST", DIRECT, &spaced, &language_server(ruby()).to_string());
    assert_eq!(super::super::client::Line::open(site.address, &bytes).reply().status, 200);
}

#[test]
fn fact_2_errors_come_in_two_shapes() {
    let site = Site::start();
    let reply = site.post(COMPLETIONS, &rails(ruby()));
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (401, r#"{"error":"No authorization header presented"}"#)
    );
    let reply = site.as_rails(COMPLETIONS, &json!({}));
    assert_eq!((reply.status, reply.body.as_str()), (422, r#"{"detail":"Validation error"}"#));
    // The body is checked before the scope.
    let token = site.gitlab().token().scopes(&["duo_chat"]).sign();
    let headers = site.gitlab().with(&token, "19.3.0");
    assert_eq!(site.post_with(COMPLETIONS, &pairs(&headers), &json!({})).status, 422);
    let reply = site.post_with(COMPLETIONS, &pairs(&headers), &rails(ruby()));
    let detail = r#"{"detail":"Unauthorized to access code completions"}"#;
    assert_eq!((reply.status, reply.body.as_str()), (403, detail));
    // With the administrator's AI logs on, the place of the fault is told.
    let mut told = site.gitlab().rails();
    told.retain(|(name, _)| name != "x-gitlab-enabled-instance-verbose-ai-logs");
    told.push(("x-gitlab-enabled-instance-verbose-ai-logs".into(), "true".into()));
    let reply = site.post_with(COMPLETIONS, &pairs(&told), &with(rails(ruby()), json!({"stream": 7})));
    assert!(reply.json()["detail"].as_str().unwrap().contains("stream"), "{}", reply.body);
}

/// A provider that is a literal, an empty identifier, no key; or nothing at all.
#[test]
fn fact_8_metadata_that_names_no_model_leads_to_the_default_model() {
    let site = Site::open();
    site.answers("1");
    for metadata in [
        metadata(),
        json!({"provider": "custom_openai", "name": "general", "identifier": null}),
        json!({"provider": "openai", "name": "gpt", "endpoint": null, "api_key": null, "identifier": ""}),
        json!("mistral"),
        json!(null),
    ] {
        let body = with(completion_component(&ruby(), false), json!({"model_metadata": metadata}));
        assert_eq!(text(&site.post(V4, &body)).as_deref(), Some("1"), "{metadata}");
    }
}

#[test]
fn the_health_check_gets_what_the_model_wrote() {
    let site = Site::start();
    for answer in
        ["\n  puts 'hello'\nend\n", "(name)", "\n\n\nend", "# hello_world", "```ruby\nputs 1\n```", "end"]
    {
        let body = site.answers(answer).as_rails(COMPLETIONS, &probe());
        assert!(text(&body).is_some_and(|text| !text.trim().is_empty()), "{answer:?}: {}", body.body);
    }
}

#[test]
fn what_arrives_is_what_a_person_would_have_typed() {
    let site = Site::open();
    for (name, above, below, written, arrives) in [
        (
            "a.py",
            "def add(a, b):\n    return ",
            "\n\n\ndef sub(a, b):\n",
            "a + b\n\n\ndef sub(a, b):\n",
            "a + b",
        ),
        ("a.js", "log(", ");\n", "value);\nlog(other);", "value"),
        ("a.js", "function f() {\n  ", "\n}\n", "return 1;\n}\n\nfunction g() {\n", "return 1;"),
        ("a.rb", "def hello_world", "", "\n  puts 'hi'\nend\n\ndef other\nend\n", "\n  puts 'hi'\nend"),
        ("a.rb", "x = ", "\n", "```ruby\n1\n```\nThis sets x.", "1"),
        ("a.py", "x = [", "]\n", "1, 2]", "1, 2"),
    ] {
        let reply = site.answers(written).post(COMPLETIONS, &rails(file(name, above, below)));
        assert_eq!(text(&reply).as_deref(), Some(arrives), "{above:?} {written:?}");
        let streamed = with(rails(file(name, above, below)), json!({"stream": true}));
        assert_eq!(site.post(COMPLETIONS, &streamed).body, arrives, "streamed");
    }
}

#[test]
fn an_empty_completion_has_no_choices() {
    let site = Site::open();
    for answer in ["", "   \n", ")"] {
        let body = site.answers(answer).post(COMPLETIONS, &rails(file("a.rb", "f(1", ")\n"))).json();
        assert_eq!(body["choices"], json!([]), "{answer:?}");
        assert_eq!(body["model"]["tokens_consumption_metadata"], json!(null));
    }
}

#[test]
fn a_file_of_no_known_language_is_not_completed() {
    let site = Site::open();
    site.answers("x");
    let steps = site.controls.steps();
    let unknown = with(rails(file("LICENSE", "The ", "")), json!({"stream": "true"}));
    let reply = site.post(COMPLETIONS, &unknown);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.json()["choices"], json!([]));
    assert_eq!(reply.json()["model"]["lang"], "");
    assert_eq!(site.controls.steps(), steps, "no model was asked");
    for (name, editor) in [("LICENSE", "plaintext"), ("a.unheard-of", "")] {
        let named = with(file(name, "The ", ""), json!({"language_identifier": editor}));
        assert_eq!(text(&site.post(COMPLETIONS, &rails(named))).as_deref(), Some("x"), "{name}");
    }
}

/// The first of its formats.
#[test]
fn fact_5_a_streamed_completion_is_raw_text() {
    let site = Site::open();
    site.answers("\"héllo\" + name");
    let reply = site.post(COMPLETIONS, &with(rails(ruby()), json!({"stream": true})));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    assert_eq!(reply.body, "\"héllo\" + name");
    assert_eq!(reply.header("x-streaming-format"), None);
}

#[test]
fn fact_7_fields_that_nobody_knows_and_fields_in_other_clothes_are_taken() {
    let site = Site::open();
    site.answers("1");
    let odd = json!({"prompt_version": "2", "stream": "off", "choices_count": "4", "project_id": "7", "surprise": {"a": [1]}});
    assert_eq!(text(&site.post(COMPLETIONS, &with(rails(ruby()), odd))).as_deref(), Some("1"));
}

#[test]
fn all_families_of_gitlab_are_taken_and_unheard_of_ones_are_not() {
    let site = Site::open();
    site.answers("1");
    for family in [
        "mistral",
        "mixtral",
        "codestral",
        "codegemma",
        "codellama",
        "deepseekcoder",
        "llama3",
        "claude_3",
        "gpt",
        "general",
        "gemini",
        "qwen",
        "codestral-2508",
    ] {
        let reply = site.post(COMPLETIONS, &with(rails(ruby()), json!({"model_name": family})));
        assert_eq!(reply.json()["model"]["name"], family, "{}", reply.body);
    }
    let reply = site.post(COMPLETIONS, &with(rails(ruby()), json!({"model_name": "parrot"})));
    assert_eq!((reply.status, reply.json()), (422, json!({"detail": "Validation error"})));
}

#[test]
fn an_identifier_that_names_no_model_is_a_failed_inference() {
    let site = Site::open();
    let reply =
        site.post(COMPLETIONS, &with(rails(ruby()), json!({"model_identifier": "custom_openai/gone"})));
    assert_eq!((reply.status, reply.json()), (503, json!({"detail": "Inference failed"})));
    site.answers("1");
    let known = with(rails(ruby()), json!({"model_identifier": "custom_openai/ember"}));
    assert_eq!(text(&site.post(COMPLETIONS, &known)).as_deref(), Some("1"));
}

#[test]
fn versions_3_and_4_answer_alike() {
    let site = Site::open();
    site.answers("\"hello\"");
    for path in [V3, V4] {
        let mut body = site.post(path, &completion_component(&ruby(), false)).json();
        assert!(body["metadata"]["timestamp"].take().as_u64().unwrap() > 1_700_000_000);
        let model = json!({"engine": "openai", "name": "mistral", "lang": "ruby"});
        assert_eq!(
            body,
            json!({
                "choices": [{"text": "\"hello\"", "index": 0, "finish_reason": "length"}],
                "metadata": {"model": model, "timestamp": null, "enabled_feature_flags": [], "region": null},
                "model": model,
            }),
            "{path}"
        );
    }
    // Without a model assigned there is no metadata at all.
    let mut nameless = completion_component(&ruby(), false);
    nameless.as_object_mut().unwrap().remove("model_metadata");
    assert_eq!(site.post(V4, &nameless).json()["model"]["name"], "general");
}

#[test]
fn the_first_component_is_what_is_wanted_and_context_counts_from_7_17_1_on() {
    let site = Site::open();
    site.answers("1");
    let context = json!({"type": "code_context", "payload": {"type": "file", "name": "b.rb", "content": "B = 1\n".repeat(40)}});
    let mut body = completion_component(&ruby(), false);
    body["prompt_components"].as_array_mut().unwrap().push(context.clone());
    let tokens = |headers: &[(&str, &str)]| {
        let before = site.engine.status().tokens_in;
        assert_eq!(site.post_with(V3, headers, &body).status, 200);
        site.engine.status().tokens_in - before
    };
    let old = tokens(&[("x-gitlab-language-server-version", "7.17.0")]);
    assert_eq!(tokens(&[]), old);
    assert_eq!(tokens(&[("x-gitlab-language-server-version", "soon")]), old);
    let new = tokens(&[("x-gitlab-language-server-version", "7.17.1")]);
    assert!(new > old + 100, "{new} tokens with the context, {old} without");
    body["prompt_components"].as_array_mut().unwrap().swap(0, 1);
    assert_eq!(site.post(V3, &body).status, 422);
    body["prompt_components"] = json!([]);
    assert_eq!(site.post(V3, &body).status, 422);
    body["prompt_components"] = json!(vec![context; 101]);
    assert_eq!(site.post(V3, &body).status, 422);
}
