//! A step and whose rows it holds (step 7 in the life of a request). Its memory is kept from step to step.

use hearth_kernels::paged::Span;
use hearth_kernels::sample::Sampled;
use hearth_models::step::{PENDING, Step};

use super::executor::Capacity;
use super::sequence::Sequence;

/// The rows of one sequence in a step.
pub(crate) struct Entry {
    pub slot: u32,
    pub id: u64,
    pub group: u32,
    pub arrival: u64,
    /// The sequence's count of preemptions: rows computed before one are not its cache any more.
    pub epoch: u32,
    /// Position of the first row.
    pub start: u32,
    pub rows: u32,
    /// Rows whose next token is known and only scored; they begin at position `score_from`.
    pub scored: u32,
    pub score_from: u32,
    /// Whether the last row draws a token.
    pub draws: bool,
    /// Where its results begin; `None` if the sequence ended before it was sampled.
    pub results: Option<u32>,
    /// Events it may send.
    pub events: u32,
}

impl Entry {
    pub fn end(&self) -> u32 {
        self.start + self.rows
    }
}

pub(crate) struct Batch {
    pub step: Step,
    pub entries: Vec<Entry>,
    pub results: Vec<Sampled>,
}

impl Batch {
    /// With memory for the largest step. The tables of sequences that share blocks may together be longer than the
    /// cache; they grow once.
    pub fn new(capacity: &Capacity) -> Self {
        let rows = capacity.rows as usize;
        let step = Step {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            spans: Vec::with_capacity(rows),
            tables: Vec::with_capacity(capacity.blocks as usize),
            logits: Vec::with_capacity(capacity.logits as usize),
        };
        let (entries, results) = (Vec::with_capacity(rows), Vec::with_capacity(capacity.logits as usize));
        Self { step, entries, results }
    }

    pub fn clear(&mut self) {
        self.step.clear();
        self.entries.clear();
        self.results.clear();
    }

    /// Writes an entry's rows out as flat integers. The sequence holds the blocks for all of them.
    pub fn add(&mut self, entry: Entry, sequence: &Sequence, block_size: u32) {
        let step = &mut self.step;
        let row = step.rows() as u32;
        let table = step.tables.len() as u32;
        step.spans.push(Span { row, rows: entry.rows, table, context: entry.end() });
        step.tables.extend(&sequence.blocks[..entry.end().div_ceil(block_size) as usize]);
        for position in entry.start..entry.end() {
            let token = match sequence.tokens.get(position as usize) {
                Some(token) => *token,
                None => PENDING | sequence.pending.expect("bug: a row's token is neither known nor awaited"),
            };
            step.tokens.push(token);
            step.positions.push(position);
            step.slots
                .push(sequence.blocks[(position / block_size) as usize] * block_size + position % block_size);
        }
        let first = row + entry.score_from - entry.start;
        step.logits.extend(first..first + entry.scored);
        if entry.draws {
            step.logits.push(row + entry.rows - 1);
        }
        self.entries.push(entry);
    }
}
