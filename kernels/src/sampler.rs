//! Sampling the rows of a step: a task a row on the threads of the context.
//!
//! Reads each row of logits two or three times, 4 bytes a token; against the head's product, which reads the weights
//! of every token to make the row, that is one part in a few hundred.

use std::sync::{Mutex, PoisonError, TryLockError};

use candle_core::Tensor;

use crate::buffer::read;
use crate::sample::{SampleRow, Sampled, Scratch, sample};
use crate::{Context, Error};

/// Draws on the CPU. Keeps its memory between steps.
pub struct Sampler {
    ctx: Context,
    /// One for each thread.
    scratches: Vec<Mutex<Scratch>>,
    results: Vec<Mutex<Sampled>>,
}

impl Sampler {
    pub fn new(ctx: &Context) -> Self {
        let scratches = (0..ctx.threads()).map(|_| Mutex::default()).collect();
        Self { ctx: ctx.clone(), scratches, results: Vec::new() }
    }

    /// Appends what each of `rows` gives on `logits`, f32 of `[_, vocab]`, to `out`, in their order.
    pub fn sample(
        &mut self,
        logits: &Tensor,
        vocab: usize,
        rows: &[SampleRow<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), Error> {
        let used = rows.iter().map(|row| row.row as usize + 1).max().unwrap_or(0);
        if used == 0 {
            return Ok(());
        }
        let logits = read(("sample", "logits"), logits, used, vocab)?;
        let logits = &logits[..];
        if self.results.len() < rows.len() {
            self.results.resize_with(rows.len(), Mutex::default);
        }
        let (scratches, results) = (&self.scratches, &self.results);
        self.ctx.run(rows.len(), |task| {
            let row = &rows[task];
            let logits = &logits[row.row as usize * vocab..][..vocab];
            // No more tasks run at once than there are threads, so one is free.
            let mut free = scratches.iter().cycle().find_map(|scratch| match scratch.try_lock() {
                Ok(scratch) => Some(scratch),
                // What a panic left there is overwritten like everything in it.
                Err(TryLockError::Poisoned(scratch)) => Some(scratch.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            });
            let scratch = free.as_mut().expect("bug: an endless search ended");
            *results[task].lock().unwrap_or_else(PoisonError::into_inner) = sample(logits, row, scratch);
        })?;
        out.extend(results[..rows.len()].iter().map(|result| {
            let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *result)
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sampling;
    use candle_core::Device;

    #[test]
    fn many_rows_on_many_threads_give_what_each_gives_alone() {
        let vocab = 1000;
        let values: Vec<f32> = (0..20 * vocab).map(|i| ((i * 7919) % 1013) as f32 / 80.0).collect();
        let logits = Tensor::from_vec(values.clone(), (20, vocab), &Device::Cpu).unwrap();
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, logprobs: Some(2), ..Sampling::default() };
        let rows: Vec<_> = (0..20)
            .map(|row| SampleRow {
                row: 19 - row,
                sampling: &sampling,
                choice: 0,
                position: row,
                seen: &[],
                mask: None,
                forced: None,
            })
            .collect();
        let alone: Vec<_> = rows
            .iter()
            .map(|row| sample(&values[row.row as usize * vocab..][..vocab], row, &mut Scratch::default()))
            .collect();
        for threads in [1, 2, 5] {
            let ctx = Context::cpu_with(crate::Isa::best(), threads).unwrap();
            let mut sampler = Sampler::new(&ctx);
            let mut out = Vec::new();
            sampler.sample(&logits, vocab, &rows, &mut out).unwrap();
            assert_eq!(out, alone, "{threads} threads");
        }
    }
}
