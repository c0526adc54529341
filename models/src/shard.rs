//! A model's weights on several ranks: what of each tensor one of them holds.
//!
//! Every rank computes the whole residual stream and a share of everything between two additions to it. By role:
//!
//! | tensor | cut | held by a rank |
//! |---|---|---|
//! | queries, keys, values, their biases | rows | whole heads; where ranks outnumber the heads of keys, several hold the same |
//! | output of attention | columns | those of its heads |
//! | gate and up, their biases, of every expert | rows | a part of the MLP's width |
//! | down, of every expert | columns | the same part |
//! | biases of output and down | not | the first rank alone: what is summed must be added once |
//! | head | rows | a part of the vocabulary; of a tied one, the embedding's rows of it |
//! | embedding, router, norms | not | all: they are read by row, decide for all ranks alike, or are small |
//!
//! What is cut by columns gives partial sums, which [`Peers::sum`] makes whole, on a device
//! [`crate::device::Peers::sum`]: twice a layer, nowhere else.

use std::borrow::Cow;

use crate::checkpoint::Checkpoint;
use crate::layout::{Block, Layout, Part, Role};
use crate::spec::Spec;
use hearth_kernels::Quantize;

/// Which part of a model: rank `rank` of `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub rank: usize,
    pub of: usize,
}

/// How the linear weights are packed: in blocks of a row, which a cut must not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    pub name: &'static str,
    /// Columns of a block.
    pub block: usize,
    /// Whether rows that are no whole blocks are packed too, their last block filled up; otherwise they stay as they are.
    pub is_filled: bool,
}

impl From<Quantize> for Packing {
    fn from(kind: Quantize) -> Self {
        Self { name: kind.name(), block: kind.block(), is_filled: false }
    }
}

impl Packing {
    /// Whether a cut from rows of `all` columns to rows of `mine` goes through a block.
    fn is_cut(self, all: usize, mine: usize) -> bool {
        let whole = |columns: usize| columns.is_multiple_of(self.block);
        all != mine && !whole(mine) && (self.is_filled || whole(all))
    }
}

/// A rank's part of a tensor where it lies in the checkpoint: rows that follow one another, all of their columns or some.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// The rows with all of their columns.
    rows: &'a [u8],
    row: usize,
    from: usize,
    width: usize,
}

impl<'a> Cut<'a> {
    pub fn rows(&self) -> usize {
        self.rows.len() / self.row
    }

    /// The bytes of a row.
    pub fn row(&self, index: usize) -> &'a [u8] {
        &self.rows[index * self.row + self.from..][..self.width]
    }

    /// The bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.rows() * self.width
    }
}

/// The other ranks of a model.
pub trait Peers: Send {
    /// Replaces numbers by their sums over all ranks, with the same bits on each of them. Every rank calls it with as
    /// many numbers, in the same order of calls.
    fn sum(&mut self, numbers: &mut [f32]);
}

/// A size that does not come apart into as many equal parts as there are ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {value} cannot be split over {ranks} ranks{why}; serve the model on another number of GPUs")]
pub struct Indivisible {
    pub what: &'static str,
    pub value: usize,
    pub ranks: usize,
    pub why: String,
}

impl Shard {
    /// All of a model, as one rank alone has it.
    pub const WHOLE: Self = Self { rank: 0, of: 1 };

    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// The sizes of this rank's part. Heads, keys and the MLP's width are its own; the width of the residual stream, the
    /// vocabulary of tokens and all switches are the model's.
    pub fn spec(self, spec: &Spec) -> Result<Spec, Indivisible> {
        assert!(self.rank < self.of, "bug: rank {} of {}", self.rank, self.of);
        let each = |what, value: usize| match value.is_multiple_of(self.of) {
            true => Ok(value / self.of),
            false => Err(Indivisible { what, value, ranks: self.of, why: String::new() }),
        };
        let kv_heads = match self.of.is_multiple_of(spec.kv_heads) {
            // Several ranks hold the same head.
            true => 1,
            false => each("heads of keys and values", spec.kv_heads)?,
        };
        each("vocabulary", spec.vocab)?;
        Ok(Spec {
            heads: each("heads of queries", spec.heads)?,
            kv_heads,
            ffn: each("the width of the MLP", spec.ffn)?,
            ..spec.clone()
        })
    }

    /// This rank's tensors: the model's names in the model's order, with the shapes of its part.
    pub fn layout(self, spec: &Spec, packing: Option<Packing>) -> Result<Layout, Indivisible> {
        let whole = Layout::of(spec);
        if self.is_whole() {
            return Ok(whole);
        }
        let mut layout = Layout::of(&self.spec(spec)?);
        for (mine, all) in layout.blocks().zip(whole.blocks()) {
            if let Some(packing) = packing
                && all.role == Role::Linear
                && packing.is_cut(all.cols(), mine.cols())
            {
                let why = format!(" as {}, whose blocks are {} numbers", packing.name, packing.block);
                let what =
                    if all.cols() == spec.ffn { "the width of the MLP" } else { "the width of the heads" };
                return Err(Indivisible { what, value: all.cols(), ranks: self.of, why });
            }
        }
        let head = whole.head.as_ref().unwrap_or(&whole.embedding);
        let parts = vec![Part { rows: spec.vocab / self.of, ..head.parts[0].clone() }];
        layout.head = Some(Block { role: Role::Head, parts });
        if self.rank > 0 {
            for layer in &mut layout.layers {
                layer.output_bias = None;
                layer.mlps.iter_mut().for_each(|mlp| mlp.down_bias = None);
            }
        }
        Ok(layout)
    }

    /// The bytes of this rank's `part` of a tensor, row by row: a piece of the checkpoint where rows are cut, gathered
    /// where columns are.
    pub fn cut<'a>(self, checkpoint: &'a Checkpoint, part: &Part) -> Cow<'a, [u8]> {
        let cut = self.place(checkpoint, part);
        if cut.width == cut.row {
            return Cow::Borrowed(cut.rows);
        }
        Cow::Owned((0..cut.rows()).flat_map(|row| cut.row(row)).copied().collect())
    }

    /// Where this rank's `part` of a tensor lies.
    pub fn place<'a>(self, checkpoint: &'a Checkpoint, part: &Part) -> Cut<'a> {
        let slice = checkpoint.tensor(&part.name).expect("bug: the checkpoint was checked");
        let (rows, cols) = (slice.shape[0], slice.shape.get(1).copied().unwrap_or(1));
        let mine = part.cols.unwrap_or(1);
        // Where a rank's equal part of `all` begins; ranks that share a part begin at the same place.
        let first = |all: usize, each: usize| self.rank * all / self.of / each * each;
        assert!(mine == cols || part.rows == rows, "bug: {} is cut both ways", part.name);
        let bytes = slice.dtype.size_in_bytes();
        let row = cols * bytes;
        Cut {
            rows: &slice.bytes[first(rows, part.rows) * row..][..part.rows * row],
            row,
            from: first(cols, mine) * bytes,
            width: mine * bytes,
        }
    }
}
