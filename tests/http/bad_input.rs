//! Bad input: a clear error each, and the server goes on.

use serde_json::{Value, json};

use super::client::{Line, request};
use super::site::{ANSWER, CONTEXT, KEY, Site};

fn check(site: &Site, path: &str, fields: Value, param: &str, words: &str) {
    let shown = fields.to_string().chars().take(120).collect::<String>();
    let reply = match path {
        "/v1/completions" => site.complete(fields),
        _ => site.chat(fields),
    };
    assert_eq!(reply.status, 400, "{path} {shown}: {}", reply.body);
    let error = &reply.json()["error"];
    assert_eq!(error["param"], param, "{path} {shown}: {error}");
    assert_eq!(error["type"], "invalid_request_error");
    assert!(error["code"].is_string());
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(words), "{path} {shown}: {message:?} does not say {words:?}");
}

#[test]
fn every_field_out_of_range_is_refused_by_name() {
    let site = Site::start();
    let both: Vec<(Value, &str, &str)> = vec![
        (json!({"temperature": 2.1}), "temperature", "from 0 to 2; it is 2.1"),
        (json!({"temperature": -0.1}), "temperature", "from 0 to 2"),
        (json!({"temperature": "hot"}), "temperature", "must be a number, not a string"),
        (json!({"top_p": 1.1}), "top_p", "from 0 to 1"),
        (json!({"top_p": 0}), "top_p", "more than 0"),
        (json!({"top_k": -2}), "top_k", "-1"),
        (json!({"top_k": 1.5}), "top_k", "whole number"),
        (json!({"min_p": 2}), "min_p", "from 0 to 1"),
        (json!({"repetition_penalty": 1e-38}), "repetition_penalty", "from 0.01 to 2"),
        (json!({"repetition_penalty": 3}), "repetition_penalty", "from 0.01 to 2"),
        (json!({"presence_penalty": 3}), "presence_penalty", "from -2 to 2"),
        (json!({"frequency_penalty": -3}), "frequency_penalty", "from -2 to 2"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x", "from 0 to 4095"),
        (json!({"logit_bias": {"4096": 1}}), "logit_bias.4096", "from 0 to 4095"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1", "from -100 to 100"),
        (json!({"logit_bias": [1]}), "logit_bias", "an object"),
        (json!({"n": 0}), "n", "from 1 to 128"),
        (json!({"n": 1_000_000_000}), "n", "from 1 to 128; it is 1000000000"),
        (json!({"n": 1e300}), "n", "whole number"),
        (json!({"max_tokens": -1}), "max_tokens", "whole number"),
        (json!({"max_tokens": 5_000_000_000u64}), "max_tokens", "whole number"),
        (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens", "`min_tokens` (9) must not exceed"),
        (json!({"seed": u64::MAX}), "seed", "to 9223372036854775807; it is 18446744073709551615"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            r#"= {"type":"json_object"} is not"#,
        ),
        (json!({"seed": "x"}), "seed", "a whole number, not a string"),
        (json!({"stop": ""}), "stop", "empty"),
        (json!({"stop": ["a", 3]}), "stop", "a string or a list of strings"),
        (json!({"stop": vec!["x"; 17]}), "stop", "may have 16 strings; it has 17"),
        (json!({"stop": "x".repeat(513)}), "stop", "513 bytes; 512 is the limit"),
        (json!({"stop_token_ids": [4096]}), "stop_token_ids[0]", "from 0 to 4095"),
        (json!({"stop_token_ids": 3}), "stop_token_ids", "a list of tokens"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "needs `stream: true`"),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
            "stream_options",
            "needs `stream_options.include_usage: true`",
        ),
        (
            json!({"stream": true, "stream_options": {"include_usages": true}}),
            "stream_options.include_usages",
            "did you mean `stream_options.include_usage`?",
        ),
        (json!({"stream": true, "stream_options": true}), "stream_options", "an object, not a boolean"),
        (json!({"model": 3}), "model", "a string, not a number"),
        (json!({"model": null}), "model", "Known models: ember, plain."),
        (json!({"temprature": 1}), "temprature", "did you mean `temperature`?"),
        (json!({"use_beam_search": true}), "use_beam_search", "Unknown field `use_beam_search`; remove it."),
        (json!({"response_format": {"type": "json_object"}}), "response_format", "not supported"),
    ];
    for (fields, param, words) in both {
        let chat = fields.clone();
        // In chat the limit has another name in the message, and stands for the same field.
        check(&site, "/v1/completions", fields, param, words);
        check(&site, "/v1/chat/completions", chat, param, words);
    }
    assert_eq!(site.complete(json!({"max_tokens": 100})).json()["choices"][0]["text"], ANSWER);
}

#[test]
fn completions_refuse_what_is_theirs() {
    let site = Site::start();
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({"prompt": null}), "prompt", "missing"),
        (json!({"prompt": 3}), "prompt", "a string, a list of strings, or tokens, not a number"),
        (json!({"prompt": []}), "prompt", "empty list"),
        (json!({"prompt": vec!["x"; 65]}), "prompt", "65 prompts; 64 is the limit"),
        (json!({"prompt": ["x", true]}), "prompt[1]", "not a boolean"),
        (json!({"prompt": [1, "x"]}), "prompt[1]", "a whole number, not a string"),
        (json!({"prompt": [1, -1]}), "prompt[1]", "whole number"),
        (json!({"prompt": [[1], [4096]]}), "prompt[1]", "no token 4096"),
        (json!({"prompt": ""}), "prompt", "The prompt is empty"),
        (json!({"prompt": vec!["x"; 64], "n": 3}), "n", "together at most 128"),
        (json!({"best_of": 5}), "best_of", "not supported"),
        (json!({"logprobs": 21}), "logprobs", "from 0 to 20"),
        (json!({"logprobs": true}), "logprobs", "a whole number, not a boolean"),
        (json!({"echo": 1}), "echo", "true or false"),
        (json!({"echo": true, "suffix": "x"}), "echo", "leave one of them out"),
        (json!({"suffix": 3}), "suffix", "a string"),
        (json!({"prompt": [1, 2], "suffix": "x"}), "suffix", "needs `prompt` as text"),
        (json!({"max_tokens": 0}), "max_tokens", "at least 1"),
        (json!({"messages": []}), "messages", "Unknown field"),
    ];
    for (fields, param, words) in cases {
        check(&site, "/v1/completions", fields, param, words);
    }
}

#[test]
fn chat_refuses_what_is_its_own() {
    let site = Site::start();
    let message = |value: Value| json!({"messages": [value]});
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({"messages": null}), "messages", "missing"),
        (json!({"messages": "hi"}), "messages", "a list of messages, not a string"),
        (json!({"messages": []}), "messages", "it has 0"),
        (json!({"messages": vec![json!({}); 2049]}), "messages", "it has 2049"),
        (message(json!("hi")), "messages[0]", "an object, not a string"),
        (message(json!({"content": "x"})), "messages[0].role", "system, developer, user"),
        (message(json!({"role": "root", "content": "x"})), "messages[0].role", "must be one of"),
        (message(json!({"role": "root", "content": "x"})), "messages[0].role", "it is \"root\""),
        (message(json!({"content": "x"})), "messages[0].role", "is missing; send one of"),
        (message(json!({"role": "user"})), "messages[0].content", "missing"),
        (message(json!({"role": "user", "content": 3})), "messages[0].content", "a list of text parts"),
        (
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
            "messages[0].content[0].type",
            "must be \"text\"",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            "messages[0].content[0].text",
            "missing",
        ),
        (
            message(json!({"role": "user", "content": "x", "contents": 1})),
            "messages[0].contents",
            "did you mean",
        ),
        (
            message(json!({"role": "assistant", "tool_calls": [{}]})),
            "messages[0].tool_calls",
            "does not call tools",
        ),
        (json!({"tools": [{}]}), "tools", "does not call tools"),
        (json!({"tool_choice": "required"}), "tool_choice", "does not call tools"),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs `logprobs: true`"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20"),
        (json!({"max_tokens": 1, "max_completion_tokens": 1}), "max_tokens", "not both"),
        (json!({"max_tokens": 0}), "max_completion_tokens", "at least 1"),
        (json!({"chat_template": "{{ x }}"}), "chat_template", "from the checkpoint only"),
        (json!({"prompt": "x"}), "prompt", "Unknown field"),
    ];
    for (fields, param, words) in cases {
        check(&site, "/v1/chat/completions", fields, param, words);
    }
}

#[test]
fn every_field_within_its_range_is_taken() {
    let site = Site::start();
    let both = [
        json!({"temperature": 2, "top_p": 0.5, "top_k": -1, "min_p": 0.1}),
        json!({"top_k": 40, "repetition_penalty": 1.3, "presence_penalty": -2, "frequency_penalty": 2}),
        json!({"logit_bias": {"5": -100, "6": 3.5}, "seed": -1, "n": 2}),
        json!({"max_tokens": 3, "min_tokens": 2, "stop": ["x"], "stop_token_ids": [7], "ignore_eos": true}),
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "safety_identifier": "s"}),
        json!({"prompt_cache_key": "k", "parallel_tool_calls": true, "response_format": {"type": "text"}}),
        json!({"stream": false, "stream_options": null, "stop": null, "seed": 1.0, "max_tokens": 2.0}),
        json!({"skip_special_tokens": false, "include_stop_str_in_output": true}),
    ];
    for fields in both {
        let reply = site.complete(fields.clone());
        assert_eq!(reply.status, 200, "{fields}: {}", reply.body);
        let reply = site.chat(fields.clone());
        assert_eq!(reply.status, 200, "{fields}: {}", reply.body);
    }
    for fields in
        [json!({"best_of": 1, "echo": false, "logprobs": 0, "suffix": null}), json!({"n": 2, "best_of": 2})]
    {
        assert_eq!(site.complete(fields.clone()).status, 200, "{fields}");
    }
    let neutral = json!({"tools": [], "tool_choice": "none", "modalities": ["text"], "logprobs": false});
    assert_eq!(site.chat(neutral).status, 200);
}

#[test]
fn a_prompt_that_is_too_long_is_told_both_numbers() {
    let site = Site::start();
    let prompt = "word ".repeat(CONTEXT as usize);
    let tokens = site.text.tokenizer.encode(&prompt).unwrap().len();
    let reply = site.complete(json!({"prompt": prompt, "max_tokens": 9}));
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(
        reply.message(),
        format!(
            "The prompt has {tokens} tokens and 9 more are asked for; the model's context is {CONTEXT} tokens. Shorten \
             `prompt` or lower `max_tokens`."
        )
    );
    let long = "x".repeat(CONTEXT as usize * 16 + 5000);
    let reply = site.complete(json!({"prompt": long}));
    assert_eq!(reply.status, 400);
    assert!(
        reply.message().contains(&format!("{} bytes long, which cannot fit {CONTEXT} tokens", long.len()))
    );
    let messages = json!([{"role": "user", "content": long}]);
    assert_eq!(site.chat(json!({"messages": messages})).json()["error"]["param"], "messages");
}

#[test]
fn bodies_that_are_no_json_object() {
    let site = Site::start();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = r#"{"model": "ember", "prompt": "x", "temperature": 1e999}"#;
    for (body, words) in [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("{\"model\": \"ember\",}", "line 1 column"),
        ("[1]", "must be a JSON object, not a list"),
        ("\"x\"", "not a string"),
        (deep.as_str(), "recursion limit"),
        (huge, "number out of range"),
        ("{\"model\": \"\\ud800\"}", "not valid JSON"),
        ("{\"temperature\": NaN}", "near `temperature`"),
        ("{\"temperature\": NaN}", "send a finite number"),
        (huge, "send a finite number"),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
            let reply = site.post_text(path, body);
            assert_eq!(reply.status, 400, "{path}: {}", reply.body);
            assert!(reply.message().contains(words), "{path}: {}", reply.message());
        }
    }
    let bytes = [
        request("POST", "/v1/completions", &[("x-api-key", KEY), ("content-length", "2")], ""),
        vec![0xff; 2],
    ];
    let reply = Line::open(site.address, &bytes.concat()).reply();
    assert_eq!(reply.status, 400);
    let headers = [("x-api-key", KEY), ("content-type", "application/x-www-form-urlencoded")];
    let form = Line::open(site.address, &request("POST", "/v1/completions", &headers, "a=b")).reply();
    assert_eq!(form.status, 415);
    assert!(
        form.message()
            .contains("not \"application/x-www-form-urlencoded\": send `Content-Type: application/json`")
    );
}

#[test]
fn a_field_that_stands_twice_is_refused_instead_of_chosen() {
    let site = Site::start();
    for (path, body, param) in [
        ("/v1/completions", r#"{"model": "other", "prompt": "x", "model": "ember"}"#, "model"),
        (
            "/v1/completions",
            r#"{"model": "ember", "prompt": "x", "max_tokens": 1, "max_tokens": 2}"#,
            "max_tokens",
        ),
        (
            "/v1/chat/completions",
            r#"{"model": "ember", "messages": [{"role": "user", "content": "x", "role": "system"}]}"#,
            "messages[0].role",
        ),
        ("/tokenize", r#"{"model": "ember", "prompt": "x", "prompt": "y"}"#, "prompt"),
    ] {
        let reply = site.post_text(path, body);
        assert_eq!(reply.status, 400, "{path}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param);
        assert!(reply.message().contains("stands twice"), "{}", reply.message());
    }
}

#[test]
fn an_answer_far_larger_than_its_request_is_refused_before_it_is_computed() {
    let site = Site::start();
    let body = json!({"prompt": "x ".repeat(2000), "echo": true, "logprobs": 20, "n": 128, "max_tokens": 0});
    check(&site, "/v1/completions", body, "logprobs", "1048576 is the limit: lower `n` or `logprobs`");
    let tokens = vec![1; 1_000_000];
    check(
        &site,
        "/v1/completions",
        json!({"prompt": tokens}),
        "prompt",
        "1000000 tokens; the model's context is",
    );
    let reply = site.post("/detokenize", &json!({"model": "ember", "tokens": tokens}));
    assert_eq!(reply.status, 400);
    assert!(
        reply.message().contains("`tokens` has 1000000 tokens; the model's context is"),
        "{}",
        reply.message()
    );
}

#[test]
fn of_several_prompts_the_wrong_one_is_named() {
    let site = Site::start();
    let long = "x".repeat(100_000);
    let completions = "/v1/completions";
    check(&site, completions, json!({"prompt": ["x", ""]}), "prompt[1]", "Send some text in `prompt[1]`");
    check(&site, completions, json!({"prompt": ["x", long]}), "prompt[1]", "Shorten `prompt[1]`");
    check(&site, completions, json!({"prompt": long}), "prompt", "Shorten `prompt`");
    check(&site, completions, json!({"prompt": [[1], [1, 4096]]}), "prompt[1]", "no token 4096");
}

#[test]
fn bodies_larger_than_the_limit_are_refused() {
    let site = Site::start();
    let headers = [("x-api-key", KEY), ("content-length", "8388609")];
    let announced = Line::open(site.address, &request("POST", "/v1/completions", &headers, "")).reply();
    assert_eq!(announced.status, 413);
    assert!(announced.message().contains("8388608 bytes"));
    let headers = [("x-api-key", KEY), ("transfer-encoding", "chunked")];
    let mut line = Line::open(site.address, &request("POST", "/v1/completions", &headers, ""));
    let piece = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    for _ in 0..9 {
        line.send(&piece);
    }
    assert_eq!(line.reply().status, 413);
    assert_eq!(site.complete(json!({"max_tokens": 1})).status, 200);
}

#[test]
fn tokenize_and_detokenize_refuse_by_name_too() {
    let site = Site::start();
    for (path, body, param) in [
        ("/tokenize", json!({"model": "ember"}), "prompt"),
        ("/tokenize", json!({"model": "ember", "prompt": 3}), "prompt"),
        ("/tokenize", json!({"model": "ember", "prompt": "x", "messages": []}), "messages"),
        ("/detokenize", json!({"model": "ember"}), "tokens"),
        ("/detokenize", json!({"model": "ember", "tokens": [4096]}), "tokens"),
        ("/detokenize", json!({"model": "ember", "tokens": ["x"]}), "tokens[0]"),
    ] {
        let reply = site.post(path, &body);
        assert_eq!(
            (reply.status, reply.json()["error"]["param"].as_str()),
            (400, Some(param)),
            "{}",
            reply.body
        );
    }
    let reply = site.post("/tokenize", &json!({"model": "nothing", "prompt": "x"}));
    assert_eq!(reply.status, 404);
}
