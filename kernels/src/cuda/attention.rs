//! Attention over paged keys and values (`cuda/attend_plan.cu`, `attend_decode.cu`, `attend_prompt.cu`).
//!
//! A step plans once and attends in every layer: rows that are alone in their sequence, and those of short drafts, by
//! pieces of their past; chunks of prompts by tiles of their rows. All three launches have grids of fixed size and read
//! from the device what there is to do, so a captured step serves any lengths.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use crate::paged::{BLOCK, Span};
use crate::rope::Heads;

const PLAN_THREADS: u32 = 256;
const THREADS: u32 = 128;
/// Sizes of a head that attend, over pages of bf16 and of e4m3.
const DIMS: [usize; 3] = [64, 128, 256];
const E4M3_DIMS: [usize; 2] = [128, 256];
/// Query heads to a head of keys, at most.
const MAX_GROUP: usize = 8;
/// Numbers of a partial result before those of its heads.
const FACTS: usize = 2 * MAX_GROUP;
/// Pairs of a row and a head to a tile of a prompt.
const PAIRS: usize = 64;
/// The longest piece: as many pages as the warps of a block have lanes.
pub const MAX_PIECE: usize = 4 * 32 * BLOCK;
/// Words of a span on the device.
pub const SPAN_WORDS: usize = 4;

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: Heads,
    /// Pages hold e4m3 with scales; else bf16.
    pub e4m3: bool,
    pub scale: f32,
    /// How many positions a row sees; all if there is none.
    pub window: Option<u32>,
    /// Positions of a piece of a single row's past. A row's bits depend on it. More pieces fill the device when few
    /// sequences run, and cost a partial result each: 256 is 3 % of the bytes for groups of four.
    pub piece: usize,
    /// Spans of at most so many rows are cut into pieces, each row on its own; the others are prompts.
    pub split: usize,
}

/// The largest step.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: usize,
    pub spans: usize,
    /// Pieces of all its rows: the sum of [`Shape::pieces`].
    pub pieces: usize,
}

impl Shape {
    /// How many pieces the row at `position` has.
    pub fn pieces(&self, position: usize) -> usize {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        position / self.piece - first / self.piece + 1
    }

    fn group(&self) -> usize {
        self.heads.q / self.heads.kv
    }

    /// Numbers of a partial result.
    fn partial(&self) -> usize {
        FACTS + self.group() * self.heads.dim
    }

    /// Tiles of all prompts of a step, at most.
    fn tiles(&self, rows: usize, spans: usize) -> usize {
        rows * self.group() / PAIRS + spans
    }

    fn check(&self) {
        let Heads { q, kv, dim } = self.heads;
        let dims = if self.e4m3 { &E4M3_DIMS[..] } else { &DIMS };
        assert!(dims.contains(&dim), "bug: heads of {dim} numbers do not attend");
        assert!(
            kv > 0 && q > 0 && q.is_multiple_of(kv) && q / kv <= MAX_GROUP,
            "bug: {q} query heads for {kv} heads of keys"
        );
        // A greatest score times a negative scale would be the least.
        assert!(self.scale > 0.0 && self.scale.is_finite(), "bug: scores times {}", self.scale);
        assert!(self.window != Some(0), "bug: a window of nothing");
        assert!(
            self.piece > 0 && self.piece.is_multiple_of(BLOCK) && self.piece <= MAX_PIECE,
            "bug: pieces of {} positions",
            self.piece
        );
    }
}

/// Whether there are kernels for heads like these.
pub fn serves(heads: Heads) -> bool {
    let Heads { q, kv, dim } = heads;
    DIMS.contains(&dim) && kv > 0 && q > 0 && q.is_multiple_of(kv) && q / kv <= MAX_GROUP
}

/// Whether there are kernels for them over pages of e4m3.
pub fn serves_e4m3(heads: Heads) -> bool {
    serves(heads) && E4M3_DIMS.contains(&heads.dim)
}

/// A span as the kernels read it.
pub fn record(span: &Span) -> [u32; SPAN_WORDS] {
    [span.row, span.rows, span.context - span.rows, span.table]
}

/// The sequences of a step.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// [`record`] of each.
    pub spans: &'a Buffer<u32>,
    /// One number: how many.
    pub count: &'a Buffer<u32>,
    pub tables: &'a Buffer<u32>,
}

/// The pages of a layer, `[block][kv head][16][dim]`.
#[derive(Clone, Copy, Debug)]
pub enum Cache<'a> {
    Bf16 {
        keys: &'a Buffer<bf16>,
        values: &'a Buffer<bf16>,
    },
    /// `scales` are what the keys of each head were multiplied with, then the values.
    E4m3 {
        keys: &'a Buffer<u8>,
        values: &'a Buffer<u8>,
        scales: &'a Buffer<f32>,
    },
}

/// Attention of one model: its kernels, and what they leave for one another.
#[derive(Debug)]
pub struct Attention {
    device: Device,
    shape: Shape,
    limits: Limits,
    plan: Kernel,
    decode: Kernel,
    prompt: Kernel,
    decode_shared: u32,
    prompt_shared: u32,
    pieces: Buffer<u32>,
    tiles: Buffer<u32>,
    /// Of pieces and of tiles.
    counts: Buffer<u32>,
    partial: Buffer<f32>,
    /// How many pieces of a row are done; zero between launches.
    arrived: Buffer<u32>,
}

impl Attention {
    pub fn load(device: &Device, shape: Shape, limits: Limits) -> Result<Self, DeviceError> {
        shape.check();
        let Limits { rows, spans, pieces } = limits;
        assert!(rows > 0 && spans > 0 && pieces > 0, "bug: {limits:?}");
        let dim = shape.heads.dim;
        // As in the kernels: rings for four warps, as many bytes whatever a page holds; queries and two tiles of keys and
        // values.
        let (slots, tile) = match dim {
            64 => (8, 64),
            128 => (4, 64),
            _ => (3, 32),
        };
        let decode_shared = 4 * slots * BLOCK * dim * 2;
        let prompt_shared = 2 * PAIRS * dim + 4 * tile * dim * if shape.e4m3 { 1 } else { 2 };
        let number = if shape.e4m3 { "e4m3" } else { "bf16" };
        let bytes = |n: usize| u32::try_from(n).expect("bug: the shared memory of a block fits 32 bits");
        let (decode_shared, prompt_shared) = (bytes(decode_shared), bytes(prompt_shared));
        let pairs = pieces * shape.heads.kv;
        Ok(Self {
            plan: device.kernel("attend_plan", 0)?,
            decode: device.kernel(&format!("attend_decode_{number}_{dim}"), decode_shared)?,
            prompt: device.kernel(&format!("attend_prompt_{number}_{dim}"), prompt_shared)?,
            decode_shared,
            prompt_shared,
            pieces: Buffer::new(device, 8 * pieces)?,
            tiles: Buffer::new(device, 2 * shape.tiles(rows, spans))?,
            counts: Buffer::new(device, 2)?,
            partial: Buffer::new(device, pairs * shape.partial())?,
            arrived: Buffer::zeros(device, pairs)?,
            device: device.clone(),
            shape,
            limits,
        })
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Memory of the device that it holds.
    pub fn bytes(&self) -> usize {
        self.pieces.bytes()
            + self.tiles.bytes()
            + self.counts.bytes()
            + self.partial.bytes()
            + self.arrived.bytes()
    }

    /// Makes the lists of what there is to do, for all layers of the step. Before the first of them.
    ///
    /// The host keeps the promise of [`Limits`]: at most as many spans, rows and pieces.
    pub fn plan(&self, sequences: Sequences<'_>) -> Result<(), DeviceError> {
        let Sequences { spans, count, .. } = sequences;
        assert!(
            spans.len() >= SPAN_WORDS * self.limits.spans && !count.is_empty(),
            "bug: a buffer is smaller than its shape"
        );
        let Shape { window, piece, split, .. } = self.shape;
        let launch = Launch::new(self.plan, 1, PLAN_THREADS).chained().buffer(spans).buffer(count);
        let launch = launch.count(self.shape.group()).count(piece).number(window.unwrap_or(u32::MAX));
        let launch = launch.count(split).buffer(&self.pieces).buffer(&self.tiles).buffer(&self.counts);
        // SAFETY: the arguments are the kernel's; the lists have room for the largest step, which the host keeps to.
        unsafe { launch.on(&*self.device) }
    }

    /// The attention of the planned single rows of `q`, bf16 `[rows, heads.q * dim]` and turned already, to the same rows
    /// of `out`. The keys and values of the step are in the pages.
    pub fn decode(
        &self,
        sequences: Sequences<'_>,
        q: &Buffer<bf16>,
        cache: Cache<'_>,
        out: &Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        self.check(self.limits.rows, q, cache, out);
        let Heads { kv, dim, .. } = self.shape.heads;
        // As many blocks as shared memory lets run at once.
        let blocks = self.device.multiprocessors() as usize * if dim == 256 { 2 } else { 3 };
        let launch = Launch::new(self.decode, blocks, THREADS).chained().shared(self.decode_shared);
        let launch = cache.add_to(launch.buffer(q)).buffer(sequences.tables);
        let launch = launch.buffer(&self.pieces).buffer(&self.counts).count(kv).count(self.shape.group());
        let launch = launch.real(self.scale_log2()).buffer(&self.partial).buffer(&self.arrived).buffer(out);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted in `check`). The plan names
        // rows of the step and places of the tables, whose blocks lie in the pages: the step was checked on the host.
        unsafe { launch.on(&*self.device) }
    }

    /// The same for the other spans: chunks of prompts, in a step of at most `bucket` rows.
    pub fn prompt(
        &self,
        bucket: usize,
        sequences: Sequences<'_>,
        q: &Buffer<bf16>,
        cache: Cache<'_>,
        out: &Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        self.check(bucket, q, cache, out);
        assert!((1..=self.limits.rows).contains(&bucket), "bug: a step of {bucket} rows");
        let Sequences { spans, tables, .. } = sequences;
        let kv = self.shape.heads.kv;
        let blocks = self.shape.tiles(bucket, self.limits.spans.min(bucket)) * kv;
        let launch = Launch::new(self.prompt, blocks, THREADS).chained().shared(self.prompt_shared);
        let launch = cache.add_to(launch.buffer(q)).buffer(tables).buffer(spans);
        // The second count is that of tiles.
        let launch = launch.buffer(&self.tiles).address(self.counts.address() + size_of::<u32>() as u64);
        let launch = launch.count(kv).count(self.shape.group());
        let launch = launch.number(self.shape.window.unwrap_or(u32::MAX)).real(self.scale_log2()).buffer(out);
        // SAFETY: as in `decode`.
        unsafe { launch.on(&*self.device) }
    }

    /// Softmax works with powers of two.
    fn scale_log2(&self) -> f32 {
        self.shape.scale * std::f32::consts::LOG2_E
    }

    fn check(&self, rows: usize, q: &Buffer<bf16>, cache: Cache<'_>, out: &Buffer<bf16>) {
        let Heads { q: heads, kv, dim } = self.shape.heads;
        let (keys, values, e4m3) = match cache {
            Cache::Bf16 { keys, values } => (keys.len(), values.len(), false),
            Cache::E4m3 { keys, values, scales } => {
                assert!(scales.len() >= 2 * kv, "bug: {} scales of keys and values", scales.len());
                (keys.len(), values.len(), true)
            }
        };
        assert!(
            q.len() >= rows * heads * dim
                && out.len() >= rows * heads * dim
                && keys.is_multiple_of(BLOCK * kv * dim)
                && values == keys
                && e4m3 == self.shape.e4m3,
            "bug: a buffer is smaller than its shape, or of another type"
        );
    }
}

impl Cache<'_> {
    fn add_to(&self, launch: Launch) -> Launch {
        match self {
            Cache::Bf16 { keys, values } => launch.buffer(keys).buffer(values),
            Cache::E4m3 { keys, values, scales } => launch.buffer(keys).buffer(values).buffer(scales),
        }
    }
}
