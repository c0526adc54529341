//! The seam between the loop and a device.
//!
//! Asynchronous in shape: `launch` and `sample` enqueue, `collect` waits. Sampling is a launch of its own because a
//! grammar's mask needs the last token on the host first, while rows of the next step may already name the token that
//! a sampled row is about to produce ([`hearth_models::step::PENDING`]).

use hearth_kernels::sample::{SampleRow, Sampled};
use hearth_models::step::Step;

/// What a device can hold; fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks of keys and values in all.
    pub blocks: u32,
    /// Positions in a block.
    pub block_size: u32,
    /// Rows of a step at most: the token budget.
    pub rows: u32,
    /// Rows of logits of a step at most.
    pub logits: u32,
    /// Longest sequence, prompt and output.
    pub context: u32,
    pub vocab: u32,
}

/// A step that failed. Its sequences end with this; the loop goes on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the step failed: {0}")]
pub struct StepError(pub String);

/// Runs steps, in order, one stream of work.
pub trait Executor: Send {
    fn capacity(&self) -> Capacity;

    /// Enqueues the forward pass of a step: writes keys and values, leaves logits for `sample`.
    fn launch(&mut self, step: &Step) -> Result<(), StepError>;

    /// Enqueues the drawing of tokens from the logits of the step launched last.
    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<(), StepError>;

    /// Waits for the sampling launched longest ago and appends its results to `out`, in the order of its rows.
    fn collect(&mut self, out: &mut Vec<Sampled>) -> Result<(), StepError>;
}
