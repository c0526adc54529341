//! Opening checkpoints: every golden one as it is, and damaged ones, which give one clear error each and never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use hearth_models::checkpoint::{Checkpoint, HEADER_LIMIT};
use hearth_models::spec::{Activation, Experts, Family, Rope, Scaling};
use proptest::prelude::*;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

/// A golden checkpoint in a directory of its own, to be damaged.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in golden(name).read_dir().unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("golden.safetensors") {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

#[track_caller]
fn refused(dir: &Path, says: &[&str]) {
    let error = match Checkpoint::open(dir) {
        Ok(_) => panic!("{} was opened; an error was to say {says:?}", dir.display()),
        Err(error) => error.to_string(),
    };
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// Splits a safetensors file into its header and its data.
fn parts(dir: &Path) -> (String, Vec<u8>) {
    parts_of(&fs::read(dir.join("model.safetensors")).unwrap())
}

fn parts_of(bytes: &[u8]) -> (String, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (String::from_utf8(bytes[8..8 + length].to_vec()).unwrap(), bytes[8 + length..].to_vec())
}

fn join(dir: &Path, header: &str, data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn every_golden_checkpoint_opens() {
    let mut names: Vec<_> = golden("").read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 15);
    for dir in names {
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        assert!(checkpoint.parameters() > 50_000, "{}", dir.display());
        assert!(!checkpoint.spec().eos.is_empty());
    }
}

#[test]
fn the_switches_are_those_of_the_family() {
    let open = |name: &str| Checkpoint::open(&golden(name)).unwrap().spec().clone();
    let windowed = open("mistral-v0.1");
    assert_eq!((windowed.family, windowed.window), (Family::Mistral, Some(24)));
    assert_eq!(open("mistral-v0.3").window, None);
    assert_eq!(open("mixtral-8x7b-v0.1").experts, Some(Experts { count: 8, top_k: 2 }));

    let gemma = open("codegemma-2b");
    assert_eq!((gemma.kv_heads, gemma.head_dim), (1, 64), "heads apart from the width");
    assert!(gemma.unit_offset && gemma.scaled_embedding && gemma.tied);
    assert_eq!(gemma.activation, Activation::GeluTanh);
    let legacy = open("codegemma-7b");
    assert_eq!(
        legacy.activation,
        Activation::GeluTanh,
        "first releases said gelu and meant its approximation"
    );
    assert_eq!(legacy.eos, [1, 107], "generation_config.json's list wins");

    let linear = Rope { theta: 100_000.0, scaling: Scaling::Linear { factor: 4.0 } };
    assert_eq!(open("deepseek-coder-33b").rope, linear);
    let scaling =
        Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 96 };
    assert_eq!(open("llama-3.3-70b").rope, Rope { theta: 500_000.0, scaling });

    let qwen = open("qwen2.5-coder-0.5b");
    assert!(qwen.qkv_bias && !qwen.output_bias && qwen.tied);
    assert_eq!(qwen.window, None, "the window is there but not used");
    assert_eq!(open("mistral-small-2506").prefix, "language_model.");
}

#[test]
fn the_vision_part_of_mistral_small_is_left_alone() {
    let checkpoint = Checkpoint::open(&golden("mistral-small-2506")).unwrap();
    assert!(checkpoint.ignored().iter().any(|name| name.starts_with("vision_tower.")));
    assert!(checkpoint.ignored().iter().all(|name| !name.starts_with("language_model.")));
}

#[test]
fn mistral_s_own_file_beside_the_shards_stays_unread() {
    let dir = copy("mistral-v0.1");
    fs::write(dir.path().join("consolidated.safetensors"), b"not even a header").unwrap();
    assert!(Checkpoint::open(dir.path()).is_ok());
}

#[test]
fn a_directory_without_safetensors_says_what_it_has_instead() {
    let dir = copy("mistral-v0.3");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    refused(dir.path(), &["no model.safetensors"]);
    fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    refused(dir.path(), &["pytorch_model.bin", "pickle"]);
    fs::write(dir.path().join("model.gguf"), b"").unwrap();
    refused(dir.path(), &["model.gguf"]);
    fs::write(dir.path().join("consolidated.safetensors"), b"").unwrap();
    refused(dir.path(), &["consolidated.safetensors", "sharded"]);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(dir.path(), &["config.json is missing", "give the directory of a checkpoint"]);
    refused(&dir.path().join("nowhere"), &["nowhere"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_was_cut() {
    let dir = copy("mistral-v0.3");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 5, 8, 9, 500, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(dir.path(), &["model.safetensors", "damaged"]);
    }
    let (_, data) = parts_of(&whole);
    refused(dir.path(), &[&format!("{} bytes of tensors and {} follow", data.len(), data.len() - 1)]);
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    refused(dir.path(), &["model.safetensors", "damaged"]);
}

#[test]
fn a_tensor_under_a_wrong_name_is_shown_with_the_one_that_is_missing() {
    let dir = copy("mistral-v0.3");
    let (header, data) = parts(dir.path());
    join(dir.path(), &header.replacen("model.norm.weight", "model.nurm.weight", 1), &data);
    refused(
        dir.path(),
        &[
            "1 missing tensors: model.norm.weight; 1 unexpected tensors: model.nurm.weight",
            "copy the checkpoint",
        ],
    );
}

#[test]
fn a_header_of_98_megabytes_is_refused_before_it_is_parsed() {
    let dir = copy("mistral-v0.3");
    let mut header = vec![b' '; 98_000_000];
    header[0] = b'{';
    *header.last_mut().unwrap() = b'}';
    join(dir.path(), std::str::from_utf8(&header).unwrap(), b"");
    refused(dir.path(), &["98000000", &HEADER_LIMIT.to_string()]);
}

#[test]
fn twenty_thousand_tensors_are_the_limit() {
    let dir = copy("mistral-v0.3");
    let entries: Vec<String> = (0..20_001)
        .map(|i| format!("\"t{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
        .collect();
    join(dir.path(), &format!("{{{}}}", entries.join(",")), b"");
    refused(dir.path(), &["20000"]);
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let dir = copy("mistral-v0.3");
    let (header, data) = parts(dir.path());
    let twice = header.replacen("\"model.norm.weight\"", "\"lm_head.weight\"", 1);
    join(dir.path(), &twice, &data);
    refused(dir.path(), &["lm_head.weight", "twice"]);
}

#[test]
fn one_name_in_two_shards_is_refused() {
    let dir = copy("mistral-v0.1");
    let shard = |i: u32| dir.path().join(format!("model-0000{i}-of-00002.safetensors"));
    fs::copy(shard(1), shard(2)).unwrap();
    refused(dir.path(), &["is also in", "model-00001-of-00002.safetensors"]);
}

#[test]
fn offsets_outside_the_file_or_over_each_other_are_refused() {
    let dir = copy("mistral-v0.3");
    let (header, data) = parts(dir.path());
    let parsed: Value = serde_json::from_str(&header).unwrap();
    let wrong =
        [json!([0, u64::MAX]), json!([u64::MAX - 3, u64::MAX]), json!([4, 0]), json!([0, 4]), json!([-1, 4])];
    for offsets in wrong {
        let mut changed = parsed.clone();
        changed["model.norm.weight"]["data_offsets"] = offsets;
        join(dir.path(), &changed.to_string(), &data);
        refused(dir.path(), &["model.safetensors", "damaged"]);
    }
    let mut changed = parsed;
    changed["model.norm.weight"]["shape"] = json!([u64::MAX, 4]);
    join(dir.path(), &changed.to_string(), &data);
    refused(dir.path(), &["model.safetensors", "damaged"]);
}

#[test]
fn missing_and_unexpected_tensors_are_named() {
    let dir = copy("mistral-v0.3");
    let (header, data) = parts(dir.path());
    join(dir.path(), &header.replace("\"model.norm.weight\"", "\"model.nrom.weight\""), &data);
    refused(dir.path(), &["1 missing", "model.norm.weight"]);

    let dir = copy("mistral-v0.3");
    edit(dir.path(), |config| config["num_hidden_layers"] = json!(3));
    refused(dir.path(), &["9 missing", "model.layers.2.", "and 1 more"]);

    let dir = copy("mistral-v0.3");
    edit(dir.path(), |config| config["num_hidden_layers"] = json!(1));
    refused(dir.path(), &["9 unexpected", "model.layers.1."]);
}

#[test]
fn saved_frequencies_and_a_second_copy_of_a_tied_head_are_known_to_be_harmless() {
    let dir = copy("mistral-v0.3");
    let (header, mut data) = parts(dir.path());
    let mut changed: Value = serde_json::from_str(&header).unwrap();
    let end = data.len();
    changed["model.layers.0.self_attn.rotary_emb.inv_freq"] =
        json!({"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]});
    data.extend([0; 8]);
    join(dir.path(), &changed.to_string(), &data);
    let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(checkpoint.ignored(), ["model.layers.0.self_attn.rotary_emb.inv_freq"]);

    edit(dir.path(), |config| config["tie_word_embeddings"] = json!(true));
    assert!(Checkpoint::open(dir.path()).unwrap().ignored().contains(&"lm_head.weight".to_owned()));
}

#[test]
fn a_shape_or_type_that_config_does_not_ask_for_is_refused() {
    let dir = copy("mistral-v0.3");
    edit(dir.path(), |config| config["intermediate_size"] = json!(127));
    refused(dir.path(), &["mlp.", "shape", "128", "127"]);

    let dir = copy("mistral-v0.3");
    let (header, data) = parts(dir.path());
    join(dir.path(), &header.replace("\"F32\"", "\"I32\""), &data);
    refused(dir.path(), &["type I32", "BF16, F16, F32"]);
}

#[test]
fn an_index_may_only_name_files_beside_it() {
    let dir = copy("mistral-v0.1");
    let path = dir.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    for name in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "model.bin", ""] {
        fs::write(&path, text.replace("model-00001-of-00002.safetensors", name)).unwrap();
        refused(dir.path(), &["index", "beside it"]);
    }
    fs::write(&path, text.replace("model-00001-of", "model-00009-of")).unwrap();
    refused(dir.path(), &["model-00009-of-00002.safetensors"]);
    fs::write(&path, text.replace("\"lm_head.weight\"", "\"lm_foot.weight\"")).unwrap();
    refused(dir.path(), &["lm_foot.weight", "index"]);
    fs::write(&path, "{}").unwrap();
    refused(dir.path(), &["weight_map"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever bytes are flipped: opened or refused, and what was opened can be read to the end.
    #[test]
    fn flipped_bytes_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_header in any::<bool>(),
    ) {
        let dir = copy("codegemma-2b");
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let range = if in_header { header } else { bytes.len() };
        for (at, value) in flips {
            bytes[at.index(range)] ^= value;
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            let parts = checkpoint.layout().parts();
            let read: usize = parts.map(|part| checkpoint.tensor(&part.name).unwrap().bytes.len()).sum();
            prop_assert!(read as u64 == checkpoint.bytes() && read < bytes.len());
        }
    }

    /// Whatever bytes of config.json are overwritten: parsed or refused.
    #[test]
    fn flipped_configs_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let dir = copy("llama-3.1-8b");
        let path = dir.path().join("config.json");
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = Checkpoint::open(dir.path()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
