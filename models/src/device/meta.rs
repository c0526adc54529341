//! What a step says to a device, as words in one piece of memory: written on the host, copied in one go.
//!
//! Everything that changes from step to step is in here and not in the arguments of a launch, so that captured launches
//! can be replayed. Two pieces on the host take turns: one is written while the other is still being copied.

use std::ops::Range;

use hearth_kernels::cuda::buffer::{Buffer, Host};
use hearth_kernels::cuda::driver::{Device, DeviceError, Mark};
use hearth_kernels::cuda::row::Places;

use crate::step::Step;

/// Where the counts are among the first words.
const ROWS: usize = 0;
const SPANS: usize = 4;
const LOGITS: usize = 8;
/// Words of a span: first row, rows, position of the first, start of its block table.
const SPAN: usize = 4;
/// Parts begin at whole 16 bytes.
const ALIGN: usize = 4;

/// Where each part begins. The tables are last: they are the longest, and no more of them is copied than there is.
#[derive(Clone, Copy, Debug)]
struct Starts {
    tokens: usize,
    positions: usize,
    slots: usize,
    spans: usize,
    logits: usize,
    tables: usize,
    end: usize,
}

/// The largest step.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: usize,
    pub spans: usize,
    pub logits: usize,
    /// Entries of all block tables together.
    pub tables: usize,
}

#[derive(Debug)]
struct Piece {
    words: Host<u32>,
    /// The copy of it that may still be under way.
    copied: Option<Mark>,
}

/// The words of a step on the host and on the device.
#[derive(Debug)]
pub struct Meta {
    device: Device,
    at: Starts,
    limits: Limits,
    pieces: [Piece; 2],
    next: usize,
    words: Buffer<u32>,
    pub rows: Buffer<u32>,
    pub span_count: Buffer<u32>,
    pub logit_count: Buffer<u32>,
    pub tokens: Buffer<u32>,
    pub positions: Buffer<u32>,
    pub slots: Buffer<u32>,
    pub spans: Buffer<u32>,
    pub logits: Buffer<u32>,
    pub tables: Buffer<u32>,
}

impl Meta {
    pub fn new(device: &Device, limits: Limits) -> Result<Self, DeviceError> {
        let mut end = 12;
        let mut part = |length: usize| {
            let at = end;
            end = (end + length).next_multiple_of(ALIGN);
            at
        };
        let at = Starts {
            tokens: part(limits.rows),
            positions: part(limits.rows),
            slots: part(limits.rows),
            spans: part(SPAN * limits.spans),
            logits: part(limits.logits),
            tables: part(limits.tables),
            end: 0,
        };
        let at = Starts { end, ..at };
        let words = Buffer::zeros(device, at.end)?;
        let piece = || Ok(Piece { words: Host::new(device, at.end)?, copied: None });
        Ok(Self {
            rows: words.part(ROWS, 1),
            span_count: words.part(SPANS, 1),
            logit_count: words.part(LOGITS, 1),
            tokens: words.part(at.tokens, limits.rows),
            positions: words.part(at.positions, limits.rows),
            slots: words.part(at.slots, limits.rows),
            spans: words.part(at.spans, SPAN * limits.spans),
            logits: words.part(at.logits, limits.logits),
            tables: words.part(at.tables, limits.tables),
            pieces: [piece()?, piece()?],
            next: 0,
            device: device.clone(),
            at,
            limits,
            words,
        })
    }

    pub fn places(&self) -> Places<'_> {
        Places { count: &self.rows, positions: &self.positions, slots: &self.slots }
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Writes a step that is within the limits, and enqueues its copy.
    pub fn put(&mut self, step: &Step) -> Result<(), DeviceError> {
        let Self { device, at, pieces, next, words, .. } = self;
        let piece = &mut pieces[*next];
        *next = 1 - *next;
        if let Some(copied) = piece.copied.take() {
            device.wait(copied)?;
        }
        let to = &mut piece.words;
        to[ROWS] = step.rows() as u32;
        to[SPANS] = step.spans.len() as u32;
        to[LOGITS] = step.logits.len() as u32;
        let mut write = |at: usize, from: &[u32]| -> Range<usize> {
            to[at..at + from.len()].copy_from_slice(from);
            at..at + from.len()
        };
        write(at.tokens, &step.tokens);
        write(at.positions, &step.positions);
        write(at.slots, &step.slots);
        write(at.logits, &step.logits);
        let used = write(at.tables, &step.tables).end;
        for (span, to) in step.spans.iter().zip(to[at.spans..].chunks_exact_mut(SPAN)) {
            to.copy_from_slice(&[span.row, span.rows, span.context - span.rows, span.table]);
        }
        // SAFETY: both hold `used` words, and the piece is left alone until the mark below is waited for.
        unsafe { device.copy_in(words.address(), piece.words.as_ptr().cast(), 4 * used)? };
        piece.copied = Some(device.mark()?);
        Ok(())
    }
}
