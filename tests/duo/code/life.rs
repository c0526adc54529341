//! Keystrokes: what is reused, what a client that leaves frees, and what happens when the model fails.

use std::time::Duration;

use hearth::engine::scripted::Fault;
use serde_json::json;

use super::super::site::Site;
use super::bodies::*;

/// A file of some hundred lines, larger than the model's context when asked for.
fn source(lines: usize) -> String {
    (0..lines).map(|i| format!("    value_{i} = compute(value_{}, {i})\n", i / 2)).collect()
}

#[test]
fn keystrokes_in_one_file_share_their_prompts_beginning() {
    let site = Site::open();
    site.answers("x");
    let file_text = source(200);
    let context =
        json!([{"type": "file", "name": "b.py", "content": "def helper():\n    pass\n".repeat(10)}]);
    let mut prompts = Vec::new();
    for typed in ["r", "re", "ret", "retu", "retur", "return"] {
        let before = site.engine.status();
        let above = format!("{file_text}    {typed}");
        let body =
            with(language_server(file("a.py", &above, "\n\nend_of_file()\n")), json!({"context": context}));
        assert_eq!(site.post(DIRECT, &body).status, 200);
        site.quiet();
        let after = site.engine.status();
        prompts.push((after.prefix_queries - before.prefix_queries, after.prefix_hits - before.prefix_hits));
    }
    assert_eq!(prompts[0].1, 0, "the first one is new");
    for (tokens, hits) in &prompts[1..] {
        assert!(*tokens > 1000 && tokens - hits < 64, "{hits} of {tokens} tokens were there");
    }
}

#[test]
fn a_file_larger_than_the_context_is_cut_where_the_next_keystroke_cuts_it() {
    let site = Site::open();
    site.answers("x");
    let file_text = source(3000);
    assert!(file_text.len() > 100_000);
    let mut reused = 0;
    let keystrokes = 12;
    for typed in 0..=keystrokes {
        let before = site.engine.status();
        // GitLab sends the last 100 000 characters, whose beginning moves with each keystroke.
        let all = format!("{file_text}    result_of_it");
        let all = &all[..all.len() - keystrokes + typed];
        let above = &all[all.len() - 100_000..];
        assert_eq!(site.post(COMPLETIONS, &rails(file("a.py", above, "\n"))).status, 200);
        site.quiet();
        let after = site.engine.status();
        let tokens = after.prefix_queries - before.prefix_queries;
        assert!(tokens > 5000 && tokens < 8192, "{tokens} tokens of a context of 8192");
        reused += usize::from(tokens - (after.prefix_hits - before.prefix_hits) < 64);
    }
    assert!(reused >= keystrokes - 2, "{reused} of {keystrokes} keystrokes found their beginning");
}

#[test]
fn context_that_does_not_fit_gives_way_to_the_file() {
    let site = Site::open();
    site.answers("x");
    let context = json!(vec![json!({"type": "file", "name": "b.py", "content": source(2500)}); 8]);
    for lines in [10, 200, 3000] {
        let above = source(lines);
        let above = &above[..above.len().min(100_000)];
        let body = with(language_server(file("a.py", above, &source(500))), json!({"context": context}));
        let before = site.engine.status().prefix_queries;
        assert_eq!(site.post(DIRECT, &body).status, 200);
        let tokens = site.engine.status().prefix_queries - before;
        assert!(tokens > 4000 && tokens < 8192, "{tokens} tokens");
    }
}

#[test]
fn a_cancelled_keystroke_frees_its_slot() {
    let site = Site::open();
    site.answers(&"word and ".repeat(60));
    site.controls.delay(Duration::from_millis(5));
    for stream in [false, true] {
        let body = with(rails(file("a.rb", "x = ", "")), json!({"stream": stream})).to_string();
        let line = site.open_with("POST", COMPLETIONS, &[], &body);
        while site.engine.status().running == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(line);
        site.quiet();
    }
    assert!(site.controls.steps() < 100, "{} steps for readers who left", site.controls.steps());
}

#[test]
fn a_rule_that_ends_an_answer_stops_the_model() {
    let site = Site::open();
    site.answers(&format!("value);\n{}", "more_of_it();\n".repeat(30)));
    site.controls.delay(Duration::from_millis(5));
    for stream in [false, true] {
        let before = site.engine.status().tokens_out;
        let body = with(rails(file("a.js", "log(", ");\n")), json!({"stream": stream}));
        assert_eq!(site.post(COMPLETIONS, &body).status, 200);
        site.quiet();
        let tokens = site.engine.status().tokens_out - before;
        assert!(tokens < 60, "{tokens} tokens for a completion of one word");
    }
}

#[test]
fn a_failure_before_the_first_byte_is_a_status_and_a_later_one_cuts_the_body() {
    let site = Site::open();
    site.answers(&"word and ".repeat(20));
    let failed = json!({"detail": "Inference failed"});
    site.controls.fail_always(Some(Fault::Launch));
    for (path, body) in [
        (COMPLETIONS, rails(file("a.rb", "x = ", ""))),
        (COMPLETIONS, with(rails(file("a.rb", "x = ", "")), json!({"stream": true}))),
        (GENERATIONS, with(rails(file("a.rb", "x = ", "")), json!({"prompt": "x"}))),
        (V3, completion_component(&file("a.rb", "x = ", ""), true)),
        (V4, completion_component(&file("a.rb", "x = ", ""), true)),
        (V4, component(&file("a.rb", "x = ", ""), true)),
    ] {
        let reply = site.post(path, &body);
        assert_eq!((reply.status, reply.json()), (503, failed.clone()), "{path}");
    }
    site.controls.fail_always(None);
    for (path, body) in [
        (COMPLETIONS, with(rails(file("a.rb", "x = ", "")), json!({"stream": true}))),
        (V4, completion_component(&file("a.rb", "x = ", ""), true)),
    ] {
        site.controls.fail(site.controls.steps() + 12, Fault::Launch);
        let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| site.post(path, &body)));
        assert!(cut.is_err(), "{path}: the body has its last chunk");
    }
}

#[test]
fn the_engines_refusal_is_429_with_the_time_to_come_back() {
    let site = Site::open();
    site.answers("x");
    site.controls.allow(1);
    let body = rails(file("a.rb", "x = ", "")).to_string();
    // As many as may run, and as many as may wait.
    let mut lines = Vec::new();
    let refused = loop {
        let status = site.engine.status();
        if status.waiting >= 256 {
            break site.post(COMPLETIONS, &rails(file("a.rb", "x = ", "")));
        }
        lines.push(site.open_with("POST", COMPLETIONS, &[], &body));
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.json(), json!({"detail": "Too many requests. Please try again later."}));
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    drop(lines);
    site.controls.run();
    site.quiet();
}
