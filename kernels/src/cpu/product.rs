//! The product of a few or many rows with a packed weight, in vectors.
//!
//! Bytes moved: the weight once for up to [`Lanes::ROWS`] rows, once from the second-level cache for each further block
//! of rows. Ceiling for one row: what a plain read of the weight takes. See `benches/kernels.rs` for the share of it
//! that is reached.
//!
//! The order of sums is the one that [`crate::linear`] defines. Even and odd columns are two chains of fused
//! multiply-adds; for one row two groups of 32 columns are in flight at once, or the latency of the chains (4 cycles
//! each 64 bytes) would be slower than memory.

#![allow(unsafe_op_in_unsafe_fn)]

use crate::buffer::{Aligned, Shared};
#[cfg(target_arch = "x86_64")]
use crate::cpu::amx;
#[cfg(target_arch = "x86_64")]
use crate::cpu::detect::Isa;
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::linear::{Operands, Write};
use crate::weight::{GROUP, PANEL, Store};
use crate::{Context, Error};

/// Bytes that a thread asks for ahead of those it multiplies.
const AHEAD: usize = 4096;

/// From this many rows on tiles are faster than vectors, where there are tiles.
const ROWS_FOR_TILES: usize = 9;

/// Runs the product of `op` into `out`; the weight is bf16, f16 or f32.
pub(crate) fn run(
    ctx: &Context,
    staging: &mut Staging,
    op: &Operands<'_>,
    out: &mut [f32],
) -> Result<(), Error> {
    #[cfg(target_arch = "x86_64")]
    if let Store::Bf16(all) = &op.weight.store
        && ctx.isa() == Isa::Amx
        && op.rows.len() >= ROWS_FOR_TILES
    {
        return amx::run(ctx, &mut staging.tiles, op, all, out, &amx::Hardware);
    }
    vectors(ctx, &mut staging.rows, op, out)
}

/// Memory for the input of a product: its rows gathered, filled up and rounded.
pub(crate) struct Staging {
    rows: Aligned<f32>,
    tiles: Aligned<u16>,
}

impl Staging {
    pub fn empty() -> Self {
        Self { rows: Aligned::empty(), tiles: Aligned::empty() }
    }
}

/// As [`run`], through vectors.
pub(crate) fn vectors(
    ctx: &Context,
    staged: &mut Aligned<f32>,
    op: &Operands<'_>,
    out: &mut [f32],
) -> Result<(), Error> {
    let (rows, padded) = (op.rows.len(), op.weight.cols().next_multiple_of(GROUP));
    stage(ctx, staged, op, padded)?;
    let x = &staged[..rows * padded];
    let to = Shared::new(out);
    match &op.weight.store {
        Store::Bf16(all) => panels::<Bf16>(ctx, op, all, x, to),
        Store::F16(all) => panels::<F16>(ctx, op, all, x, to),
        Store::F32(all) => panels::<F32>(ctx, op, all, x, to),
        Store::Blocks(..) => unreachable!("bug: quantized weights go through candle"),
    }
}

/// Copies the rows to be multiplied side by side, filled with zeroes to whole groups, and rounded if the weight is
/// bf16.
fn stage(ctx: &Context, staged: &mut Aligned<f32>, op: &Operands<'_>, padded: usize) -> Result<(), Error> {
    let (rows, cols) = (op.rows.len(), op.weight.cols());
    staged.reserve(rows * padded)?;
    let round = matches!(op.weight.store, Store::Bf16(_));
    let to = Shared::new(staged);
    // A few thousand numbers are worth a task.
    let chunk = (16384 / padded).max(1);
    ctx.run(rows.div_ceil(chunk), |task| {
        for i in task * chunk..rows.min((task + 1) * chunk) {
            // SAFETY: each task writes its own rows, and `staged` has room for all.
            let to = unsafe { to.slice(i * padded, padded) };
            dispatch(ctx, Stage { from: &op.x[op.rows.row(i) * cols..][..cols], to, round });
        }
    })
}

struct Stage<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    round: bool,
}

impl Kernel for Stage<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (to, rest) = self.to.split_at_mut(self.from.len());
        if self.round {
            for (to, from) in to.iter_mut().zip(self.from) {
                *to = f32::from_bits(u32::from(round(*from)) << 16);
            }
        } else {
            to.copy_from_slice(self.from);
        }
        rest.fill(0.0);
    }
}

/// To bf16, nearest, ties to even; what is no number stays none. Without branches, so that it becomes vectors.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// How a type lies in a panel of a weight, 32 numbers for each pair of columns in all, and in a block of the cache.
pub(crate) trait Format {
    type Unit: Copy + Sync;

    /// The next pair of columns, widened.
    unsafe fn pair<L: Lanes>(from: *const Self::Unit) -> (L::V, L::V);

    /// Sixteen numbers from `d` on of the values at positions `2 * pair` and `2 * pair + 1` of a block, widened.
    unsafe fn rows<L: Lanes>(values: *const Self::Unit, pair: usize, d: usize, dim: usize) -> (L::V, L::V);
}

pub(crate) struct Bf16;
pub(crate) struct F16;
pub(crate) struct F32;

impl Format for Bf16 {
    type Unit = u16;

    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const u16) -> (L::V, L::V) {
        L::pairs(from)
    }

    #[inline(always)]
    unsafe fn rows<L: Lanes>(values: *const u16, pair: usize, d: usize, dim: usize) -> (L::V, L::V) {
        L::pairs(values.add(pair * 2 * dim + d * 2))
    }
}

impl Format for F16 {
    type Unit = u16;

    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const u16) -> (L::V, L::V) {
        (L::f16(from), L::f16(from.add(16)))
    }

    #[inline(always)]
    unsafe fn rows<L: Lanes>(values: *const u16, pair: usize, d: usize, dim: usize) -> (L::V, L::V) {
        let from = values.add(pair * 2 * dim + d);
        (L::f16(from), L::f16(from.add(dim)))
    }
}

impl Format for F32 {
    type Unit = f32;

    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const f32) -> (L::V, L::V) {
        (L::load(from), L::load(from.add(16)))
    }

    #[inline(always)]
    unsafe fn rows<L: Lanes>(values: *const f32, pair: usize, d: usize, dim: usize) -> (L::V, L::V) {
        let from = values.add(pair * 2 * dim + d);
        (L::load(from), L::load(from.add(dim)))
    }
}

/// Splits the panels of a weight into tasks.
fn panels<F: Format>(
    ctx: &Context,
    op: &Operands<'_>,
    weight: &[F::Unit],
    x: &[f32],
    out: Shared<f32>,
) -> Result<(), Error> {
    let padded = op.weight.cols().next_multiple_of(GROUP);
    let panels = op.weight.rows().div_ceil(PANEL);
    let chunk = panels_of_task(op.rows.len(), padded * PANEL * size_of::<F::Unit>());
    ctx.run(panels.div_ceil(chunk), |task| {
        let range = task * chunk..panels.min((task + 1) * chunk);
        dispatch(ctx, Panels::<'_, F> { op, weight, x, out, padded, range });
    })
}

/// A task is large enough to be worth taking, and with many rows has several panels, so that a block of rows is
/// fetched once for all of them.
pub(crate) fn panels_of_task(rows: usize, panel_bytes: usize) -> usize {
    let least = 65536 / (panel_bytes * rows.div_ceil(4)).max(1);
    if rows > 8 { least.max(4) } else { least.max(1) }
}

struct Panels<'a, F: Format> {
    op: &'a Operands<'a>,
    weight: &'a [F::Unit],
    x: &'a [f32],
    out: Shared<f32>,
    padded: usize,
    range: std::ops::Range<usize>,
}

impl<F: Format> Kernel for Panels<'_, F> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let rows = self.op.rows.len();
        let mut row = 0;
        while row < rows {
            let left = (rows - row).min(L::ROWS);
            row += match left {
                8.. => self.block::<L, 8>(row),
                4.. => self.block::<L, 4>(row),
                2.. => self.block::<L, 2>(row),
                _ => self.block::<L, 1>(row),
            };
        }
    }
}

impl<F: Format> Panels<'_, F> {
    /// `R` rows with all panels of the task.
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize>(&self, row: usize) -> usize {
        let x = self.x.as_ptr().add(row * self.padded);
        for panel in self.range.clone() {
            let weight = self.weight.as_ptr().add(panel * self.padded * PANEL);
            let sums = if R == 1 {
                [single::<L, F>(weight, x, self.padded / GROUP); R]
            } else {
                several::<L, F, R>(weight, x, self.padded)
            };
            for (r, sum) in sums.into_iter().enumerate() {
                finish::<L>(self.op, self.out, row + r, panel, sum);
            }
        }
        R
    }
}

/// Bias and residual, and the way out.
///
/// # Safety
/// `row` and `panel` are within the output, and nobody else uses this part of it.
#[inline(always)]
pub(crate) unsafe fn finish<L: Lanes>(
    op: &Operands<'_>,
    out: Shared<f32>,
    row: usize,
    panel: usize,
    sum: L::V,
) {
    let (first, outputs) = (panel * PANEL, op.weight.rows());
    let count = PANEL.min(outputs - first);
    let out = out.at(row * outputs + first);
    let mut sum = sum;
    if let Some(bias) = op.bias {
        sum = L::add(sum, L::load_some(bias.as_ptr().add(first), count));
    }
    if op.how == Write::Add {
        sum = L::add(L::load_some(out, count), sum);
    }
    L::store_some(out, count, sum);
}

/// One row with one panel: two groups at a time.
#[inline(always)]
unsafe fn single<L: Lanes, F: Format>(weight: *const F::Unit, x: *const f32, groups: usize) -> L::V {
    let mut sum = L::splat(0.0);
    let mut group = 0;
    while group + 2 <= groups {
        let (w, x) = (weight.add(group * GROUP * PANEL), x.add(group * GROUP));
        let mut chains = [L::splat(0.0); 4];
        for pair in 0..GROUP / 2 {
            for side in 0..2 {
                let w = w.add(side * GROUP * PANEL + pair * 2 * PANEL);
                let x = x.add(side * GROUP + pair * 2);
                L::prefetch(w.wrapping_byte_add(AHEAD));
                if size_of::<F::Unit>() == 4 {
                    L::prefetch(w.wrapping_byte_add(AHEAD + 64));
                }
                let (even, odd) = F::pair::<L>(w);
                chains[2 * side] = L::fma(L::splat(*x), even, chains[2 * side]);
                chains[2 * side + 1] = L::fma(L::splat(*x.add(1)), odd, chains[2 * side + 1]);
            }
        }
        sum = L::add(sum, L::add(chains[0], chains[1]));
        sum = L::add(sum, L::add(chains[2], chains[3]));
        group += 2;
    }
    if group < groups {
        let (w, x) = (weight.add(group * GROUP * PANEL), x.add(group * GROUP));
        sum = L::add(sum, several_group::<L, F, 1>(w, x, 0)[0]);
    }
    sum
}

/// Several rows, `stride` numbers apart, with one panel.
#[inline(always)]
unsafe fn several<L: Lanes, F: Format, const R: usize>(
    weight: *const F::Unit,
    x: *const f32,
    stride: usize,
) -> [L::V; R] {
    let mut sums = [L::splat(0.0); R];
    for group in 0..stride / GROUP {
        let parts = several_group::<L, F, R>(weight.add(group * GROUP * PANEL), x.add(group * GROUP), stride);
        for r in 0..R {
            sums[r] = L::add(sums[r], parts[r]);
        }
    }
    sums
}

/// What one group of columns adds to the sums.
#[inline(always)]
unsafe fn several_group<L: Lanes, F: Format, const R: usize>(
    weight: *const F::Unit,
    x: *const f32,
    stride: usize,
) -> [L::V; R] {
    let (mut evens, mut odds) = ([L::splat(0.0); R], [L::splat(0.0); R]);
    for pair in 0..GROUP / 2 {
        let w = weight.add(pair * 2 * PANEL);
        L::prefetch(w.wrapping_byte_add(AHEAD));
        if size_of::<F::Unit>() == 4 {
            L::prefetch(w.wrapping_byte_add(AHEAD + 64));
        }
        let (even, odd) = F::pair::<L>(w);
        for r in 0..R {
            let x = x.add(r * stride + pair * 2);
            evens[r] = L::fma(L::splat(*x), even, evens[r]);
            odds[r] = L::fma(L::splat(*x.add(1)), odd, odds[r]);
        }
    }
    std::array::from_fn(|r| L::add(evens[r], odds[r]))
}
