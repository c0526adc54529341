//! The one decoder: step 8 in the life of a request, from a [`Step`] to logits.
//!
//! It knows no family, only the switches of [`Spec`]. Activations are f32, rows first, in buffers made once for the
//! largest step; weights stay in the type of the checkpoint; a step allocates nothing. What a row gives depends on its
//! own sequence only, never on its neighbours in the step or on how a prompt was cut into chunks (quantised weights
//! excepted).

mod load;

use candle_core::{DType, Tensor};
use hearth_kernels::cuda::driver::DeviceError;
use hearth_kernels::{
    Activation, Context, Heads, KvCache, Quantize, RopeTable, Routes, Weight, Write, attention, embed,
    experts, gate, linear, linear_rows, rms_norm, rope_store, route,
};

use crate::checkpoint::CheckpointError;
use crate::shard::{Indivisible, Peers, Shard};
use crate::spec::Spec;
pub use crate::step::ForwardError;
use crate::step::{Bounds, Step};
pub(crate) use load::{activation, embedding_scale, kv_shape, quantized};

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
    #[error(transparent)]
    Split(#[from] Indivisible),
    #[error("{what} is {value}; the limit is {limit}")]
    Limit { what: &'static str, value: usize, limit: String },
    #[error("`{name}`: {error}")]
    Weight { name: String, error: hearth_kernels::Error },
    #[error(transparent)]
    Kernel(#[from] hearth_kernels::Error),
    #[error("a buffer of the decoder: {0}")]
    Buffer(#[from] candle_core::Error),
    #[error("{what} are not served on this device yet: {value}; serve the model with --device cpu")]
    Device { what: &'static str, value: String },
    #[error(transparent)]
    Driver(#[from] DeviceError),
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
    shard: Shard,
    /// The other ranks, where there are any.
    peers: Option<Box<dyn Peers>>,
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
        let Options { rows, logits, context, blocks, .. } = self.options;
        step.check(&Bounds { rows, logits, context, vocab: self.spec.vocab, drawn: 0, blocks })?;
        // The first rank adds to the residual stream, the others put their parts in its place, to be summed.
        let part = if self.shard.rank == 0 { Write::Add } else { Write::Set };
        let Self { ctx, spec, heads, activation, kv, buffers, peers, .. } = self;
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
            linear(ctx, attended, rows, &layer.output, layer.output_bias.as_ref(), residual, part)?;
            join(peers, residual, rows)?;

            rms_norm(ctx, residual, rows, &layer.mlp_norm, epsilon, offset, normed)?;
            match &layer.mlp {
                Mlp::Dense { gate_up, gate_up_bias, down, down_bias } => {
                    linear(ctx, normed, rows, gate_up, gate_up_bias.as_ref(), both, Write::Set)?;
                    gate(ctx, both, rows, *activation, gated)?;
                    linear(ctx, gated, rows, down, down_bias.as_ref(), residual, part)?;
                }
                Mlp::Experts { router, gate_up, down } => {
                    let routes = routes.as_mut().expect("bug: a mixture has routes");
                    let top_k = spec.experts.expect("bug: a mixture has experts").top_k;
                    linear(ctx, normed, rows, router, None, scores, Write::Set)?;
                    route(ctx, scores, rows, gate_up.len(), top_k, true, routes)?;
                    experts(ctx, normed, rows, routes, gate_up, down, *activation, residual, part)?;
                }
            }
            join(peers, residual, rows)?;
        }
        if !step.logits.is_empty() {
            rms_norm(ctx, residual, rows, &self.norm, epsilon, offset, normed)?;
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            linear_rows(ctx, normed, &step.logits, head, None, logits, Write::Set)?;
        }
        Ok(logits)
    }

    /// Which part of its model this is.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// What the last [`forward`](Self::forward) returned.
    pub fn logits(&self) -> &Tensor {
        &self.buffers.logits
    }
}

/// Makes the first rows of the residual stream whole again after each rank added its part: the one place where ranks speak
/// to each other inside a step. Where there is one rank, nothing is to be done.
fn join(
    peers: &mut Option<Box<dyn Peers>>,
    residual: &Tensor,
    rows: usize,
) -> Result<(), hearth_kernels::Error> {
    let Some(peers) = peers else { return Ok(()) };
    let part = residual.narrow(0, 0, rows)?;
    let mut numbers = part.flatten_all()?.to_vec1()?;
    peers.sum(&mut numbers);
    residual.slice_set(&Tensor::from_vec(numbers, part.shape(), residual.device())?, 0, 0)?;
    Ok(())
}
