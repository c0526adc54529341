//! The machine code of one `.cu` file on a device, and its functions by name.

use std::sync::Arc;

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule, CudaStream, DriverError};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;

/// A loaded module and the stream that its functions are launched on, candle's own.
pub struct Module {
    module: Arc<CudaModule>,
    stream: Arc<CudaStream>,
}

impl Module {
    /// Loads a fatbin; the driver takes the code for the device from it.
    pub fn load(device: &CudaDevice, fatbin: &[u8]) -> Result<Self, DriverError> {
        let stream = device.cuda_stream();
        let module = stream.context().load_module(Ptx::from_binary(fatbin.to_vec()))?;
        Ok(Self { module, stream })
    }

    /// Looks a function up; keep it, the look-up costs more than a launch.
    pub fn function(&self, name: &str) -> Result<CudaFunction, DriverError> {
        self.module.load_function(name)
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}
