//! Before the first request: do launches that begin early change a bit?
//!
//! On devices that can, most launches of a step are chained: they begin before the one in front of them is done
//! (`kernels/cuda/chain.cuh`). A read that does not wait for what it reads would show as other logits, now and then. So the
//! same steps are made twice, every launch behind the one in front of it and chained, enqueued and captured, over the
//! decoder's own weights; where a bit differs, launches wait as they did.

use hearth_kernels::cuda::driver::{DeviceError, Graph};
use hearth_kernels::paged::{BLOCK, Span};

use super::Decoder;
use crate::step::Step;

/// The longest past that is attended to.
const LONGEST: usize = 4096;
/// Steps of one row behind it, and steps of several sequences.
const ALONE: usize = 3;
const TOGETHER: [usize; 3] = [2, 4, 8];

/// How chained launches differ on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "launches that begin before the one in front of them is done change logits on this device ({differ} of {numbers} in \
     a step of {rows} rows, {}) and are not used: decoding is slower",
    if *captured { "captured" } else { "enqueued" }
)]
pub struct Differs {
    rows: usize,
    captured: bool,
    differ: usize,
    numbers: usize,
}

impl Decoder {
    /// Compares steps of chained launches, `rounds` times enqueued and `rounds` times captured, with the same steps without;
    /// where they differ, the device chains no more. Writes to block 0. One round is 24 steps of a few rows.
    pub fn check_chain(&mut self, rounds: usize) -> Result<Option<Differs>, DeviceError> {
        if !self.device.chains() {
            return Ok(None);
        }
        let differs = self.compare_chained(rounds).map_err(|error| match error {
            DeviceError::Failed { call, reason } => {
                let reason = format!("{reason} (trying chained launches; HEARTH_GPU_CHAIN=off does without)");
                DeviceError::Failed { call, reason }
            }
            error => error,
        })?;
        self.device.chain(differs.is_none());
        Ok(differs)
    }

    fn compare_chained(&mut self, rounds: usize) -> Result<Option<Differs>, DeviceError> {
        let steps = self.trials();
        self.device.chain(false);
        let wanted: Vec<Vec<u32>> =
            steps.iter().map(|step| self.attempt(step, None)).collect::<Result<_, _>>()?;
        self.device.chain(true);
        let mut found = self.compare(&steps, &wanted, &[], rounds)?;
        if found.is_none() && self.options.graphs {
            let device = self.device.clone();
            let capture = |step: &Step| device.capture(&mut || self.enqueue(self.bucket(step.rows())));
            let graphs: Vec<Graph> = steps.iter().map(capture).collect::<Result<_, _>>()?;
            found = self.compare(&steps, &wanted, &graphs, rounds)?;
            self.device.finish()?;
            for graph in graphs {
                // SAFETY: everything is done, and nobody else has its number.
                unsafe { self.device.forget(graph) };
            }
        }
        Ok(found)
    }

    fn compare(
        &mut self,
        steps: &[Step],
        wanted: &[Vec<u32>],
        graphs: &[Graph],
        rounds: usize,
    ) -> Result<Option<Differs>, DeviceError> {
        for _ in 0..rounds {
            for (i, (step, wanted)) in steps.iter().zip(wanted).enumerate() {
                let got = self.attempt(step, graphs.get(i).copied())?;
                let differ = got.iter().zip(wanted).filter(|(got, wanted)| got != wanted).count();
                if differ > 0 {
                    let (rows, captured) = (step.rows(), !graphs.is_empty());
                    return Ok(Some(Differs { rows, captured, differ, numbers: wanted.len() }));
                }
            }
        }
        Ok(None)
    }

    /// The bits of a step's logits.
    fn attempt(&mut self, step: &Step, graph: Option<Graph>) -> Result<Vec<u32>, DeviceError> {
        self.meta.put(step)?;
        match graph {
            None => self.enqueue(self.bucket(step.rows()))?,
            // SAFETY: every buffer that was captured belongs to this decoder.
            Some(graph) => unsafe { self.device.replay(graph)? },
        }
        let width = self.buffers.logits.len() / self.options.logits;
        let logits = self.buffers.logits.part(0, step.logits.len() * width).get()?;
        Ok(logits.into_iter().map(f32::to_bits).collect())
    }

    /// A prompt that fills block 0, rows that attend to it again and again as a long past, and sequences that decode side
    /// by side, each with what the ones before it wrote. No two neighbours have the same logits, so that a step which
    /// left them as they were is noticed too.
    fn trials(&self) -> Vec<Step> {
        let (vocab, limits) = (self.spec.vocab, self.meta.limits());
        let mut next = 0;
        let mut push = |step: &mut Step, first: usize, rows: usize| {
            let (context, row) = (first + rows, step.rows());
            let table = step.tables.len() as u32;
            step.spans.push(Span { row: row as u32, rows: rows as u32, table, context: context as u32 });
            for position in first..context {
                next += 1;
                step.tokens.push((next * 37 % vocab) as u32);
                step.positions.push(position as u32);
                step.slots.push((position % BLOCK) as u32);
            }
            step.tables.extend(std::iter::repeat_n(0, context.div_ceil(BLOCK)));
            step.logits.push((row + rows - 1) as u32);
        };
        let mut steps = Vec::new();
        let filled = BLOCK.min(limits.rows).min(self.options.context);
        let mut prompt = Step::default();
        push(&mut prompt, 0, filled);
        steps.push(prompt);
        let past = if filled == BLOCK { self.options.context.min(LONGEST) } else { filled };
        for _ in 0..ALONE {
            let mut step = Step::default();
            push(&mut step, past - 1, 1);
            steps.push(step);
        }
        let most = limits.spans.min(self.options.context);
        for count in TOGETHER.into_iter().filter(|count| *count <= most) {
            let mut step = Step::default();
            (0..count).for_each(|position| push(&mut step, position, 1));
            steps.push(step);
        }
        steps
    }
}
