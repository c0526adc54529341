//! From the keys of a config.json to the switches: which are read, which change nothing, which are refused.

use serde_json::Value;

use super::fields::{Fields, brief};
use super::{Activation, Experts, Family, Rope, Spec, SpecError};

/// Keys that do not change what the model says: training, bookkeeping, defaults of sampling.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "dataset_version",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_version",
    "unsloth_fixed",
    "use_bfloat16",
    "use_cache",
];

/// What a model with vision has beside its text part.
const VISION: &[&str] = &[
    "image_token_id",
    "image_token_index",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "spatial_merge_size",
    "vision_config",
    "vision_feature_layer",
];

const SUPPORTED: &str = "MistralForCausalLM, Mistral3ForConditionalGeneration (text), MixtralForCausalLM, \
                         GemmaForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM";

/// Reads a config.json.
pub(super) fn spec(config: &Value) -> Result<Spec, SpecError> {
    let top = Fields::new("", config)?;
    let architecture = architecture(&top)?;
    if let Some(method) = top.get("quantization_config").or(top.get("compression_config")) {
        return Err(SpecError::Unsupported {
            field: "quantization_config".into(),
            value: brief(method),
            supported: "weights in bf16, f16 or f32; quantise at load with --quantize".into(),
        });
    }
    let family = match architecture.as_str() {
        "MistralForCausalLM" | "Mistral3ForConditionalGeneration" => Family::Mistral,
        "MixtralForCausalLM" => Family::Mixtral,
        "GemmaForCausalLM" => Family::Gemma,
        "LlamaForCausalLM" => Family::Llama,
        "Qwen2ForCausalLM" => Family::Qwen2,
        _ => {
            return Err(SpecError::Unsupported {
                field: "architectures".into(),
                value: architecture,
                supported: SUPPORTED.into(),
            });
        }
    };
    if architecture != "Mistral3ForConditionalGeneration" {
        return read(family, architecture, "", top);
    }
    let text = top.object("text_config")?.ok_or(SpecError::Missing { field: "text_config".into() })?;
    if let Some(kind) = text.text("model_type")?
        && kind != "mistral"
    {
        return Err(SpecError::Unsupported {
            field: text.name("model_type"),
            value: kind.into(),
            supported: "mistral".into(),
        });
    }
    let inner = text.flag("tie_word_embeddings")?;
    let mut spec = read(family, architecture, "language_model.", text)?;
    // What the text part does not say for itself, the whole says.
    spec.tied = inner.or(top.flag("tie_word_embeddings")?).unwrap_or(false);
    if let Some(ids) = top.tokens("eos_token_id", spec.vocab)? {
        spec.eos = ids;
    }
    if let Some(ids) = top.tokens("bos_token_id", spec.vocab)? {
        spec.bos = ids.first().copied();
    }
    top.finish(&[HARMLESS, VISION].concat())?;
    Ok(spec)
}

/// The one name under `architectures`, or the one that `model_type` stands for.
fn architecture(top: &Fields<'_>) -> Result<String, SpecError> {
    let listed = match top.get("architectures") {
        None => None,
        Some(Value::Array(names)) if names.len() == 1 && names[0].is_string() => names[0].as_str(),
        Some(other) => {
            return Err(SpecError::Unsupported {
                field: "architectures".into(),
                value: brief(other),
                supported: format!("a list of one of {SUPPORTED}"),
            });
        }
    };
    let kind = top.text("model_type")?;
    let from_kind = match kind {
        Some("mistral") => Some("MistralForCausalLM"),
        Some("mistral3") => Some("Mistral3ForConditionalGeneration"),
        Some("mixtral") => Some("MixtralForCausalLM"),
        Some("gemma") => Some("GemmaForCausalLM"),
        Some("llama") => Some("LlamaForCausalLM"),
        Some("qwen2") => Some("Qwen2ForCausalLM"),
        _ => None,
    };
    match (listed, kind) {
        (Some(listed), Some(kind)) if from_kind != Some(listed) && SUPPORTED.contains(listed) => {
            Err(SpecError::Contradiction {
                field: "model_type".into(),
                value: kind.into(),
                other: "architectures".into(),
                limit: listed.into(),
            })
        }
        (Some(listed), _) => Ok(listed.into()),
        (None, Some(kind)) => from_kind.map(Into::into).ok_or_else(|| SpecError::Unsupported {
            field: "model_type".into(),
            value: kind.into(),
            supported: SUPPORTED.into(),
        }),
        (None, None) => Err(SpecError::Missing { field: "architectures".into() }),
    }
}

/// Reads the text model's own object.
fn read(
    family: Family,
    architecture: String,
    prefix: &'static str,
    fields: Fields<'_>,
) -> Result<Spec, SpecError> {
    // Far above any model there is, and low enough that products of three stay inside 64 bits.
    let vocab = fields.required("vocab_size", 1 << 21)?;
    let hidden = fields.required("hidden_size", 1 << 16)?;
    let layers = fields.required("num_hidden_layers", 1 << 10)?;
    let ffn = fields.required("intermediate_size", 1 << 18)?;
    let heads = fields.required("num_attention_heads", 1 << 10)?;
    let kv_heads = fields.count("num_key_value_heads", 1 << 10)?.unwrap_or(heads);
    let context = fields.required("max_position_embeddings", 1 << 24)?;
    let head_dim = match fields.count("head_dim", 512)? {
        Some(dim) => dim,
        None if hidden % heads == 0 && hidden / heads <= 512 => hidden / heads,
        None => {
            return Err(SpecError::Contradiction {
                field: fields.name("num_attention_heads"),
                value: heads.to_string(),
                other: fields.name("hidden_size"),
                limit: format!("{hidden}, without a `head_dim`"),
            });
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(SpecError::Unsupported {
            field: fields.name("head_dim"),
            value: head_dim.to_string(),
            supported: "even numbers: rotary positions turn pairs".into(),
        });
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(SpecError::Contradiction {
            field: fields.name("num_key_value_heads"),
            value: kv_heads.to_string(),
            other: fields.name("num_attention_heads"),
            limit: format!("{heads}, which it must divide"),
        });
    }
    let epsilon = fields
        .positive("rms_norm_eps")?
        .ok_or_else(|| SpecError::Missing { field: fields.name("rms_norm_eps") })?;
    if epsilon >= 1.0 {
        return Err(SpecError::Limit {
            field: fields.name("rms_norm_eps"),
            value: epsilon.to_string(),
            limit: "below 1".into(),
        });
    }
    for key in [
        "add_cross_attention",
        "cross_attention_layers",
        "tie_encoder_decoder",
        "use_bidirectional_attention",
        "use_qk_norm",
    ] {
        fields.refuse_on(key)?;
    }
    for key in ["pruned_heads", "auto_map"] {
        if let Some(value) = fields.get(key)
            && value.as_object().is_none_or(|map| !map.is_empty())
        {
            return Err(SpecError::Unsupported {
                field: fields.name(key),
                value: brief(value),
                supported: "absent or empty".into(),
            });
        }
    }
    fields.refuse_partial_rotation()?;
    let default_theta = if family == Family::Mixtral { 1e6 } else { 1e4 };
    let spec = Spec {
        family,
        architecture,
        vocab,
        hidden,
        layers,
        ffn,
        heads,
        kv_heads,
        head_dim,
        context,
        window: window(family, &fields, layers)?,
        epsilon,
        unit_offset: family == Family::Gemma,
        activation: activation(family, &fields)?,
        rope: Rope::read(&fields, default_theta)?,
        experts: experts(family, &fields)?,
        qkv_bias: attention_bias(family, &fields)?,
        output_bias: family == Family::Llama && fields.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: match family {
            Family::Llama => fields.flag("mlp_bias")?.unwrap_or(false),
            _ => fields.refuse_on("mlp_bias").map(|()| false)?,
        },
        tied: match fields.flag("tie_word_embeddings")? {
            Some(tied) => tied,
            None => family == Family::Gemma,
        },
        scaled_embedding: family == Family::Gemma,
        prefix,
        bos: fields.tokens("bos_token_id", vocab)?.and_then(|ids| ids.first().copied()),
        eos: fields.tokens("eos_token_id", vocab)?.unwrap_or_default(),
    };
    layer_types(&fields, &spec)?;
    fields.finish(HARMLESS)?;
    Ok(spec)
}

/// The sliding window. Where the key is absent Mistral's reference takes 4096; `null` there means none.
fn window(family: Family, fields: &Fields<'_>, layers: usize) -> Result<Option<usize>, SpecError> {
    match family {
        Family::Mistral if !fields.has("sliding_window") => Ok(Some(4096)),
        Family::Mistral | Family::Mixtral => fields.count("sliding_window", 1 << 24),
        Family::Qwen2 => {
            let size = fields.count("sliding_window", 1 << 24)?;
            let on = fields.flag("use_sliding_window")?.unwrap_or(false);
            let first = match fields.get("max_window_layers").map(|value| (value, value.as_u64())) {
                None => 28,
                Some((_, Some(first))) => first,
                Some((value, None)) => {
                    return Err(SpecError::Type {
                        field: fields.name("max_window_layers"),
                        value: brief(value),
                        wanted: "a whole number",
                    });
                }
            };
            match (on, first) {
                (false, _) => Ok(None),
                (true, first) if first >= layers as u64 => Ok(None),
                (true, 0) => Ok(size),
                (true, first) => Err(SpecError::Unsupported {
                    field: fields.name("max_window_layers"),
                    value: first.to_string(),
                    supported: "0 or at least the number of layers, when `use_sliding_window` is true".into(),
                }),
            }
        }
        Family::Gemma | Family::Llama => match fields.get("sliding_window") {
            None => Ok(None),
            Some(value) => Err(SpecError::Unsupported {
                field: fields.name("sliding_window"),
                value: brief(value),
                supported: "null or absent for this architecture".into(),
            }),
        },
    }
}

fn activation(family: Family, fields: &Fields<'_>) -> Result<Activation, SpecError> {
    let parse = |key: &str| -> Result<Option<Activation>, SpecError> {
        Ok(Some(match fields.text(key)? {
            None => return Ok(None),
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
            // The first Gemma releases said "gelu" and meant the approximation they were trained with.
            Some("gelu") if family == Family::Gemma => Activation::GeluTanh,
            Some(other) => {
                return Err(SpecError::Unsupported {
                    field: fields.name(key),
                    value: other.into(),
                    supported: "silu, gelu_pytorch_tanh".into(),
                });
            }
        }))
    };
    let act = parse("hidden_act")?;
    if family != Family::Gemma {
        return Ok(act.unwrap_or(Activation::Silu));
    }
    match (act, parse("hidden_activation")?) {
        (Some(act), Some(activation)) if act != activation => Err(SpecError::Contradiction {
            field: fields.name("hidden_activation"),
            value: format!("{activation:?}"),
            other: fields.name("hidden_act"),
            limit: format!("{act:?}"),
        }),
        (act, activation) => Ok(activation.or(act).unwrap_or(Activation::GeluTanh)),
    }
}

fn experts(family: Family, fields: &Fields<'_>) -> Result<Option<Experts>, SpecError> {
    if family != Family::Mixtral {
        return Ok(None);
    }
    let count = fields.count("num_local_experts", 256)?.unwrap_or(8);
    let top_k = fields.count("num_experts_per_tok", 16)?.unwrap_or(2);
    if top_k > count {
        return Err(SpecError::Contradiction {
            field: fields.name("num_experts_per_tok"),
            value: top_k.to_string(),
            other: fields.name("num_local_experts"),
            limit: count.to_string(),
        });
    }
    Ok(Some(Experts { count, top_k }))
}

/// Biases on query, key and value. Qwen2 always has them, Llama when it says so, the others never.
fn attention_bias(family: Family, fields: &Fields<'_>) -> Result<bool, SpecError> {
    match family {
        Family::Llama => Ok(fields.flag("attention_bias")?.unwrap_or(false)),
        Family::Qwen2 => match fields.flag("attention_bias")? {
            Some(false) => Err(SpecError::Unsupported {
                field: fields.name("attention_bias"),
                value: "false".into(),
                supported: "true or absent for this architecture".into(),
            }),
            _ => Ok(true),
        },
        _ => fields.refuse_on("attention_bias").map(|()| false),
    }
}

/// Newer files spell the attention of each layer out; it must say what the other keys say.
fn layer_types(fields: &Fields<'_>, spec: &Spec) -> Result<(), SpecError> {
    let Some(value) = fields.get("layer_types") else { return Ok(()) };
    let wanted = if spec.window.is_some() { "sliding_attention" } else { "full_attention" };
    let fits = value
        .as_array()
        .is_some_and(|types| types.len() == spec.layers && types.iter().all(|t| t.as_str() == Some(wanted)));
    if fits {
        return Ok(());
    }
    Err(SpecError::Unsupported {
        field: fields.name("layer_types"),
        value: brief(value),
        supported: format!("{} times \"{wanted}\"", spec.layers),
    })
}
