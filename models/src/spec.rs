//! What a checkpoint is, read from its own config.json: the switches of the one decoder.
//!
//! Before step 1 in the life of a request: a model is opened once. A key that would change the result and that is not
//! known here is an error, never ignored: a wrong switch gives fluent nonsense, which nobody notices for weeks.

mod fields;
mod rope;

use fields::{Fields, brief};
pub use rope::{Rope, Scaling};
use serde::Serialize;
use serde_json::Value;

/// Which of the supported architectures a checkpoint belongs to. The decoder never asks; it reads the switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Mistral, Codestral, Mistral Small (its text part).
    Mistral,
    Mixtral,
    /// CodeGemma and the first Gemma.
    Gemma,
    /// Llama 2 and 3, CodeLlama, DeepSeek Coder.
    Llama,
    /// Qwen2.5-Coder.
    Qwen2,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Family::Mistral => "mistral",
            Family::Mixtral => "mixtral",
            Family::Gemma => "gemma",
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
        }
    }
}

/// The function of the gate in the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// A mixture of MLPs: each token goes through `top_k` of `count`, weighted by a softmax over those it goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Experts {
    pub count: usize,
    pub top_k: usize,
}

/// The switches of the decoder. All sizes in elements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spec {
    pub family: Family,
    /// As config.json names it.
    pub architecture: String,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    /// Width inside the MLP, of one expert where there are several.
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions the model was made for: prompt and output together.
    pub context: usize,
    /// How many positions a row sees, itself included; `None` sees all.
    pub window: Option<usize>,
    pub epsilon: f64,
    /// The norm multiplies by 1 + weight.
    pub unit_offset: bool,
    pub activation: Activation,
    pub rope: Rope,
    pub experts: Option<Experts>,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// Embeddings are multiplied by the square root of the width.
    pub scaled_embedding: bool,
    /// In front of every tensor name of the text model.
    pub prefix: &'static str,
    pub bos: Option<u32>,
    /// Tokens that end a text: generation_config.json's if it names any, else config.json's.
    pub eos: Vec<u32>,
}

/// Why a config.json was not accepted. Every message names the key, the value and what would do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    #[error("config.json: `{field}` is missing; the checkpoint is incomplete, copy its config.json again")]
    Missing { field: String },
    #[error("config.json: `{field}` is {value}; it must be {wanted}")]
    Type { field: String, value: String, wanted: &'static str },
    #[error("config.json: `{field}` is {value}; the limit is {limit}")]
    Limit { field: String, value: String, limit: String },
    #[error("config.json: `{field}` is {value}; supported: {supported}")]
    Unsupported { field: String, value: String, supported: String },
    #[error("config.json: `{field}` is {value}, which contradicts `{other}` = {limit}; one of them is wrong")]
    Contradiction { field: String, value: String, other: String, limit: String },
    #[error(
        "config.json: `{field}` = {value} is not known to this version and may change what the model says; a \
         checkpoint with it is refused rather than run wrongly"
    )]
    Unknown { field: String, value: String },
}

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

impl Spec {
    /// Reads a config.json.
    pub fn from_config(config: &Value) -> Result<Spec, SpecError> {
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
        // The text part has no key of its own for it in the released files, and their heads are apart.
        let tied = top.flag("tie_word_embeddings")?;
        let bos = top.get("bos_token_id").is_some();
        let eos = top.tokens("eos_token_id", usize::MAX)?;
        let mut spec = read(family, architecture, "language_model.", text)?;
        if let Some(ids) = eos {
            spec.eos = ids;
        }
        if bos {
            spec.bos = top.tokens("bos_token_id", spec.vocab)?.and_then(|ids| ids.first().copied());
        }
        let inner = config["text_config"]["tie_word_embeddings"].as_bool();
        spec.tied = inner.or(tied).unwrap_or(false);
        top.finish(&[HARMLESS, VISION].concat())?;
        Ok(spec)
    }

    /// Takes the end tokens of a generation_config.json; everything else there is a default of sampling, which the
    /// request sets here.
    pub fn with_generation(mut self, generation: &Value) -> Result<Spec, SpecError> {
        let fields = Fields::new("generation_config.", generation)?;
        if let Some(eos) = fields.tokens("eos_token_id", self.vocab)? {
            self.eos = eos;
        }
        if let Some(bos) = fields.tokens("bos_token_id", self.vocab)? {
            self.bos = self.bos.or(bos.first().copied());
        }
        Ok(self)
    }

    /// Width of the query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the key heads together; the value heads are as wide.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What scores are multiplied by before the softmax.
    pub fn attention_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
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
    if let Some(partial) = fields.positive("partial_rotary_factor")?
        && partial != 1.0
    {
        return Err(SpecError::Unsupported {
            field: fields.name("partial_rotary_factor"),
            value: partial.to_string(),
            supported: "1".into(),
        });
    }
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
        rope: Rope::read(&fields, default_theta, context)?,
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
