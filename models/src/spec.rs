//! What a checkpoint is, read from its own config.json: the switches of the one decoder.
//!
//! Before step 1 in the life of a request: a model is opened once. A key that would change the result and that is not
//! known here is an error, never ignored: a wrong switch gives fluent nonsense, which nobody notices for weeks.

mod config;
mod fields;
mod rope;

use fields::Fields;
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

impl Spec {
    /// Reads a config.json.
    pub fn from_config(config: &Value) -> Result<Spec, SpecError> {
        config::spec(config)
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
