//! Room for keys and values on a device: what the largest steps leave, measured before the first request.
//!
//! The sum of [`hearth_models::memory`] decides beforehand whether a model can be tried at all. What a device really takes
//! is known when everything is there and every step was made once at its largest: the weights, the buffers, kernels that
//! the driver loads when they are first launched, the captured steps. Keys and values get what is left then, and from
//! there on nothing takes memory of the device.

use hearth_kernels::cuda::driver::{Device, DeviceError};
use hearth_kernels::cuda::record::ALTERNATIVES;
use hearth_kernels::sample::{SampleRow, Sampling};
use hearth_models::decoder::LoadError;
use hearth_models::device::{Decoder, Options};
use hearth_models::memory::{Memory, Size};

use super::device::OnDevice;
use super::executor::{Executor, StepError};

/// How many blocks of keys and values a model is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub least: usize,
    pub most: usize,
    /// Bytes of the device that the model may take in all.
    pub share: u64,
}

/// What a model takes on its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    pub device: String,
    pub weights: u64,
    /// Of the largest step, sampling included.
    pub buffers: u64,
    /// Kernels, and captured steps.
    pub driver: u64,
    pub captured: usize,
    pub block_bytes: u64,
    /// Blocks that fit into what is left for them.
    pub fitting: usize,
    pub blocks: usize,
    /// Free memory of the device beside all this.
    pub left: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    #[error(transparent)]
    Load(#[from] Box<LoadError>),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the largest step, tried out: {0}")]
    Step(#[from] StepError),
    #[error(
        "not enough memory for keys and values: {} for {least} tokens, {} is left on the device\n{sum}Lower `context`, \
         `kv` or `engine.sequences`, serve fewer models, or pack the weights (`quantize`: q8_0 or q4_k).",
        Size(*needed), Size(*left)
    )]
    Full { needed: u64, least: u64, left: u64, sum: String },
}

impl Room {
    /// Measures a decoder that `load` makes, and makes its pages: as many as fit, `wanted` allowing. `said` is the sum of
    /// before, shown beside what is so.
    pub fn make(
        device: &Device,
        options: &Options,
        wanted: Wanted,
        said: &Memory,
        load: impl FnOnce(&Options) -> Result<Decoder, Box<LoadError>>,
    ) -> Result<(OnDevice, Self), RoomError> {
        let free = || device.memory().map(|(free, _)| free as u64);
        let begin = free()?;
        let decoder = load(&Options { blocks: 1, ..options.clone() })?;
        let mut executor = OnDevice::new(device, decoder)?;
        let loaded = free()?;
        let captured = rehearse(&mut executor)?;
        let one = said.block_bytes;
        let left = free()? + one;
        // Drivers round, and another process may have given some back.
        let (taken, weights) = (begin.saturating_sub(left), executor.decoder().weight_bytes());
        let room = wanted.share.saturating_sub(taken).min(left - left / 32);
        let fitting = (room / one) as usize;
        let mut sum = Self {
            device: device.name().to_owned(),
            weights,
            buffers: begin.saturating_sub(loaded).saturating_sub(weights + one),
            driver: loaded.saturating_sub(left - one),
            captured,
            block_bytes: one,
            fitting,
            blocks: fitting.min(wanted.most),
            left,
        };
        if fitting < wanted.least {
            sum.blocks = wanted.least;
            let (needed, least) = (sum.kv_bytes(), sum.kv_bytes() / said.token_bytes());
            sum.left = left.saturating_sub(needed);
            return Err(RoomError::Full { needed, least, left: room, sum: sum.beside(said) });
        }
        executor.hold(sum.blocks)?;
        sum.left = free()?;
        Ok((executor, sum))
    }

    pub fn kv_bytes(&self) -> u64 {
        self.blocks as u64 * self.block_bytes
    }

    /// The sum, and beside each line what was said before anything was read.
    pub fn beside(&self, said: &Memory) -> String {
        let tokens = |bytes: u64| bytes / said.token_bytes();
        let mut text = format!("  {:<44} {:>12} {:>12}\n", format!("on {}", self.device), "measured", "said");
        let mut line = |what: &str, bytes: u64, said: Option<u64>| {
            let said = said.map_or("-".to_owned(), |bytes| Size(bytes).to_string());
            text += &format!("  {what:<44} {:>12} {said:>12}\n", Size(bytes).to_string());
        };
        line("weights", self.weights, Some(said.weight_bytes()));
        line("buffers of the largest step", self.buffers, Some(said.step + said.rope));
        line(&format!("kernels and {} captured steps", self.captured), self.driver, None);
        let kept = format!("keys and values of {} tokens", tokens(self.kv_bytes()));
        line(&kept, self.kv_bytes(), Some(said.kv_bytes()));
        line("left over", self.left, None);
        text
    }
}

/// Every step at its largest, twice: enqueued, then captured and replayed, with all that a sampling can ask for. Returns
/// how many are captured.
fn rehearse(executor: &mut OnDevice) -> Result<usize, RoomError> {
    let vocab = executor.capacity().vocab;
    let context = executor.capacity().context;
    let sampling = Sampling {
        temperature: 1.0,
        top_k: 50,
        top_p: 0.9,
        repetition_penalty: 1.1,
        frequency_penalty: 0.1,
        logit_bias: vec![(0, 1.0)],
        logprobs: Some(ALTERNATIVES as u8),
        ..Sampling::default()
    };
    let seen: Vec<(u32, u32)> = (0..vocab.min(context)).map(|token| (token, 1)).collect();
    let mask = vec![u32::MAX; vocab.div_ceil(32) as usize];
    let mut drawn = Vec::new();
    for rows in executor.decoder().buckets() {
        let step = executor.decoder().largest(rows);
        let draw = |row| SampleRow {
            row,
            sampling: &sampling,
            choice: 0,
            position: context - 1,
            seen: &seen,
            mask: Some(&mask),
            forced: None,
        };
        let rows: Vec<SampleRow<'_>> = (0..step.logits.len() as u32).map(draw).collect();
        for _ in 0..2 {
            executor.launch(&step)?;
            executor.sample(&rows)?;
            executor.collect(&mut drawn)?;
            drawn.clear();
        }
    }
    // Those whose largest step belongs to a smaller bucket.
    Ok(executor.capture()?)
}
