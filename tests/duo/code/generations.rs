//! Generations: code that was asked for in words.

use serde_json::{Value, json};

use super::super::client::Reply;
use super::super::site::Site;
use super::bodies::*;

const BEGUN: &str = "<new_code>";

fn text(reply: &Reply) -> Option<String> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["choices"].as_array().unwrap().first().map(|c| c["text"].as_str().unwrap().to_owned())
}

fn comment() -> Value {
    file("a.rb", "# say hello", "\n")
}

fn version_2(prompt: Value) -> Value {
    with(rails(comment()), prompt)
}

#[test]
fn gitlab_17_asks_version_2_in_three_forms() {
    let site = Site::start();
    site.answers_after(BEGUN, "puts 'hello'");
    for form in [
        json!({"prompt_version": 1}),
        json!({"prompt_version": 2, "prompt": "Say hello.", "prompt_id": "code_suggestions/generations"}),
        json!({"prompt_version": 2, "prompt": "", "prompt_id": "code_suggestions/generations"}),
    ] {
        let reply = site.as_rails(GENERATIONS, &version_2(form.clone()));
        assert_eq!(text(&reply).as_deref(), Some("\nputs 'hello'"), "{form}");
    }
    let messages =
        json!([{"role": "system", "content": "You write Ruby."}, {"role": "user", "content": "Say hello."}]);
    let body = version_2(json!({"prompt_version": 3, "prompt": messages}));
    let mut reply = site.answers("puts 'hello'").as_rails(GENERATIONS, &body).json();
    assert!(reply["created"].take().is_u64());
    assert_eq!(
        reply,
        json!({
            "id": "id", "object": "text_completion", "created": null, "experiments": [],
            "model": {"engine": "litellm", "name": "custom_openai/mistral", "lang": "ruby",
                "tokens_consumption_metadata": null, "region": "us-central1"},
            "choices": [{"text": "\nputs 'hello'", "index": 0, "finish_reason": "length"}],
            "metadata": {"enabled_feature_flags": [""]},
        })
    );
    let begun =
        json!([{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "<new_code>"}]);
    let body = version_2(json!({"prompt_version": 3, "prompt": begun}));
    let reply = site.answers_after(BEGUN, "puts 1").as_rails(GENERATIONS, &body);
    assert_eq!(text(&reply).as_deref(), Some("\nputs 1"));
}

#[test]
fn the_troubleshooting_script_is_answered() {
    let site = Site::open();
    let body = json!({"prompt_version": 2, "prompt": "", "prompt_id": "code_suggestions/generations", "stream": false,
        "model_provider": "litellm", "model_name": "mistral", "model_endpoint": "http://x", "model_identifier": "",
        "current_file": file("test.py", "def hello_world():", ""), "project_id": 1, "project_path": "string"});
    let reply = site.answers_after(BEGUN, "\n    pass").post(GENERATIONS, &body).json();
    assert_eq!(reply["model"]["engine"], "agent");
    assert_eq!(reply["choices"][0]["text"], "\n    pass");
}

/// GitLab 19.3 asks version 4 for all generations, 18.9 version 3 or 4, and 17 version 2.
#[test]
fn fact_11_all_generations_of_the_api_coexist() {
    let site = Site::start();
    site.answers_after(BEGUN, "```ruby\nputs 'hello'\n```");
    for path in [V3, V4] {
        let reply = site.as_rails(path, &component(&comment(), false));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(text(&reply).as_deref(), Some("\nputs 'hello'"), "{path}");
        let model = json!({"engine": "agent", "name": "Code Generations", "lang": "ruby"});
        assert_eq!((&reply.json()["model"], &reply.json()["metadata"]["model"]), (&model, &model));
    }
    assert_eq!(site.as_rails(GENERATIONS, &version_2(json!({"prompt": "x"}))).status, 200);
    let raw = site.as_rails(V3, &component(&comment(), true));
    assert_eq!(raw.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(raw.body, "\nputs 'hello'");
    let events = site.as_rails(V4, &component(&comment(), true));
    assert_eq!(events.header("x-streaming-format"), Some("sse"));
}

#[test]
fn any_version_of_the_prompt_is_taken() {
    let site = Site::open();
    site.answers_after(BEGUN, "puts 1");
    for version in ["^1.0.0", "2.0.1", "17.0.0-rc1", "soon"] {
        let mut body = component(&comment(), false);
        body["prompt_components"][0]["payload"]["prompt_version"] = json!(version);
        assert!(text(&site.post(V4, &body)).is_some(), "{version}");
    }
}

#[test]
fn a_generation_is_a_prompt_that_fits_the_model() {
    let site = Site::open();
    site.answers_after(BEGUN, "puts 1");
    let long = "value = compute(1, 2, 3)\n".repeat(4000);
    let mut body = component(&file("a.rb", &long[..99_999], &long[..50_000]), false);
    let enhancer = &mut body["prompt_components"][0]["payload"]["prompt_enhancer"];
    enhancer["related_files"] = json!(vec![&long[..20_000]; 4]);
    enhancer["libraries"] = json!(vec!["a-library"; 500]);
    assert!(text(&site.post(V4, &body)).is_some());
    let wordy = version_2(json!({"prompt": "Do it well. ".repeat(20_000)}));
    assert!(text(&site.post(GENERATIONS, &wordy)).is_some());
}

#[test]
fn the_message_list_is_checked() {
    let site = Site::open();
    site.answers("puts 1");
    for prompt in [
        json!(null),
        json!("text"),
        json!([{"role": "tool", "content": "x"}]),
        json!([{"role": "user"}]),
        json!(["x"]),
        json!([{"role": "user", "content": 3}]),
    ] {
        let reply = site.post(GENERATIONS, &version_2(json!({"prompt_version": 3, "prompt": prompt})));
        assert_eq!(reply.status, 422, "{prompt}");
    }
    for version in [json!(null), json!(0), json!(4), json!("new"), json!([1])] {
        let reply = site.post(GENERATIONS, &version_2(json!({"prompt_version": version, "prompt": "x"})));
        assert_eq!(reply.status, 422, "{version}");
    }
    let reply = site.post(GENERATIONS, &version_2(json!({"prompt_version": 2, "prompt": null})));
    assert_eq!(reply.status, 422);
}
