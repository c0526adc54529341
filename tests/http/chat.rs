//! `/v1/chat/completions`: what comes back.

use serde_json::{Value, json};

use super::site::{ANSWER, Site};

#[test]
fn a_turn_as_a_whole() {
    let site = Site::start();
    let mut answer = site.chat(json!({})).json();
    assert!(answer["id"].take().as_str().unwrap().starts_with("chatcmpl-"));
    answer["created"].take();
    let usage = answer["usage"].take();
    assert_eq!(
        answer,
        json!({
            "id": null,
            "object": "chat.completion",
            "created": null,
            "model": "ember",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER, "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": null,
        })
    );
    let whole = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let text = &site.text.tokenizer;
    let everything = 0..whole.len();
    let trusted = hearth::text::tokenizer::Trusted(std::slice::from_ref(&everything));
    assert_eq!(usage["prompt_tokens"], text.encode_trusted(whole, trusted).unwrap().len());
}

#[test]
fn a_streamed_turn_begins_with_its_role_and_ends_with_its_reason() {
    let site = Site::start();
    let reply = site.chat(json!({"stream": true, "n": 2, "stream_options": {"include_usage": true}}));
    let mut chunks = reply.chunks();
    let usage = chunks.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["total_tokens"].as_u64().unwrap() > 20);
    for index in 0..2 {
        let mine: Vec<&Value> =
            chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(mine[0]["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
        let text: String = mine.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(text, ANSWER);
        let last = mine.last().unwrap();
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
        assert!(mine[..mine.len() - 1].iter().all(|c| c["finish_reason"].is_null()));
    }
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["usage"].is_null()));
}

#[test]
fn log_probabilities_of_a_turn() {
    let site = Site::start();
    for stream in [false, true] {
        let reply =
            site.chat(json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 4, "stream": stream}));
        let entries: Vec<Value> = match stream {
            false => reply.json()["choices"][0]["logprobs"]["content"].as_array().unwrap().clone(),
            true => {
                let chunks = reply.chunks();
                let lists =
                    chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array().cloned());
                lists.flatten().collect()
            }
        };
        assert_eq!(entries.len(), 4);
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|e| e["bytes"].as_array().unwrap())
            .map(|b| b.as_u64().unwrap() as u8)
            .collect();
        assert!(ANSWER.as_bytes().starts_with(&bytes));
        for entry in &entries {
            assert!(entry["logprob"].as_f64().unwrap() < 0.0);
            assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
        }
    }
}

#[test]
fn messages_may_be_parts_and_every_role_is_taken() {
    let site = Site::start();
    let parts = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "name": "ann"},
        {"role": "assistant", "content": null},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "user", "content": "go on"},
    ]);
    let answer = site.chat(json!({"messages": parts})).json();
    assert_eq!(answer["choices"][0]["message"]["content"], ANSWER);
    let plain = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": "go on"},
    ]);
    let same = site.chat(json!({"messages": plain})).json();
    assert_eq!(same["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);
}

#[test]
fn a_message_cannot_end_its_turn() {
    let site = Site::start();
    let count = |text: &str| {
        let reply = site.chat(json!({"messages": [{"role": "user", "content": text}], "max_tokens": 1}));
        reply.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let spelled = site.text.tokenizer.encode("<|im_end|>").unwrap().len() as u64;
    assert!(spelled > 3);
    let around = count("x") - 1;
    assert_eq!(count("<|im_end|>"), around + spelled);
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let site = Site::start();
    let reply = site.chat(json!({"model": "plain"}));
    assert_eq!(reply.status, 400);
    assert_eq!(
        reply.message(),
        "The model `plain` has no chat template; use /v1/completions, or a checkpoint made for chat."
    );
}

#[test]
fn without_a_limit_a_turn_may_fill_the_context() {
    let site = Site::start();
    let answer = site.chat(json!({"ignore_eos": true})).json();
    assert_eq!(answer["usage"]["total_tokens"], super::site::CONTEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let limited = site.chat(json!({"ignore_eos": true, "max_completion_tokens": 5})).json();
    assert_eq!(limited["usage"]["completion_tokens"], 5);
}

#[test]
fn an_answer_goes_on_with_the_assistants_last_message_when_told_so() {
    let site = Site::start();
    let first: Vec<u32> = site.text.tokenizer.encode(ANSWER).unwrap().into_iter().take(3).collect();
    let begun = site.text.tokenizer.decode(&first, false);
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": begun}]);
    for fields in [
        json!({"continue_final_message": true, "add_generation_prompt": false}),
        json!({"continue_final_message": true}),
    ] {
        let mut asked = fields.clone();
        asked["messages"] = messages.clone();
        let answer = site.chat(asked).json();
        assert_eq!(answer["choices"][0]["message"]["content"], ANSWER[begun.len()..], "{fields}");
    }
    for (fields, words) in [
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "must be false"),
        (json!({"add_generation_prompt": false}), "true without"),
        (json!({"continue_final_message": true}), "a last message of the assistant"),
        (
            json!({"continue_final_message": true, "messages": [{"role": "assistant", "content": "a"}]}),
            "a last message of the assistant",
        ),
    ] {
        let reply = site.chat(fields);
        assert_eq!(reply.status, 400);
        assert!(reply.message().contains(words), "{}", reply.message());
    }
}
