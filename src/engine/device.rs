//! The executor over the decoder on a device (step 8 in the life of a request).
//!
//! Work is enqueued and goes on beside the host: while a step is computed, the one before is collected and the next is
//! planned. What a sampling reads and writes lies in two places on the host that take turns, because two samplings are
//! under way at most.

use std::collections::VecDeque;

use hearth_kernels::cuda::buffer::{Buffer, Host};
use hearth_kernels::cuda::driver::{Device, DeviceError, Mark};
use hearth_kernels::cuda::record::{ALTERNATIVES, OUTCOME, RECORD, answer, record};
use hearth_kernels::cuda::sample::{Drawn, Rows, Sample};
use hearth_kernels::sample::{SampleRow, Sampled};
use hearth_models::device::Decoder;
use hearth_models::step::Step;

use super::executor::{Capacity, Executor, StepError};

/// Words that the lists of a sampling take at least: biases, tokens seen, masks.
const LISTS: usize = 1 << 20;
/// Biases that a request may have.
const BIASES: usize = 1024;

pub struct OnDevice {
    device: Device,
    decoder: Decoder,
    capacity: Capacity,
    sample: Sample,
    /// Copies of rows of logits that biases, masks or penalties change.
    changed: Buffer<f32>,
    /// One number in front: how many records; then records, then lists.
    asked: Asked,
    outcomes: Buffer<u32>,
    alternatives: Buffer<u32>,
    turns: [Turn; 2],
    next: usize,
    lists: Vec<u32>,
    launched: bool,
    /// Samplings that were not collected: which turn, and for each row whether it reports log probabilities.
    flying: VecDeque<(usize, Vec<bool>)>,
    spare: Vec<Vec<bool>>,
}

struct Asked {
    words: Buffer<u32>,
    count: Buffer<u32>,
    records: Buffer<u32>,
    lists: Buffer<u32>,
}

/// One of the two places on the host.
struct Turn {
    asked: Host<u32>,
    outcomes: Host<u32>,
    alternatives: Host<u32>,
    done: Option<Mark>,
}

/// The count, and what keeps the records at 16 bytes.
const COUNT: usize = 4;

impl OnDevice {
    pub fn new(device: &Device, decoder: Decoder) -> Result<Self, DeviceError> {
        let options = decoder.options();
        let capacity = Capacity {
            blocks: options.blocks as u32,
            block_size: decoder.block_size() as u32,
            rows: options.rows as u32,
            logits: options.logits as u32,
            context: options.context as u32,
            vocab: decoder.spec().vocab as u32,
            strict: options.strict,
        };
        let (rows, vocab) = (options.logits, decoder.spec().vocab);
        // At least the longest row's own.
        let longest = 2 * options.context.min(vocab) + vocab.div_ceil(32) + 2 * BIASES;
        let lists = LISTS.max(longest);
        let words = Buffer::new(device, COUNT + rows * RECORD + lists)?;
        let asked = Asked {
            count: words.part(0, 1),
            records: words.part(COUNT, rows * RECORD),
            lists: words.part(COUNT + rows * RECORD, lists),
            words,
        };
        let turn = || -> Result<Turn, DeviceError> {
            Ok(Turn {
                asked: Host::new(device, COUNT + rows * RECORD + lists)?,
                outcomes: Host::new(device, rows * OUTCOME)?,
                alternatives: Host::new(device, rows * 2 * ALTERNATIVES)?,
                done: None,
            })
        };
        Ok(Self {
            sample: Sample::load(device)?,
            changed: Buffer::new(device, rows * vocab)?,
            asked,
            outcomes: Buffer::new(device, rows * OUTCOME)?,
            alternatives: Buffer::new(device, rows * 2 * ALTERNATIVES)?,
            turns: [turn()?, turn()?],
            next: 0,
            lists: Vec::with_capacity(lists),
            launched: false,
            flying: VecDeque::with_capacity(2),
            spare: Vec::with_capacity(2),
            device: device.clone(),
            capacity,
            decoder,
        })
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Captures the steps that are not captured yet; returns how many are.
    pub(super) fn capture(&mut self) -> Result<usize, DeviceError> {
        self.decoder.capture()
    }

    /// Exchanges the blocks of keys and values for `blocks` new ones, before the first request.
    pub(super) fn hold(&mut self, blocks: usize) -> Result<(), DeviceError> {
        self.decoder.hold(blocks)?;
        self.decoder.capture()?;
        self.capacity.blocks = blocks as u32;
        Ok(())
    }

    /// Enqueues the drawing of `rows`, whose results lie from row `at` on.
    fn draw(&mut self, turn: usize, at: usize, records: usize) -> Result<(), DeviceError> {
        let Self { device, decoder, sample, asked, changed, outcomes, alternatives, .. } = self;
        let turn = &mut self.turns[turn];
        turn.asked[0] = records as u32;
        let start = COUNT + self.capacity.logits as usize * RECORD;
        turn.asked[start..start + self.lists.len()].copy_from_slice(&self.lists);
        let copies = [(0, COUNT + records * RECORD), (start, self.lists.len())];
        for (from, words) in copies.into_iter().filter(|(_, words)| *words > 0) {
            // SAFETY: both pieces have these words, and the turn's memory is left alone until its mark.
            unsafe { device.copy_in(asked.words.at(from), turn.asked[from..].as_ptr().cast(), 4 * words)? };
        }
        let rows = Rows { count: &asked.count, records: &asked.records, lists: &asked.lists };
        let drawn = Drawn {
            tokens: &decoder.drawn().part(at, records),
            outcomes: &outcomes.part(at * OUTCOME, records * OUTCOME),
            alternatives: &alternatives.part(at * 2 * ALTERNATIVES, records * 2 * ALTERNATIVES),
        };
        let vocab = self.capacity.vocab as usize;
        sample.launch(records, rows, decoder.logits(), vocab, changed, drawn)
    }

    fn enqueue(&mut self, rows: &[SampleRow<'_>]) -> Result<(), DeviceError> {
        let which = self.next;
        self.next = 1 - which;
        if let Some(done) = self.turns[which].done.take() {
            self.device.wait(done)?;
        }
        let mut first = 0;
        while first < rows.len() {
            if first > 0 {
                // More lists than there is room for, which only many rows with long histories have: once more.
                self.device.finish()?;
            }
            self.lists.clear();
            let mut records = 0;
            for row in &rows[first..] {
                if records > 0 && self.lists.len() + words_of(row) > self.asked.lists.len() {
                    break;
                }
                let written = record(row, &mut self.lists);
                self.turns[which].asked[COUNT + records * RECORD..][..RECORD].copy_from_slice(&written);
                records += 1;
            }
            self.draw(which, first, records)?;
            first += records;
        }
        if !rows.is_empty() {
            let turn = &mut self.turns[which];
            let reported = rows.iter().any(|row| row.sampling.logprobs.is_some());
            // SAFETY: both have room for the words of these rows, and nobody reads them before the mark.
            unsafe {
                let words = rows.len() * OUTCOME;
                self.device.copy_out(
                    turn.outcomes.as_mut_ptr().cast(),
                    self.outcomes.address(),
                    4 * words,
                )?;
                if reported {
                    let (to, words) = (turn.alternatives.as_mut_ptr(), rows.len() * 2 * ALTERNATIVES);
                    self.device.copy_out(to.cast(), self.alternatives.address(), 4 * words)?;
                }
            }
        }
        self.turns[which].done = Some(self.device.mark()?);
        let mut reports = self.spare.pop().unwrap_or_default();
        reports.extend(rows.iter().map(|row| row.sampling.logprobs.is_some()));
        self.flying.push_back((which, reports));
        Ok(())
    }
}

/// Words of the lists that a row brings.
fn words_of(row: &SampleRow<'_>) -> usize {
    2 * row.sampling.logit_bias.len() + 2 * row.seen.len() + row.mask.map_or(0, <[u32]>::len)
}

impl Executor for OnDevice {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn reset(&mut self) {
        // What failed is told when it is asked for again; here it only has to be over.
        if let Err(error) = self.device.finish() {
            tracing::error!(%error, "the device does not come to rest");
        }
        self.launched = false;
        self.turns.iter_mut().for_each(|turn| turn.done = None);
        self.flying.clear();
    }

    fn launch(&mut self, step: &Step) -> Result<(), StepError> {
        self.launched = false;
        self.decoder.forward(step).map_err(failed)?;
        self.launched = true;
        Ok(())
    }

    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<(), StepError> {
        if !std::mem::take(&mut self.launched) {
            return Err(failed("sampled before a launch"));
        }
        self.enqueue(rows).map_err(failed)
    }

    fn collect(&mut self, out: &mut Vec<Sampled>) -> Result<(), StepError> {
        let (which, mut reports) =
            self.flying.pop_front().ok_or_else(|| failed("collected before a sampling"))?;
        let turn = &mut self.turns[which];
        if let Some(done) = turn.done.take() {
            self.device.wait(done).map_err(failed)?;
        }
        out.extend(reports.iter().enumerate().map(|(i, reports)| {
            let outcome = &turn.outcomes[i * OUTCOME..][..OUTCOME];
            let alternatives = &turn.alternatives[i * 2 * ALTERNATIVES..][..2 * ALTERNATIVES];
            answer(*reports, outcome, alternatives)
        }));
        reports.clear();
        self.spare.push(reports);
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> StepError {
    StepError(error.to_string())
}
