//! One launch of a kernel: its grid and its arguments.

use super::buffer::{Buffer, Plain};
use super::driver::{DeviceError, Driver, Kernel};

/// Arguments a kernel may take.
const MOST: usize = 32;

/// Built on the stack, so that a launch allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// What runs, and over which blocks of how many threads.
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Whether it may begin before the launch in front of it is done.
    pub is_chained: bool,
    /// Each in the lowest bytes of its word.
    values: [u64; MOST],
    sizes: [u8; MOST],
    count: usize,
}

impl Launch {
    /// `kernel` over `blocks` blocks of `threads` threads.
    pub fn new(kernel: Kernel, blocks: usize, threads: u32) -> Self {
        let blocks = u32::try_from(blocks).expect("bug: more blocks than a grid has");
        assert!(
            blocks > 0 && threads.is_multiple_of(32) && threads <= 1024,
            "bug: {blocks} blocks of {threads}"
        );
        Self {
            kernel,
            grid: [blocks, 1, 1],
            threads,
            shared: 0,
            is_chained: false,
            values: [0; MOST],
            sizes: [0; MOST],
            count: 0,
        }
    }

    /// Further dimensions of the grid.
    pub fn by(mut self, y: usize, z: usize) -> Self {
        let size = |n: usize| u32::try_from(n).ok().filter(|n| (1..=65_535).contains(n));
        let [y, z] = [y, z].map(|n| size(n).expect("bug: a grid is at most 65535 blocks deep"));
        (self.grid[1], self.grid[2]) = (y, z);
        self
    }

    pub fn shared(mut self, bytes: u32) -> Self {
        self.shared = bytes;
        self
    }

    /// Lets it begin before the launch in front of it is done, where the device can. Only for kernels of which every thread
    /// waits for the past (`cuda/chain.cuh`) before it touches anything but weights.
    pub fn chained(mut self) -> Self {
        self.is_chained = true;
        self
    }

    pub fn buffer<T: Plain>(self, buffer: &Buffer<T>) -> Self {
        self.address(buffer.address())
    }

    /// A place on the device, or 0 where the kernel takes none.
    pub fn address(self, address: u64) -> Self {
        self.value(address, 8)
    }

    pub fn number(self, value: u32) -> Self {
        self.value(value.into(), 4)
    }

    /// A count that must fit 32 bits.
    pub fn count(self, value: usize) -> Self {
        self.number(u32::try_from(value).expect("bug: a count of more than 32 bits"))
    }

    pub fn real(self, value: f32) -> Self {
        self.value(value.to_bits().into(), 4)
    }

    /// The values, and the bytes of each that count.
    pub fn arguments(&self) -> (&[u64], &[u8]) {
        (&self.values[..self.count], &self.sizes[..self.count])
    }

    fn value(mut self, value: u64, size: u8) -> Self {
        self.values[self.count] = value;
        self.sizes[self.count] = size;
        self.count += 1;
        self
    }

    /// Enqueues it.
    ///
    /// # Safety
    /// The arguments are the kernel's, in its order, and every place that it reads or writes through them is there.
    pub unsafe fn on(&self, device: &dyn Driver) -> Result<(), DeviceError> {
        // SAFETY: as promised by the caller.
        unsafe { device.launch(self) }
    }
}
