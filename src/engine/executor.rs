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
    /// Whether a row's bits depend on how many rows of its sequence a step computes, and must not: then a prompt is
    /// cut at whole blocks, its last row is alone only where it begins one, and what was drawn is computed row by row
    /// whenever it is computed again. False where bits never depend on it, and where that is not asked for.
    pub strict: bool,
}

impl Capacity {
    /// Positions that its blocks hold.
    pub fn tokens(&self) -> usize {
        self.blocks as usize * self.block_size as usize
    }

    /// Longest sequence that can ever run: the context, or the whole cache where that is smaller.
    pub fn longest(&self) -> u32 {
        self.context.min(self.blocks.saturating_mul(self.block_size))
    }
}

/// A step that failed. Its sequences end with this; the loop goes on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the step failed: {0}")]
pub struct StepError(pub String);

/// Runs steps, in order, one stream of work. Each `launch` is followed by one `sample`, be it of no rows, and each
/// `sample` by one `collect`. Between a step's `launch` and its `sample` the step before may be collected, if the
/// executor [`overlaps`](Executor::overlaps).
///
/// A step's blocks may be given to another sequence while it is still in flight: work done in order makes that safe.
pub trait Executor: Send {
    fn capacity(&self) -> Capacity;

    /// Whether `launch` returns before the work is done, so that planning the next step beside it pays. Where it does
    /// the work itself, each step is collected before the next one is planned, and tokens leave a step earlier.
    fn overlaps(&self) -> bool {
        false
    }

    /// Forgets every step in flight. Called after any of the calls below failed or panicked; the next call is a
    /// `launch`. Keys and values of steps collected before must still be there.
    fn reset(&mut self) {}

    /// Enqueues the forward pass of a step: writes keys and values, leaves logits for `sample`.
    fn launch(&mut self, step: &Step) -> Result<(), StepError>;

    /// Enqueues the drawing of tokens from the logits of the step launched last.
    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<(), StepError>;

    /// Waits for the sampling launched longest ago and appends its results to `out`, in the order of its rows. A row
    /// that cannot be drawn says so in its result and costs its neighbours nothing.
    fn collect(&mut self, out: &mut Vec<Sampled>) -> Result<(), StepError>;
}
