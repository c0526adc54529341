//! Sampling of rows of logits (`cuda/sample.cu`), with the tokens of [`crate::sample`].

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::record::{ALTERNATIVES, MAX_VOCABULARY, OUTCOME, RECORD};

const THREADS: u32 = 1024;

#[derive(Debug)]
pub struct Sample {
    device: Device,
    sample: Kernel,
}

/// The rows of a sampling.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// One number: how many records there are.
    pub count: &'a Buffer<u32>,
    /// Made by [`record`](super::record::record), one behind the other, with their lists.
    pub records: &'a Buffer<u32>,
    pub lists: &'a Buffer<u32>,
}

/// What a sampling writes: row `i` of each belongs to record `i`.
#[derive(Clone, Copy, Debug)]
pub struct Drawn<'a> {
    /// The tokens, which the next embedding reads.
    pub tokens: &'a Buffer<u32>,
    /// What [`answer`](super::record::answer) reads.
    pub outcomes: &'a Buffer<u32>,
    pub alternatives: &'a Buffer<u32>,
}

impl Sample {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self { sample: device.kernel("sample", 0)?, device: device.clone() })
    }

    /// Draws for at most `bucket` records from `logits` `[_, vocabulary]`. `changed` is room for as many rows of
    /// logits: rows with biases, a mask or penalties are written there.
    pub fn launch(
        &self,
        bucket: usize,
        rows: Rows<'_>,
        logits: &Buffer<f32>,
        vocabulary: usize,
        changed: &Buffer<f32>,
        drawn: Drawn<'_>,
    ) -> Result<(), DeviceError> {
        assert!((1..=MAX_VOCABULARY).contains(&vocabulary), "bug: a vocabulary of {vocabulary} tokens");
        assert!(
            !rows.count.is_empty()
                && rows.records.len() >= bucket * RECORD
                && logits.len() >= vocabulary
                && changed.len() >= bucket * vocabulary
                && drawn.tokens.len() >= bucket
                && drawn.outcomes.len() >= bucket * OUTCOME
                && drawn.alternatives.len() >= bucket * 2 * ALTERNATIVES,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.sample, bucket, THREADS);
        let launch = launch.buffer(rows.count).buffer(rows.records).buffer(rows.lists);
        let launch = launch.buffer(logits).buffer(changed);
        let launch = launch.buffer(drawn.tokens).buffer(drawn.outcomes).buffer(drawn.alternatives);
        let launch = launch.count(vocabulary);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above). Records name rows of
        // `logits` and parts of `lists`: they were made together from a step that was checked.
        unsafe { launch.on(&*self.device) }
    }
}
