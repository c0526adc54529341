//! The seam to a device: memory, launches in order on one stream, graphs.
//!
//! Two things stand behind it: a GPU through its driver ([`gpu`](super::gpu), feature `cuda`), and the kernels
//! compiled for this host's processor ([`emulated`](super::emulated), feature `emulated`), so that all that is above
//! runs and is tested where there is no GPU. Work is enqueued and done in order; nothing but [`Driver::wait`] and
//! [`Driver::finish`] waits for it.

use std::fmt;
use std::sync::Arc;

use super::launch::Launch;

/// Why a device did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("the device has no room for {wanted} bytes: {free} of {total} are free")]
    Memory { wanted: usize, free: usize, total: usize },
    #[error("this build has no kernel `{0}`")]
    Kernel(String),
    #[error("the device failed in {call}: {reason}")]
    Failed { call: &'static str, reason: String },
}

/// A kernel of this driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(pub(super) u32);

/// Work that was captured, to be enqueued again as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub(super) u32);

/// A point in the order of work; good until [`MARKS`] later ones were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub(super) u64);

/// Marks that are good at the same time.
pub const MARKS: u64 = 64;

/// A device as the kernels need it. One thread uses it at a time.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What it is, for people.
    fn name(&self) -> &str;

    /// Blocks that run at the same time, one a multiprocessor: what grids of fixed size are made for.
    fn multiprocessors(&self) -> u32;

    /// Bytes free and in all.
    fn memory(&self) -> Result<(usize, usize), DeviceError>;

    /// Looks a kernel up; its launches take at most `shared` bytes of dynamic shared memory.
    fn kernel(&self, name: &str, shared: u32) -> Result<Kernel, DeviceError>;

    /// Memory on the device, 256-byte aligned, with nothing in particular in it.
    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// # Safety
    /// `address` came from [`allocate`](Self::allocate) with as many bytes and is not used again.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Memory of the host that copies to and from the device may use beside other work.
    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DeviceError>;

    /// # Safety
    /// `memory` came from [`allocate_host`](Self::allocate_host) with as many bytes and is not used again.
    unsafe fn free_host(&self, memory: *mut u8, bytes: usize);

    /// Enqueues a copy to the device.
    ///
    /// # Safety
    /// Both places have `bytes` bytes; `from` is of [`allocate_host`](Self::allocate_host) and is neither written nor
    /// freed before the copy is waited for.
    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), DeviceError>;

    /// Enqueues a copy from the device.
    ///
    /// # Safety
    /// As for [`copy_in`](Self::copy_in); `to` is not even read before.
    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The arguments are the kernel's, and every place that it reads or writes through them is there.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError>;

    /// Whether chained launches begin early here. Captured ones do as they did when they were captured.
    fn chains(&self) -> bool;

    /// Lets chained launches begin early from now on, where they can, or no longer.
    fn chain(&self, on: bool);

    /// Marks the end of what is enqueued so far.
    fn mark(&self) -> Result<Mark, DeviceError>;

    /// Waits until everything before a mark is done.
    fn wait(&self, mark: Mark) -> Result<(), DeviceError>;

    /// The device's own time between two marks, after the later one was waited for.
    fn microseconds(&self, from: Mark, to: Mark) -> Result<f64, DeviceError>;

    /// Waits until everything is done.
    fn finish(&self) -> Result<(), DeviceError>;

    /// Lets `work` enqueue without anything being done, and keeps what it enqueued.
    fn capture(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError>;

    /// Gives back what was captured; its number is not used again.
    ///
    /// # Safety
    /// Nothing of it is still under way, and it is not replayed any more.
    unsafe fn forget(&self, graph: Graph);

    /// Enqueues what was captured, with the arguments that it was captured with.
    ///
    /// # Safety
    /// Every place that the captured work uses is still there.
    unsafe fn replay(&self, graph: Graph) -> Result<(), DeviceError>;
}

/// A driver and who shares it.
pub type Device = Arc<dyn Driver>;
