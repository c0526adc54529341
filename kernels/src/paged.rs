//! Paged keys and values: the flat integers of a step that name rows, sequences and blocks.
//!
//! A *block* holds the keys and values of `block_size` consecutive positions of one sequence, in every layer. A *slot*
//! is `block * block_size + offset`. What lies inside a block is the business of the device's kernels.

/// Positions of a block on the CPU: one vector of scores, and half the depth of a tile.
pub const BLOCK: usize = 16;

/// The rows of one sequence in a step: `rows` consecutive positions that end at `context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row of the sequence in the step.
    pub row: u32,
    /// How many rows it has; one when it decodes, more in its prompt.
    pub rows: u32,
    /// Where its block table begins in [`Pages::tables`]; it is `context.div_ceil(block_size)` long.
    pub table: u32,
    /// Positions that hold keys and values once the rows of this step are written, these included. The first row of
    /// the span is at position `context - rows`.
    pub context: u32,
}

/// What attention and the KV write know of a step. All slices are in rows or in spans, flat.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Absolute position of each row.
    pub positions: &'a [u32],
    /// Where each row's key and value go.
    pub slots: &'a [u32],
    pub spans: &'a [Span],
    pub tables: &'a [u32],
}
