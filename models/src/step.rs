//! One step of the decoder as flat integers: what the engine plans and the decoder runs.

use hearth_kernels::paged::{Pages, Span};

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

impl Step {
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
