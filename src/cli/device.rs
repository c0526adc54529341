//! What computes: the GPU of this host, or its processor.

use hearth_kernels::Context;
use hearth_kernels::cuda::driver::Device;
#[cfg(not(feature = "cuda"))]
use hearth_kernels::cuda::presence::Presence;

use super::load::processor;
use super::{CliError, Exit};
use crate::config::Settings;

pub enum Place {
    Processor(Context),
    Gpu(Device),
}

impl Place {
    /// As `engine.device` asks. A GPU that is here and cannot be used is an error unless the CPU was asked for: nobody
    /// buys one to be served by the processor unawares.
    pub fn choose(settings: &Settings) -> Result<Self, CliError> {
        match settings.device.as_str() {
            "cpu" => Ok(Self::Processor(processor(settings)?)),
            asked => match gpu() {
                Ok(device) => {
                    let (free, total) =
                        device.memory().map_err(|e| CliError::new(Exit::Device, e.to_string()))?;
                    let gib = |bytes: usize| bytes as f64 / f64::from(1u32 << 30);
                    tracing::info!(
                        "device: {}, {:.1} of {:.1} GiB free",
                        device.name(),
                        gib(free),
                        gib(total)
                    );
                    Ok(Self::Gpu(device))
                }
                Err(none) if asked == "cuda" || none.is_an_obstacle => {
                    Err(CliError::new(Exit::Device, none.reason)
                        .fix("mend that, or serve on the CPU: --device cpu"))
                }
                Err(none) => {
                    tracing::info!("device: the CPU ({})", none.reason);
                    Ok(Self::Processor(processor(settings)?))
                }
            },
        }
    }

    /// Tokens of a step at most, where the settings leave it open.
    pub fn step_tokens(&self) -> u32 {
        match self {
            Self::Processor(_) => 256,
            Self::Gpu(_) => 2048,
        }
    }
}

/// Why there is no GPU to compute on.
struct NoGpu {
    reason: String,
    /// There is one, and it should be used.
    is_an_obstacle: bool,
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<Device, NoGpu> {
    use hearth_kernels::cuda::find::Absent;
    use hearth_kernels::cuda::gpu::Gpu;

    match Gpu::open(0) {
        Ok(gpu) => Ok(std::sync::Arc::new(gpu)),
        Err(absent) => Err(NoGpu { reason: absent.to_string(), is_an_obstacle: absent != Absent::Nowhere }),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<Device, NoGpu> {
    let reason = match Presence::now().is_here() {
        true => "this host has an NVIDIA GPU, and this build of hearth was made without CUDA",
        false => "this host has no NVIDIA GPU, and this build of hearth was made without CUDA",
    };
    // Who installs a build for the CPU has asked for the CPU.
    Err(NoGpu { reason: reason.to_owned(), is_an_obstacle: false })
}
