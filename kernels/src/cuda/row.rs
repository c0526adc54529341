//! What a step does to rows between its products (`cuda/row.cu`): embedding, residual and norm, positions and the KV
//! write.
//!
//! `count` is the number of rows on the device, at most the `bucket` that a launch is captured for.

use half::bf16;

use super::buffer::{Buffer, Plain};
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use crate::paged::BLOCK;
use crate::rope::Heads;

const EMBED_THREADS: u32 = 256;
const NORM_THREADS: u32 = 512;
const TURN_THREADS: u32 = 256;
/// Numbers of a row that a norm's block takes for each of its variants.
const NORM_STEP: usize = 4 * NORM_THREADS as usize;
const NORMS: usize = 4;
/// The widest row that is normed.
pub const MAX_WIDTH: usize = NORMS * NORM_STEP;
/// Sizes of a head that turn.
const DIMS: [usize; 3] = [64, 128, 256];

#[derive(Debug)]
pub struct Row {
    device: Device,
    embed: Kernel,
    clear: Kernel,
    add_norm: Vec<Kernel>,
    pick_norm: Vec<Kernel>,
    turn_bf16: Vec<Kernel>,
    turn_e4m3: Vec<Kernel>,
}

/// A norm's own numbers.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub width: usize,
    pub epsilon: f32,
    /// The weight is stored less one (Gemma).
    pub unit_offset: bool,
}

impl Norm {
    /// Which variant of the kernel takes a row.
    fn variant(&self) -> usize {
        let Norm { width, .. } = *self;
        assert!(
            (8..=MAX_WIDTH).contains(&width) && width.is_multiple_of(8),
            "bug: a norm of {width} numbers"
        );
        width.div_ceil(NORM_STEP) - 1
    }

    fn add_to(&self, launch: Launch) -> Launch {
        launch.count(self.width).real(self.epsilon).real(f32::from(u8::from(self.unit_offset)))
    }
}

/// Where a step's rows stand, and where their keys and values go.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// One number: the rows of the step.
    pub count: &'a Buffer<u32>,
    pub positions: &'a Buffer<u32>,
    pub slots: &'a Buffer<u32>,
}

impl Row {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let kernels = |name: &str, which: &[usize]| -> Result<Vec<Kernel>, DeviceError> {
            which.iter().map(|i| device.kernel(&format!("{name}_{i}"), 0)).collect()
        };
        Ok(Self {
            embed: device.kernel("embed", 0)?,
            clear: device.kernel("clear", 0)?,
            add_norm: kernels("add_norm", &[1, 2, 3, 4])?,
            pick_norm: kernels("pick_norm", &[1, 2, 3, 4])?,
            turn_bf16: kernels("turn_bf16", &DIMS)?,
            turn_e4m3: kernels("turn_e4m3", &DIMS)?,
            device: device.clone(),
        })
    }

    /// Row `i` of `residual` becomes row `tokens[i]` of the table `[vocabulary, width]` times `scale`. A token
    /// `1 << 31 | j` is `drawn[j]`, what row `j` of the last sampling gave.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn embed(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        tokens: &Buffer<u32>,
        drawn: &Buffer<u32>,
        table: &Buffer<bf16>,
        (vocabulary, width): (usize, usize),
        scale: f32,
        residual: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        assert!(width > 0 && width.is_multiple_of(8), "bug: an embedding of {width} numbers");
        assert!(
            !count.is_empty()
                && tokens.len() >= bucket
                && table.len() >= vocabulary * width
                && residual.len() >= bucket * width,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.embed, bucket, EMBED_THREADS);
        let launch = launch.buffer(count).buffer(tokens).buffer(drawn).buffer(table).buffer(residual);
        let launch = launch.count(width).count(vocabulary).real(scale);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above); a token outside of
        // the table reads its first row, and the host names only rows of `drawn` that a sampling wrote.
        unsafe { launch.on(&*self.device) }
    }

    /// The rows of `residual`, `[bucket, width]`, become zero.
    pub fn clear(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        width: usize,
        residual: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        assert!(width > 0 && width.is_multiple_of(4), "bug: rows of {width} numbers");
        assert!(
            !count.is_empty() && residual.len() >= bucket * width,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.clear, bucket, EMBED_THREADS).buffer(count).buffer(residual);
        // SAFETY: the arguments are the kernel's and the buffer holds the shape (asserted above).
        unsafe { launch.count(width).on(&*self.device) }
    }

    /// `residual += delta`, where there is one, and its norm in bf16 to `out`, row by row.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn add_norm(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        residual: &Buffer<f32>,
        delta: Option<&Buffer<f32>>,
        weight: &Buffer<f32>,
        norm: Norm,
        out: &Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let numbers = bucket * norm.width;
        assert!(
            !count.is_empty()
                && residual.len() >= numbers
                && delta.is_none_or(|delta| delta.len() >= numbers)
                && weight.len() >= norm.width
                && out.len() >= numbers,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.add_norm[norm.variant()], bucket, NORM_THREADS).chained();
        let launch = launch.buffer(count).buffer(residual).address(delta.map_or(0, Buffer::address));
        let launch = norm.add_to(launch.buffer(weight).buffer(out));
        // SAFETY: the arguments are the kernel's, a delta that is not there is null, and the buffers hold the shape
        // (asserted above).
        unsafe { launch.on(&*self.device) }
    }

    /// The norm of rows `list[..count]` of `residual` (plus `delta`, where there is one) to the first rows of `out`.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn pick_norm(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        list: &Buffer<u32>,
        residual: &Buffer<f32>,
        delta: Option<&Buffer<f32>>,
        weight: &Buffer<f32>,
        norm: Norm,
        out: &Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        assert!(
            !count.is_empty()
                && list.len() >= bucket
                && delta.is_none_or(|delta| delta.len() >= residual.len())
                && weight.len() >= norm.width
                && out.len() >= bucket * norm.width,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.pick_norm[norm.variant()], bucket, NORM_THREADS).chained();
        let launch = launch.buffer(count).buffer(list).buffer(residual);
        let launch = launch.address(delta.map_or(0, Buffer::address)).buffer(weight).buffer(out);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above). The residual is only
        // read. The host lists rows of the step alone.
        unsafe { norm.add_to(launch).on(&*self.device) }
    }

    /// Turns the queries and keys of `qkv`, f32 `[bucket, heads.width()]`, by `turns` (per position `dim / 2` cosines,
    /// then as many sines): queries to `q`, keys and values to their slots in pages `[block][kv head][16][dim]`.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn turn_bf16(
        &self,
        bucket: usize,
        places: Places<'_>,
        qkv: &Buffer<f32>,
        heads: Heads,
        turns: &Buffer<f32>,
        q: &Buffer<bf16>,
        keys: &Buffer<bf16>,
        values: &Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let launch = turn(&self.turn_bf16, bucket, places, qkv, heads, turns, (q, keys, values));
        let launch = launch.buffer(q).buffer(keys).buffer(values).count(heads.q).count(heads.kv);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted in `turn`). Positions lie in
        // the table and slots in the pages: the step was checked on the host.
        unsafe { launch.on(&*self.device) }
    }

    /// [`Row::turn_bf16`] with pages of e4m3: keys of kv head `i` are multiplied with `scales[i]` and values with
    /// `scales[heads.kv + i]` before they are rounded.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn turn_e4m3(
        &self,
        bucket: usize,
        places: Places<'_>,
        qkv: &Buffer<f32>,
        heads: Heads,
        turns: &Buffer<f32>,
        scales: &Buffer<f32>,
        q: &Buffer<bf16>,
        keys: &Buffer<u8>,
        values: &Buffer<u8>,
    ) -> Result<(), DeviceError> {
        assert!(scales.len() >= 2 * heads.kv, "bug: {} scales of keys and values", scales.len());
        let launch =
            turn(&self.turn_e4m3, bucket, places, qkv, heads, turns, (q, keys, values)).buffer(scales);
        let launch = launch.buffer(q).buffer(keys).buffer(values).count(heads.q).count(heads.kv);
        // SAFETY: as in `turn_bf16`, and a scale a head of keys and of values is there.
        unsafe { launch.on(&*self.device) }
    }
}

/// The beginning of a launch of either kind, once its shape is checked. A thread has eight numbers of a head.
fn turn<T: Plain>(
    kernels: &[Kernel],
    bucket: usize,
    places: Places<'_>,
    qkv: &Buffer<f32>,
    heads: Heads,
    turns: &Buffer<f32>,
    (q, keys, values): (&Buffer<bf16>, &Buffer<T>, &Buffer<T>),
) -> Launch {
    let which = DIMS.iter().position(|dim| *dim == heads.dim);
    let which = which.unwrap_or_else(|| panic!("bug: heads of {} numbers do not turn", heads.dim));
    assert!(heads.q > 0 && heads.kv > 0, "bug: {heads:?}");
    let Places { count, positions, slots } = places;
    assert!(
        !count.is_empty()
            && qkv.len() >= bucket * heads.width()
            && turns.len() >= heads.dim
            && positions.len() >= bucket
            && slots.len() >= bucket
            && q.len() >= bucket * heads.q * heads.dim
            && keys.len().is_multiple_of(BLOCK * heads.kv * heads.dim)
            && values.len() == keys.len(),
        "bug: a buffer is smaller than its shape"
    );
    let threads = bucket * heads.width() / 8;
    let launch = Launch::new(kernels[which], threads.div_ceil(TURN_THREADS as usize), TURN_THREADS);
    launch.chained().buffer(count).buffer(qkv).buffer(turns).buffer(positions).buffer(slots)
}
