//! What a measurement needs beside the operations (`cuda/stream.cu`): the ceilings of memory, random weights made on the
//! device, and the rounding of one product's output to the next one's input.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;

const THREADS: u32 = 256;
/// Bytes that a block of `copy` moves and that a block of `read` takes.
const COPY_BLOCK: usize = 16 * 4 * THREADS as usize;
const READ_BLOCK: usize = 16 * 8 * THREADS as usize;

#[derive(Debug)]
pub struct Stream {
    device: Device,
    copy: Kernel,
    read: Kernel,
    fill: Kernel,
    narrow: Kernel,
}

impl Stream {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            copy: device.kernel("copy", 0)?,
            read: device.kernel("read", 0)?,
            fill: device.kernel("fill", 0)?,
            narrow: device.kernel("narrow", 0)?,
            device: device.clone(),
        })
    }

    /// Copies all of `from`, whose length is a multiple of 16 KiB.
    pub fn copy(&self, from: &Buffer<bf16>, to: &Buffer<bf16>) -> Result<(), DeviceError> {
        let bytes = from.bytes();
        let blocks = bytes / COPY_BLOCK;
        assert!(blocks * COPY_BLOCK == bytes && to.len() >= from.len(), "bug: a copy of {bytes} bytes");
        // SAFETY: whole blocks cover exactly `from`, and `to` is at least as long.
        unsafe { Launch::new(self.copy, blocks, THREADS).buffer(from).buffer(to).on(&*self.device) }
    }

    /// Reads all of `from`, whose length is a multiple of 32 KiB. `sink` takes one word.
    pub fn read(&self, from: &Buffer<bf16>, sink: &Buffer<u32>) -> Result<(), DeviceError> {
        let bytes = from.bytes();
        let blocks = bytes / READ_BLOCK;
        assert!(blocks * READ_BLOCK == bytes && !sink.is_empty(), "bug: a read of {bytes} bytes");
        // SAFETY: whole blocks cover exactly `from`; one word of `sink` may be written.
        unsafe { Launch::new(self.read, blocks, THREADS).buffer(from).buffer(sink).on(&*self.device) }
    }

    /// Fills with `scale * u`, u uniform in [-1, 1) and a function of the seed and the index alone: see [`number`].
    pub fn fill(&self, out: &Buffer<bf16>, seed: u32, scale: f32) -> Result<(), DeviceError> {
        let launch = Launch::new(self.fill, out.len().div_ceil(THREADS as usize), THREADS);
        let launch = launch.buffer(out).count(out.len()).number(seed).real(scale);
        // SAFETY: the kernel writes as many numbers as the buffer has.
        unsafe { launch.on(&*self.device) }
    }

    /// Rounds the first `count` numbers of `from` to bf16.
    pub fn narrow(&self, from: &Buffer<f32>, to: &Buffer<bf16>, count: usize) -> Result<(), DeviceError> {
        assert!(from.len() >= count && to.len() >= count, "bug: {count} numbers to narrow");
        let launch = Launch::new(self.narrow, count.div_ceil(THREADS as usize), THREADS);
        // SAFETY: both buffers hold `count` numbers, asserted above.
        unsafe { launch.buffer(from).buffer(to).count(count).on(&*self.device) }
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
