//! Time on the device, between two events on the stream.

use std::sync::Arc;

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DriverError};
use serde_json::{Value, json};

use crate::Failure;

const ROUNDS: usize = 11;

pub struct Clock {
    stream: Arc<CudaStream>,
    start: CudaEvent,
    end: CudaEvent,
}

/// Microseconds of one launch: the median of the rounds, and their extremes.
#[derive(Clone, Copy)]
pub struct Timing {
    pub median_us: f64,
    pub least_us: f64,
    pub most_us: f64,
}

impl Timing {
    pub fn gb_s(&self, bytes: f64) -> f64 {
        bytes / self.median_us / 1e3
    }

    pub fn json(&self) -> Value {
        json!({ "median_us": self.median_us, "least_us": self.least_us, "most_us": self.most_us })
    }
}

impl Clock {
    pub fn new(device: &CudaDevice) -> Result<Self, DriverError> {
        let stream = device.cuda_stream();
        let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Self { start: event()?, end: event()?, stream })
    }

    /// Rounds of `launches` launches each, the first round not counted. `launch` is told which launch of a round it is.
    pub fn measure(
        &self,
        launches: usize,
        mut launch: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Timing, Failure> {
        let mut times = Vec::with_capacity(ROUNDS);
        for round in 0..=ROUNDS {
            self.start.record(&self.stream)?;
            for i in 0..launches {
                launch(i)?;
            }
            self.end.record(&self.stream)?;
            let us = f64::from(self.start.elapsed_ms(&self.end)?) * 1e3 / launches as f64;
            if round > 0 {
                times.push(us);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(Timing { median_us: times[ROUNDS / 2], least_us: times[0], most_us: times[ROUNDS - 1] })
    }
}
