//! Before anything else: is there an NVIDIA device that this process can use?
//!
//! The binary opens the CUDA libraries when it first calls them, and ends with a panic when one is missing. So they are
//! looked for here first, and whatever is not there becomes an error that the caller can print or answer with the CPU.

use std::any::Any;
use std::ffi::CString;
use std::panic::catch_unwind;

use candle_core::Device;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
use candle_core::cuda_backend::cudarc::driver::{DriverError, sys};
use thiserror::Error;

/// Why there is no device.
#[derive(Debug, Error)]
pub enum Absent {
    #[error("{library} is not installed: {role}")]
    Library { library: &'static str, role: &'static str },
    #[error("the driver has no usable device {ordinal}: {reason}")]
    Device { ordinal: usize, reason: String },
    #[error("the CUDA libraries do not fit this build: {reason}")]
    Libraries { reason: String },
}

/// What candle opens when it makes a device, in that order.
const LIBRARIES: [(&str, &str); 3] = [
    ("libcuda", "it comes with the NVIDIA driver"),
    ("libcublas", "it comes with the CUDA toolkit or the package nvidia-cublas"),
    ("libcurand", "it comes with the CUDA toolkit or the package nvidia-curand"),
];

/// The endings under which cudarc looks for a library; newest first.
const ENDINGS: [&str; 6] = ["", ".13", ".12", ".11", ".10", ".1"];

/// The first CUDA library that cannot be opened. Costs up to half a second where all are there, milliseconds otherwise.
pub fn missing_library() -> Option<Absent> {
    LIBRARIES
        .iter()
        .find(|(library, _)| !opens(library))
        .map(|&(library, role)| Absent::Library { library, role })
}

fn opens(library: &str) -> bool {
    ENDINGS.iter().any(|ending| {
        let name =
            CString::new(format!("{library}.so{ending}")).expect("bug: a library name has no zero byte");
        // SAFETY: the name is a terminated string. The handle is never closed: the library stays for its first caller.
        !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) }.is_null()
    })
}

/// Opens a device with a stream of its own, which graphs can be captured on. The returned device belongs on one thread.
pub fn open(ordinal: usize) -> Result<Device, Absent> {
    if let Some(absent) = missing_library() {
        return Err(absent);
    }
    // The text of an error is the driver's too, so it is asked for in here.
    let opened = catch_unwind(|| Device::new_cuda_with_stream(ordinal).map_err(|error| error.to_string()));
    let device = match opened {
        Ok(Ok(device)) => device,
        // Further lines are a backtrace.
        Ok(Err(text)) => {
            return Err(Absent::Device {
                ordinal,
                reason: text.lines().next().unwrap_or("no reason given").to_owned(),
            });
        }
        Err(panic) => return Err(Absent::Libraries { reason: text_of(&*panic) }),
    };
    if let Device::Cuda(cuda) = &device {
        // SAFETY: one stream and one thread use the device, so no allocation is seen by two streams. The events would
        // cost two creations an allocation, and a wait on one from outside a capture breaks the capture.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a CUDA library panicked".to_owned())
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

pub fn facts(device: &CudaDevice) -> Result<Facts, DriverError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let (memory_free, memory_total) = context.mem_get_info()?;
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
