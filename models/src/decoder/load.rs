//! From a checkpoint to packed weights and buffers: a rank's part of each tensor is read once, out of the memory map.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use hearth_kernels::{
    Activation, Context, Heads, KvCache, KvShape, Quantize, RopeTable, Routes, View, Weight,
};

use super::{Buffers, Decoder, Layer, LoadError, Mlp, Options};
use crate::checkpoint::Checkpoint;
use crate::layout::{self, Block, Layout, Role};
use crate::shard::{Packing, Peers, Shard};
use crate::spec::{self, Spec};
use crate::widen::widen;

/// Whether a block is made smaller at load: products inside layers whose width divides into the format's blocks.
pub(crate) fn quantized(block: &Block, quantize: Option<Quantize>) -> Option<Quantize> {
    quantize.filter(|kind| block.role == Role::Linear && block.cols().is_multiple_of(kind.block()))
}

pub(crate) fn kv_shape(spec: &Spec, checkpoint: &Checkpoint, options: &Options) -> KvShape {
    KvShape {
        layers: spec.layers,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        blocks: options.blocks,
        dtype: options.kv.unwrap_or(checkpoint.main_dtype()),
    }
}

/// Reads weights one after another and says how far it is.
struct Loader<'a> {
    ctx: &'a Context,
    checkpoint: &'a Checkpoint,
    quantize: Option<Quantize>,
    shard: Shard,
    progress: &'a mut dyn FnMut(u64),
    read: u64,
    held: u64,
}

impl Loader<'_> {
    fn view<'b>(&self, part: &layout::Part, bytes: &'b [u8]) -> View<'b> {
        let dtype = self.checkpoint.dtype(&part.name).expect("bug: the checkpoint was checked");
        View { dtype, rows: part.rows, cols: part.cols.unwrap_or(1), bytes }
    }

    fn done(&mut self, bytes: usize, held: usize) {
        self.read += bytes as u64;
        self.held += held as u64;
        (self.progress)(self.read);
    }

    fn weight(&mut self, block: &Block) -> Result<Weight, LoadError> {
        let cuts: Vec<Cow<'_, [u8]>> =
            block.parts.iter().map(|part| self.shard.cut(self.checkpoint, part)).collect();
        let views: Vec<View<'_>> =
            block.parts.iter().zip(&cuts).map(|(part, bytes)| self.view(part, bytes)).collect();
        let weight = match quantized(block, self.quantize) {
            Some(kind) => Weight::quantize(self.ctx, &views, kind),
            None => Weight::pack(self.ctx, &views),
        };
        let bytes = views.iter().map(|view| view.bytes.len()).sum();
        let name = || block.parts[0].name.clone();
        let weight = weight.map_err(|error| LoadError::Weight { name: name(), error })?;
        block.parts.iter().for_each(|part| self.checkpoint.release(&part.name));
        self.done(bytes, weight.bytes());
        Ok(weight)
    }

    /// A norm's weight or a bias, widened.
    fn vector(&mut self, block: &Block) -> Result<Tensor, LoadError> {
        let (wide, bytes) = widen(self.checkpoint, block, self.shard);
        self.done(bytes, 4 * wide.len());
        let rows = wide.len();
        Ok(Tensor::from_vec(wide, rows, self.ctx.device())?)
    }

    fn optional(&mut self, block: &Option<Block>) -> Result<Option<Tensor>, LoadError> {
        block.as_ref().map(|block| self.vector(block)).transpose()
    }

    fn layer(&mut self, layer: &layout::Layer) -> Result<Layer, LoadError> {
        Ok(Layer {
            attention_norm: self.vector(&layer.attention_norm)?,
            qkv: self.weight(&layer.qkv)?,
            qkv_bias: self.optional(&layer.qkv_bias)?,
            output: self.weight(&layer.output)?,
            output_bias: self.optional(&layer.output_bias)?,
            mlp_norm: self.vector(&layer.mlp_norm)?,
            mlp: match (&layer.router, &layer.mlps[..]) {
                (None, [mlp]) => Mlp::Dense {
                    gate_up: self.weight(&mlp.gate_up)?,
                    gate_up_bias: self.optional(&mlp.gate_up_bias)?,
                    down: self.weight(&mlp.down)?,
                    down_bias: self.optional(&mlp.down_bias)?,
                },
                (router, mlps) => {
                    let router = router.as_ref().expect("bug: several MLPs without a router");
                    let router = self.weight(router)?;
                    let (mut gate_up, mut down) = (Vec::new(), Vec::new());
                    for mlp in mlps {
                        gate_up.push(self.weight(&mlp.gate_up)?);
                        down.push(self.weight(&mlp.down)?);
                    }
                    Mlp::Experts { router, gate_up, down }
                }
            },
        })
    }
}

impl Decoder {
    /// Packs the weights of a checkpoint and makes all buffers. `progress` hears how many bytes of
    /// [`Checkpoint::bytes`] were read so far.
    pub fn load(
        ctx: &Context,
        checkpoint: &Checkpoint,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Decoder, LoadError> {
        Self::load_shard(ctx, checkpoint, options, Shard::WHOLE, None, progress)
    }

    /// A rank's part of a model. Its logits are those of its part of the vocabulary; `peers` are the ranks that have the
    /// other parts of the model and make the same steps.
    pub fn load_shard(
        ctx: &Context,
        checkpoint: &Checkpoint,
        options: &Options,
        shard: Shard,
        peers: Option<Box<dyn Peers>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Decoder, LoadError> {
        assert_eq!(peers.is_none(), shard.is_whole(), "bug: {shard:?} with peers: {}", peers.is_some());
        let layout: Layout = shard.layout(checkpoint.spec(), options.quantize.map(Packing::from))?;
        let spec = shard.spec(checkpoint.spec())?;
        for (what, value) in
            [("rows of a step", options.rows), ("rows of logits", options.logits), ("blocks", options.blocks)]
        {
            if value == 0 || value > 1 << 28 {
                return Err(LoadError::Limit { what, value, limit: "1 to 268435456".into() });
            }
        }
        if options.context == 0 || options.context > spec.context {
            let limit = format!("1 to the model's {}", spec.context);
            return Err(LoadError::Limit { what: "context", value: options.context, limit });
        }
        let kv = KvCache::new(ctx, kv_shape(&spec, checkpoint, options))?;
        let rope = RopeTable::new(ctx, &spec.rope.inverse_frequencies(spec.head_dim), 1.0, options.context)?;
        let vocab = layout.head.as_ref().unwrap_or(&layout.embedding).rows();
        let buffers = Buffers::new(ctx.device(), &spec, options, vocab)?;

        let mut loader =
            Loader { ctx, checkpoint, quantize: options.quantize, shard, progress, read: 0, held: 0 };
        let embedding = loader.weight(&layout.embedding)?;
        let mut layers = Vec::with_capacity(spec.layers);
        for layer in &layout.layers {
            layers.push(loader.layer(layer)?);
        }
        let norm = loader.vector(&layout.norm)?;
        let head = layout.head.as_ref().map(|head| loader.weight(head)).transpose()?;
        let weight_bytes = loader.held;
        Ok(Decoder {
            ctx: ctx.clone(),
            heads: Heads { q: spec.heads, kv: spec.kv_heads, dim: spec.head_dim },
            activation: activation(&spec),
            embedding_scale: embedding_scale(&spec, checkpoint.main_dtype()),
            embedding,
            layers,
            norm,
            head,
            rope,
            kv,
            buffers,
            weight_bytes,
            shard,
            peers,
            options: options.clone(),
            spec,
        })
    }
}

pub(crate) fn activation(spec: &Spec) -> Activation {
    match spec.activation {
        spec::Activation::Silu => Activation::Silu,
        spec::Activation::GeluTanh => Activation::GeluTanh,
    }
}

/// Gemma's factor, rounded to the type it was trained in: in bf16 the square root of 3072 is 55.5.
pub(crate) fn embedding_scale(spec: &Spec, dtype: DType) -> f32 {
    if !spec.scaled_embedding {
        return 1.0;
    }
    let exact = (spec.hidden as f64).sqrt() as f32;
    match dtype {
        DType::BF16 => bf16::from_f32(exact).to_f32(),
        DType::F16 => f16::from_f32(exact).to_f32(),
        _ => exact,
    }
}

impl Buffers {
    /// `vocab` is the part of the vocabulary that has logits here.
    fn new(device: &Device, spec: &Spec, options: &Options, vocab: usize) -> Result<Buffers, LoadError> {
        let buffer = |rows: usize, width: usize| Tensor::zeros((rows, width), DType::F32, device);
        let rows = options.rows;
        let mixture = spec.experts.is_some();
        let dense = if mixture { 0 } else { spec.ffn };
        let experts = spec.experts.map_or(0, |experts| experts.count);
        Ok(Buffers {
            residual: buffer(rows, spec.hidden)?,
            normed: buffer(rows, spec.hidden)?,
            qkv: buffer(rows, spec.query_width() + 2 * spec.key_width())?,
            attended: buffer(rows, spec.query_width())?,
            gate_up: buffer(rows, 2 * dense)?,
            gated: buffer(rows, dense)?,
            router: buffer(rows, experts)?,
            routes: spec.experts.map(|experts| Routes::new(rows, experts.count, experts.top_k)),
            logits: buffer(options.logits, vocab)?,
        })
    }
}
