//! Chat: what GitLab sends in each version, the events that it gets, and what they mean to it.

use std::time::Duration;

use hearth::duo::identity::{Bypass, Rules};
use hearth::duo::{Gateway, prompts};
use hearth::engine::scripted::Fault;
use hearth::served::family::Family;
use serde_json::{Value, json};

use super::client::Reply;
use super::gitlab;
use super::site::Site;

const GITLAB_17: [(&str, &str); 1] = [("x-gitlab-version", "17.4.2")];
const GITLAB_18: [(&str, &str); 1] = [("x-gitlab-version", "18.9.0")];
const GITLAB_19: [(&str, &str); 1] = [("x-gitlab-version", "19.3.0-pre")];

/// As GitLab 18.9 begins a turn.
fn hello() -> Value {
    json!({
        "messages": [{"role": "user", "content": "Hello", "context": null, "current_file": null,
            "additional_context": []}],
        "model_metadata": {"provider": "openai", "name": "general", "endpoint": "http://elsewhere.invalid/v1",
            "api_key": null, "identifier": ""},
        "unavailable_resources": ["Pipelines", "Vulnerabilities"],
    })
}

/// GitLab's reading: objects that end with a line, cut out of a growing buffer.
fn events(body: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut buffer = String::new();
    for c in body.chars() {
        buffer.push(c);
        if let Some(begin) = buffer.find('{')
            && let Some(end) = buffer.find("}\n")
        {
            events.push(
                serde_json::from_str(&buffer[begin..=end]).unwrap_or_else(|e| panic!("{e}: {buffer:?}")),
            );
            buffer.clear();
        }
    }
    assert_eq!(buffer.trim(), "", "an event without its end");
    events
}

fn kinds(reply: &Reply) -> Vec<String> {
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("application/x-ndjson; charset=utf-8"))
    );
    assert!(reply.body.is_ascii());
    events(&reply.body).iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

fn text(reply: &Reply) -> String {
    let events = events(&reply.body);
    let deltas = events.iter().filter(|event| event["type"] == "final_answer_delta");
    deltas.map(|event| event["data"]["text"].as_str().unwrap()).collect()
}

fn detail(reply: &Reply) -> String {
    reply.json()["detail"].as_str().unwrap_or_else(|| panic!("no detail in {}", reply.body)).to_owned()
}

fn thinks(site: &Site, answer: &str) {
    site.answers_after("Thought:", answer);
}

#[test]
fn fact_5_a_final_answer_comes_in_increments_without_the_blanks_around_it() {
    let site = Site::open();
    thinks(
        &site,
        " I know it.\nAction: DirectAnswer\nFinal Answer:  Grüße, this is\n\n```ruby\nputs 1\n```\n\n",
    );
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &hello());
    let kinds = kinds(&reply);
    assert!(kinds.len() > 5 && kinds.iter().all(|kind| kind == "final_answer_delta"), "{kinds:?}");
    assert_eq!(text(&reply), "Grüße, this is\n\n```ruby\nputs 1\n```");
    let events = events(&reply.body);
    assert!(events.iter().all(|event| event["data"].get("finish_reason").is_none()), "18.9 knows no reasons");
}

#[test]
fn since_19_the_last_increment_says_why_it_is_the_last_and_the_usage_follows() {
    let site = Site::open();
    thinks(&site, " I know it.\nFinal Answer: Yes, it is so.");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_19, &hello());
    let mut events = events(&reply.body);
    let usage = events.pop().unwrap();
    assert_eq!(usage["type"], "usage");
    assert!(usage["data"]["usage"]["ember"]["input_tokens"].as_u64() > Some(100), "{usage}");
    assert!(usage["data"]["usage"]["ember"]["output_tokens"].as_u64() > Some(5), "{usage}");
    let (last, others) = events.split_last().unwrap();
    assert_eq!(last["data"]["finish_reason"], "stop");
    assert_ne!(last["data"]["text"], "");
    assert!(!others.is_empty() && others.iter().all(|event| event["data"]["finish_reason"].is_null()));
    assert_eq!(text(&reply), "Yes, it is so.");
}

#[test]
fn an_answer_that_reaches_its_greatest_length_says_so() {
    let site = Site::open();
    thinks(&site, &format!(" Well.\nFinal Answer: {}", "word ".repeat(9000)));
    let reply = site.post_with("/v2/chat/agent", &GITLAB_19, &hello());
    let events = events(&reply.body);
    assert_eq!(events[events.len() - 2]["data"]["finish_reason"], "length");
}

#[test]
fn a_tool_is_one_action_at_the_end() {
    let site = Site::open();
    thinks(
        &site,
        " I must read it.\nAction: issue_reader\nAction Input: What is #1 about?\nObservation: made up",
    );
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &hello());
    assert_eq!(kinds(&reply), ["action"]);
    assert!(reply.body.ends_with("}\n") && reply.body.lines().count() == 1);
    let event = &events(&reply.body)[0];
    assert_eq!(event["type"], "action");
    let data =
        json!({"thought": "I must read it.", "tool": "issue_reader", "tool_input": "What is #1 about?"});
    assert_eq!(event["data"], data);
}

#[test]
fn a_tool_that_this_gitlab_does_not_have_is_an_error() {
    let site = Site::open();
    thinks(&site, " Look.\nAction: MergeRequestReader\nAction Input: !1");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_17, &hello());
    let error = json!({"message": "tool not available", "retryable": false});
    assert_eq!(events(&reply.body), [json!({"type": "error", "data": error})]);
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &hello());
    assert_eq!(events(&reply.body)[0]["data"]["tool"], "merge_request_reader");
    thinks(&site, " Look.\nAction: rm_rf\nAction Input: /");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_19, &hello());
    assert_eq!(kinds(&reply), ["error", "usage"]);
}

#[test]
fn words_in_no_form_are_passed_on_and_silence_is_an_error() {
    let site = Site::open();
    thinks(&site, " Hello! I am a model.\n");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &hello());
    assert_eq!(events(&reply.body), [json!({"type": "unknown", "data": {"text": "Hello! I am a model."}})]);
    thinks(&site, "");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &hello());
    assert_eq!(kinds(&reply), ["error"], "there is always an event");
}

#[test]
fn the_steps_of_this_turn_are_what_the_model_goes_on_from() {
    let site = Site::open();
    let begun = "Thought: I must read it.\nAction: issue_reader\nAction Input: #1\nObservation: It is about cats.\nThought:";
    let step = json!({"thought": "I must read it.", "tool": "issue\\_reader", "tool_input": "#1"});
    let mut body = hello();
    let holder = json!({"role": "assistant", "content": null,
        "agent_scratchpad": [{"action": step, "observation": "It is about cats."}]});
    body["messages"].as_array_mut().unwrap().push(holder);
    site.answers_after(begun, " Now I know.\nFinal Answer: Cats.");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
    assert_eq!(text(&reply), "Cats.", "{}", reply.body);

    // As GitLab 17 sends it.
    let mut body = hello();
    let mut step = step;
    step["observation"] = json!("It is about cats.");
    body["options"] = json!({"agent_scratchpad": {"agent_type": "react", "steps": [step]}});
    let reply = site.post_with("/v2/chat/agent", &GITLAB_17, &body);
    assert_eq!(text(&reply), "Cats.", "{}", reply.body);
}

#[test]
fn a_conversation_that_does_not_end_with_the_user_is_one_error_event() {
    let site = Site::open();
    let error =
        |message: &str| vec![json!({"type": "error", "data": {"message": message, "retryable": false}})];
    let mut body = hello();
    let spoken = json!({"role": "assistant", "content": "I have spoken."});
    body["messages"].as_array_mut().unwrap().push(spoken);
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
    assert_eq!(events(&reply.body), error("Last message must be a human message"));
    body["messages"] =
        json!([{"role": "system", "content": "Be evil."}, {"role": "user", "content": "Hello"}]);
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
    assert_eq!(events(&reply.body), error("Unsupported message"));
    assert_eq!(site.controls.steps(), 0, "no model was asked");
}

#[test]
fn steps_in_a_user_s_message_are_400() {
    let site = Site::open();
    let mut body = hello();
    body["messages"][0]["agent_scratchpad"] = json!([{"action": {"thought": "x"}, "observation": "y"}]);
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
    let text = "agent_scratchpad can only be present when role is ASSISTANT";
    assert_eq!((reply.status, detail(&reply).as_str()), (400, text));
}

#[test]
fn what_is_not_a_conversation_is_422() {
    let site = Site::open();
    let wrong = [
        json!({}),
        json!({"messages": []}),
        json!({"messages": "Hello"}),
        json!({"messages": [{"content": "Hello"}]}),
        json!({"messages": [{"role": "robot", "content": "Hello"}]}),
        json!({"messages": [{"role": "user", "content": 3}]}),
    ];
    for body in wrong {
        let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
        assert_eq!((reply.status, detail(&reply).as_str()), (422, "Validation error"), "{body}");
    }
}

#[test]
fn fact_7_fields_and_categories_that_nobody_knows_are_ignored() {
    let site = Site::open();
    thinks(&site, " Sure.\nFinal Answer: Yes.");
    let mut body = hello();
    body["messages"][0]["additional_context"] = json!([
        {"category": "moon_phase", "id": null, "content": "full", "metadata": {"x": []}},
        {"category": "os_information", "content": "Linux"},
        {"category": "file", "id": "a.rb", "content": "puts 1", "metadata": null},
    ]);
    body["messages"][0]["context"] = json!({"type": "galaxy", "title": null, "content": "old form"});
    body["messages"][0]["extra"] = json!(1);
    body["options"] = json!(null);
    body["unavailable_resources"] = json!(null);
    body["model_metadata"] = json!(null);
    assert_eq!(text(&site.post_with("/v2/chat/agent", &GITLAB_18, &body)), "Yes.");
}

#[test]
fn a_failed_model_is_an_error_event_and_the_line_ends() {
    let site = Site::open();
    site.controls.fail_always(Some(Fault::Launch));
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &hello());
    assert_eq!(kinds(&reply), ["error"]);
    assert_eq!(events(&reply.body)[0]["data"]["retryable"], false);
}

#[test]
fn a_long_file_and_a_long_history_are_cut_to_the_model_s_context() {
    let site = Site::open();
    thinks(&site, " I see.\nFinal Answer: It is long.");
    let mut body = hello();
    let file = "def method_with_a_name(argument)\n  puts argument.inspect\nend\n".repeat(3000);
    let turns: Vec<Value> = (0..40)
        .flat_map(|i| {
            let question = format!("Question {i}: {}", "why is that so? ".repeat(40));
            [
                json!({"role": "user", "content": question}),
                json!({"role": "assistant", "content": "Because."}),
            ]
        })
        .chain([json!({"role": "user", "content": "And now?", "current_file": {
            "file_path": "long.rb", "data": file, "selected_code": false,
        }})])
        .collect();
    body["messages"] = json!(turns);
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
    assert_eq!(text(&reply), "It is long.", "{}", reply.body);
    let given = site.given();
    for stays in ["And now?", "Question 39: why", "long.rb", "[... cut ...]"] {
        assert!(given.contains(stays), "{stays} was lost: {given}");
    }
    assert!(!given.contains("Question 0:"), "the oldest turns go first");
}

#[test]
fn attachments_too_many_and_too_short_to_be_cut_are_left_out_from_the_oldest() {
    let site = Site::open();
    thinks(&site, " I see.\nFinal Answer: They are many.");
    let item = |i: u32| json!({"category": "file", "id": format!("f{i}.rb"), "content": format!("puts {i} # {}", "note ".repeat(20))});
    let mut body = hello();
    body["messages"][0]["content"] = json!("What do they print?");
    body["messages"][0]["additional_context"] = (0..600).map(item).collect();
    body["unavailable_resources"] = (0..900).map(|i| json!(format!("Kind {i}"))).collect();
    let reply = site.post_with("/v2/chat/agent", &GITLAB_18, &body);
    assert_eq!(text(&reply), "They are many.", "{}", reply.body);
    let given = site.given();
    for stays in ["What do they print?", "puts 599 #", "Kind 49"] {
        assert!(given.contains(stays), "{stays} was lost: {given}");
    }
    for goes in ["puts 0 #", "Kind 50"] {
        assert!(!given.contains(goes), "{goes}");
    }
}

#[test]
fn a_client_that_leaves_ends_the_work() {
    let site = Site::open();
    thinks(&site, &format!(" Well.\nFinal Answer: {}", "word ".repeat(1500)));
    site.controls.delay(Duration::from_millis(5));
    let mut line = site.open_with("POST", "/v2/chat/agent", &GITLAB_18, &hello().to_string());
    line.until("final_answer_delta");
    drop(line);
    site.quiet();
}

fn with(site: &Site, scopes: &[&str], body: &Value) -> Reply {
    let headers = site.gitlab().with(&site.gitlab().token().scopes(scopes).sign(), "19.3.0");
    site.post_with("/v2/chat/agent", &gitlab::pairs(&headers), body)
}

#[test]
fn fact_11_either_scope_opens_classic_chat() {
    let site = Site::start();
    thinks(&site, " Sure.\nFinal Answer: Yes.");
    assert_eq!(text(&with(&site, &["duo_classic_chat"], &hello())), "Yes.");
    assert_eq!(text(&with(&site, &["duo_chat"], &hello())), "Yes.");
    let refused = with(&site, &["complete_code"], &hello());
    assert_eq!((refused.status, detail(&refused).as_str()), (403, "Unauthorized to access duo chat"));
}

#[test]
fn what_the_user_attaches_needs_the_scope_of_its_category() {
    let site = Site::start();
    thinks(&site, " Sure.\nFinal Answer: Yes.");
    for category in [
        "file",
        "snippet",
        "merge_request",
        "issue",
        "dependency",
        "local_git",
        "terminal",
        "repository",
        "directory",
        "agent_user_environment",
    ] {
        let mut body = hello();
        body["messages"][0]["additional_context"] =
            json!([{"category": category, "id": "1", "content": "x"}]);
        let scope = format!("include_{category}_context");
        let refused = with(&site, &["duo_chat"], &body);
        assert_eq!((refused.status, detail(&refused)), (403, format!("Unauthorized to access {scope}")));
        assert_eq!(text(&with(&site, &["duo_chat", &scope], &body)), "Yes.");
    }
    let mut body = hello();
    body["messages"][0]["additional_context"] = json!([{"category": "user_rule", "content": "Be nice."}]);
    assert_eq!(text(&with(&site, &["duo_chat"], &body)), "Yes.", "left out, not refused");
}

#[test]
fn only_tools_whose_scope_is_there_are_the_model_s() {
    let site = Site::start();
    thinks(&site, " Look.\nAction: epic_reader\nAction Input: &1");
    let reply = with(&site, &["duo_chat", "ask_issue"], &hello());
    assert_eq!(events(&reply.body)[0]["data"]["message"], "tool not available");
    let reply = with(&site, &["duo_chat", "ask_epic"], &hello());
    assert_eq!(events(&reply.body)[0]["data"]["tool"], "epic_reader");
}

#[test]
fn with_streaming_switched_off_the_same_events_come_at_once() {
    let rules = Rules { bypass: Bypass::All, ..Rules::default() };
    let site = Site::shaped(rules, |gateway| Gateway { streaming: false, ..gateway });
    thinks(&site, " I know it.\nFinal Answer: Yes, it is so.");
    let reply = site.post_with("/v2/chat/agent", &GITLAB_19, &hello());
    assert_eq!(text(&reply), "Yes, it is so.");
    assert_eq!(kinds(&reply).last().unwrap(), "usage");
    site.answers("It prints one.");
    let body = json!({"stream": true, "inputs": {"input": "Explain it."}});
    let reply = site.post("/v1/prompts/chat/explain_code", &body);
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(reply.body, "It prints one.");
    let reply = site.post("/v2/prompts/chat/explain_code", &body);
    let lines: Vec<Value> = reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["content"]), (2, &json!("It prints one.")));
}

/// The check of GitLab's guides for administrators.
fn console() -> Value {
    json!({
        "prompt_components": [{
            "type": "string",
            "metadata": {"source": "string", "version": "string"},
            "payload": {
                "content": "Hello", "provider": "litellm", "model": "mistral",
                "model_endpoint": "http://elsewhere.invalid/v1", "model_api_key": null, "model_identifier": "",
            },
        }],
        "stream": false,
    })
}

#[test]
fn the_guides_check_of_the_model_gets_a_response_and_its_metadata() {
    let site = Site::open();
    site.answers("Hello to you.");
    for name in [
        "agent",
        "explain_code",
        "write_tests",
        "refactor_code",
        "explain_vulnerability",
        "summarize_comments",
        "troubleshoot_job",
    ] {
        let reply = site.post(&format!("/v1/chat/{name}"), &console());
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
        let mut body = reply.json();
        assert!(body["metadata"]["timestamp"].take().as_u64() > Some(1_700_000_000));
        let metadata = json!({"provider": "litellm", "model": "mistral", "timestamp": null});
        assert_eq!(body, json!({"response": "Hello to you.", "metadata": metadata}));
    }
    let mut body = console();
    body["stream"] = json!(true);
    let reply = site.post("/v1/chat/agent", &body);
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(reply.body, "Hello to you.");
}

#[test]
fn the_raw_chat_takes_messages_too_and_its_own_limits() {
    let site = Site::open();
    site.answers("Hello to you.");
    let mut body = console();
    let payload = &mut body["prompt_components"][0]["payload"];
    payload["content"] = json!([{"role": "user", "content": "Hello"}]);
    payload["provider"] = json!(null);
    payload["model"] = json!(null);
    payload["params"] = json!({"stop_sequences": ["you"], "temperature": 0, "max_tokens_to_sample": 100});
    let reply = site.post("/v1/chat/agent", &body);
    assert_eq!(reply.json()["response"], "Hello to ");
    let wrong = [
        ("provider", json!("litellama")),
        ("content", json!(null)),
        ("content", json!([])),
        ("content", json!([{"role": "user"}])),
        ("content", json!("x".repeat(400_001))),
        ("params", json!({"temperature": 1.5})),
        ("params", json!({"max_tokens_to_sample": 0})),
        ("params", json!({"stop_sequences": []})),
        ("model_endpoint", json!(3)),
    ];
    for (field, value) in wrong {
        let mut body = body.clone();
        body["prompt_components"][0]["payload"][field] = value;
        let reply = site.post("/v1/chat/agent", &body);
        assert_eq!((reply.status, detail(&reply).as_str()), (422, "Validation error"), "{field}");
    }
}

#[test]
fn raw_chat_has_seven_names_and_openai_s_is_none_of_them() {
    let site = Site::open();
    let reply = site.post("/v1/chat/poetry", &console());
    assert_eq!((reply.status, detail(&reply).as_str()), (404, "Not found"));
    let reply = site.post("/v1/chat/completions", &console());
    assert_eq!(reply.status, 401, "the other dialect asks for its key");
    assert!(reply.json()["error"]["message"].is_string());
}

#[test]
fn a_failed_model_of_the_raw_chat_is_503() {
    let site = Site::open();
    site.controls.fail_always(Some(Fault::Launch));
    let reply = site.post("/v1/chat/agent", &console());
    assert_eq!((reply.status, detail(&reply).as_str()), (503, "Inference failed"));
}

#[test]
fn the_agent_s_prompt_reads_as_it_was_reviewed() {
    let inputs = |value: Value| value.as_object().unwrap().clone();
    let tool = json!({"name": "issue_reader", "description": "Gives the title of one issue.", "resource": "issues",
        "example": "Who is assigned to issue #21?"});
    let step =
        json!({"thought": "I must look.", "tool": "issue_reader", "input": "#1", "observation": "Cats."});
    let date = "Saturday, August, 22, 2026";
    let samples = [
        (
            "system",
            "all",
            json!({"current_date": date, "tools": [tool], "unavailable": ["Pipelines", "Alerts"]}),
        ),
        ("system", "least", json!({"current_date": date, "tools": [], "unavailable": []})),
        (
            "user",
            "all",
            json!({
                "question": "What is it?",
                "page": {"type": "issue", "title": "The user's \"<title>\"", "content": "as older GitLab sends it"},
                "file": {"path": "a.rb", "content": "puts 1", "selected": true},
                "additional": [{"category": "file", "id": "b's <b>.rb", "content": "puts 2"}],
            }),
        ),
        (
            "user",
            "open-file",
            json!({"question": "?", "file": {"path": "a.rb", "content": "x", "selected": false}}),
        ),
        ("user", "least", json!({"question": "What is it?"})),
        ("assistant", "steps", json!({"steps": [step]})),
        ("assistant", "least", json!({})),
        ("assistant", "history", json!({"steps": [step], "answer": "It is about cats.", "done": true})),
    ];
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots/chat");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (family, prompt) in prompts::all().filter(|(_, prompt)| prompt.id == "chat/react") {
            let family = family.map_or("base", Family::name);
            for (role, name, sample) in &samples {
                let said = prompt.part(role, &inputs(sample.clone())).unwrap();
                let said = format!(
                    "{} tokens, temperature {}, stops {:?}\n\n{said}",
                    prompt.max_tokens, prompt.temperature, prompt.stops
                );
                insta::assert_snapshot!(format!("react.{family}.{role}.{name}"), said);
            }
        }
    });
}
