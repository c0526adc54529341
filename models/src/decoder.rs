//! The one decoder: step 8 in the life of a request, from a [`Step`] to logits.
//!
//! It knows no family, only the switches of [`Spec`]. Activations are f32, rows first, in buffers made once for the
//! largest step; weights stay in the type of the checkpoint; a step allocates nothing. What a row gives depends on its
//! own sequence only, never on its neighbours in the step or on how a prompt was cut into chunks (quantised weights
//! excepted).

mod load;

use candle_core::{DType, Tensor};
use hearth_kernels::{
    Activation, Context, Heads, KvCache, Quantize, RopeTable, Routes, Weight, Write, attention, embed,
    experts, gate, linear, linear_rows, rms_norm, rope_store, route,
};

use crate::checkpoint::CheckpointError;
use crate::spec::Spec;
use crate::step::{PENDING, Step};
pub(crate) use load::{kv_shape, quantized};

/// What a decoder is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Makes the weights of the layers smaller at load; embeddings, head and router keep their type.
    pub quantize: Option<Quantize>,
    /// Rows of a step at most.
    pub rows: usize,
    /// Rows of logits of a step at most.
    pub logits: usize,
    /// Longest sequence, prompt and output; at most the model's own.
    pub context: usize,
    /// Blocks of keys and values.
    pub blocks: usize,
    /// Type of keys and values; `None` is the checkpoint's.
    pub kv: Option<DType>,
}

/// Why weights could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{what} is {value}; the limit is {limit}")]
    Limit { what: &'static str, value: usize, limit: String },
    #[error("`{name}`: {error}")]
    Weight { name: String, error: hearth_kernels::Error },
    #[error(transparent)]
    Kernel(#[from] hearth_kernels::Error),
    #[error("a buffer of the decoder: {0}")]
    Buffer(#[from] candle_core::Error),
}

/// Why a step was not run. The sequences of the step end with it; the decoder goes on.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("a step of {value} {what}; this decoder was made for {limit}")]
    Large { what: &'static str, value: usize, limit: usize },
    #[error("the step is inconsistent: {0}")]
    Step(String),
    #[error(transparent)]
    Kernel(#[from] hearth_kernels::Error),
}

pub struct Decoder {
    ctx: Context,
    spec: Spec,
    options: Options,
    heads: Heads,
    activation: Activation,
    embedding: Weight,
    embedding_scale: f32,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `None` when the embedding is the head.
    head: Option<Weight>,
    rope: RopeTable,
    kv: KvCache,
    buffers: Buffers,
    weight_bytes: u64,
}

struct Layer {
    attention_norm: Tensor,
    qkv: Weight,
    qkv_bias: Option<Tensor>,
    output: Weight,
    output_bias: Option<Tensor>,
    mlp_norm: Tensor,
    mlp: Mlp,
}

enum Mlp {
    Dense { gate_up: Weight, gate_up_bias: Option<Tensor>, down: Weight, down_bias: Option<Tensor> },
    Experts { router: Weight, gate_up: Vec<Weight>, down: Vec<Weight> },
}

/// Activations of the largest step, `[rows, width]` each.
struct Buffers {
    residual: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    gate_up: Tensor,
    gated: Tensor,
    router: Tensor,
    routes: Option<Routes>,
    logits: Tensor,
}

impl Decoder {
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Positions of a block of keys and values.
    pub fn block_size(&self) -> usize {
        self.kv.block_size()
    }

    /// Memory of the weights as they are now.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Memory of the keys and values.
    pub fn kv_bytes(&self) -> u64 {
        self.kv.bytes() as u64
    }

    /// Runs a step: writes the keys and values of its rows and gives logits `[options.logits, vocab]`, of which row
    /// `i` belongs to `step.logits[i]` and the rest is of earlier steps. No token may be [`PENDING`].
    pub fn forward(&mut self, step: &Step) -> Result<&Tensor, ForwardError> {
        self.check(step)?;
        let Self { ctx, spec, heads, activation, kv, buffers, .. } = self;
        let (ctx, heads, rows) = (&*ctx, *heads, step.rows());
        let (epsilon, offset) = (spec.epsilon as f32, spec.unit_offset);
        let window = spec.window.map(|window| window as u32);
        let pages = step.pages();
        let Buffers { residual, normed, qkv, attended, gate_up: both, gated, router: scores, routes, logits } =
            buffers;

        embed(ctx, &self.embedding, &step.tokens, self.embedding_scale, residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            rms_norm(ctx, residual, rows, &layer.attention_norm, epsilon, offset, normed)?;
            linear(ctx, normed, rows, &layer.qkv, layer.qkv_bias.as_ref(), qkv, Write::Set)?;
            rope_store(ctx, qkv, heads, &self.rope, &pages, kv, index)?;
            let scale = spec.attention_scale();
            attention(ctx, qkv, heads, &pages, kv, index, scale, window, attended)?;
            linear(ctx, attended, rows, &layer.output, layer.output_bias.as_ref(), residual, Write::Add)?;

            rms_norm(ctx, residual, rows, &layer.mlp_norm, epsilon, offset, normed)?;
            match &layer.mlp {
                Mlp::Dense { gate_up, gate_up_bias, down, down_bias } => {
                    linear(ctx, normed, rows, gate_up, gate_up_bias.as_ref(), both, Write::Set)?;
                    gate(ctx, both, rows, *activation, gated)?;
                    linear(ctx, gated, rows, down, down_bias.as_ref(), residual, Write::Add)?;
                }
                Mlp::Experts { router, gate_up, down } => {
                    let routes = routes.as_mut().expect("bug: a mixture has routes");
                    let top_k = spec.experts.expect("bug: a mixture has experts").top_k;
                    linear(ctx, normed, rows, router, None, scores, Write::Set)?;
                    route(ctx, scores, rows, gate_up.len(), top_k, true, routes)?;
                    experts(ctx, normed, rows, routes, gate_up, down, *activation, residual, Write::Add)?;
                }
            }
        }
        if !step.logits.is_empty() {
            rms_norm(ctx, residual, rows, &self.norm, epsilon, offset, normed)?;
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            linear_rows(ctx, normed, &step.logits, head, None, logits, Write::Set)?;
        }
        Ok(logits)
    }

    /// What the last [`forward`](Self::forward) returned.
    pub fn logits(&self) -> &Tensor {
        &self.buffers.logits
    }

    /// What the operations rely on and do not look at themselves.
    fn check(&self, step: &Step) -> Result<(), ForwardError> {
        let rows = step.rows();
        let large = |what, value, limit| Err(ForwardError::Large { what, value, limit });
        if rows > self.options.rows {
            return large("rows", rows, self.options.rows);
        }
        if step.logits.len() > self.options.logits {
            return large("rows of logits", step.logits.len(), self.options.logits);
        }
        if step.positions.len() != rows || step.slots.len() != rows {
            let (positions, slots) = (step.positions.len(), step.slots.len());
            return Err(ForwardError::Step(format!("{rows} tokens, {positions} positions, {slots} slots")));
        }
        if let Some(token) = step.tokens.iter().find(|token| **token >= self.spec.vocab as u32) {
            return Err(ForwardError::Step(match token & PENDING {
                0 => format!("token {token}; the vocabulary has {}", self.spec.vocab),
                _ => "a pending token was not resolved".into(),
            }));
        }
        if let Some(position) = step.positions.iter().find(|at| **at as usize >= self.options.context) {
            let context = self.options.context;
            return Err(ForwardError::Step(format!("position {position}; the context is {context}")));
        }
        if let Some(row) = step.logits.iter().find(|row| **row as usize >= rows) {
            return Err(ForwardError::Step(format!("logits of row {row}; the step has {rows}")));
        }
        let mut next = 0;
        for span in &step.spans {
            let end = span.table as usize + (span.context as usize).div_ceil(self.kv.block_size());
            if span.row != next || span.rows == 0 || span.rows > span.context || end > step.tables.len() {
                return Err(ForwardError::Step(format!(
                    "{span:?} after row {next}, {} tables",
                    step.tables.len()
                )));
            }
            next += span.rows;
        }
        if next as usize != rows {
            return Err(ForwardError::Step(format!("{rows} tokens, but spans of {next} rows")));
        }
        Ok(())
    }
}
