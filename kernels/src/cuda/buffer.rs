//! Memory of a device with a type, and memory of the host that the device copies from and to.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use half::bf16;

use super::driver::{Device, DeviceError};

/// Numbers whose bytes may be copied and whose every pattern of bits is one of them.
///
/// # Safety
/// The type has no padding and no invalid patterns.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: a bf16 is a u16 in other words.
unsafe impl Plain for bf16 {}

fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain values have no padding, so all their bytes are initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// An allocation. Given back when the last buffer in it is dropped.
#[derive(Debug)]
struct Memory {
    device: Device,
    address: u64,
    bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `Buffer::new` with as many bytes, and nobody can name it any more.
        unsafe { self.device.free(self.address, self.bytes) };
    }
}

/// Numbers on a device: an allocation or a part of one. As on the device itself, nothing keeps two buffers of one
/// allocation apart; work is done in order.
#[derive(Debug)]
pub struct Buffer<T: Plain> {
    memory: Arc<Memory>,
    address: u64,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Room for `length` numbers, whatever lies there.
    pub fn new(device: &Device, length: usize) -> Result<Self, DeviceError> {
        let bytes = (length * size_of::<T>()).max(1);
        let address = device.allocate(bytes)?;
        let memory = Arc::new(Memory { device: device.clone(), address, bytes });
        Ok(Self { memory, address, length, of: PhantomData })
    }

    /// Numbers `at..at + length` of it. Kernels want 16-byte alignment.
    pub fn part(&self, at: usize, length: usize) -> Self {
        assert!(at + length <= self.length, "bug: {length} numbers at {at} of {}", self.length);
        Self { memory: self.memory.clone(), address: self.at(at), length, of: PhantomData }
    }

    pub fn zeros(device: &Device, length: usize) -> Result<Self, DeviceError> {
        let buffer = Self::new(device, length)?;
        let piece = Host::<u8>::new(device, (length * size_of::<T>()).clamp(1, 1 << 22))?;
        let mut done = 0;
        while done < buffer.bytes() {
            let bytes = piece.len().min(buffer.bytes() - done);
            // SAFETY: `piece` has as many bytes, they are waited for below, and they end inside the buffer.
            unsafe { device.copy_in(buffer.address + done as u64, piece.as_ptr(), bytes)? };
            done += bytes;
        }
        device.finish()?;
        Ok(buffer)
    }

    /// A copy of `values`. Waits for the device.
    pub fn of(device: &Device, values: &[T]) -> Result<Self, DeviceError> {
        let mut buffer = Self::new(device, values.len())?;
        buffer.put(0, values)?;
        Ok(buffer)
    }

    /// Copies `values` to the numbers from `at` on. Waits for the device: for loading, not for a step.
    pub fn put(&mut self, at: usize, values: &[T]) -> Result<(), DeviceError> {
        assert!(at + values.len() <= self.length, "bug: {} numbers at {at} of {}", values.len(), self.length);
        if values.is_empty() {
            return Ok(());
        }
        let bytes = bytes_of(values);
        let mut piece = Host::<u8>::new(&self.memory.device, bytes.len().min(1 << 24))?;
        let (size, mut done) = (piece.len(), 0);
        for part in bytes.chunks(size) {
            piece[..part.len()].copy_from_slice(part);
            let to = self.address + (at * size_of::<T>() + done) as u64;
            // SAFETY: the part ends inside the buffer, and the piece is left alone until it is copied.
            unsafe { self.memory.device.copy_in(to, piece.as_ptr(), part.len())? };
            self.memory.device.finish()?;
            done += part.len();
        }
        Ok(())
    }

    /// Everything in it. Waits for the device.
    pub fn get(&self) -> Result<Vec<T>, DeviceError> {
        let mut all = Vec::with_capacity(self.length);
        if self.length == 0 {
            return Ok(all);
        }
        let mut host = Host::<T>::new(&self.memory.device, self.length)?;
        // SAFETY: both have the same size, and the copy is waited for before anybody looks.
        unsafe { self.memory.device.copy_out(host.as_mut_ptr().cast(), self.address, self.bytes())? };
        self.memory.device.finish()?;
        all.extend_from_slice(&host);
        Ok(all)
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// Where number `index` lies; one past the last is allowed.
    pub fn at(&self, index: usize) -> u64 {
        assert!(index <= self.length, "bug: number {index} of {}", self.length);
        self.address + (index * size_of::<T>()) as u64
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }
}

/// Numbers in memory of the host that a device copies from and to beside other work; zero at first.
#[derive(Debug)]
pub struct Host<T: Plain> {
    device: Device,
    memory: *mut T,
    length: usize,
}

// SAFETY: it owns its memory, as a vector does.
unsafe impl<T: Plain> Send for Host<T> {}
// SAFETY: shared references only read.
unsafe impl<T: Plain> Sync for Host<T> {}

impl<T: Plain> Host<T> {
    pub fn new(device: &Device, length: usize) -> Result<Self, DeviceError> {
        let bytes = (length * size_of::<T>()).max(1);
        let memory = device.allocate_host(bytes)?;
        // SAFETY: `bytes` bytes were just allocated; zeros are a pattern of every plain type.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), memory: memory.cast(), length })
    }
}

impl<T: Plain> Deref for Host<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `length` initialised numbers, page-aligned by the driver's allocation.
        unsafe { std::slice::from_raw_parts(self.memory, self.length) }
    }
}

impl<T: Plain> DerefMut for Host<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.length) }
    }
}

impl<T: Plain> Drop for Host<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with as many bytes.
        unsafe { self.device.free_host(self.memory.cast(), (self.length * size_of::<T>()).max(1)) };
    }
}
