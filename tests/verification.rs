//! How GitLab and its administrators find out whether the gateway works, step by step, against the binary and its embedded
//! model: the rake task, the health check page, "Test connection", the guides' curl lines. Every request is given up after
//! the time that GitLab itself waits for it.

mod gitlab;
mod served;

use std::time::Duration;

use gitlab::GitLab;
use serde_json::{Value, json};
use served::{KEY, Served};

/// A gateway of that GitLab.
fn serve(gitlab: &GitLab) -> Served {
    let served = Served::start_with(&[], &[("HEARTH__GITLAB__URL", &gitlab.url())]);
    gitlab.gateway(&served.url);
    // The keys are fetched when the server starts; GitLab asks later than that.
    gitlab.until_fetched(1);
    served
}

struct Reply {
    status: u16,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.body))
    }
}

fn agent(patience: u64) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(patience))).build().new_agent()
}

/// A POST that is given up after `patience` seconds.
fn post(url: &str, headers: &[(String, String)], body: &Value, patience: u64) -> Reply {
    let mut request = agent(patience).post(url);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = request.send_json(body).unwrap_or_else(|e| panic!("{url}: {e}"));
    Reply { status: answer.status().as_u16(), body: answer.into_body().read_to_string().unwrap() }
}

fn get(url: &str, headers: &[(&str, &str)], patience: u64) -> Reply {
    let mut request = agent(patience).get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.call().unwrap_or_else(|e| panic!("{url}: {e}"));
    Reply { status: answer.status().as_u16(), body: answer.into_body().read_to_string().unwrap() }
}

/// A model as an administrator described it to GitLab.
fn metadata(served: &Served, identifier: &str) -> Value {
    json!({"provider": "openai", "name": "general", "endpoint": format!("{}/v1", served.url), "api_key": KEY,
        "identifier": identifier})
}

#[test]
fn the_rake_task_finds_the_gateway_and_the_models() {
    let gitlab = GitLab::start();
    let served = serve(&gitlab);
    let health = get(&format!("{}/monitoring/healthz", served.url), &[("accept", "application/json")], 10);
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["status"], "ok");
    // The administrator's endpoint ends in /v1, and the task appends /v1/models to it.
    for path in ["/v1/v1/models", "/v1/models"] {
        let url = format!("{}{path}", served.url);
        let key = format!("Bearer {KEY}");
        let models = get(&url, &[("authorization", &key), ("user-agent", "GitLab-Duo/18.9.0")], 10);
        assert_eq!(models.status, 200, "{path}");
        assert_eq!(models.json()["data"][0]["id"], "ember-demo", "{path}");
    }
    let ready = get(&format!("{}/monitoring/ready", served.url), &[], 10);
    assert_eq!((ready.status, ready.body.as_str()), (200, "{}"));
}

#[test]
fn the_health_check_page_is_green() {
    let gitlab = GitLab::start();
    let served = serve(&gitlab);
    // The host probe: any answer will do.
    let head = agent(5).head(&served.url).call().unwrap();
    assert_eq!(head.status().as_u16(), 401);
    // The end-to-end probe of each version, with the time it waits.
    let flat = json!({"model_provider": "litellm", "prompt": null, "model_endpoint": format!("{}/v1", served.url),
        "model_name": "general", "model_api_key": KEY, "model_identifier": "custom_openai/ember-demo"});
    for (version, prompt_version, with_model) in
        [("17.9.0", 1, false), ("18.9.0", 1, false), ("18.9.0", 2, true), ("19.3.0", 2, true)]
    {
        let mut body = json!({"prompt_version": prompt_version, "current_file":
            {"file_name": "test.rb", "content_above_cursor": "def hello_world", "content_below_cursor": ""}});
        if with_model {
            body.as_object_mut().unwrap().extend(flat.as_object().unwrap().clone());
        }
        let token = gitlab.token().scopes(&["complete_code"]).sign();
        let url = format!("{}/v2/code/completions", served.url);
        let reply = post(&url, &gitlab.with(&token, version), &body, 3);
        assert_eq!(reply.status, 200, "{version}: {}", reply.body);
        let text = reply.json()["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
        assert!(!text.trim().is_empty(), "{version}: the probe wants a text: {}", reply.body);
    }
}

#[test]
fn test_connection_says_yes_and_says_what_is_wrong() {
    let gitlab = GitLab::start();
    let served = serve(&gitlab);
    let url = format!("{}/v1/prompts/model_configuration%2Fcheck", served.url);
    let token = gitlab.token().scopes(&["complete_code"]).sign();
    for (version, patience) in [("17.9.0", 3), ("18.9.0", 3), ("19.3.0", 15)] {
        for identifier in ["custom_openai/ember-demo", "ember-demo", ""] {
            let body =
                json!({"stream": false, "inputs": {}, "model_metadata": metadata(&served, identifier)});
            let reply = post(&url, &gitlab.with(&token, version), &body, patience);
            assert_eq!(reply.status, 200, "{version} {identifier:?}: {}", reply.body);
            assert!(reply.json().is_string(), "{}", reply.body);
        }
    }
    let body =
        json!({"stream": false, "inputs": {}, "model_metadata": metadata(&served, "custom_openai/typo")});
    let reply = post(&url, &gitlab.with(&token, "19.3.0"), &body, 15);
    assert_eq!((reply.status, reply.json()), (421, json!({"detail": "404: Not Found"})));
    // GitLab then asks itself which names there are.
    let key = format!("Bearer {KEY}");
    let models = get(&format!("{}/v1/models", served.url), &[("authorization", &key)], 5);
    assert_eq!(models.json()["data"][0]["id"], "ember-demo");
}

#[test]
fn the_guides_requests_by_hand_work() {
    let gitlab = GitLab::start();
    let served = serve(&gitlab);
    let stranger = get(&served.url, &[], 10);
    assert_eq!(stranger.body, r#"{"error":"No authorization header presented"}"#);
    // The console snippet.
    let body = json!({"prompt_components": [{"type": "prompt", "metadata": {"source": "GitLab EE", "version": "18.9.0"},
        "payload": {"content": [{"role": "user", "content": "Hello"}], "provider": "litellm", "model": "general",
            "model_endpoint": format!("{}/v1", served.url), "model_api_key": KEY,
            "model_identifier": "custom_openai/ember-demo"}}]});
    let reply = post(&format!("{}/v1/chat/agent", served.url), &gitlab.rails(), &body, 60);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = reply.json();
    assert!(answer["response"].is_string(), "{answer}");
    assert_eq!(answer["metadata"]["provider"], "litellm");
    assert!(answer["metadata"]["timestamp"].is_u64());
}

#[test]
fn with_the_check_of_tokens_off_the_containers_own_requests_work() {
    let served = Served::start_with(&[], &[("AIGW_AUTH__BYPASS_EXTERNAL", "true")]);
    let body = json!({"prompt_components": [{"type": "string", "metadata": {"source": "string", "version": "string"},
        "payload": {"content": "Hello", "provider": "litellm", "model": "mistral",
            "model_endpoint": "http://localhost:4000"}}], "stream": false});
    let reply = post(&format!("{}/v1/chat/agent", served.url), &[], &body, 60);
    assert_eq!(reply.status, 200, "{}", reply.body);
    // Chat troubleshooting: lines must appear.
    let body = json!({"messages": [{"role": "user", "content": "Hello", "context": null, "current_file": null,
            "additional_context": []}],
        "model_metadata": {"provider": "custom_openai", "name": "mistral", "endpoint": "http://localhost:4000",
            "api_key": "x", "identifier": ""},
        "unavailable_resources": [], "options": {"agent_scratchpad": {"agent_type": "react", "steps": []}}});
    let reply = post(&format!("{}/v2/chat/agent", served.url), &[], &body, 60);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.body.ends_with('\n') && reply.body.lines().count() > 0, "{:?}", reply.body);
    for line in reply.body.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["type"].is_string() && event["data"].is_object(), "{line}");
    }
    // The troubleshooting script: no token, an empty prompt, and only the status counts.
    let body = json!({"prompt_version": 2, "prompt": "", "prompt_id": "code_suggestions/generations",
        "model_provider": "litellm", "model_name": "mistral", "model_endpoint": "http://localhost:4000",
        "current_file": {"file_name": "test.py", "content_above_cursor": "# hello world", "content_below_cursor": ""}});
    let reply = post(&format!("{}/v2/code/generations", served.url), &[], &body, 30);
    assert_eq!(reply.status, 200, "{}", reply.body);
}
