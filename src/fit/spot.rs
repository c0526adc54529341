//! What computes: the GPUs of this host, or its processor, and the memory there.

use std::fs;
use std::sync::Arc;

use hearth_kernels::Context;
use hearth_kernels::cuda::driver::Device;
use hearth_models::host::Available;

use super::Unfit;
use crate::config::Settings;
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
    fn new(place: Place, said: String) -> Result<Self, Unfit> {
        let available = place.available()?;
        Ok(Self { place, said, arbiter: Arc::default(), available })
    }

    /// As `engine.device` asks: every GPU, or the processor. A GPU that is here and cannot be used is an error unless the
    /// CPU was asked for: nobody buys one to be served by the processor unawares.
    pub fn all(settings: &Settings) -> Result<Vec<Self>, Unfit> {
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
                let fix = Some("mend that, or serve on the CPU: --device cpu".to_owned());
                Err(Unfit::Device { what: none.reason, fix })
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

    fn available(&self) -> Result<Available, Unfit> {
        match self {
            Self::Processor(_) => Available::now().ok_or_else(|| {
                Unfit::Host("how much memory there is cannot be read from /proc/meminfo".to_owned())
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

fn memory(device: &Device) -> Result<(usize, usize), Unfit> {
    device.memory().map_err(|e| Unfit::Device { what: e.to_string(), fix: None })
}

/// The processor's cores, as many as the settings allow.
fn processor(settings: &Settings) -> Result<Context, Unfit> {
    let cores = match settings.threads {
        0 => None,
        n => {
            let mut cores = allowed_cores();
            if n > cores.len() {
                let what = format!("{n} threads are asked for; this process may use {} cores", cores.len());
                let fix = "lower --threads or engine.threads".to_owned();
                return Err(Unfit::Settings { what, place: None, fix });
            }
            cores.truncate(n);
            Some(cores)
        }
    };
    Context::cpu(cores).map_err(|e| Unfit::Device { what: e.to_string(), fix: None })
}

/// The cores that this process may use.
fn allowed_cores() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}
