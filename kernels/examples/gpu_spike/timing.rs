//! Time on the device, between two marks on the stream.

use hearth_kernels::cuda::driver::Device;
use serde_json::{Value, json};

use crate::Failure;

const ROUNDS: usize = 11;

pub struct Clock(pub Device);

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
    /// Rounds of `launches` launches each, the first round not counted. `launch` is told which launch of a round it is.
    pub fn measure(
        &self,
        launches: usize,
        mut launch: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Timing, Failure> {
        let mut times = Vec::with_capacity(ROUNDS);
        for round in 0..=ROUNDS {
            let start = self.0.mark()?;
            for i in 0..launches {
                launch(i)?;
            }
            let end = self.0.mark()?;
            self.0.wait(end)?;
            let us = self.0.microseconds(start, end)? / launches as f64;
            if round > 0 {
                times.push(us);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(Timing { median_us: times[ROUNDS / 2], least_us: times[0], most_us: times[ROUNDS - 1] })
    }
}
