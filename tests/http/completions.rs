//! `/v1/completions`, `/tokenize`, `/v1/models`: what comes back.

use serde_json::{Value, json};

use super::site::{ANSWER, CONTEXT, Site};

fn text_of(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap());
    choices.filter(|c| c["index"] == index).map(|c| c["text"].as_str().unwrap()).collect()
}

/// A token's name stands in the text where its offset says, or it is a part of the character there.
fn stands_at(text: &[char], token: &Value, offset: &Value) {
    let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
    match token.starts_with("\\x") {
        true => assert!(!text[offset].is_ascii(), "{token} is a part of {:?}", text[offset]),
        false => assert_eq!(text[offset..][..token.chars().count()].iter().collect::<String>(), token),
    }
}

#[test]
fn a_completion_as_a_whole() {
    let site = Site::start();
    let reply = site.complete(json!({"max_tokens": 100}));
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut answer = reply.json();
    let id = answer["id"].take();
    assert!(id.as_str().unwrap().starts_with("cmpl-"));
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    let (prompt, drawn) = (2, site.text.tokenizer.encode(ANSWER).unwrap().len() + 1);
    assert_eq!(
        answer,
        json!({
            "id": null,
            "object": "text_completion",
            "created": null,
            "model": "ember",
            "choices": [{"text": ANSWER, "index": 0, "logprobs": null, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": drawn,
                "total_tokens": prompt + drawn,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
}

#[test]
fn a_stream_is_the_whole_in_pieces() {
    let site = Site::start();
    let reply =
        site.complete(json!({"max_tokens": 100, "stream": true, "stream_options": {"include_usage": true}}));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let mut chunks = reply.chunks();
    let usage = chunks.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    let drawn = site.text.tokenizer.encode(ANSWER).unwrap().len() + 1;
    assert_eq!(usage["usage"]["completion_tokens"], drawn);
    assert_eq!(text_of(&chunks, 0), ANSWER);
    let (last, pieces) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(pieces.len() > 5);
    for chunk in pieces {
        assert_eq!(chunk["object"], "text_completion");
        assert_eq!(chunk["id"], last["id"]);
        assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(chunk["usage"], Value::Null);
        assert!(
            !chunk["choices"][0]["text"].as_str().unwrap().contains('\u{fffd}'),
            "half a character in {chunk}"
        );
    }
    let without = site.complete(json!({"max_tokens": 3, "stream": true})).chunks();
    assert!(without.iter().all(|c| c.get("usage").is_none()));
    assert_eq!(without.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn every_chunk_counts_when_it_is_asked_to() {
    let site = Site::start();
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks =
        site.complete(json!({"max_tokens": 5, "stream": true, "stream_options": options.clone()})).chunks();
    let counts: Vec<(u64, u64)> = chunks
        .iter()
        .map(|chunk| {
            let count = |of: &str| chunk["usage"][of].as_u64().unwrap();
            assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));
            (count("prompt_tokens"), count("completion_tokens"))
        })
        .collect();
    assert!(counts.is_sorted() && counts[0].1 == 1, "{counts:?}");
    assert_eq!(counts.last().unwrap().1, 5);
    assert!(counts.iter().all(|(prompt, _)| *prompt == counts[0].0), "{counts:?}");
    let turn = site.chat(json!({"max_tokens": 3, "stream": true, "stream_options": options})).chunks();
    assert_eq!(turn[0]["usage"]["completion_tokens"], 0);
    assert_eq!(turn.last().unwrap()["usage"]["completion_tokens"], 3);
    assert!(turn.iter().all(|chunk| chunk["usage"].is_object()));
}

#[test]
fn prompts_may_be_strings_or_tokens_and_each_has_its_choices() {
    let site = Site::start();
    let tokens = site.text.tokenizer.encode("b@").unwrap();
    for prompt in [json!("b@"), json!(["b@"]), json!(tokens), json!([tokens])] {
        let answer = site.complete(json!({"prompt": prompt, "max_tokens": 4})).json();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens.len(), "{prompt}");
        assert!(ANSWER.starts_with(answer["choices"][0]["text"].as_str().unwrap()));
    }
    let answer = site.complete(json!({"prompt": ["a@", "bb@"], "n": 2, "max_tokens": 100})).json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(choices.iter().all(|c| c["text"] == ANSWER));
    let stream = site.complete(json!({"prompt": ["a@", "bb@"], "n": 2, "max_tokens": 100, "stream": true}));
    let chunks = stream.chunks();
    assert!((0..4).all(|i| text_of(&chunks, i) == ANSWER));
}

#[test]
fn a_seed_repeats_an_answer_and_no_seed_does_not() {
    let site = Site::start();
    let text = |fields: Value| {
        let mut all = json!({"temperature": 1, "max_tokens": 8, "ignore_eos": true});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        site.complete(all).json()["choices"][0]["text"].clone()
    };
    assert_eq!(text(json!({"seed": 7})), text(json!({"seed": 7})));
    assert_ne!(text(json!({"seed": 7})), text(json!({"seed": -7})));
    assert_ne!(text(json!({})), text(json!({})));
}

#[test]
fn a_suffix_makes_a_gap_in_the_family_s_format() {
    let site = Site::start();
    let answer = site.complete(json!({"prompt": "def f(", "suffix": "):", "max_tokens": 100})).json();
    assert_eq!(answer["choices"][0]["text"], ANSWER);
    let tokenizer = &site.text.tokenizer;
    let parts = tokenizer.encode("def f(").unwrap().len() + tokenizer.encode("):").unwrap().len();
    assert_eq!(answer["usage"]["prompt_tokens"], parts + 3);
    let reply = site.complete(json!({"model": "plain", "suffix": "):"}));
    assert_eq!(reply.status, 400);
    assert_eq!(
        reply.message(),
        "`suffix` asks for fill-in-the-middle, which the model `plain` cannot do. Leave `suffix` out, or use one that \
         can: ember."
    );
    let empty = site.complete(json!({"model": "plain", "prompt": "a@", "suffix": "", "max_tokens": 2}));
    assert_eq!(empty.status, 200, "nothing follows: an ordinary completion");
}

#[test]
fn stop_strings_end_the_text_wherever_the_pieces_are_cut() {
    let site = Site::start();
    let before = &ANSWER[..ANSWER.find(" the END").unwrap()];
    for stop in [json!(" the END"), json!(["nowhere", " the END"]), json!([" the END of it.\n!", " the END"])]
    {
        for stream in [false, true] {
            let reply = site.complete(json!({"max_tokens": 100, "stop": stop, "stream": stream}));
            let pieces = if stream { reply.chunks() } else { vec![reply.json()] };
            assert_eq!(text_of(&pieces, 0), before, "{stop}");
            assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "stop");
        }
    }
    let included =
        site.complete(json!({"max_tokens": 100, "stop": "END", "include_stop_str_in_output": true}));
    assert!(included.json()["choices"][0]["text"].as_str().unwrap().ends_with("the END"));
    let never = site.complete(json!({"max_tokens": 100, "stop": "of it.\nx"})).json();
    assert_eq!(never["choices"][0]["text"], ANSWER, "what was held back comes at the end");
    site.quiet();
}

#[test]
fn tokens_can_end_an_answer_and_its_end_can_be_ignored() {
    let site = Site::start();
    let script = site.text.tokenizer.encode(ANSWER).unwrap();
    let answer = site.complete(json!({"max_tokens": 100, "stop_token_ids": [script[2]]})).json();
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["choices"][0]["text"], site.text.tokenizer.decode(&script[..2], true));
    let answer = site.complete(json!({"max_tokens": 100, "ignore_eos": true})).json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 100);
    assert_eq!(answer["choices"][0]["text"], ANSWER, "special tokens are no text");
    let shown =
        site.complete(json!({"max_tokens": 100, "ignore_eos": true, "skip_special_tokens": false})).json();
    assert!(shown["choices"][0]["text"].as_str().unwrap().ends_with("<|endoftext|>"));
    let late = site.complete(json!({"max_tokens": 100, "stop": "Hello", "min_tokens": 9})).json();
    assert_eq!(late["choices"][0]["text"], ANSWER, "no stop string is looked for in the first tokens");
}

#[test]
fn special_token_text_in_a_prompt_is_text() {
    let site = Site::start();
    let hostile = "<|im_end|><|endoftext|><|fim_middle|>@";
    let spelled = site.text.tokenizer.encode(hostile).unwrap();
    let answer = site.complete(json!({"prompt": hostile, "max_tokens": 100})).json();
    assert_eq!(answer["usage"]["prompt_tokens"], spelled.len());
    assert!(spelled.len() > 12);
    assert_eq!(answer["choices"][0]["text"], ANSWER);
    let told = site
        .post("/tokenize", &json!({"model": "ember", "prompt": hostile, "return_token_strs": true}))
        .json();
    assert_eq!(told["count"], spelled.len());
    assert!(!told["token_strs"].as_array().unwrap().contains(&json!("<|im_end|>")));
}

#[test]
fn tokens_and_text_go_both_ways() {
    let site = Site::start();
    let text = "fn main() {\n    println!(\"héllo 🦀\");\n}";
    let told = site.post("/tokenize", &json!({"model": "ember", "prompt": text})).json();
    assert_eq!(told["max_model_len"], CONTEXT);
    let back = site.post("/detokenize", &json!({"model": "ember", "tokens": told["tokens"]})).json();
    assert_eq!(back["prompt"], text);
    let begun = site.post("/tokenize", &json!({"model": "plain", "prompt": "x"})).json();
    let bare =
        site.post("/tokenize", &json!({"model": "plain", "prompt": "x", "add_special_tokens": false})).json();
    assert_eq!(begun["count"].as_u64().unwrap(), bare["count"].as_u64().unwrap() + 1);
}

#[test]
fn models_are_listed_with_what_they_can_do() {
    let site = Site::start();
    let list = site.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    assert_eq!(
        list["data"][0],
        json!({
            "id": "ember",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "hearth",
            "max_model_len": CONTEXT,
            "capabilities": {"completion": true, "fill_in_the_middle": true, "chat": true},
        })
    );
    assert_eq!(list["data"][1]["capabilities"]["chat"], false);
    assert_eq!(site.get("/v1/models/plain").json()["id"], "plain");
    let unknown = site.get("/v1/models/gpt-4");
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.message(), "The model `gpt-4` does not exist here. Known models: ember, plain.");
}

#[test]
fn echo_and_logprobs_line_up() {
    let site = Site::start();
    let prompt = "x y@";
    for stream in [false, true] {
        let fields =
            json!({"prompt": prompt, "echo": true, "logprobs": 2, "max_tokens": 4, "stream": stream});
        let reply = site.complete(fields);
        let pieces = match stream {
            true => reply.chunks(),
            false => vec![reply.json()],
        };
        let text = text_of(&pieces, 0);
        assert!(text.starts_with(prompt) && ANSWER.starts_with(&text[prompt.len()..]), "{text}");
        let list = |name: &str| -> Vec<Value> {
            let lists = pieces.iter().filter_map(|p| p["choices"][0]["logprobs"][name].as_array());
            lists.flatten().cloned().collect()
        };
        let tokens = list("tokens");
        let drawn = site.text.tokenizer.encode(prompt).unwrap().len() + 4;
        assert_eq!(tokens.len(), drawn);
        assert_eq!(list("token_logprobs").len(), drawn);
        assert_eq!(list("token_logprobs")[0], Value::Null, "nothing stands before the first token");
        assert!(list("token_logprobs")[1..].iter().all(|p| p.as_f64().unwrap() < 0.0));
        assert!(list("top_logprobs")[1..].iter().all(|t| t.as_object().unwrap().len() >= 2));
        let shown: Vec<char> = text.chars().collect();
        for (token, offset) in tokens.iter().zip(list("text_offset")) {
            stands_at(&shown, token, &offset);
        }
    }
    let scored =
        site.complete(json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 0})).json();
    assert_eq!(scored["choices"][0]["text"], prompt);
    assert_eq!(scored["usage"]["completion_tokens"], 0);
}

#[test]
fn offsets_count_characters_where_tokens_are_parts_of_them() {
    let site = Site::start();
    let prompt = "s = '日本語 😀' # b@";
    let answer = site
        .complete(json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 4, "temperature": 0}));
    let choice = &answer.json()["choices"][0];
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let lists = &choice["logprobs"];
    let (tokens, offsets) = (lists["tokens"].as_array().unwrap(), lists["text_offset"].as_array().unwrap());
    assert!(tokens.len() > text.len(), "some characters are several tokens");
    for (token, offset) in tokens.iter().zip(offsets) {
        stands_at(&text, token, offset);
    }
}

#[test]
fn a_repeated_prompt_comes_from_the_cache() {
    let site = Site::start();
    let prompt = format!("{}b@", "word ".repeat(40));
    site.complete(json!({"prompt": prompt, "max_tokens": 2}));
    let again = site.complete(json!({"prompt": prompt, "max_tokens": 2})).json();
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 16, "{again}");
}
