//! What callers send, version by version. All of them send more than the gateway reads.

use serde_json::{Value, json};

pub const COMPLETIONS: &str = "/v2/code/completions";
pub const DIRECT: &str = "/v2/completions";
pub const GENERATIONS: &str = "/v2/code/generations";
pub const V3: &str = "/v3/code/completions";
pub const V4: &str = "/v4/code/suggestions";

pub fn file(name: &str, above: &str, below: &str) -> Value {
    json!({"file_name": name, "content_above_cursor": above, "content_below_cursor": below})
}

pub fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The editor's own request, which GitLab passes on with its own fields put over it.
fn ide(file: Value) -> Value {
    json!({
        "current_file": file, "intent": "completion", "generation_type": null, "stream": false,
        "project_path": "group/project", "project_id": -1, "choices_count": 1, "user_instruction": null,
        "telemetry": [{"model_engine": "litellm", "model_name": "mistral", "lang": "ruby",
            "requests": 1, "accepts": "1", "errors": 0, "experiments": null}],
        "context": [{"type": "file", "name": "lib/a.rb", "content": "class A\nend"}],
    })
}

/// Rails 17.4 to 19.3, completion.
pub fn rails(file: Value) -> Value {
    with(
        ide(file),
        json!({"model_provider": "litellm", "prompt_version": 2, "prompt": null, "model_endpoint": "http://host:8000/v1",
            "model_name": "mistral", "model_api_key": null}),
    )
}

/// The health check, as 18.9 and 19.3 send it.
pub fn probe() -> Value {
    json!({"prompt_version": 2, "prompt": null, "model_provider": "litellm", "model_name": "mistral",
        "model_endpoint": "http://host:8000/v1", "current_file": file("test.rb", "def hello_world", "")})
}

/// The language server's own request.
pub fn language_server(file: Value) -> Value {
    json!({"prompt_version": 1, "project_path": "", "project_id": -1, "current_file": file, "choices_count": 4,
        "intent": "completion", "context": [{"type": "snippet", "name": "b.rb", "content": "B = 1"}]})
}

pub fn metadata() -> Value {
    json!({"provider": "openai", "name": "mistral", "endpoint": "http://host:8000/v1", "api_key": null, "identifier": ""})
}

/// What Rails 18.9 and 19.3 send for a generation.
pub fn component(file: &Value, stream: bool) -> Value {
    let payload = with(
        file.clone(),
        json!({"language_identifier": "Ruby", "stream": stream, "prompt_id": "code_suggestions/generations",
        "prompt_version": "^1.0.0", "prompt_enhancer": {
            "examples_array": [{"example": "# say a", "response": "puts 'a'", "trigger_type": "comment"}],
            "trimmed_content_above_cursor": file["content_above_cursor"],
            "trimmed_content_below_cursor": file["content_below_cursor"],
            "related_files": ["<file_content file_name=\"b.rb\">\nB = 1\n</file_content>"],
            "related_snippets": ["<snippet_content name=\"c\">\nC = 2\n</snippet_content>"],
            "libraries": ["rails"],
            "user_instruction": "Generate the best possible code based on instructions.",
        }}),
    );
    with(
        ide(file.clone()),
        json!({"prompt_components": [{"type": "code_editor_generation", "payload": payload,
            "metadata": {"source": "GitLab EE", "version": "18.9.0"}}], "model_metadata": metadata()}),
    )
}

/// Rails 19.3 with the flag `code_completion_v4_endpoint`.
pub fn completion_component(file: &Value, stream: bool) -> Value {
    let payload = with(file.clone(), json!({"language_identifier": "Ruby", "stream": stream}));
    with(
        ide(file.clone()),
        json!({"prompt_components": [{"type": "code_editor_completion", "payload": payload}],
            "model_metadata": metadata()}),
    )
}
