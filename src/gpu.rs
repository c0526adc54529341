//! The GPUs of this host, if there are any that this build serves.

pub mod sensors;

use hearth_kernels::cuda::driver::Device;
#[cfg(not(feature = "cuda"))]
use hearth_kernels::cuda::presence::Presence;

/// Why there is no GPU to compute on.
#[derive(Clone, Debug)]
pub struct NoGpu {
    pub reason: String,
    /// There is one, and it should be used.
    pub is_an_obstacle: bool,
}

#[cfg(feature = "cuda")]
impl From<hearth_kernels::cuda::find::Absent> for NoGpu {
    fn from(absent: hearth_kernels::cuda::find::Absent) -> Self {
        let is_an_obstacle = absent != hearth_kernels::cuda::find::Absent::Nowhere;
        Self { reason: absent.to_string(), is_an_obstacle }
    }
}

/// Opens all of them; at least one.
#[cfg(feature = "cuda")]
pub fn open() -> Result<Vec<Device>, NoGpu> {
    use hearth_kernels::cuda::{find, gpu::Gpu};

    let open = |ordinal| Ok(std::sync::Arc::new(Gpu::open(ordinal)?) as Device);
    (0..find::count()?).map(open).collect()
}

/// What each says of itself. Takes no memory of them that matters.
#[cfg(feature = "cuda")]
pub fn look() -> Result<Vec<String>, NoGpu> {
    (0..hearth_kernels::cuda::find::count()?).map(look_at).collect()
}

#[cfg(feature = "cuda")]
fn look_at(ordinal: usize) -> Result<String, NoGpu> {
    use hearth_kernels::cuda::find::{context, facts};

    let unreadable =
        |error: &dyn std::fmt::Display| NoGpu { reason: error.to_string(), is_an_obstacle: true };
    let facts = facts(&context(ordinal)?).map_err(|error| unreadable(&error))?;
    let gib = |bytes: usize| bytes as f64 / f64::from(1u32 << 30);
    Ok(format!(
        "{}, {:.1} of {:.1} GiB free, the driver knows CUDA {}.{}",
        facts.name,
        gib(facts.memory_free),
        gib(facts.memory_total),
        facts.driver_cuda / 1000,
        facts.driver_cuda % 1000 / 10
    ))
}

#[cfg(not(feature = "cuda"))]
pub fn open() -> Result<Vec<Device>, NoGpu> {
    let reason = match Presence::now().is_here() {
        true => "this host has an NVIDIA GPU, and this build of hearth was made without CUDA",
        false => "this host has no NVIDIA GPU, and this build of hearth was made without CUDA",
    };
    // Who installs a build for the CPU has asked for the CPU.
    Err(NoGpu { reason: reason.to_owned(), is_an_obstacle: false })
}

#[cfg(not(feature = "cuda"))]
pub fn look() -> Result<Vec<String>, NoGpu> {
    open().map(|devices| devices.iter().map(|device| device.name().to_owned()).collect())
}
