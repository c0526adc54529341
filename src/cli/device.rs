//! What computes: the GPUs of this host, or its processor; and which model is where.

use std::sync::Arc;

use hearth_kernels::Context;
use hearth_kernels::cuda::driver::Device;
use hearth_models::host::Available;

use super::load::processor;
use super::{CliError, Exit};
use crate::config::{ModelEntry, Settings};
use crate::engine::arbiter::Arbiter;
use crate::gpu;

pub enum Place {
    Processor(Context),
    Gpu(Device),
}

/// One place, and what those share that compute there.
pub struct Spot {
    pub place: Place,
    /// What it is, for people.
    pub said: String,
    pub arbiter: Arc<Arbiter>,
    /// Memory that models may take.
    pub available: Available,
}

impl Spot {
    fn new(place: Place, said: String) -> Result<Self, CliError> {
        let available = place.available()?;
        Ok(Self { place, said, arbiter: Arc::default(), available })
    }

    /// As `engine.device` asks: every GPU, or the processor. A GPU that is here and cannot be used is an error unless the
    /// CPU was asked for: nobody buys one to be served by the processor unawares.
    pub fn all(settings: &Settings) -> Result<Vec<Self>, CliError> {
        let on_processor = |why: &str| {
            Ok(vec![Self::new(Place::Processor(processor(settings)?), format!("the CPU ({why})"))?])
        };
        if settings.device == "cpu" {
            return on_processor("as engine.device says");
        }
        match gpu::open() {
            Ok(devices) => devices
                .into_iter()
                .map(|device| {
                    let (free, total) = memory(&device)?;
                    let gib = |bytes: usize| bytes as f64 / f64::from(1u32 << 30);
                    let said = format!("{}, {:.1} of {:.1} GiB free", device.name(), gib(free), gib(total));
                    Self::new(Place::Gpu(device), said)
                })
                .collect(),
            Err(none) if settings.device == "cuda" || none.is_an_obstacle => {
                Err(CliError::new(Exit::Device, none.reason)
                    .fix("mend that, or serve on the CPU: --device cpu"))
            }
            Err(none) => on_processor(&none.reason),
        }
    }
}

impl Place {
    /// Tokens of a step at most, where the settings leave it open.
    pub fn step_tokens(&self) -> u32 {
        match self {
            Self::Processor(_) => 256,
            Self::Gpu(_) => 2048,
        }
    }

    fn available(&self) -> Result<Available, CliError> {
        match self {
            Self::Processor(_) => Available::now().ok_or_else(|| {
                CliError::new(Exit::Failed, "how much memory there is cannot be read from /proc/meminfo")
            }),
            Self::Gpu(device) => {
                let (free, _) = memory(device)?;
                // The rest is the driver's: it takes some for each module and captured step.
                let bytes = (free - free / 32) as u64;
                Ok(Available { bytes, limit: format!("free memory of {}", device.name()) })
            }
        }
    }
}

fn memory(device: &Device) -> Result<(usize, usize), CliError> {
    device.memory().map_err(|e| CliError::new(Exit::Device, e.to_string()))
}

/// Which spots each model has a replica on: as many as it asks for, on those that have the fewest; on all GPUs if it does
/// not say. On the processor replicas share it, which is for trying things out.
pub fn spread(models: &[ModelEntry], spots: &[Spot]) -> Result<Vec<Vec<usize>>, CliError> {
    let gpus = matches!(spots[0].place, Place::Gpu(_)).then_some(spots.len());
    let wanted: Vec<usize> = models.iter().map(|model| model.replicas as usize).collect();
    spread_over(&wanted, gpus).map_err(|at| {
        let (model, count) = (&models[at], spots.len());
        let what = format!(
            "model {}: {} replicas are asked for; this host has {count} GPUs",
            model.name, wanted[at]
        );
        CliError::new(Exit::Config, what)
            .at(model.origin.to_string())
            .fix(format!("lower `replicas` to {count}, or leave it out to have one on every GPU"))
    })
}

/// The same in numbers; the error is the model that asks for too many.
fn spread_over(wanted: &[usize], gpus: Option<usize>) -> Result<Vec<Vec<usize>>, usize> {
    let mut load = vec![0; gpus.unwrap_or(1)];
    let one = |(at, wanted): (usize, &usize)| {
        let count = match (gpus, wanted) {
            (None, _) => return Ok(vec![0; (*wanted).max(1)]),
            (Some(all), 0) => all,
            (Some(all), _) if *wanted > all => return Err(at),
            (Some(_), _) => *wanted,
        };
        let mut order: Vec<usize> = (0..load.len()).collect();
        order.sort_by_key(|spot| (load[*spot], *spot));
        order.truncate(count);
        order.sort_unstable();
        order.iter().for_each(|spot| load[*spot] += 1);
        Ok(order)
    };
    wanted.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_does_not_say_is_on_every_gpu_and_once_on_the_processor() {
        assert_eq!(spread_over(&[0], Some(3)), Ok(vec![vec![0, 1, 2]]));
        assert_eq!(spread_over(&[0, 0], None), Ok(vec![vec![0], vec![0]]));
    }

    #[test]
    fn models_with_fewer_replicas_keep_out_of_each_others_way() {
        assert_eq!(spread_over(&[1, 1, 1], Some(2)), Ok(vec![vec![0], vec![1], vec![0]]));
        assert_eq!(spread_over(&[2, 1, 1], Some(4)), Ok(vec![vec![0, 1], vec![2], vec![3]]));
        assert_eq!(spread_over(&[1, 0, 1], Some(2)), Ok(vec![vec![0], vec![0, 1], vec![1]]));
    }

    #[test]
    fn more_replicas_than_gpus_are_refused_and_on_the_processor_they_share_it() {
        assert_eq!(spread_over(&[1, 3], Some(2)), Err(1));
        assert_eq!(spread_over(&[3], None), Ok(vec![vec![0, 0, 0]]));
    }
}
