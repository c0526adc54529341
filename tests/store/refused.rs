//! What is not taken in, and that nothing of it stays.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::rig::Rig;

/// Imports, expects a refusal in these words, and an empty store.
#[track_caller]
fn refused(rig: &Rig, from: &str, words: &[&str]) {
    rig.import(from, &["--name", "m"]).failed(4, words);
    assert_eq!(rig.stored(), [] as [String; 0]);
}

#[test]
fn pickles_and_code_are_refused_by_name_and_by_how_they_begin() {
    let rig = Rig::new();
    let cases: [(&str, &[u8], &str); 12] = [
        ("pytorch_model.bin", b"anything", "is a pickle"),
        ("consolidated.00.pth", b"anything", "is a pickle"),
        ("optimizer.PT", b"anything", "is a pickle"),
        ("modeling_custom.py", b"import os", "is code"),
        ("libfast.so", b"\x7fELF", "is code"),
        ("install.sh", b"true", "is code"),
        ("extra.safetensors", b"PK\x03\x04\x14\x00", "begins like a zip archive"),
        ("extra.safetensors", b"\x80\x04\x95\x10\x00", "is a pickle"),
        ("special_tokens_map.json", b"\x80\x05\x95", "is a pickle"),
        ("NOTICE", b"#!/bin/sh\nrm -rf /", "is code"),
        ("README.md", b"\x7fELF\x02\x01\x01", "is code"),
        ("added_tokens.json", b"not json", "is not JSON"),
    ];
    for (name, bytes, reason) in cases {
        let from = rig.checkpoint("m");
        fs::write(rig.path("m").join(name), bytes).unwrap();
        refused(&rig, &from, &[name, reason]);
        fs::remove_dir_all(&from).unwrap();
    }
    // All of them in one message, and a way to take the rest.
    let from = rig.checkpoint("m");
    fs::write(rig.path("m/pytorch_model.bin"), "x").unwrap();
    fs::write(rig.path("m/run.py"), "x").unwrap();
    refused(&rig, &from, &["pytorch_model.bin is a pickle", "run.py is code", "--leave-out"]);
    rig.run(&["models", "import", &from]).failed(4, &["run.py is code"]);
    let taken = rig.import(&from, &["--leave-out"]);
    assert!(taken.said.contains("left behind: pytorch_model.bin, run.py"), "{}", taken.said);
    taken.well();
    assert!(!rig.models().join("m/run.py").exists());
}

#[test]
fn code_that_the_configuration_names_is_refused() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    let mut config: Value = serde_json::from_slice(hearth_models::ember::CONFIG).unwrap();
    config["auto_map"] = json!({"AutoModelForCausalLM": "modeling.Model"});
    fs::write(rig.path("m/config.json"), config.to_string()).unwrap();
    refused(&rig, &from, &["auto_map"]);
}

#[test]
fn a_link_that_leads_out_of_the_directory_is_refused() {
    let rig = Rig::new();
    fs::write(rig.path("secret"), "password").unwrap();
    for target in ["../secret", "/etc/passwd", "/dev/zero", "../../../../../../etc/hostname"] {
        let from = rig.checkpoint("m");
        fs::remove_file(rig.path("m/LICENSE")).unwrap();
        symlink(target, rig.path("m/LICENSE")).unwrap();
        rig.import(&from, &[]).failed(4, &["LICENSE is a link to"]);
        fs::remove_file(rig.path("m/LICENSE")).unwrap();
    }
    // A pipe would be waited for until the end of days.
    let from = rig.checkpoint("m");
    fs::remove_file(rig.path("m/LICENSE")).unwrap();
    nix::unistd::mkfifo(&rig.path("m/LICENSE"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    rig.import(&from, &[]).failed(4, &["LICENSE is not a plain file"]);
}

#[test]
fn weights_that_are_not_what_the_configuration_says_are_refused() {
    let rig = Rig::new();
    let whole = fs::read(format!("{}/model.safetensors", rig.checkpoint("whole"))).unwrap();
    let mut duplicate = whole.clone();
    // A name in the header, changed into that of its neighbour.
    let text = b"model.layers.1.";
    let at = duplicate.windows(text.len()).position(|w| w == text).unwrap();
    duplicate[at + 13] = b'0';
    let mut huge = (100u64 << 20).to_le_bytes().to_vec();
    huge.extend(b"{\"a\":{}}");
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("cut off", whole[..whole.len() / 2].to_vec(), "the header tells of"),
        ("two tensors of one name", duplicate, "is there twice"),
        ("a header of 100 MiB", huge, "is not a safetensors file"),
        ("something behind the last tensor", [whole.clone(), vec![0; 16]].concat(), "header"),
        ("empty", Vec::new(), "is not a safetensors file"),
    ];
    for (what, bytes, words) in cases {
        let from = rig.checkpoint("m");
        fs::write(rig.path("m/model.safetensors"), bytes).unwrap();
        eprintln!("{what}");
        refused(&rig, &from, &["model.safetensors", words]);
    }
    for missing in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = rig.checkpoint("m");
        fs::write(rig.path("m/model.safetensors"), &whole).unwrap();
        fs::remove_file(rig.path("m").join(missing)).unwrap();
        let words = if missing == "model.safetensors" { "no model.safetensors" } else { missing };
        refused(&rig, &from, &[words]);
    }
}

/// With this chat template.
fn with_template(rig: &Rig, template: &str) -> String {
    let from = rig.checkpoint("m");
    let mut config: Value = serde_json::from_slice(hearth_models::ember::TOKENIZER_CONFIG).unwrap();
    config["chat_template"] = json!(template);
    fs::write(rig.path("m/tokenizer_config.json"), config.to_string()).unwrap();
    from
}

#[test]
fn a_template_that_eats_memory_or_time_is_ended_in_its_child() {
    let rig = Rig::new();
    // Forty doublings of a text: few steps, and a terabyte.
    let doubling = "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s|length }}";
    refused(&rig, &with_template(&rig, doubling), &["the chat template takes more than 512 MiB"]);
    // Few steps again, each of which passes over megabytes.
    let slow = "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(19) %}{% set n.s = n.s ~ n.s %}{% endfor %}{% for i in range(4000) %}{% set n.s = n.s|replace('x', 'y')|replace('y', 'x') %}{% endfor %}ok";
    refused(&rig, &with_template(&rig, slow), &["the chat template takes more than 2 s of processor time"]);
    refused(
        &rig,
        &with_template(&rig, "{% for i in range(100000000) %}{% endfor %}"),
        &["the chat template"],
    );
    refused(
        &rig,
        &with_template(&rig, "{% for i in range(100000) %}xxxxxxxxxx{% endfor %}"),
        &["its output is longer than"],
    );
    refused(&rig, &with_template(&rig, "{% if %}"), &["the chat template cannot be read"]);
    refused(&rig, &with_template(&rig, "{{ raise_exception('never') }}"), &["refuses these messages: never"]);
    // What refuses some conversations in its own words is a template like any other.
    let strict = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}";
    rig.import(&with_template(&rig, strict), &[]).well();
}

#[test]
fn files_that_differ_from_the_sums_that_came_with_them_are_refused() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    let sum = "0".repeat(64);
    fs::write(
        rig.path("m/SHA256SUMS"),
        format!("{sum}  config.json\n{sum}  model-00002-of-00002.safetensors\n"),
    )
    .unwrap();
    let words = [
        "config.json is not what its sum says",
        "model-00002-of-00002.safetensors has a sum and is not there",
    ];
    refused(&rig, &from, &words);
    fs::write(rig.path("m/SHA256SUMS"), "nonsense").unwrap();
    refused(&rig, &from, &["line 1 is no sum and name"]);
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    for name in ["../x", "a/b", ".hidden", "", "blobs", "x y", "ember-demo"] {
        rig.import(&from, &["--name", name]).failed(2, &["name"]);
    }
    assert_eq!(rig.stored(), [] as [String; 0]);
    rig.run(&["models", "remove", "../state"]).failed(2, &["cannot be the name of a model"]);
    rig.import(&from, &["--largest", "1MiB"]).failed(4, &["more than 1048576 bytes", "--largest"]);
    rig.import(&from, &["--largest", "lots"]).failed(2, &["100GiB"]);
}
