//! One step of the decoder as flat integers: what the engine plans and the decoder runs.

use hearth_kernels::cuda::driver::DeviceError;
use hearth_kernels::paged::{BLOCK, Pages, Span};

/// A token that is not known on the host yet: `PENDING | i` is what row `i` of the sampling launched last gives.
pub const PENDING: u32 = 1 << 31;

/// The rows of a step, sequence after sequence, and which of them give logits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Token of each row, or [`PENDING`].
    pub tokens: Vec<u32>,
    /// Absolute position of each row.
    pub positions: Vec<u32>,
    /// Where each row's key and value are written.
    pub slots: Vec<u32>,
    pub spans: Vec<Span>,
    /// The block tables of all spans, one after another.
    pub tables: Vec<u32>,
    /// Rows whose logits are wanted, ascending. Row `i` of the logits belongs to `logits[i]`.
    pub logits: Vec<u32>,
}

/// Why a step was not run. The sequences of the step end with it; the decoder goes on.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("a step of {value} {what}; this decoder was made for {limit}")]
    Large { what: &'static str, value: usize, limit: usize },
    #[error("the step is inconsistent: {0}")]
    Step(String),
    #[error(transparent)]
    Kernel(#[from] hearth_kernels::Error),
    #[error(transparent)]
    Driver(#[from] DeviceError),
}

/// The largest step that a decoder takes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub rows: usize,
    pub logits: usize,
    pub context: usize,
    pub vocab: usize,
    /// Rows of the last sampling that tokens may wait for.
    pub drawn: usize,
    /// Blocks of the cache.
    pub blocks: usize,
}

impl Step {
    /// What the operations rely on and do not look at themselves.
    pub fn check(&self, bounds: &Bounds) -> Result<(), ForwardError> {
        let rows = self.rows();
        let large = |what, value, limit| Err(ForwardError::Large { what, value, limit });
        if rows > bounds.rows {
            return large("rows", rows, bounds.rows);
        }
        if self.logits.len() > bounds.logits {
            return large("rows of logits", self.logits.len(), bounds.logits);
        }
        if self.positions.len() != rows || self.slots.len() != rows {
            let (positions, slots) = (self.positions.len(), self.slots.len());
            return Err(ForwardError::Step(format!("{rows} tokens, {positions} positions, {slots} slots")));
        }
        let known = |token: u32| match token & PENDING {
            0 => (token as usize) < bounds.vocab,
            _ => ((token & !PENDING) as usize) < bounds.drawn,
        };
        if let Some(token) = self.tokens.iter().find(|token| !known(**token)) {
            return Err(ForwardError::Step(match token & PENDING {
                0 => format!("token {token}; the vocabulary has {}", bounds.vocab),
                _ => "a pending token was not resolved".into(),
            }));
        }
        if let Some(position) = self.positions.iter().find(|at| **at as usize >= bounds.context) {
            let context = bounds.context;
            return Err(ForwardError::Step(format!("position {position}; the context is {context}")));
        }
        // A device would write wherever a slot says.
        let slots = bounds.blocks * BLOCK;
        if let Some(slot) = self.slots.iter().find(|slot| **slot as usize >= slots) {
            return Err(ForwardError::Step(format!("slot {slot}; the cache has {slots}")));
        }
        if let Some(block) = self.tables.iter().find(|block| **block as usize >= bounds.blocks) {
            return Err(ForwardError::Step(format!("block {block}; the cache has {}", bounds.blocks)));
        }
        if let Some(row) = self.logits.iter().find(|row| **row as usize >= rows) {
            return Err(ForwardError::Step(format!("logits of row {row}; the step has {rows}")));
        }
        let mut next = 0;
        for span in &self.spans {
            let end = span.table as usize + (span.context as usize).div_ceil(BLOCK);
            if span.row != next || span.rows == 0 || span.rows > span.context || end > self.tables.len() {
                let tables = self.tables.len();
                return Err(ForwardError::Step(format!("{span:?} after row {next}, {tables} tables")));
            }
            next += span.rows;
        }
        if next as usize != rows {
            return Err(ForwardError::Step(format!("{rows} tokens, but spans of {next} rows")));
        }
        Ok(())
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    pub fn pages(&self) -> Pages<'_> {
        Pages { positions: &self.positions, slots: &self.slots, spans: &self.spans, tables: &self.tables }
    }

    /// Empties the step and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.tables.clear();
        self.logits.clear();
    }
}
