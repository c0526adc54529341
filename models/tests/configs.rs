//! Reading config.json: the released models that sites run, keys that change nothing, and keys that are refused.

use std::path::Path;

use hearth_models::layout::Layout;
use hearth_models::spec::{Family, Spec};
use serde_json::{Value, json};

/// A config.json of the hub: what a family's files have in common, and what is this model's.
fn with(common: &Value, own: Value) -> Value {
    let mut all = common.as_object().unwrap().clone();
    all.extend(own.as_object().unwrap().clone());
    Value::Object(all)
}

fn mistral() -> Value {
    json!({"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 32000})
}

fn llama() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true,
        "vocab_size": 128256})
}

fn gemma() -> Value {
    json!({"architectures": ["GemmaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "max_position_embeddings": 8192,
        "model_type": "gemma", "pad_token_id": 0, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16", "transformers_version": "4.39.3", "use_cache": true, "vocab_size": 256000})
}

fn qwen() -> Value {
    json!({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32768,
        "max_window_layers": 28, "model_type": "qwen2", "num_hidden_layers": 28, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 152064})
}

fn mixture(own: Value) -> Value {
    let experts = json!({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_experts_per_tok": 2,
        "num_local_experts": 8, "output_router_logits": false, "router_aux_loss_coef": 0.02, "rope_theta": 1e6});
    with(&with(&mistral(), experts), own)
}

fn small_with_vision() -> Value {
    json!({"architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
        "multimodal_projector_bias": false, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
        "text_config": {"attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131072,
            "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5, "rope_theta": 1000000000.0, "sliding_window": null, "use_cache": true,
            "vocab_size": 131072},
        "torch_dtype": "bfloat16", "transformers_version": "4.52.4",
        "vision_config": {"hidden_size": 1024, "model_type": "pixtral", "num_hidden_layers": 24},
        "vision_feature_layer": -1})
}

/// Their tensors have as many elements as the files on the hub.
#[test]
fn released_models_are_accepted_and_have_the_published_number_of_parameters() {
    use Family::{Gemma, Llama, Mistral, Mixtral, Qwen2};
    let llama3 = json!({"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"});
    let large = json!({"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_hidden_layers": 80, "max_position_embeddings": 131072, "rope_scaling": llama3});
    let models = [
        ("Mistral 7B v0.1", Mistral, with(&mistral(), json!({"sliding_window": 4096})), 7_241_732_096u64),
        (
            "Mistral 7B v0.3",
            Mistral,
            with(&mistral(), json!({"vocab_size": 32768, "rope_theta": 1e6})),
            7_248_023_552,
        ),
        (
            "Codestral 22B v0.1",
            Mistral,
            with(
                &mistral(),
                json!({"hidden_size": 6144, "intermediate_size": 16384,
            "num_attention_heads": 48, "num_hidden_layers": 56, "vocab_size": 32768, "rope_theta": 1e6}),
            ),
            22_247_282_688,
        ),
        (
            "Mistral Small 24B 2501",
            Mistral,
            with(
                &mistral(),
                json!({"head_dim": 128, "hidden_size": 5120,
            "intermediate_size": 32768, "num_hidden_layers": 40, "rope_theta": 1e8, "vocab_size": 131072}),
            ),
            23_572_403_200,
        ),
        ("Mistral Small 24B 2506", Mistral, small_with_vision(), 23_572_403_200),
        ("Mixtral 8x7B v0.1", Mixtral, mixture(json!({})), 46_702_792_704),
        (
            "Mixtral 8x22B v0.1",
            Mixtral,
            mixture(json!({"hidden_size": 6144, "intermediate_size": 16384,
            "max_position_embeddings": 65536, "num_attention_heads": 48, "num_hidden_layers": 56,
            "router_jitter_noise": 0.0})),
            140_620_634_112,
        ),
        (
            "CodeGemma 2B",
            Gemma,
            with(
                &gemma(),
                json!({"hidden_size": 2048, "intermediate_size": 16384,
            "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1}),
            ),
            2_506_172_416,
        ),
        (
            "CodeGemma 7B",
            Gemma,
            with(
                &gemma(),
                json!({"hidden_size": 3072, "intermediate_size": 24576,
            "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 16}),
            ),
            8_537_680_896,
        ),
        (
            "CodeLlama 13B",
            Llama,
            with(
                &llama(),
                json!({"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 5120,
            "intermediate_size": 13824, "max_position_embeddings": 16384, "num_attention_heads": 40,
            "num_hidden_layers": 40, "num_key_value_heads": 40, "rope_theta": 1000000, "vocab_size": 32016}),
            ),
            13_016_028_160,
        ),
        (
            "DeepSeek Coder 33B",
            Llama,
            with(
                &llama(),
                json!({"bos_token_id": 32013, "eos_token_id": 32014,
            "hidden_size": 7168, "intermediate_size": 19200, "max_position_embeddings": 16384,
            "num_attention_heads": 56, "num_hidden_layers": 62, "rms_norm_eps": 1e-6,
            "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000, "vocab_size": 32256}),
            ),
            33_342_991_360,
        ),
        ("Llama 3 8B", Llama, llama(), 8_030_261_248),
        (
            "Llama 3.1 8B",
            Llama,
            with(&llama(), json!({"rope_scaling": large["rope_scaling"]})),
            8_030_261_248,
        ),
        ("Llama 3.3 70B", Llama, with(&llama(), large), 70_553_706_496),
        (
            "Qwen2.5-Coder 0.5B",
            Qwen2,
            with(
                &qwen(),
                json!({"hidden_size": 896, "intermediate_size": 4864,
            "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "tie_word_embeddings": true, "vocab_size": 151936}),
            ),
            494_032_768,
        ),
        (
            "Qwen2.5-Coder 7B",
            Qwen2,
            with(
                &qwen(),
                json!({"hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_key_value_heads": 4}),
            ),
            7_615_616_512,
        ),
        (
            "Qwen2.5-Coder 32B",
            Qwen2,
            with(
                &qwen(),
                json!({"hidden_size": 5120, "intermediate_size": 27648,
            "max_window_layers": 70, "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8}),
            ),
            32_763_876_352,
        ),
    ];
    for (name, family, config, published) in models {
        let spec = Spec::from_config(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(spec.family, family, "{name}");
        let parameters: u64 = Layout::of(&spec).parts().map(|part| part.elements()).sum();
        assert_eq!(parameters, published, "{name}");
    }
}

/// The config.json of a golden checkpoint.
fn config(name: &str) -> Value {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints");
    serde_json::from_slice(&std::fs::read(dir.join(name).join("config.json")).unwrap()).unwrap()
}

/// Each wrong value and the words its refusal must have: the key, the value, what would do.
#[test]
fn a_wrong_config_is_refused_by_key_and_value() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("vocab_size", Value::Null, &["`vocab_size` is missing"]),
        ("vocab_size", json!("many"), &["vocab_size", "many", "a whole number"]),
        ("vocab_size", json!(-1), &["vocab_size", "-1"]),
        ("hidden_size", json!(0), &["hidden_size", "is 0", "1 to 65536"]),
        ("num_hidden_layers", json!(4_000_000_000u64), &["num_hidden_layers", "4000000000", "1024"]),
        ("num_attention_heads", json!(5), &["num_attention_heads", "is 5", "hidden_size", "64"]),
        ("num_key_value_heads", json!(3), &["num_key_value_heads", "is 3", "which it must divide"]),
        ("head_dim", json!(15), &["head_dim", "15", "even"]),
        ("head_dim", json!(4096), &["head_dim", "4096", "512"]),
        ("rms_norm_eps", json!(0.0), &["rms_norm_eps", "above 0"]),
        ("rms_norm_eps", json!(7.0), &["rms_norm_eps", "7", "below 1"]),
        ("hidden_act", json!("relu"), &["hidden_act", "relu", "silu, gelu_pytorch_tanh"]),
        ("rope_theta", json!(-5.0), &["rope_theta", "-5"]),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0}),
            &["rope_scaling.type", "yarn", "linear, llama3"],
        ),
        ("rope_scaling", json!({"type": "linear"}), &["rope_scaling.factor", "missing"]),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2, "mscale": 3}),
            &["rope_scaling.mscale", "not known"],
        ),
        ("rope_scaling", json!({"type": "linear", "rope_type": "llama3"}), &["rope_type", "contradicts"]),
        (
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 5e5}),
            &["rope_theta", "contradicts"],
        ),
        ("attention_bias", json!(true), &["attention_bias", "true", "false or absent"]),
        ("sliding_window", json!(0), &["sliding_window", "is 0"]),
        ("eos_token_id", json!(99_999), &["eos_token_id", "99999", "320"]),
        ("logit_scale", json!(0.0625), &["logit_scale", "0.0625", "not known"]),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            &["quantization_config", "awq", "--quantize"],
        ),
        ("architectures", json!(["PhiForCausalLM"]), &["PhiForCausalLM", "MistralForCausalLM"]),
        ("architectures", json!(["MistralForCausalLM", "X"]), &["architectures", "a list of one"]),
        ("model_type", json!("llama"), &["model_type", "llama", "contradicts", "MistralForCausalLM"]),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            &["layer_types", "sliding_attention"],
        ),
        ("auto_map", json!({"AutoModel": "modeling.X"}), &["auto_map", "modeling.X"]),
    ];
    for (key, value, says) in cases {
        let mut changed = config("mistral-v0.3");
        changed[*key] = value.clone();
        let error = Spec::from_config(&changed).expect_err(key).to_string();
        for part in *says {
            assert!(error.contains(part), "{key} = {value}: {error:?} does not say {part:?}");
        }
    }
    assert!(Spec::from_config(&json!([])).is_err());
    assert!(Spec::from_config(&json!({})).unwrap_err().to_string().contains("architectures"));
}

#[test]
fn the_whole_of_a_model_with_vision_speaks_where_its_text_part_is_silent() {
    let mut changed = config("mistral-small-2506");
    assert_eq!(Spec::from_config(&changed).unwrap().eos, [] as [u32; 0]);
    changed["eos_token_id"] = json!([2, 7]);
    changed["bos_token_id"] = json!(1);
    let spec = Spec::from_config(&changed).unwrap();
    assert_eq!((spec.eos, spec.bos, spec.tied), (vec![2, 7], Some(1), false));
    changed["eos_token_id"] = json!(4_294_967_298u64);
    let error = Spec::from_config(&changed).unwrap_err().to_string();
    assert!(error.contains("eos_token_id") && error.contains("below the vocabulary's 320"), "{error}");
    changed["eos_token_id"] = json!(2);
    changed["text_config"]["model_type"] = json!("gemma3_text");
    let error = Spec::from_config(&changed).unwrap_err().to_string();
    assert!(error.contains("text_config.model_type") && error.contains("gemma3_text"), "{error}");
}

#[test]
fn a_context_that_a_site_made_shorter_is_accepted() {
    let mut changed = config("llama-3.1-8b");
    changed["max_position_embeddings"] = json!(32);
    assert_eq!(Spec::from_config(&changed).unwrap().context, 32);
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    let mut changed = config("mistral-v0.3");
    changed["torch_dtype"] = json!("float16");
    changed["use_cache"] = json!(false);
    changed["_name_or_path"] = json!("somewhere");
    changed["pretraining_tp"] = json!(2);
    changed["some_future_switch"] = Value::Null;
    assert_eq!(Spec::from_config(&changed).unwrap(), Spec::from_config(&config("mistral-v0.3")).unwrap());
}

#[test]
fn an_activation_named_twice_must_be_one() {
    let mut changed = config("codegemma-2b");
    changed["hidden_act"] = json!("silu");
    let error = Spec::from_config(&changed).unwrap_err().to_string();
    assert!(error.contains("hidden_activation") && error.contains("hidden_act"), "{error}");
}

#[test]
fn mistral_without_the_key_has_the_window_of_the_reference() {
    let mut changed = config("mistral-v0.3");
    changed.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(Spec::from_config(&changed).unwrap().window, Some(4096));
}
