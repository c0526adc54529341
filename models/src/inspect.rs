//! What `hearth models inspect` tells of a checkpoint, as data and as text: nothing is loaded for it.

use std::collections::BTreeMap;
use std::fmt;

use hearth_kernels::Quantize;
use hearth_kernels::paged::BLOCK;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::decoder::Options;
use crate::memory::{Memory, Size};
use crate::spec::{Activation, Scaling, Spec};

/// Rows of a step and of its logits that the figures assume.
const ROWS: usize = 512;
const LOGITS: usize = 64;
/// Contexts of the table, as far as the model's own reaches.
const CONTEXTS: [usize; 4] = [2048, 8192, 32_768, 131_072];

/// A checkpoint at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub origin: String,
    pub parameters: u64,
    /// Parameters that one token is multiplied with: of a mixture, those of the experts it goes to.
    pub active_parameters: u64,
    /// Bytes in the files by type, of the tensors that are read.
    pub bytes_by_type: BTreeMap<String, u64>,
    /// Tensors in the files that are not read.
    pub ignored_tensors: usize,
    pub spec: Spec,
    /// Memory of the weights: as they are, and made smaller at load.
    pub weights: Vec<Weights>,
    pub kv_bytes_per_token: u64,
    pub contexts: Vec<AtContext>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Weights {
    /// `as stored`, or the argument of `--quantize`.
    pub format: &'static str,
    pub bytes: u64,
}

/// One sequence of this length.
#[derive(Clone, Debug, Serialize)]
pub struct AtContext {
    pub tokens: usize,
    pub kv_bytes: u64,
    /// Weights as stored, keys and values of the one sequence, buffers.
    pub total_bytes: u64,
}

impl Inspection {
    pub fn of(checkpoint: &Checkpoint) -> Inspection {
        let spec = checkpoint.spec();
        let memory = |quantize, context: usize| {
            let options = Options {
                quantize,
                rows: ROWS,
                logits: LOGITS,
                context,
                blocks: context.div_ceil(BLOCK),
                kv: None,
            };
            Memory::of(checkpoint, &options)
        };
        let formats = [None, Some(Quantize::Q8_0), Some(Quantize::Q6K), Some(Quantize::Q4K)];
        let own = [spec.context].into_iter().filter(|context| !CONTEXTS.contains(context));
        let mut contexts: Vec<usize> =
            CONTEXTS.into_iter().filter(|c| *c <= spec.context).chain(own).collect();
        contexts.sort_unstable();
        Inspection {
            origin: checkpoint.origin().display().to_string(),
            parameters: checkpoint.parameters(),
            active_parameters: active(checkpoint),
            bytes_by_type: checkpoint.bytes_by_type(),
            ignored_tensors: checkpoint.ignored().len(),
            weights: formats
                .into_iter()
                .map(|quantize| Weights {
                    format: quantize.map_or("as stored", Quantize::name),
                    bytes: memory(quantize, 1).weight_bytes(),
                })
                .collect(),
            kv_bytes_per_token: memory(None, 1).token_bytes(),
            contexts: contexts
                .into_iter()
                .map(|tokens| {
                    let memory = memory(None, tokens);
                    AtContext { tokens, kv_bytes: memory.kv_bytes(), total_bytes: memory.total() }
                })
                .collect(),
            spec: spec.clone(),
        }
    }
}

/// All parameters but the rows of an embedding that is only looked up, and but the experts a token does not go to.
fn active(checkpoint: &Checkpoint) -> u64 {
    let (spec, layout) = (checkpoint.spec(), checkpoint.layout());
    let all: u64 = layout.blocks().map(|block| block.elements()).sum();
    let looked_up = if spec.tied { 0 } else { layout.embedding.elements() };
    let idle: u64 = spec.experts.map_or(0, |experts| {
        let mlps = layout
            .layers
            .iter()
            .map(|layer| layer.mlps[0].gate_up.elements() + layer.mlps[0].down.elements());
        mlps.sum::<u64>() * (experts.count - experts.top_k) as u64
    });
    all - looked_up - idle
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = &self.spec;
        let mut line = |what: &str, value: String| writeln!(f, "{what:<20} {value}");
        line("checkpoint", self.origin.clone())?;
        line("architecture", format!("{} (family {})", spec.architecture, spec.family.name()))?;
        let active = match self.active_parameters {
            n if spec.experts.is_some() => format!(", {} at work for a token", count(n)),
            _ => String::new(),
        };
        line("parameters", format!("{}{active}", count(self.parameters)))?;
        let types: Vec<String> =
            self.bytes_by_type.iter().map(|(t, n)| format!("{t} {}", Size(*n))).collect();
        line("types in the files", types.join(", "))?;
        if self.ignored_tensors > 0 {
            line("not read", format!("{} tensors that text does not need", self.ignored_tensors))?;
        }
        line("layers", format!("{} of width {}, MLP {}", spec.layers, spec.hidden, spec.ffn))?;
        line("heads", format!("{} of {}, {} for keys and values", spec.heads, spec.head_dim, spec.kv_heads))?;
        if let Some(experts) = spec.experts {
            line("experts", format!("{}, {} for each token", experts.count, experts.top_k))?;
        }
        line("switches", switches(spec).join(", "))?;
        line("vocabulary", spec.vocab.to_string())?;
        line("context", format!("{} tokens", spec.context))?;
        line("end tokens", format!("{:?}", spec.eos))?;
        line("keys and values", format!("{} a token", Size(self.kv_bytes_per_token)))?;
        for weights in &self.weights {
            line(&format!("weights, {}", weights.format), Size(weights.bytes).to_string())?;
        }
        for at in &self.contexts {
            let what = format!("at {} tokens", at.tokens);
            line(
                &what,
                format!("{} in all, {} of it keys and values", Size(at.total_bytes), Size(at.kv_bytes)),
            )?;
        }
        Ok(())
    }
}

fn switches(spec: &Spec) -> Vec<String> {
    let mut list = vec![match spec.activation {
        Activation::Silu => "SiLU".to_owned(),
        Activation::GeluTanh => "tanh GELU".to_owned(),
    }];
    list.push(match spec.rope.scaling {
        Scaling::None => format!("rope theta {}", spec.rope.theta),
        Scaling::Linear { factor } => format!("rope theta {}, linear scaling {factor}", spec.rope.theta),
        Scaling::Llama3 { factor, .. } => format!("rope theta {}, llama3 scaling {factor}", spec.rope.theta),
    });
    list.extend(spec.window.map(|window| format!("sliding window {window}")));
    let flags = [
        (spec.unit_offset, "norm by 1 + weight"),
        (spec.scaled_embedding, "scaled embedding"),
        (spec.tied, "tied head"),
        (spec.qkv_bias, "attention bias"),
        (spec.mlp_bias, "MLP bias"),
    ];
    list.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()));
    list
}

/// 7.25 B, 4.0 M.
fn count(parameters: u64) -> String {
    match parameters as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n => format!("{:.0} k", n / 1e3),
    }
}
