//! Prompts by name: what GitLab sends, what it gets back, and what the model is told.

use std::path::Path;

use hearth::duo::prompts;
use hearth::engine::scripted::Fault;
use hearth::served::family::Family;
use serde_json::{Map, Value, json};

use super::client::Reply;
use super::forms;
use super::gitlab;
use super::site::Site;

const OLD: [(&str, &str); 1] = [("x-gitlab-version", "18.9.0")];

/// As GitLab calls an explanation of code.
fn explain(stream: bool) -> Value {
    json!({
        "stream": stream,
        "inputs": {
            "input": "Explain the code user selected inside <selected_code></selected_code> tags.",
            "selected_text": "puts 1",
            "file_content": "",
            "language_info": "The code is Ruby.",
        },
        "prompt_version": "^1.0.0",
        "model_metadata": {
            "provider": "openai", "name": "general", "endpoint": "http://elsewhere.invalid/v1", "api_key": null,
            "identifier": "",
        },
    })
}

fn detail(reply: &Reply) -> String {
    reply.json()["detail"].as_str().unwrap_or_else(|| panic!("no detail in {}", reply.body)).to_owned()
}

#[test]
fn fact_4_the_first_version_answers_with_a_bare_string_and_the_second_with_content_and_usage() {
    let site = Site::open();
    site.answers("It prints \"one\".\n");
    let reply = site.post("/v1/prompts/chat/explain_code", &explain(false));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.body, r#""It prints \"one\".\n""#);

    let reply = site.post("/v2/prompts/chat/explain_code", &explain(false));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let body = reply.json();
    assert_eq!(body["content"], "It prints \"one\".\n");
    let tokens = &body["usage"]["general"];
    assert!(
        tokens["input_tokens"].as_u64() > Some(20) && tokens["output_tokens"].as_u64() > Some(2),
        "{body}"
    );
}

#[test]
fn fact_5_a_streamed_prompt_is_raw_text_or_an_object_a_line_and_both_are_called_event_stream() {
    let site = Site::open();
    site.answers("Grüße aus Zürich.\n");
    let reply = site.post("/v1/prompts/chat/explain_code", &explain(true));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(reply.body, "Grüße aus Zürich.\n");

    let reply = site.post("/v2/prompts/chat/explain_code", &explain(true));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(reply.body.is_ascii() && reply.body.ends_with('\n'));
    let lines: Vec<Value> = reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text: String = lines.iter().map(|line| line["content"].as_str().unwrap()).collect();
    assert_eq!(text, "Grüße aus Zürich.\n");
    let (last, others) = lines.split_last().unwrap();
    assert!(last["usage"]["ember"]["output_tokens"].as_u64() > Some(2), "{last}");
    assert!(others.len() > 2 && others.iter().all(|line| line.get("usage").is_none()));
}

#[test]
fn fact_3_ids_hold_slashes_that_may_be_encoded_and_a_slash_at_the_end_is_harmless() {
    let site = Site::open();
    site.answers("Hello.");
    for id in ["model_configuration/check", "model_configuration%2Fcheck", "model_configuration%2fcheck/"] {
        for version in ["v1", "v2"] {
            let reply =
                site.post(&format!("/{version}/prompts/{id}"), &json!({"inputs": {}, "stream": false}));
            assert_eq!(reply.status, 200, "{version} {id}: {}", reply.body);
        }
    }
}

#[test]
fn the_check_of_a_connection_asks_the_model_for_two_tokens_and_no_more() {
    let site = Site::open();
    site.answers("Hello, I am a model that likes to talk at length.");
    let reply = site.post("/v1/prompts/model_configuration%2Fcheck", &json!({"stream": false, "inputs": {}}));
    let text: String = serde_json::from_str(&reply.body).unwrap();
    assert!(!text.is_empty() && text.len() < 15, "{text}");
}

#[test]
fn the_check_of_a_connection_gives_up_when_gitlab_does() {
    let site = Site::open();
    site.answers("Hello.");
    site.controls.delay(std::time::Duration::from_secs(2));
    let asked = site.open_with("POST", "/v1/prompts/model_configuration%2Fcheck", &OLD, r#"{"inputs":{}}"#);
    let begin = std::time::Instant::now();
    let reply = asked.reply();
    assert!(begin.elapsed() < std::time::Duration::from_secs(12), "18.9 waits 3 s");
    assert_eq!(reply.status, 421);
    assert_eq!(detail(&reply), "504: Gateway Timeout");
}

#[test]
fn fact_2_a_failed_model_is_421_with_its_status_and_reason() {
    let site = Site::open();
    site.controls.fail_always(Some(Fault::Launch));
    let reply = site.post("/v1/prompts/model_configuration%2Fcheck", &json!({"inputs": {}}));
    assert_eq!((reply.status, detail(&reply)), (421, "500: Internal Server Error".into()));
}

#[test]
fn an_unknown_model_is_421_that_begins_with_404() {
    let site = Site::open();
    let mut body = json!({"inputs": {}, "stream": false});
    body["model_metadata"] = json!({
        "provider": "openai", "name": "mistral", "endpoint": "http://elsewhere.invalid/v1", "api_key": null,
        "identifier": "custom_openai/not-here",
    });
    let reply = site.post("/v1/prompts/model_configuration%2Fcheck", &body);
    assert_eq!((reply.status, detail(&reply)), (421, "404: Not Found".into()));
}

#[test]
fn what_is_wrong_with_a_prompt_is_said_with_the_contract_s_status() {
    let site = Site::open();
    let reply = site.post("/v1/prompts/chat/sing_a_song", &json!({"inputs": {}}));
    assert_eq!(reply.status, 400);
    assert!(detail(&reply).contains("chat/sing_a_song"));
    let reply = site.post("/v1/prompts/chat/explain_code", &json!({"inputs": {"selected_text": "x"}}));
    assert_eq!(reply.status, 422);
    assert!(detail(&reply).contains("'input'"), "{}", reply.body);
    let reply = site.post("/v1/prompts/chat/react", &json!({"inputs": {}}));
    assert_eq!((reply.status, detail(&reply)), (422, "Prompt 'chat/react' is not supported".into()));
    for body in [json!({}), json!({"inputs": []}), json!({"inputs": {}, "stream": "perhaps"})] {
        let reply = site.post("/v1/prompts/model_configuration/check", &body);
        assert_eq!((reply.status, detail(&reply)), (422, "Validation error".into()), "{body}");
    }
}

#[test]
fn fact_7_any_prompt_version_and_any_further_field_or_input_is_taken() {
    let site = Site::open();
    site.answers("Yes.");
    for version in [json!("^1.0.0"), json!("~9.9"), json!("amazon_q/1.0.0"), json!("1.0.2-dev"), Value::Null]
    {
        let mut body = explain(false);
        body["prompt_version"] = version.clone();
        body["inputs"]["never_heard_of"] = json!([1, {"a": null}]);
        body["never_heard_of"] = json!({});
        assert_eq!(site.post("/v1/prompts/chat/explain_code", &body).status, 200, "{version}");
    }
}

#[test]
fn a_prompt_that_must_have_a_form_gets_it_from_any_model() {
    let site = Site::open();
    let inputs = json!({"inputs": {"input": "What is this issue about?", "suggestions": ""}, "stream": true});
    // The model says what it should.
    let said = "```json\n{\"ResourceIdentifierType\": \"iid\", \"ResourceIdentifier\": 410}\n```";
    site.answers(said);
    let reply = site.post("/v1/prompts/chat/issue_reader", &inputs);
    assert_eq!((reply.status, reply.body.as_str()), (200, said));
    // The model says something else.
    for said in ["Sure! I think it is issue 12, as you said.", "Question: which one?", "{\"x\": 1}", ""] {
        site.answers(said);
        for kind in ["issue", "epic", "merge_request", "commit", "build", "work_item"] {
            let reply = site.post(&format!("/v1/prompts/chat/{kind}_reader"), &inputs);
            assert_eq!(reply.status, 200, "{}", reply.body);
            forms::reader(&reply.body);
        }
    }
    site.answers("LGTM, nothing to say here.");
    let review = json!({"inputs": {"mr_title": "T", "mr_description": "D", "diff_lines": "+ x"}});
    let reply = site.post("/v1/prompts/review_merge_request", &review);
    forms::review(&serde_json::from_str::<String>(&reply.body).unwrap());
}

#[test]
fn inputs_that_are_longer_than_the_model_s_context_are_cut_and_not_refused() {
    let site = Site::open();
    site.answers("Done.");
    let log = "error: something went wrong in line 17 of the file\n".repeat(2000) + "Killed: no memory left";
    // What no template shows takes no room from what one does.
    let inputs =
        json!({"selected_text": log, "language_info": "It is Ruby.", "unheard_of": "x ".repeat(200_000)});
    let body = json!({"inputs": inputs});
    let reply = site.post("/v1/prompts/chat/troubleshoot_job", &body);
    assert_eq!((reply.status, reply.body.as_str()), (200, r#""Done.""#));
    let given = site.given();
    for stays in ["It is Ruby.", "[... cut ...]", "Killed: no memory left"] {
        assert!(given.contains(stays), "{stays} was lost: {given}");
    }
    assert!(given.len() > 10_000, "only {} bytes of the log are left", given.len());
}

#[test]
fn a_file_that_is_to_be_replaced_is_never_cut() {
    let site = Site::open();
    let line = "def method_with_a_name(argument) = puts argument\n";
    let fixed = "<analysis>\nIt is unsafe.\n</analysis>\n<is_false_positive>\nfalse\n</is_false_positive>\n<summary>\n\
        Make it safe.\n</summary>\n<fixed_code>\nputs 1\n</fixed_code>";
    site.answers(fixed);
    let ask = |lines: usize, described: &str| {
        let source = line.repeat(lines) + "the_end";
        let inputs = json!({"source_code": source, "vulnerability_description": described});
        site.post("/v1/prompts/resolve_vulnerability", &json!({"inputs": inputs}))
    };
    // What is said about it gives instead.
    let reply = ask(40, &"It is said that it is unsafe. ".repeat(3000));
    assert_eq!((reply.status, reply.json()), (200, json!(fixed)), "{}", reply.body);
    let given = site.given();
    assert!(given.contains(&(line.repeat(40) + "the_end")), "{given}");
    assert!(given.contains("[... cut ...]"));
    let steps = site.controls.steps();
    for lines in [300, 20_000] {
        let reply = ask(lines, "It is unsafe.");
        assert_eq!((reply.status, detail(&reply).as_str()), (421, "400: Bad Request"), "{lines}");
    }
    assert_eq!(site.controls.steps(), steps, "no model was asked");
}

#[test]
fn an_answer_ends_with_the_line_that_asked_for_it() {
    let site = Site::open();
    site.answers(&"word ".repeat(1500));
    site.controls.delay(std::time::Duration::from_millis(5));
    let mut line = site.open_with("POST", "/v1/prompts/chat/explain_code", &[], &explain(true).to_string());
    line.until("word");
    drop(line);
    site.quiet();
}

#[test]
fn fact_8_every_form_of_model_metadata_that_gitlab_sends_is_served() {
    let site = Site::open();
    site.answers("Yes.");
    let rails = |identifier: Value, key: Value| {
        json!({"provider": "openai", "name": "mistral", "endpoint": "http://model.invalid/v1", "api_key": key,
            "identifier": identifier})
    };
    let forms = [
        rails(json!(""), Value::Null),
        rails(json!("custom_openai/ember"), json!("secret")),
        rails(Value::Null, Value::Null),
        json!({"provider": "custom_openai", "name": "general"}),
        json!({"provider": "gitlab", "feature_setting": "duo_chat", "identifier": ""}),
        json!("malformed"),
        Value::Null,
    ];
    for metadata in forms {
        let mut body = explain(false);
        body["model_metadata"] = metadata.clone();
        assert_eq!(site.post("/v1/prompts/chat/explain_code", &body).status, 200, "{metadata}");
    }
    let mut body = explain(false);
    body.as_object_mut().unwrap().remove("model_metadata");
    assert_eq!(site.post("/v1/prompts/chat/explain_code", &body).status, 200, "a feature without a model");
}

#[test]
fn a_prompt_opens_for_its_scope_and_for_no_other() {
    let site = Site::start();
    site.answers("Yes.");
    let every: Vec<String> = prompts::all().flat_map(|(_, prompt)| prompt.scopes.clone()).collect();
    for (_, prompt) in prompts::all().filter(|(family, prompt)| family.is_none() && prompt.routed) {
        let path = format!("/v1/prompts/{}", prompt.id);
        let body = json!({"inputs": sample(prompt)});
        let call = |scopes: &[&str]| {
            let headers = site.gitlab().with(&site.gitlab().token().scopes(scopes).sign(), "19.3.0");
            site.post_with(&path, &gitlab::pairs(&headers), &body)
        };
        let others: Vec<&str> =
            every.iter().map(String::as_str).filter(|s| !prompt.scopes.iter().any(|own| own == s)).collect();
        let refused = call(&others);
        assert_eq!(refused.status, 403, "{}", prompt.id);
        assert_eq!(detail(&refused), format!("Unauthorized to access '{}'", prompt.id));
        for scope in &prompt.scopes {
            let status = call(&[scope]).status;
            // Half a repaired file is a failure of the model; the scope was good.
            let good = if prompt.id == "resolve_vulnerability" { 421 } else { 200 };
            assert_eq!(status, good, "{} with {scope}", prompt.id);
        }
    }
}

#[test]
fn an_editor_s_own_token_opens_no_prompt_not_even_the_check() {
    let site = Site::start();
    let token =
        site.as_rails("/v1/code/user_access_token", &json!({})).json()["token"].as_str().unwrap().to_owned();
    let headers = site.gitlab().with(&token, "19.3.0");
    let body = json!({"inputs": {}});
    for (path, text) in [
        ("/v1/prompts/model_configuration%2Fcheck", "Unauthorized to access 'model_configuration/check'"),
        ("/v2/prompts/model_configuration/check", "Unauthorized to access 'model_configuration/check'"),
    ] {
        let reply = site.post_with(path, &gitlab::pairs(&headers), &body);
        assert_eq!((reply.status, detail(&reply).as_str()), (403, text));
    }
}

/// Inputs for every prompt: each one has a value, as GitLab sends them.
fn sample(prompt: &prompts::Prompt) -> Map<String, Value> {
    let text = |name: &str| match name {
        "current_date" => json!("August 22, 2026"),
        "libraries" => json!(["rspec", "rails"]),
        "documents" => json!([{"id": "1a2b", "content": "Merge trains …", "metadata": {"title": "Trains"}}]),
        "catalog" => json!([{"id": "pipelines", "name": "Pipelines", "description": "Runs jobs"}]),
        "language_info" => json!("The code is written in Ruby."),
        "content_id" => json!("ATTRS"),
        name => json!(format!("<the {name}>")),
    };
    prompt.required.iter().chain(&prompt.optional).map(|name| (name.clone(), text(name))).collect()
}

fn shown(prompt: &prompts::Prompt, inputs: &Map<String, Value>) -> String {
    let rendered = prompt.render(inputs).unwrap();
    let mut out = format!(
        "{} {}, {} tokens, temperature {}, stops {:?}, form {:?}\n",
        prompt.id, prompt.version, rendered.max_tokens, rendered.temperature, rendered.stops, rendered.form
    );
    for message in &rendered.messages {
        out += &format!("\n=== {}\n{}\n", message.role, message.content);
    }
    if !rendered.begun.is_empty() {
        out += &format!("\n=== begun\n{}", rendered.begun);
    }
    out
}

#[test]
fn every_prompt_reads_as_it_was_reviewed() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots/prompts");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (family, prompt) in prompts::all().filter(|(_, prompt)| prompt.routed) {
            let family = family.map_or("base", Family::name);
            let name = format!("{}.{family}", prompt.id.replace('/', "."));
            insta::assert_snapshot!(name.as_str(), shown(prompt, &sample(prompt)));
            if family == "base" {
                let mut least = sample(prompt);
                least.retain(|name, _| prompt.required.contains(name));
                least.values_mut().for_each(|value| *value = json!(""));
                insta::assert_snapshot!(format!("{name}.least"), shown(prompt, &least));
            }
        }
    });
}

#[test]
fn the_whole_catalogue_of_the_contract_is_there() {
    let ids: &[(&str, &str, &[&str])] = &[
        ("chat/explain_code", "explain_code", &["input", "selected_text", "file_content", "language_info"]),
        ("chat/write_tests", "write_tests", &["input", "libraries", "file_content"]),
        ("chat/refactor_code", "refactor_code", &["libraries", "file_content_reuse"]),
        ("chat/fix_code", "fix_code", &["libraries", "file_content_reuse"]),
        (
            "chat/explain_vulnerability",
            "explain_vulnerability",
            &["title", "identifiers", "vulnerability_description", "vulnerability_info", "language_info"],
        ),
        ("chat/troubleshoot_job", "troubleshoot_job", &["selected_text", "language_info"]),
        ("chat/summarize_comments", "summarize_comments", &["notes_content"]),
        ("chat/issue_reader", "ask_issue", &["input", "suggestions"]),
        ("chat/epic_reader", "ask_epic", &["input", "suggestions"]),
        ("chat/merge_request_reader", "ask_merge_request", &["input", "suggestions"]),
        ("chat/commit_reader", "ask_commit", &["input", "suggestions"]),
        ("chat/build_reader", "ask_build", &["input", "suggestions"]),
        ("chat/work_item_reader", "ask_work_item", &["input", "suggestions"]),
        ("chat/documentation_search", "documentation_search", &["question", "content_id", "documents"]),
        ("generate_commit_message", "generate_commit_message", &["diff"]),
        ("summarize_new_merge_request", "summarize_new_merge_request", &["extracted_diff"]),
        ("summarize_review", "summarize_review", &["draft_notes_content"]),
        (
            "resolve_vulnerability",
            "resolve_vulnerability",
            &[
                "name",
                "filename",
                "identifiers",
                "vulnerable_code",
                "source_code",
                "vulnerability_description",
            ],
        ),
        (
            "review_merge_request",
            "review_merge_request",
            &[
                "mr_title",
                "mr_description",
                "diff_lines",
                "full_file_intro",
                "full_content_section",
                "custom_instructions_section",
                "current_date",
            ],
        ),
        ("glab_ask_git_command", "glab_ask_git_command", &["prompt"]),
        ("model_configuration/check", "complete_code", &[]),
        ("generate_description", "generate_issue_description", &["content", "template"]),
        ("measure_comment_temperature", "measure_comment_temperature", &["content"]),
        ("categorize_question", "duo_chat", &["question", "previous_answer"]),
        ("classify_code_review_mention_intent", "duo_agent_platform", &["message"]),
        ("generate_session_title", "duo_agent_platform", &["context", "definition"]),
        ("summarize_duo_workflow", "duo_agent_platform", &["logs"]),
        ("feature_discovery_search", "duo_agent_platform", &["query", "catalog"]),
    ];
    for (id, scope, inputs) in ids {
        let prompt = prompts::find(id, Family::General).unwrap_or_else(|| panic!("no prompt {id}"));
        assert!(prompt.scopes.iter().any(|s| s == scope), "{id}");
        for input in *inputs {
            let known = prompt.required.iter().chain(&prompt.optional).any(|name| name == input);
            assert!(known, "{id} does not know {input}");
        }
        // What the model is told holds every input that its file names.
        let all = shown(prompt, &sample(prompt));
        for (input, value) in sample(prompt) {
            assert!(value.as_str().is_none_or(|value| all.contains(value)), "{id} does not say {input}");
        }
    }
}

#[test]
fn the_list_of_data_files_is_the_folder() {
    fn walk(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/duo/prompts/data");
    let mut files = Vec::new();
    walk(&folder, &mut files);
    let known: Vec<String> = prompts::all()
        .map(|(family, prompt)| format!("{}/{}.toml", prompt.id, family.map_or("base", Family::name)))
        .collect();
    assert_eq!(files.len(), known.len());
    for file in files {
        let name = file.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        assert!(known.contains(&name), "{name} is in no table");
    }
}

#[test]
fn a_family_takes_its_own_file_then_its_parent_s_then_the_base() {
    let temperature = |family| prompts::find("chat/fix_code", family).unwrap().temperature;
    assert_eq!((temperature(Family::Codestral), temperature(Family::Llama3)), (0.3, 0.3));
    assert_eq!((temperature(Family::Mistral), temperature(Family::General)), (0.1, 0.1));
    assert_eq!(prompts::find("chat/react", Family::Gpt).unwrap().stops, Vec::<String>::new());
}
