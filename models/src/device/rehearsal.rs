//! Before the first request: the largest steps there will ever be, to see what they take, and pages in what is left.
//!
//! A driver takes memory that no sum of buffers knows: for a kernel when it is first launched, for threads that spill,
//! for each captured step. So the steps are run once over a pool of one block, and the pool that is served from is made
//! afterwards. Captured launches hold the addresses of the pages, so they are captured anew then.

use hearth_kernels::cuda::driver::DeviceError;
use hearth_kernels::paged::{BLOCK, Span};

use super::{BUCKETS, Decoder, Options, Pages};
use crate::step::Step;

impl Decoder {
    /// Rows that steps are rounded up to, ascending.
    pub fn buckets(&self) -> Vec<usize> {
        let most = self.options.rows;
        BUCKETS.into_iter().take_while(|bucket| *bucket < most).chain([most]).collect()
    }

    /// The largest step of `rows` rows: as many sequences as may decode, all at the end of the longest context, and as
    /// many rows of logits. All of them read and write block 0: what they say means nothing.
    pub fn largest(&self, rows: usize) -> Step {
        let Options { logits, context, .. } = self.options;
        let (spans, blocks) = (rows.min(logits), context.div_ceil(BLOCK));
        let mut step = Step::default();
        for span in 0..spans {
            let count = (rows / spans + usize::from(span < rows % spans)).min(context);
            step.spans.push(Span {
                row: step.rows() as u32,
                rows: count as u32,
                table: step.tables.len() as u32,
                context: context as u32,
            });
            for position in context - count..context {
                step.tokens.push((position % self.spec.vocab) as u32);
                step.positions.push(position as u32);
                step.slots.push((position % BLOCK) as u32);
            }
            step.tables.extend(std::iter::repeat_n(0, blocks));
            step.logits.push(step.rows() as u32 - 1);
        }
        step
    }

    /// Gives the pages back, and the captured steps with them, and makes `blocks` new ones.
    pub fn hold(&mut self, blocks: usize) -> Result<(), DeviceError> {
        self.device.finish()?;
        for graph in self.graphs.drain().filter_map(|(_, graph)| graph) {
            // SAFETY: everything is done, and nobody else has its number.
            unsafe { self.device.forget(graph) };
        }
        self.kv.clear();
        let numbers = blocks * BLOCK * self.spec.key_width();
        for layer in &self.weights.layers {
            self.kv.push(Pages::new(&self.device, self.options.kv, numbers, self.heads, layer)?);
        }
        self.options.blocks = blocks;
        Ok(())
    }

    /// Captures the steps of every bucket whose kernels were launched before; returns how many are captured.
    pub fn capture(&mut self) -> Result<usize, DeviceError> {
        if !self.options.graphs {
            return Ok(0);
        }
        for bucket in self.buckets() {
            if !matches!(self.graphs.get(&bucket), Some(Some(_))) {
                let device = self.device.clone();
                let graph = device.capture(&mut || self.enqueue(bucket))?;
                self.graphs.insert(bucket, Some(graph));
            }
        }
        Ok(self.graphs.len())
    }
}
