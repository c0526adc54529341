//! Before anything else: is there a GPU that this process can use?
//!
//! The binary opens libcuda when it first calls it, and a call ends with a panic when the library or a function of it is
//! missing. So it is looked for here first, and whatever is not as it should be becomes an error that the caller can
//! print or answer with the CPU. Nothing else of CUDA is needed: the kernels are in the binary.

use std::any::Any;
use std::panic::catch_unwind;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};
use thiserror::Error;

use super::presence::Presence;

/// The oldest driver whose CUDA runs the kernels of this build: 580.
const OLDEST: i32 = 13_000;

/// Why there is no device.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Absent {
    #[error("this host has no NVIDIA GPU")]
    Nowhere,
    #[error("this host has an NVIDIA GPU that cannot be used: {reason}")]
    Obstacle { reason: String },
    #[error(
        "the NVIDIA driver is {version} and knows CUDA {}.{}; this build needs 580 or newer, which knows 13.0",
        cuda / 1000, cuda % 1000 / 10
    )]
    Old { version: String, cuda: i32 },
    #[error("device {ordinal} is asked for; the driver shows {count}")]
    Ordinal { ordinal: usize, count: usize },
    #[error("device {ordinal} does not open: {reason}")]
    Device { ordinal: usize, reason: String },
    #[error("libcuda does not fit this build: {reason}")]
    Unfit { reason: String },
}

/// Opens the context of a device.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>, Absent> {
    let count = count()?;
    if ordinal >= count {
        return Err(Absent::Ordinal { ordinal, count });
    }
    let opened = catch_unwind(|| CudaContext::new(ordinal));
    let opened = opened.map_err(|panic| Absent::Unfit { reason: text_of(&*panic) })?;
    opened.map_err(|error| Absent::Device { ordinal, reason: said(&error) })
}

/// How many devices this process can use: at least one. `CUDA_VISIBLE_DEVICES` limits them, as everywhere.
pub fn count() -> Result<usize, Absent> {
    let presence = Presence::now();
    let unusable = || match presence.is_here() {
        true => Absent::Obstacle { reason: presence.obstacle() },
        false => Absent::Nowhere,
    };
    // SAFETY: looks whether the library opens, and closes nothing that is in use.
    if !unsafe { sys::is_culib_present() } {
        return Err(unusable());
    }
    let counted = catch_unwind(|| -> Result<usize, Absent> {
        match result::init() {
            Ok(()) => {}
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(unusable()),
            Err(error) => return Err(Absent::Unfit { reason: said(&error) }),
        }
        let unfit = |error: DriverError| Absent::Unfit { reason: said(&error) };
        let mut cuda = 0;
        // SAFETY: the driver writes one integer to a place that is there.
        unsafe { sys::cuDriverGetVersion(&mut cuda) }.result().map_err(unfit)?;
        if cuda < OLDEST {
            let version = presence.module.clone().unwrap_or_else(|| "of an unknown version".into());
            return Err(Absent::Old { version, cuda });
        }
        match result::device::get_count().map_err(unfit)? {
            0 => Err(unusable()),
            count => Ok(count as usize),
        }
    });
    counted.unwrap_or_else(|panic| Err(Absent::Unfit { reason: text_of(&*panic) }))
}

/// The driver's own words for an error, in a line.
fn said(error: &DriverError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or("no reason given").to_owned()
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    pub name: String,
    /// The newest CUDA that the driver knows: 13000 is 13.0.
    pub driver_cuda: i32,
    pub capability: (i32, i32),
    pub multiprocessors: i32,
    pub l2_bytes: i32,
    pub memory_total: usize,
    pub memory_free: usize,
}

pub fn facts(context: &Arc<CudaContext>) -> Result<Facts, DriverError> {
    context.bind_to_thread()?;
    let (memory_free, memory_total) = result::mem_get_info()?;
    let mut driver_cuda = 0;
    // SAFETY: the driver writes one integer to a place that is there.
    unsafe { sys::cuDriverGetVersion(&mut driver_cuda) }.result()?;
    Ok(Facts {
        name: context.name()?,
        driver_cuda,
        capability: context.compute_capability()?,
        multiprocessors: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        memory_total,
        memory_free,
    })
}
