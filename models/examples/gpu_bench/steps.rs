//! Steps of sequences as an engine makes them, and their pace: each is enqueued before the one before it is waited for.

use std::time::Instant;

use hearth_kernels::cuda::driver::{Device, Mark};
use hearth_kernels::paged::{BLOCK, Span};
use hearth_models::device::Decoder;
use hearth_models::step::Step;

use crate::Failure;

/// Sequences of equal room, a block of each in turn, as after a while of serving.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub sequences: usize,
    /// Positions of each.
    pub room: usize,
    pub first_block: usize,
    pub vocab: usize,
}

impl Group {
    pub fn blocks(&self) -> usize {
        self.sequences * self.room.div_ceil(BLOCK)
    }

    /// Adds the rows `from..from + rows` of a sequence; the last of them gives logits if asked for. No two sequences have
    /// the same tokens.
    pub fn add(&self, step: &mut Step, sequence: usize, from: usize, rows: usize, gives_logits: bool) {
        let end = from + rows;
        assert!(sequence < self.sequences && end <= self.room, "bug: position {end} of {}", self.room);
        let table = step.tables.len();
        let blocks = 0..end.div_ceil(BLOCK);
        step.tables.extend(blocks.map(|block| (self.first_block + block * self.sequences + sequence) as u32));
        let row = step.rows();
        for at in from..end {
            step.tokens.push(((sequence * 7919 + at * 104_729 + at / 5 + 13) % self.vocab) as u32);
            step.positions.push(at as u32);
            step.slots.push(step.tables[table + at / BLOCK] * BLOCK as u32 + (at % BLOCK) as u32);
        }
        let numbers = [row, rows, table, end].map(|n| n as u32);
        step.spans.push(Span { row: numbers[0], rows: numbers[1], table: numbers[2], context: numbers[3] });
        if gives_logits {
            step.logits.push((step.rows() - 1) as u32);
        }
    }

    /// A row of each sequence at the same position.
    pub fn decode(&self, at: usize) -> Step {
        let mut step = Step::default();
        (0..self.sequences).for_each(|sequence| self.add(&mut step, sequence, at, 1, true));
        step
    }

    /// Prompts of all sequences, one after another, in steps of `chunk` rows.
    pub fn prompts(&self, length: usize, chunk: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut step = Step::default();
        for sequence in 0..self.sequences {
            let mut from = 0;
            while from < length {
                let rows = (length - from).min(chunk - step.rows());
                self.add(&mut step, sequence, from, rows, from + rows == length);
                from += rows;
                if step.rows() == chunk {
                    steps.push(std::mem::take(&mut step));
                }
            }
        }
        if step.rows() > 0 {
            steps.push(step);
        }
        steps
    }
}

/// Times of steps on the device, and of the host's part in them.
pub struct Pace<'a> {
    device: &'a Device,
    last: Mark,
    /// The step that is not waited for yet: between these marks.
    open: Option<(Mark, Mark)>,
    /// Microseconds on the device, from the end of the step before.
    pub times: Vec<f64>,
    /// Microseconds that the host took to enqueue them all.
    pub host: f64,
}

impl<'a> Pace<'a> {
    /// After everything that is under way.
    pub fn begin(device: &'a Device) -> Result<Self, Failure> {
        device.finish()?;
        Ok(Self { last: device.mark()?, device, open: None, times: Vec::new(), host: 0.0 })
    }

    pub fn step(&mut self, decoder: &mut Decoder, step: &Step) -> Result<(), Failure> {
        let start = Instant::now();
        decoder.forward(step)?;
        self.host += start.elapsed().as_secs_f64() * 1e6;
        let mark = self.device.mark()?;
        let before = self.open.replace((self.last, mark));
        self.last = mark;
        self.close(before)
    }

    /// Waits for the last step.
    pub fn end(mut self) -> Result<Self, Failure> {
        let last = self.open.take();
        self.close(last)?;
        Ok(self)
    }

    /// Microseconds of all steps.
    pub fn total(&self) -> f64 {
        self.times.iter().sum()
    }

    fn close(&mut self, step: Option<(Mark, Mark)>) -> Result<(), Failure> {
        if let Some((from, to)) = step {
            self.device.wait(to)?;
            self.times.push(self.device.microseconds(from, to)?);
        }
        Ok(())
    }
}

/// Steps of a bucket until they are replayed: one is enqueued, one captured.
const UNTIL_REPLAYED: usize = 2;

/// Takes the steps as often as it takes until they are replayed.
pub fn warm(device: &Device, decoder: &mut Decoder, steps: &[Step]) -> Result<(), Failure> {
    for _ in 0..UNTIL_REPLAYED {
        steps.iter().try_for_each(|step| decoder.forward(step))?;
    }
    Ok(device.finish()?)
}

/// The steps in order; all of them as fast as they go.
pub fn run(device: &Device, decoder: &mut Decoder, steps: &[Step]) -> Result<Vec<f64>, Failure> {
    let mut pace = Pace::begin(device)?;
    steps.iter().try_for_each(|step| pace.step(decoder, step))?;
    Ok(pace.end()?.times)
}
