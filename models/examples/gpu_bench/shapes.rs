//! Shapes of released models, as their config.json has them, and what a step of them costs.

use hearth_kernels::cuda::weightonly::{Format, PANEL};
use hearth_models::layout::{Block, Layout};
use hearth_models::spec::Spec;
use serde_json::{Value, json};

use crate::Failure;

pub const NAMES: [&str; 9] = [
    "mistral-7b",
    "codestral-22b",
    "codegemma-2b",
    "codegemma-7b",
    "codellama-13b",
    "deepseek-33b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "tiny",
];

pub fn shape(name: &str) -> Result<Spec, Failure> {
    let mistral = |own: Value| {
        with(
            json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
            "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
            "torch_dtype": "bfloat16", "vocab_size": 32768}),
            own,
        )
    };
    let llama = |own: Value| {
        with(
            json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
            "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16384,
            "mlp_bias": false, "rope_scaling": null, "tie_word_embeddings": false,
            "torch_dtype": "bfloat16"}),
            own,
        )
    };
    let gemma = |own: Value| {
        with(
            json!({"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "attention_bias": false,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2,
            "eos_token_id": 1, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
            "rope_scaling": null, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
            "vocab_size": 256000}),
            own,
        )
    };
    let config = match name {
        "mistral-7b" => {
            mistral(json!({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8}))
        }
        "codestral-22b" => mistral(json!({"hidden_size": 6144, "intermediate_size": 16384,
            "num_hidden_layers": 56, "num_attention_heads": 48, "num_key_value_heads": 8})),
        "codegemma-2b" => {
            gemma(json!({"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1}))
        }
        "codegemma-7b" => {
            gemma(json!({"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16}))
        }
        "codellama-13b" => {
            llama(json!({"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
            "vocab_size": 32016}))
        }
        "deepseek-33b" => {
            llama(json!({"hidden_size": 7168, "intermediate_size": 19200, "num_hidden_layers": 62,
            "num_attention_heads": 56, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 100000.0,
            "rope_scaling": {"factor": 4.0, "type": "linear"}, "vocab_size": 32256}))
        }
        "mixtral-8x7b" => mistral(json!({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_experts_per_tok": 2, "num_local_experts": 8, "vocab_size": 32000})),
        "mixtral-8x22b" => mistral(json!({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
            "hidden_size": 6144, "intermediate_size": 16384, "max_position_embeddings": 65536,
            "num_hidden_layers": 56, "num_attention_heads": 48, "num_key_value_heads": 8, "num_experts_per_tok": 2,
            "num_local_experts": 8})),
        "tiny" => mistral(json!({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 320})),
        _ => return Err(format!("no shape {name}; there are: {}", NAMES.join(" ")).into()),
    };
    Ok(Spec::from_config(&config)?)
}

fn with(mut common: Value, own: Value) -> Value {
    let (all, own) = (common.as_object_mut(), own.as_object());
    let (all, own) = (all.expect("bug: an object"), own.expect("bug: an object"));
    all.extend(own.clone());
    common
}

/// Numbers of some matrices, and the bytes they take.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    numbers: u64,
    bytes: u64,
}

impl Held {
    fn of<'a>(blocks: impl Iterator<Item = &'a Block>, quantize: Option<Format>) -> Self {
        blocks.fold(Self::default(), |all, block| {
            let bytes = match quantize.filter(|format| format.takes(block.cols())) {
                None => 2 * block.elements(),
                Some(format) => {
                    let (numbers, scales) = format.panel_bytes(block.cols());
                    (block.rows().div_ceil(PANEL) * (numbers + scales)) as u64
                }
            };
            Self { numbers: all.numbers + block.elements(), bytes: all.bytes + bytes }
        })
    }
}

/// Bytes and operations of a model's steps.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Bytes of all matrices.
    pub weights: u64,
    /// The layers' matrices that every row is multiplied with.
    shared: Held,
    /// All experts; how many there are, and how many a row goes through.
    experts: Held,
    of: (usize, usize),
    /// Bytes of the head.
    head: u64,
    /// Bytes of a position's keys and values in all layers.
    pub position: u64,
}

impl Cost {
    pub fn of(spec: &Spec, quantize: Option<Format>) -> Self {
        let layout = Layout::of(spec);
        let attention = layout.layers.iter().flat_map(|layer| [&layer.qkv, &layer.output]);
        let mlps = layout.layers.iter().flat_map(|layer| &layer.mlps);
        let mlps = mlps.flat_map(|mlp| [&mlp.gate_up, &mlp.down]);
        let (shared, experts) = match spec.experts {
            None => (Held::of(attention.chain(mlps), quantize), Held::default()),
            Some(_) => (Held::of(attention, quantize), Held::of(mlps, quantize)),
        };
        let ends = Held::of([Some(&layout.embedding), layout.head.as_ref()].into_iter().flatten(), None);
        Self {
            weights: shared.bytes + experts.bytes + ends.bytes,
            shared,
            experts,
            of: spec.experts.map_or((1, 1), |experts| (experts.count, experts.top_k)),
            head: 2 * layout.head.as_ref().unwrap_or(&layout.embedding).elements(),
            position: (spec.layers * 2 * spec.key_width() * 2) as u64,
        }
    }

    /// Bytes that a step must read in which each row sees as many positions: the weights once, of a mixture those of the
    /// experts that as many rows are expected to go through, and keys and values of each row.
    pub fn bytes(&self, contexts: impl Iterator<Item = usize>) -> f64 {
        let (rows, positions) = contexts.fold((0, 0), |(rows, all), context| (rows + 1, all + context));
        let (count, top_k) = self.of;
        let touched = 1.0 - (1.0 - top_k as f64 / count as f64).powi(rows);
        let weights = (self.shared.bytes + self.head) as f64 + touched * self.experts.bytes as f64;
        weights + self.position as f64 * positions as f64
    }

    /// Operations of the products of so many rows of a prompt; attention is not counted.
    pub fn operations(&self, rows: usize) -> f64 {
        let (count, top_k) = self.of;
        let numbers = self.shared.numbers as f64 + self.experts.numbers as f64 * top_k as f64 / count as f64;
        2.0 * numbers * rows as f64
    }
}
