//! The executor over the decoder on this host's processor (step 8 in the life of a request).
//!
//! The engine's thread computes too, so a step is done when `launch` returns and steps do not overlap.

use hearth_kernels::sample::{SampleRow, Sampled};
use hearth_kernels::{Context, Sampler};
use hearth_models::decoder::Decoder;
use hearth_models::step::{PENDING, Step};

use super::executor::{Capacity, Executor, StepError};

pub struct Local {
    ctx: Context,
    decoder: Decoder,
    capacity: Capacity,
    sampler: Sampler,
    /// A step was launched and not sampled.
    launched: bool,
    /// What was sampled and not collected yet; steps do not overlap, so it is one step's.
    results: Vec<Sampled>,
    /// Tokens of the sampling done last, for [`PENDING`].
    last: Vec<u32>,
    pinned: bool,
}

impl Local {
    pub fn new(ctx: &Context, decoder: Decoder) -> Self {
        let options = decoder.options();
        let capacity = Capacity {
            blocks: options.blocks as u32,
            block_size: decoder.block_size() as u32,
            rows: options.rows as u32,
            logits: options.logits as u32,
            context: options.context as u32,
            vocab: decoder.spec().vocab as u32,
            strict: false,
        };
        Self {
            ctx: ctx.clone(),
            decoder,
            capacity,
            sampler: Sampler::new(ctx),
            launched: false,
            results: Vec::new(),
            last: Vec::new(),
            pinned: false,
        }
    }
}

impl Executor for Local {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn reset(&mut self) {
        self.launched = false;
        self.results.clear();
        self.last.clear();
    }

    fn launch(&mut self, step: &Step) -> Result<(), StepError> {
        if !self.pinned {
            // Only speed is lost where the core cannot be had.
            if let Err(error) = self.ctx.pin_caller() {
                tracing::warn!(%error, "the engine's thread is not pinned");
            }
            self.pinned = true;
        }
        self.launched = false;
        if step.tokens.iter().any(|token| token & PENDING != 0) {
            let mut resolved = step.clone();
            for token in resolved.tokens.iter_mut().filter(|token| **token & PENDING != 0) {
                let known = self.last.get((*token & !PENDING) as usize);
                *token = *known.ok_or_else(|| failed("a row waits for a token nobody draws"))?;
            }
            self.decoder.forward(&resolved).map_err(failed)?;
        } else {
            self.decoder.forward(step).map_err(failed)?;
        }
        self.launched = true;
        Ok(())
    }

    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<(), StepError> {
        if !std::mem::take(&mut self.launched) {
            return Err(failed("sampled before a launch"));
        }
        self.results.clear();
        let vocab = self.capacity.vocab as usize;
        self.sampler.sample(self.decoder.logits(), vocab, rows, &mut self.results).map_err(failed)?;
        self.last.clear();
        self.last.extend(self.results.iter().map(|sampled| sampled.token));
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Sampled>) -> Result<(), StepError> {
        out.append(&mut self.results);
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> StepError {
    StepError(error.to_string())
}
