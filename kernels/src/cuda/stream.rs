//! What a measurement needs beside the operations (`cuda/stream.cu`): the ceilings of memory, random weights made on the
//! device, and the rounding of one product's output to the next one's input.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr, DevicePtrMut, DriverError,
};
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use half::bf16;

use super::module::Module;

const THREADS: u32 = 256;
/// Bytes that a block of `copy` moves and that a block of `read` takes.
const COPY_BLOCK: usize = 16 * 4 * THREADS as usize;
const READ_BLOCK: usize = 16 * 8 * THREADS as usize;

pub struct Stream {
    module: Module,
    copy: CudaFunction,
    read: CudaFunction,
    fill: CudaFunction,
    narrow: CudaFunction,
}

fn grid(blocks: usize) -> LaunchConfig {
    let blocks = u32::try_from(blocks).expect("bug: more blocks than a grid has");
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

impl Stream {
    pub fn load(device: &CudaDevice) -> Result<Self, DriverError> {
        let module = Module::load(device, include_bytes!(concat!(env!("OUT_DIR"), "/stream.fatbin")))?;
        Ok(Self {
            copy: module.function("copy")?,
            read: module.function("read")?,
            fill: module.function("fill")?,
            narrow: module.function("narrow")?,
            module,
        })
    }

    /// Copies all of `from`, whose length is a multiple of 16 KiB.
    pub fn copy(&self, from: &CudaSlice<bf16>, to: &mut CudaSlice<bf16>) -> Result<(), DriverError> {
        let bytes = from.num_bytes();
        let blocks = bytes / COPY_BLOCK;
        assert!(blocks * COPY_BLOCK == bytes && to.len() >= from.len(), "bug: a copy of {bytes} bytes");
        let mut launch = self.module.stream().launch_builder(&self.copy);
        // SAFETY: whole blocks cover exactly `from`, and `to` is at least as long.
        unsafe { launch.arg(from).arg(to).launch(grid(blocks))? };
        Ok(())
    }

    /// Reads all of `from`, whose length is a multiple of 32 KiB. `sink` takes one word.
    pub fn read(&self, from: &CudaSlice<bf16>, sink: &mut CudaSlice<u32>) -> Result<(), DriverError> {
        let bytes = from.num_bytes();
        let blocks = bytes / READ_BLOCK;
        assert!(blocks * READ_BLOCK == bytes && !sink.is_empty(), "bug: a read of {bytes} bytes");
        let mut launch = self.module.stream().launch_builder(&self.read);
        // SAFETY: whole blocks cover exactly `from`; one word of `sink` may be written.
        unsafe { launch.arg(from).arg(sink).launch(grid(blocks))? };
        Ok(())
    }

    /// Fills with `scale * u`, u uniform in [-1, 1) and a function of the seed and the index alone: see [`number`].
    pub fn fill(&self, out: &impl DevicePtr<bf16>, seed: u32, scale: f32) -> Result<(), DriverError> {
        let count = u32::try_from(out.len()).expect("bug: the kernel counts in 32 bits");
        let stream = self.module.stream();
        let (out, _out) = out.device_ptr(stream);
        let mut launch = stream.launch_builder(&self.fill);
        let blocks = grid(count.div_ceil(THREADS) as usize);
        // SAFETY: the kernel writes `count` numbers to a buffer of that length. It is taken by shared reference because
        // candle lends a tensor's storage so; the stream orders this write before every later use.
        unsafe { launch.arg(&out).arg(&count).arg(&seed).arg(&scale).launch(blocks)? };
        Ok(())
    }

    /// Rounds the first `count` numbers of `from` to bf16.
    pub fn narrow(
        &self,
        from: &impl DevicePtr<f32>,
        to: &mut impl DevicePtrMut<bf16>,
        count: usize,
    ) -> Result<(), DriverError> {
        assert!(from.len() >= count && to.len() >= count, "bug: {count} numbers to narrow");
        let count = u32::try_from(count).expect("bug: the kernel counts in 32 bits");
        let stream = self.module.stream();
        let (from, _from) = from.device_ptr(stream);
        let (to, _to) = to.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(&self.narrow);
        // SAFETY: both buffers hold `count` numbers, asserted above.
        unsafe { launch.arg(&from).arg(&to).arg(&count).launch(grid(count.div_ceil(THREADS) as usize))? };
        Ok(())
    }
}

/// Number `index` of [`Stream::fill`], on the host.
pub fn number(index: u32, seed: u32, scale: f32) -> bf16 {
    let mut h = index.wrapping_add(seed.wrapping_mul(0x9e37_79b9));
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    bf16::from_f32(((h >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0) * scale)
}
