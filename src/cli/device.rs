//! What computes: the GPU of this host, or its processor.

use hearth_kernels::Context;
use hearth_kernels::cuda::driver::Device;

use super::load::processor;
use super::{CliError, Exit};
use crate::config::Settings;
use crate::gpu;

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
            asked => match gpu::open() {
                Ok(device) => {
                    let (free, total) =
                        device.memory().map_err(|e| CliError::new(Exit::Device, e.to_string()))?;
                    let gib = |bytes: usize| bytes as f64 / f64::from(1u32 << 30);
                    eprintln!("device: {}, {:.1} of {:.1} GiB free", device.name(), gib(free), gib(total));
                    Ok(Self::Gpu(device))
                }
                Err(none) if asked == "cuda" || none.is_an_obstacle => {
                    Err(CliError::new(Exit::Device, none.reason)
                        .fix("mend that, or serve on the CPU: --device cpu"))
                }
                Err(none) => {
                    eprintln!("device: the CPU ({})", none.reason);
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
