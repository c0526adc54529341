//! The device that is measured, and time on it.

use std::cell::Cell;

use hearth_kernels::cuda::driver::Device;
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::cuda::stream::Stream;
use hearth_kernels::cuda::weightonly::Format;
use hearth_models::spec::Spec;
use serde_json::{Value, json};

use crate::Failure;
use crate::ceilings::{self, Ceilings};

/// Rounds of a measurement; the median counts.
const ROUNDS: usize = 11;
/// What the emulated device says it has.
const EMULATED_MEMORY: usize = 2 << 30;

pub struct Opened {
    pub device: Device,
    pub facts: Value,
    pub is_emulated: bool,
}

/// Why there is no device.
pub struct Absence {
    pub reason: String,
    /// There is a GPU, and it cannot be used.
    pub is_an_obstacle: bool,
}

#[cfg(feature = "cuda")]
pub fn gpu(ordinal: usize) -> Result<Opened, Absence> {
    use hearth_kernels::cuda::find::Absent;
    use hearth_kernels::cuda::gpu::Gpu;

    let gpu = Gpu::open(ordinal).map_err(|absent| Absence {
        reason: absent.to_string(),
        is_an_obstacle: absent != Absent::Nowhere,
    })?;
    let facts = gpu.facts();
    let facts = json!({
        "kind": "cuda",
        "name": facts.name,
        "capability": format!("{}.{}", facts.capability.0, facts.capability.1),
        "multiprocessors": facts.multiprocessors,
        "l2_bytes": facts.l2_bytes,
        "memory_bytes": facts.memory_total,
        "memory_free_bytes": facts.memory_free,
        "driver_cuda": format!("{}.{}", facts.driver_cuda / 1000, facts.driver_cuda % 1000 / 10),
    });
    Ok(Opened { device: std::sync::Arc::new(gpu), facts, is_emulated: false })
}

#[cfg(not(feature = "cuda"))]
pub fn gpu(_ordinal: usize) -> Result<Opened, Absence> {
    let reason = "this build of gpu_bench was made without CUDA (feature cuda of hearth-models)";
    Err(Absence { reason: reason.to_owned(), is_an_obstacle: false })
}

pub fn emulated() -> Opened {
    let device = Emulated::open(Order::Shuffled, EMULATED_MEMORY);
    let facts = json!({ "kind": "emulated", "name": device.name(), "memory_bytes": EMULATED_MEMORY });
    Opened { device, facts, is_emulated: true }
}

/// What every part measures with.
pub struct Bench {
    pub device: Device,
    pub stream: Stream,
    pub name: String,
    pub spec: Spec,
    /// Of the layers' weights.
    pub quantize: Option<Format>,
    /// Little of everything.
    pub quick: bool,
    pub is_emulated: bool,
    facts: Value,
    ceilings: Cell<Option<Ceilings>>,
}

impl Bench {
    pub fn new(
        opened: Opened,
        (name, spec): (String, Spec),
        quantize: Option<Format>,
        quick: bool,
    ) -> Result<Self, Failure> {
        let Opened { device, facts, is_emulated } = opened;
        let stream = Stream::load(&device)?;
        let ceilings = Cell::new(None);
        Ok(Self { device, stream, name, spec, quantize, quick, is_emulated, facts, ceilings })
    }

    pub fn facts(&self) -> &Value {
        &self.facts
    }

    /// Of the weights, as settings call it.
    pub fn format(&self) -> &'static str {
        self.quantize.map_or("bf16", Format::title)
    }

    pub fn line(&self) -> String {
        let of = |name: &str| self.facts[name].as_str().unwrap_or("-").to_owned();
        let memory = self.facts["memory_bytes"].as_u64().unwrap_or(0) >> 30;
        let (name, capability, driver) = (of("name"), of("capability"), of("driver_cuda"));
        let multiprocessors = self.device.multiprocessors();
        format!(
            "{name}: capability {capability}, {multiprocessors} multiprocessors, {memory} GiB, driver knows CUDA {driver}"
        )
    }

    /// The ceilings of this run, measured when first asked for.
    pub fn ceilings(&self) -> Result<Ceilings, Failure> {
        if let Some(ceilings) = self.ceilings.get() {
            return Ok(ceilings);
        }
        let measured = ceilings::measure(self)?;
        self.ceilings.set(Some(measured));
        Ok(measured)
    }

    pub fn measured(&self) -> Option<Ceilings> {
        self.ceilings.get()
    }

    /// Microseconds of one launch of rounds of `launches`, the first round not counted: the median.
    pub fn time(
        &self,
        launches: usize,
        mut launch: impl FnMut() -> Result<(), Failure>,
    ) -> Result<f64, Failure> {
        let rounds = if self.is_emulated { 1 } else { ROUNDS };
        let mut times = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let start = self.device.mark()?;
            for _ in 0..launches {
                launch()?;
            }
            let end = self.device.mark()?;
            self.device.wait(end)?;
            if round > 0 {
                times.push(self.device.microseconds(start, end)? / launches as f64);
            }
        }
        Ok(quantile(&mut times, 0.5))
    }
}

/// The value that a share of the others are at most as large as.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}
