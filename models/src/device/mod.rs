//! The decoder on a device: step 8 in the life of a request, from a [`Step`] to logits, by the kernels of
//! `hearth_kernels::cuda`.
//!
//! The same switches of [`Spec`] as [`crate::decoder`] and the same roundings: the residual stream and the outputs of
//! products are f32, what goes into a product is bf16. Every buffer is made once, for the largest step. What changes
//! from step to step is copied to the device as words ([`meta`]), so the launches of a step depend on its *bucket* alone,
//! the number of rows rounded up: they are captured once for each bucket and replayed from then on.

mod chain;
mod launches;
mod meta;
mod pages;
mod peers;
mod random;
mod rehearsal;
mod weights;

use std::collections::HashMap;

use candle_core::DType;
use half::bf16;
use hearth_kernels::cuda::attention::{self, Attention};
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::{Device, DeviceError, Graph};
use hearth_kernels::cuda::experts::{self, Experts, Routes};
use hearth_kernels::cuda::hopper::{self, Differs, Hopper};
use hearth_kernels::cuda::narrow::Narrow;
use hearth_kernels::cuda::product::Product;
use hearth_kernels::cuda::row::Row;
use hearth_kernels::cuda::skinny::Skinny;
use hearth_kernels::cuda::weightonly::{Format, WeightOnly};
use hearth_kernels::paged::BLOCK;
use hearth_kernels::{Activation, Context, Heads, RopeTable};

use crate::checkpoint::Checkpoint;
use crate::decoder::{LoadError, activation, embedding_scale};
use crate::shard::Shard;
use crate::spec::Spec;
use crate::step::{Bounds, ForwardError, Step};
use meta::{Limits, Meta};
pub use pages::KvType;
use pages::Pages;
pub use peers::Peers;
use weights::Weights;
pub(crate) use weights::packed_as;

/// Rows of a step's launches: the smallest of these that the step fits.
const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Positions of a piece of a row's past, which a block of threads attends to. Any change changes bits.
const PIECE: usize = 256;

/// What a decoder is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Packs the weights of the layers at load; embeddings, head and router keep their type.
    pub quantize: Option<Format>,
    /// What keys and values are stored as.
    pub kv: KvType,
    /// Rows of a step at most.
    pub rows: usize,
    /// Rows of logits of a step at most; sequences that decode at the same time, too.
    pub logits: usize,
    /// Longest sequence, prompt and output; at most the model's own.
    pub context: usize,
    /// Blocks of keys and values.
    pub blocks: usize,
    /// Whether a row has the same bits in every step, whatever its number of rows: few rows take the tensor cores too.
    pub strict: bool,
    /// Whether launches are captured and replayed.
    pub graphs: bool,
}

pub struct Decoder {
    device: Device,
    spec: Spec,
    options: Options,
    kernels: Kernels,
    weights: Weights,
    /// Per position cosines and sines.
    turns: Buffer<f32>,
    embedding_scale: f32,
    heads: Heads,
    activation: Activation,
    /// Keys and values of each layer.
    kv: Vec<Pages>,
    meta: Meta,
    buffers: Buffers,
    /// By bucket; none where its launches were enqueued once and not captured yet.
    graphs: HashMap<usize, Option<Graph>>,
    set_aside: Option<Differs>,
    unchained: Option<chain::Differs>,
    shard: Shard,
    /// The other ranks, where there are any.
    peers: Option<Box<dyn Peers>>,
}

struct Kernels {
    row: Row,
    product: Product,
    /// For many rows, where the device has it and bits may depend on their number.
    hopper: Option<Hopper>,
    skinny: Skinny,
    attention: Attention,
    experts: Experts,
    narrow: Option<NarrowProducts>,
}

/// Products with packed weights.
struct NarrowProducts {
    few: WeightOnly,
    many: Narrow,
}

/// Activations of the largest step.
struct Buffers {
    residual: Buffer<f32>,
    normed: Buffer<bf16>,
    qkv: Buffer<f32>,
    /// Queries, turned and rounded.
    q: Buffer<bf16>,
    attended: Buffer<bf16>,
    gated: Buffer<bf16>,
    logits: Buffer<f32>,
    /// Tokens that the last sampling gave.
    drawn: Buffer<u32>,
    mixture: Option<Mixture>,
}

/// Of a mixture, a row a pair of a row and one of its experts.
struct Mixture {
    scores: Buffer<f32>,
    routes: Routes,
    gathered: Buffer<bf16>,
    middle: Buffer<bf16>,
    results: Buffer<f32>,
}

impl Decoder {
    /// Copies the weights of a checkpoint to the device and makes all buffers. `progress` hears how many bytes of
    /// [`Checkpoint::bytes`] were read so far.
    pub fn load(
        device: &Device,
        checkpoint: &Checkpoint,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        Self::load_shard(device, checkpoint, options, Shard::WHOLE, None, progress)
    }

    /// A decoder of a shape whose weights are random numbers, packed or not: for measuring, without a checkpoint.
    pub fn random(device: &Device, spec: &Spec, options: &Options) -> Result<Self, LoadError> {
        Self::build(device, spec.clone(), options, DType::BF16, (Shard::WHOLE, None), || {
            random::weights(device, spec, options.quantize)
        })
    }

    fn build(
        device: &Device,
        spec: Spec,
        options: &Options,
        dtype: DType,
        (shard, peers): (Shard, Option<Box<dyn Peers>>),
        weights: impl FnOnce() -> Result<Weights, LoadError>,
    ) -> Result<Self, LoadError> {
        let limit = |what, value, limit: usize| match value {
            1.. if value <= limit => Ok(()),
            _ => Err(LoadError::Limit { what, value, limit: format!("1 to {limit}") }),
        };
        limit("rows of a step", options.rows, BUCKETS[BUCKETS.len() - 1])?;
        limit("rows of logits", options.logits, options.rows)?;
        limit("context", options.context, spec.context)?;
        limit("blocks", options.blocks, 1 << 28)?;
        let heads = Heads { q: spec.heads, kv: spec.kv_heads, dim: spec.head_dim };
        if !attention::serves(heads) {
            let Heads { q, kv, dim } = heads;
            let value = format!("{q} of {dim} numbers on {kv} of keys");
            return Err(LoadError::Device { what: "heads like these", value });
        }
        if options.kv == KvType::Fp8 && !attention::serves_e4m3(heads) {
            let value = format!("{} numbers", heads.dim);
            return Err(LoadError::Device {
                what: "keys and values in fp8 with heads of such a size",
                value,
            });
        }
        let shape = attention::Shape {
            heads,
            scale: spec.attention_scale(),
            window: spec.window.map(|window| window as u32),
            piece: PIECE,
            split: 1,
            e4m3: options.kv == KvType::Fp8,
        };
        // Sequences that share blocks see them twice: room is for each of them at its longest.
        let pieces = options.logits * options.context.div_ceil(PIECE);
        let limits = attention::Limits { rows: options.rows, spans: options.logits, pieces };
        if let Some(experts) = spec.experts
            && (!experts.count.is_multiple_of(8) || experts.count > experts::MAX_EXPERTS)
        {
            return Err(LoadError::Device { what: "this many experts", value: experts.count.to_string() });
        }
        let product = Product::load(device)?;
        let mut experts = Experts::load(device, options.quantize)?;
        let mixture = spec.experts.is_some().then_some(&mut experts);
        let (hopper, set_aside) = many_rows(device, options, &product, mixture)?;
        let narrow = match options.quantize {
            None => None,
            Some(_) => {
                Some(NarrowProducts { few: WeightOnly::load(device)?, many: Narrow::load(device, &product)? })
            }
        };
        let kernels = Kernels {
            row: Row::load(device)?,
            product,
            hopper,
            narrow,
            skinny: Skinny::load(device)?,
            attention: Attention::load(device, shape, limits)?,
            experts,
        };
        let weights = weights()?;
        // Made by the host as for its own kernels.
        let frequencies = spec.rope.inverse_frequencies(spec.head_dim);
        let turns = RopeTable::new(&Context::cpu(None)?, &frequencies, 1.0, options.context)?;
        let page = options.blocks * BLOCK * spec.key_width();
        let kv = weights.layers.iter().map(|layer| Pages::new(device, options.kv, page, heads, layer));
        let tables = options.logits * options.context.div_ceil(BLOCK);
        let vocab = weights.head.as_ref().unwrap_or(&weights.embedding).rows;
        let graphs = options.graphs && peers.as_ref().is_none_or(|peers| peers.can_be_captured());
        let limits = Limits { rows: options.rows, spans: options.logits, logits: options.logits, tables };
        let mut decoder = Self {
            kv: kv.collect::<Result<_, DeviceError>>()?,
            turns: Buffer::of(device, turns.turns())?,
            meta: Meta::new(device, limits)?,
            buffers: Buffers::new(device, &spec, options, vocab)?,
            embedding_scale: embedding_scale(&spec, dtype),
            heads,
            activation: activation(&spec),
            device: device.clone(),
            options: Options { graphs, ..options.clone() },
            graphs: HashMap::new(),
            set_aside,
            unchained: None,
            shard,
            peers,
            kernels,
            weights,
            spec,
        };
        if decoder.peers.is_none() {
            decoder.unchained = decoder.check_chain(1)?;
        } else {
            // Ranks would have to find the same: what is not compared is not used.
            device.chain(false);
        }
        Ok(decoder)
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    pub fn block_size(&self) -> usize {
        BLOCK
    }

    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes
    }

    /// Whether many rows take the products that Hopper alone has.
    pub fn is_on_hopper(&self) -> bool {
        self.kernels.hopper.is_some()
    }

    /// Why the device's own products of many rows are not used, where they should be.
    pub fn set_aside(&self) -> Option<Differs> {
        self.set_aside
    }

    /// Why launches do not begin early, where they should.
    pub fn unchained(&self) -> Option<chain::Differs> {
        self.unchained
    }

    /// Logits `[options.logits, vocab]` of the last step, of a rank for its part of the vocabulary; row `i` belongs to
    /// `step.logits[i]`.
    pub fn logits(&self) -> &Buffer<f32> {
        &self.buffers.logits
    }

    /// Where a sampling leaves its tokens, for rows that wait for them.
    pub fn drawn(&self) -> &Buffer<u32> {
        &self.buffers.drawn
    }

    /// Enqueues a step: the keys and values of its rows, and its logits.
    pub fn forward(&mut self, step: &Step) -> Result<(), ForwardError> {
        let limits = self.meta.limits();
        let vocab = self.spec.vocab;
        step.check(&Bounds {
            rows: limits.rows,
            logits: limits.logits,
            context: self.options.context,
            vocab,
            drawn: limits.logits,
            blocks: self.options.blocks,
        })?;
        for (what, value, limit) in [
            ("sequences", step.spans.len(), limits.spans),
            ("blocks in tables", step.tables.len(), limits.tables),
        ] {
            if value > limit {
                return Err(ForwardError::Large { what, value, limit });
            }
        }
        self.run(step).map_err(ForwardError::Driver)
    }

    fn run(&mut self, step: &Step) -> Result<(), DeviceError> {
        self.meta.put(step)?;
        let bucket = self.bucket(step.rows());
        if !self.options.graphs {
            return self.enqueue(bucket);
        }
        let graph = match self.graphs.get(&bucket) {
            // The first time as it is: a driver may load a kernel when it is first launched, which no capture allows.
            None => {
                self.graphs.insert(bucket, None);
                return self.enqueue(bucket);
            }
            Some(Some(graph)) => *graph,
            Some(None) => {
                let device = self.device.clone();
                let graph = device.capture(&mut || self.enqueue(bucket))?;
                self.graphs.insert(bucket, Some(graph));
                graph
            }
        };
        // SAFETY: every buffer that was captured belongs to this decoder and is never replaced.
        unsafe { self.device.replay(graph) }
    }

    fn bucket(&self, rows: usize) -> usize {
        let bucket = BUCKETS.into_iter().find(|bucket| *bucket >= rows);
        bucket.expect("bug: more rows than a decoder is made for").min(self.options.rows)
    }
}

/// The products that Hopper alone has, where steps may have rows for them, and those of a mixture's experts with them; or
/// how they differ from those of all generations on this device.
fn many_rows(
    device: &Device,
    options: &Options,
    product: &Product,
    mixture: Option<&mut Experts>,
) -> Result<(Option<Hopper>, Option<Differs>), DeviceError> {
    if options.strict || options.rows <= hopper::FEW_ROWS {
        return Ok((None, None));
    }
    let Some(hopper) = Hopper::load(device)? else { return Ok((None, None)) };
    let differs = match (hopper.check(product)?, mixture) {
        (None, Some(experts)) => experts.take_hopper()?,
        (differs, _) => differs,
    };
    Ok((differs.is_none().then_some(hopper), differs))
}

/// Memory of everything that a step of these options computes in, sampling included; a little more than is taken.
pub fn step_bytes(spec: &Spec, options: &Options) -> u64 {
    let Options { rows, logits, context, .. } = *options;
    let (hidden, query, key) = (spec.hidden, spec.query_width(), spec.key_width());
    // f32, then bf16.
    let mlp = match spec.experts {
        None => 2 * spec.ffn,
        Some(experts) => 4 * experts.count + experts.top_k * (6 * hidden + 2 * spec.ffn + 20),
    };
    let row = 4 * (hidden + query + 2 * key) + 2 * (hidden + 2 * query) + mlp;
    let pieces = logits * context.div_ceil(PIECE);
    let partial = 4 * (spec.kv_heads * (16 + 1) + query) + 32;
    let tables = 4 * logits * context.div_ceil(BLOCK);
    let bytes = rows * row + pieces * partial + tables + 2 * 4 * logits * spec.vocab;
    // Lists of samplings and of tiles, and where products leave parts of sums.
    bytes as u64 + (64 << 20)
}

impl Buffers {
    /// `vocab` is the part of the vocabulary that has logits here.
    fn new(device: &Device, spec: &Spec, options: &Options, vocab: usize) -> Result<Self, LoadError> {
        let rows = options.rows;
        Ok(Self {
            residual: Buffer::new(device, rows * spec.hidden)?,
            normed: Buffer::new(device, rows * spec.hidden)?,
            qkv: Buffer::new(device, rows * (spec.query_width() + 2 * spec.key_width()))?,
            q: Buffer::new(device, rows * spec.query_width())?,
            attended: Buffer::new(device, rows * spec.query_width())?,
            gated: Buffer::new(device, if spec.experts.is_some() { 0 } else { rows * spec.ffn })?,
            logits: Buffer::new(device, options.logits * vocab)?,
            drawn: Buffer::zeros(device, options.logits)?,
            mixture: match spec.experts {
                None => None,
                Some(experts) => {
                    let (width, ffn, pairs) = (spec.hidden, spec.ffn, rows * experts.top_k);
                    let shape = experts::Shape { experts: experts.count, top_k: experts.top_k, width, ffn };
                    Some(Mixture {
                        scores: Buffer::new(device, rows * experts.count)?,
                        routes: Routes::new(device, shape, rows)?,
                        gathered: Buffer::new(device, pairs * width)?,
                        middle: Buffer::new(device, pairs * ffn)?,
                        results: Buffer::new(device, pairs * width)?,
                    })
                }
            },
        })
    }
}
