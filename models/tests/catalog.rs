//! The catalogue: every file is one of a checkpoint, and says of it what its shape says.

use std::collections::BTreeSet;
use std::path::Path;

use hearth_models::catalog::{self, Shape};
use hearth_models::layout::Layout;
use hearth_models::spec::Spec;
use serde_json::{Value, json};

/// A config.json of this shape.
fn config(shape: &Shape) -> Value {
    let (class, activation) = match shape.architecture.as_str() {
        "mistral" => ("MistralForCausalLM", "silu"),
        "mixtral" => ("MixtralForCausalLM", "silu"),
        "gemma" => ("GemmaForCausalLM", "gelu_pytorch_tanh"),
        "qwen2" => ("Qwen2ForCausalLM", "silu"),
        _ => ("LlamaForCausalLM", "silu"),
    };
    let mut config = json!({"architectures": [class], "model_type": shape.architecture, "hidden_act": activation,
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocab, "max_position_embeddings": shape.context, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.tied, "sliding_window": null, "rope_theta": 1e6, "eos_token_id": 2});
    if shape.experts > 0 {
        config["num_local_experts"] = json!(shape.experts);
        config["num_experts_per_tok"] = json!(2);
    }
    config
}

fn spec(shape: &Shape) -> Spec {
    Spec::from_config(&config(shape)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_file_is_listed_and_no_two_are_called_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("catalog");
    let files = folder.read_dir().unwrap().count();
    assert_eq!(catalog::all().len(), files);
    let names: BTreeSet<&str> = catalog::all().iter().map(|entry| entry.name.as_str()).collect();
    let ids: BTreeSet<&str> = catalog::all().iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!((names.len(), ids.len()), (files, files));
    for entry in catalog::all() {
        assert_eq!(entry.id.matches('/').count(), 1, "{}", entry.id);
        assert_eq!(
            entry.shape.is_some(),
            entry.not_served.is_none(),
            "{}: a shape is for what is served",
            entry.id
        );
        assert_eq!(catalog::find(&entry.id.to_uppercase()), Some(entry));
        assert_eq!(catalog::find(&entry.name), Some(entry));
    }
    assert_eq!(catalog::find("nothing"), None);
}

#[test]
fn what_is_served_has_the_parameters_of_its_shape() {
    for entry in catalog::all() {
        let Some(shape) = &entry.shape else { continue };
        let parameters: u64 = Layout::of(&spec(shape)).parts().map(|part| part.elements()).sum();
        assert_eq!(entry.parameters, Some(parameters), "{}", entry.id);
    }
}

#[test]
fn a_checkpoint_is_recognised_by_its_shape_and_named_by_its_directory() {
    for entry in catalog::all() {
        let Some(shape) = &entry.shape else { continue };
        let directory = entry.id.rsplit('/').next().unwrap();
        for hint in [directory, &entry.name, &directory.to_lowercase()] {
            let found = catalog::recognise(&spec(shape), &[hint]).unwrap();
            assert!(found.named && found.entry == entry, "{hint} is taken for {}", found.entry.id);
        }
    }
    // Codestral under another name, its context made shorter, is still under its licence.
    let codestral = catalog::find("codestral-22b").unwrap();
    let mut shape = codestral.shape.clone().unwrap();
    shape.context = 4096;
    let found = catalog::recognise(&spec(&shape), &["our-model"]).unwrap();
    assert_eq!((found.entry, found.named), (codestral, false));
    assert_eq!(found.entry.licence.production, Some(false));
    assert!(found.entry.licence.about().contains("NOT for production"));
    shape.layers = 3;
    assert_eq!(catalog::recognise(&spec(&shape), &["codestral-22b"]), None);
}
