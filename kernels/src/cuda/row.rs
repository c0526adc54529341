//! What a step does to rows between its products (`cuda/row.cu`): embedding, residual and norm, positions and the KV
//! write.
//!
//! `count` is the number of rows on the device, at most the `bucket` that a launch is captured for.

use std::array;

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DevicePtr, DevicePtrMut, DriverError};
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use half::bf16;

use super::module::Module;
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

pub struct Row {
    module: Module,
    embed: CudaFunction,
    add_norm: [CudaFunction; NORMS],
    pick_norm: [CudaFunction; NORMS],
    turn_bf16: [CudaFunction; DIMS.len()],
    turn_e4m3: [CudaFunction; DIMS.len()],
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
    fn check(&self) -> usize {
        let Norm { width, .. } = *self;
        assert!(
            (8..=MAX_WIDTH).contains(&width) && width.is_multiple_of(8),
            "bug: a norm of {width} numbers"
        );
        width.div_ceil(NORM_STEP) - 1
    }
}

fn blocks(count: usize, threads: u32) -> LaunchConfig {
    let blocks = u32::try_from(count).expect("bug: more blocks than a grid has");
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

impl Row {
    pub fn load(device: &CudaDevice) -> Result<Self, DriverError> {
        let module = Module::load(device, include_bytes!(concat!(env!("OUT_DIR"), "/row.fatbin")))?;
        let norms = |name: &str| functions(&module, name, array::from_fn(|i| i + 1));
        let turns = |name: &str| functions(&module, name, DIMS);
        Ok(Self {
            embed: module.function("embed")?,
            add_norm: norms("add_norm")?,
            pick_norm: norms("pick_norm")?,
            turn_bf16: turns("turn_bf16")?,
            turn_e4m3: turns("turn_e4m3")?,
            module,
        })
    }

    /// Row `i` of `residual` becomes row `tokens[i]` of the table `[vocabulary, width]` times `scale`. A token
    /// `1 << 31 | j` is `drawn[j]`, what row `j` of the last sampling gave.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn embed(
        &self,
        bucket: usize,
        count: &impl DevicePtr<u32>,
        tokens: &impl DevicePtr<u32>,
        drawn: &impl DevicePtr<u32>,
        table: &impl DevicePtr<bf16>,
        (vocabulary, width): (usize, usize),
        scale: f32,
        residual: &mut impl DevicePtrMut<f32>,
    ) -> Result<(), DriverError> {
        assert!(width > 0 && width.is_multiple_of(8), "bug: an embedding of {width} numbers");
        assert!(
            count.len() > 0
                && tokens.len() >= bucket
                && table.len() >= vocabulary * width
                && residual.len() >= bucket * width,
            "bug: a buffer is smaller than its shape"
        );
        let stream = self.module.stream();
        let (width, vocabulary) = (width as u32, vocabulary as u32);
        let (count, _count) = count.device_ptr(stream);
        let (tokens, _tokens) = tokens.device_ptr(stream);
        let (drawn, _drawn) = drawn.device_ptr(stream);
        let (table, _table) = table.device_ptr(stream);
        let (residual, _residual) = residual.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(&self.embed);
        launch.arg(&count).arg(&tokens).arg(&drawn).arg(&table).arg(&residual);
        launch.arg(&width).arg(&vocabulary).arg(&scale);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above); a token outside of
        // the table reads its first row, and the host names only rows of `drawn` that a sampling wrote.
        unsafe { launch.launch(blocks(bucket, EMBED_THREADS))? };
        Ok(())
    }

    /// `residual += delta`, where there is one, and its norm in bf16 to `out`, row by row.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn add_norm<D: DevicePtr<f32>>(
        &self,
        bucket: usize,
        count: &impl DevicePtr<u32>,
        residual: &mut impl DevicePtrMut<f32>,
        delta: Option<&D>,
        weight: &impl DevicePtr<f32>,
        norm: Norm,
        out: &mut impl DevicePtrMut<bf16>,
    ) -> Result<(), DriverError> {
        let function = &self.add_norm[norm.check()];
        let numbers = bucket * norm.width;
        assert!(
            count.len() > 0
                && residual.len() >= numbers
                && delta.is_none_or(|delta| delta.len() >= numbers)
                && weight.len() >= norm.width
                && out.len() >= numbers,
            "bug: a buffer is smaller than its shape"
        );
        let stream = self.module.stream();
        let (width, offset) = (norm.width as u32, f32::from(u8::from(norm.unit_offset)));
        let (count, _count) = count.device_ptr(stream);
        let (residual, _residual) = residual.device_ptr_mut(stream);
        let delta = delta.map(|delta| delta.device_ptr(stream));
        let delta = delta.as_ref().map_or(0, |(pointer, _)| *pointer);
        let (weight, _weight) = weight.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(function);
        launch.arg(&count).arg(&residual).arg(&delta).arg(&weight).arg(&out);
        launch.arg(&width).arg(&norm.epsilon).arg(&offset);
        // SAFETY: the arguments are the kernel's, a delta that is not there is null, and the buffers hold the shape
        // (asserted above).
        unsafe { launch.launch(blocks(bucket, NORM_THREADS))? };
        Ok(())
    }

    /// The norm of rows `list[..count]` of `residual` (plus `delta`, where there is one) to the first rows of `out`.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn pick_norm<D: DevicePtr<f32>>(
        &self,
        bucket: usize,
        count: &impl DevicePtr<u32>,
        list: &impl DevicePtr<u32>,
        residual: &impl DevicePtr<f32>,
        delta: Option<&D>,
        weight: &impl DevicePtr<f32>,
        norm: Norm,
        out: &mut impl DevicePtrMut<bf16>,
    ) -> Result<(), DriverError> {
        let function = &self.pick_norm[norm.check()];
        assert!(
            count.len() > 0
                && list.len() >= bucket
                && delta.is_none_or(|delta| delta.len() >= residual.len())
                && weight.len() >= norm.width
                && out.len() >= bucket * norm.width,
            "bug: a buffer is smaller than its shape"
        );
        let stream = self.module.stream();
        let (width, offset) = (norm.width as u32, f32::from(u8::from(norm.unit_offset)));
        let (count, _count) = count.device_ptr(stream);
        let (list, _list) = list.device_ptr(stream);
        let (residual, _residual) = residual.device_ptr(stream);
        let delta = delta.map(|delta| delta.device_ptr(stream));
        let delta = delta.as_ref().map_or(0, |(pointer, _)| *pointer);
        let (weight, _weight) = weight.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(function);
        launch.arg(&count).arg(&list).arg(&residual).arg(&delta).arg(&weight).arg(&out);
        launch.arg(&width).arg(&norm.epsilon).arg(&offset);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above). The residual is only
        // read. The host lists rows of the step alone.
        unsafe { launch.launch(blocks(bucket, NORM_THREADS))? };
        Ok(())
    }

    /// Turns the queries and keys of `qkv`, f32 `[bucket, heads.width()]`, by `turns` (per position `dim / 2` cosines,
    /// then as many sines): queries to `q`, keys and values to their slots in pages `[block][kv head][16][dim]`.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn turn_bf16(
        &self,
        bucket: usize,
        count: &impl DevicePtr<u32>,
        qkv: &impl DevicePtr<f32>,
        heads: Heads,
        turns: &impl DevicePtr<f32>,
        positions: &impl DevicePtr<u32>,
        slots: &impl DevicePtr<u32>,
        q: &mut impl DevicePtrMut<bf16>,
        keys: &mut impl DevicePtrMut<bf16>,
        values: &mut impl DevicePtrMut<bf16>,
    ) -> Result<(), DriverError> {
        let (which, config) = turn_shape(bucket, heads);
        assert!(
            count.len() > 0
                && qkv.len() >= bucket * heads.width()
                && turns.len() >= heads.dim
                && positions.len() >= bucket
                && slots.len() >= bucket
                && q.len() >= bucket * heads.q * heads.dim
                && keys.len().is_multiple_of(BLOCK * heads.kv * heads.dim)
                && values.len() == keys.len(),
            "bug: a buffer is smaller than its shape"
        );
        let stream = self.module.stream();
        let (q_heads, kv_heads) = (heads.q as u32, heads.kv as u32);
        let (count, _count) = count.device_ptr(stream);
        let (qkv, _qkv) = qkv.device_ptr(stream);
        let (turns, _turns) = turns.device_ptr(stream);
        let (positions, _positions) = positions.device_ptr(stream);
        let (slots, _slots) = slots.device_ptr(stream);
        let (q, _q) = q.device_ptr_mut(stream);
        let (keys, _keys) = keys.device_ptr_mut(stream);
        let (values, _values) = values.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(&self.turn_bf16[which]);
        launch.arg(&count).arg(&qkv).arg(&turns).arg(&positions).arg(&slots);
        launch.arg(&q).arg(&keys).arg(&values).arg(&q_heads).arg(&kv_heads);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above). Positions lie in the
        // table and slots in the pages: the step was checked on the host.
        unsafe { launch.launch(config)? };
        Ok(())
    }

    /// [`Row::turn_bf16`] with pages of e4m3: keys of kv head `i` are multiplied with `scales[i]` and values with
    /// `scales[heads.kv + i]` before they are rounded.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn turn_e4m3(
        &self,
        bucket: usize,
        count: &impl DevicePtr<u32>,
        qkv: &impl DevicePtr<f32>,
        heads: Heads,
        turns: &impl DevicePtr<f32>,
        positions: &impl DevicePtr<u32>,
        slots: &impl DevicePtr<u32>,
        scales: &impl DevicePtr<f32>,
        q: &mut impl DevicePtrMut<bf16>,
        keys: &mut impl DevicePtrMut<u8>,
        values: &mut impl DevicePtrMut<u8>,
    ) -> Result<(), DriverError> {
        let (which, config) = turn_shape(bucket, heads);
        assert!(
            count.len() > 0
                && qkv.len() >= bucket * heads.width()
                && turns.len() >= heads.dim
                && positions.len() >= bucket
                && slots.len() >= bucket
                && scales.len() >= 2 * heads.kv
                && q.len() >= bucket * heads.q * heads.dim
                && keys.len().is_multiple_of(BLOCK * heads.kv * heads.dim)
                && values.len() == keys.len(),
            "bug: a buffer is smaller than its shape"
        );
        let stream = self.module.stream();
        let (q_heads, kv_heads) = (heads.q as u32, heads.kv as u32);
        let (count, _count) = count.device_ptr(stream);
        let (qkv, _qkv) = qkv.device_ptr(stream);
        let (turns, _turns) = turns.device_ptr(stream);
        let (positions, _positions) = positions.device_ptr(stream);
        let (slots, _slots) = slots.device_ptr(stream);
        let (scales, _scales) = scales.device_ptr(stream);
        let (q, _q) = q.device_ptr_mut(stream);
        let (keys, _keys) = keys.device_ptr_mut(stream);
        let (values, _values) = values.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(&self.turn_e4m3[which]);
        launch.arg(&count).arg(&qkv).arg(&turns).arg(&positions).arg(&slots).arg(&scales);
        launch.arg(&q).arg(&keys).arg(&values).arg(&q_heads).arg(&kv_heads);
        // SAFETY: as in `turn_bf16`, and a scale a head of keys and of values is there.
        unsafe { launch.launch(config)? };
        Ok(())
    }
}

/// Which of [`DIMS`], and the grid: a thread has eight numbers of a head.
fn turn_shape(bucket: usize, heads: Heads) -> (usize, LaunchConfig) {
    let which = DIMS.iter().position(|dim| *dim == heads.dim);
    let which = which.unwrap_or_else(|| panic!("bug: heads of {} numbers do not turn", heads.dim));
    assert!(heads.q > 0 && heads.kv > 0, "bug: {heads:?}");
    let threads = bucket * heads.width() / 8;
    (which, blocks(threads.div_ceil(TURN_THREADS as usize), TURN_THREADS))
}

/// `NAME_i` for each of `which`.
fn functions<const N: usize>(
    module: &Module,
    name: &str,
    which: [usize; N],
) -> Result<[CudaFunction; N], DriverError> {
    let functions = which.map(|i| module.function(&format!("{name}_{i}")));
    let functions: Vec<_> = functions.into_iter().collect::<Result<_, _>>()?;
    Ok(functions.try_into().unwrap_or_else(|_| unreachable!("bug: as many as were looked up")))
}
