//! The product of many rows with a bf16 weight, in AMX tiles.
//!
//! A tile holds 16 rows of 64 bytes. `tdpbf16ps` multiplies 16 rows of input with 16 outputs over 32 columns and adds,
//! to each sum, one chain of fused multiply-adds over the even columns plus one over the odd: that instruction is where
//! the order of sums that [`crate::linear`] defines comes from, so this kernel gives the bits of all others.
//!
//! Two by two tiles are in flight: 32 rows and 32 outputs, four products of tiles for four loads. Ceiling: 2048
//! operations a cycle and core. The input is laid out in tiles first (a row of a wide input is a multiple of 4 KiB,
//! and sixteen such rows would fight over one set of the first-level cache).
//!
//! AMX is used only after a product that the definition disagrees with nowhere was seen on this very machine
//! ([`offered`]): the order inside the instruction is documented, but it is what the promise of equal bits stands on.

#![allow(unsafe_op_in_unsafe_fn)]

use crate::buffer::{Aligned, Shared};
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::cpu::product::{finish, panels_of_task, round};
use crate::linear::Operands;
use crate::weight::{GROUP, PANEL};
use crate::{Context, Error};

/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Numbers of a tile of bf16.
const NUMBERS: usize = TILE * GROUP;

/// The sums of 2 x 2 tiles: 32 rows of 32 outputs.
#[repr(align(64))]
pub(crate) struct Sums([f32; 4 * TILE * TILE]);

/// What multiplies tiles: the processor, or in tests a model of it.
pub(crate) trait Unit: Sync {
    /// Called on a thread before its first product of a task, and after the last.
    unsafe fn begin(&self);
    unsafe fn end(&self);

    /// Multiplies two stacks of `groups` tiles of input (16 rows each) with two panels of weight into all of `sums`.
    ///
    /// # Safety
    /// The pointers name `groups` tiles each, and `begin` was called on this thread.
    unsafe fn multiply(
        &self,
        input: [*const u16; 2],
        weight: [*const u16; 2],
        groups: usize,
        sums: &mut Sums,
    );
}

/// Runs a product whose weight is `weight`, packed as bf16.
pub(crate) fn run(
    ctx: &Context,
    tiles: &mut Aligned<u16>,
    op: &Operands<'_>,
    weight: &[u16],
    out: &mut [f32],
    unit: &impl Unit,
) -> Result<(), Error> {
    let (rows, groups) = (op.rows.len(), op.weight.cols().div_ceil(GROUP));
    stage(ctx, tiles, op, groups)?;
    let (tiles, to) = (&**tiles, Shared::new(out));
    let panels = op.weight.rows().div_ceil(PANEL);
    // An even number, so that panels go in pairs.
    let chunk = panels_of_task(rows, groups * NUMBERS * 2).next_multiple_of(2);
    ctx.run(panels.div_ceil(chunk), |task| {
        let range = task * chunk..panels.min((task + 1) * chunk);
        dispatch(ctx, Tiles { op, tiles, weight, groups, range, out: to, unit });
    })
}

/// Lays the input out in tiles of 16 rows and 32 columns, rounded to bf16, filled with zeroes.
fn stage(ctx: &Context, tiles: &mut Aligned<u16>, op: &Operands<'_>, groups: usize) -> Result<(), Error> {
    let (rows, cols) = (op.rows.len(), op.weight.cols());
    let bands = rows.div_ceil(TILE);
    tiles.reserve(bands * groups * NUMBERS)?;
    let to = Shared::new(tiles);
    ctx.run(bands, |band| {
        // SAFETY: each task writes its own band of tiles, and `tiles` has room for all.
        let band_tiles = unsafe { to.slice(band * groups * NUMBERS, groups * NUMBERS) };
        for lane in 0..TILE {
            let i = band * TILE + lane;
            let from = if i < rows { &op.x[op.rows.row(i) * cols..][..cols] } else { &[] };
            for (group, tile) in band_tiles.chunks_exact_mut(NUMBERS).enumerate() {
                let from = &from[(group * GROUP).min(from.len())..((group + 1) * GROUP).min(from.len())];
                let to = &mut tile[lane * GROUP..][..GROUP];
                to[from.len()..].fill(0);
                dispatch(ctx, Round { from, to });
            }
        }
    })
}

struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [u16],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, from)| *to = round(*from));
    }
}

struct Tiles<'a, U> {
    op: &'a Operands<'a>,
    tiles: &'a [u16],
    weight: &'a [u16],
    groups: usize,
    range: std::ops::Range<usize>,
    out: Shared<f32>,
    unit: &'a U,
}

impl<U: Unit> Kernel for Tiles<'_, U> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let rows = self.op.rows.len();
        let stack = self.groups * NUMBERS;
        let bands = rows.div_ceil(TILE);
        let mut sums = Sums([0.0; 4 * TILE * TILE]);
        self.unit.begin();
        for band in (0..bands).step_by(2) {
            for panel in self.range.clone().step_by(2) {
                // Where there is no second band or panel the first is multiplied twice and its result dropped.
                let other = [(band + 1).min(bands - 1), (panel + 1).min(self.range.end - 1)];
                let input = [band, other[0]].map(|band| self.tiles.as_ptr().add(band * stack));
                let weight = [panel, other[1]].map(|panel| self.weight.as_ptr().add(panel * stack));
                self.unit.multiply(input, weight, self.groups, &mut sums);
                for row in 0..(2 * TILE).min(rows - band * TILE) {
                    for side in 0..(self.range.end - panel).min(2) {
                        let sum = L::load(sums.0.as_ptr().add(row * 2 * TILE + side * TILE));
                        finish::<L>(self.op, self.out, band * TILE + row, panel + side, sum);
                    }
                }
            }
        }
        self.unit.end();
    }
}

/// The processor's own tiles.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Hardware;

/// Eight tiles of 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 64;
        rows[tile] = 16;
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

#[cfg(target_arch = "x86_64")]
impl Unit for Hardware {
    #[inline(always)]
    unsafe fn begin(&self) {
        std::arch::asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly));
    }

    #[inline(always)]
    unsafe fn end(&self) {
        std::arch::asm!("tilerelease", options(nostack, nomem));
    }

    /// Sums of row pair and panel pair live in tiles 0 to 3, inputs in 4 and 5, weights in 6 and 7. Compiled code
    /// knows no tiles, so nothing else touches them between `begin` and `end`.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        input: [*const u16; 2],
        weight: [*const u16; 2],
        groups: usize,
        sums: &mut Sums,
    ) {
        std::arch::asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {stride}*1]",
            "tileloadd tmm6, [{c} + {stride}*1]",
            "tileloadd tmm7, [{d} + {stride}*1]",
            "tileloadd tmm5, [{b} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {b}, 1024",
            "add {c}, 1024",
            "add {d}, 1024",
            "dec {groups}",
            "jnz 2b",
            "add {stride}, 64",
            "tilestored [{sums} + {stride}*1], tmm0",
            "tilestored [{sums} + {stride}*1 + 64], tmm1",
            "tilestored [{sums} + {stride}*1 + 2048], tmm2",
            "tilestored [{sums} + {stride}*1 + 2112], tmm3",
            a = inout(reg) input[0] => _,
            b = inout(reg) input[1] => _,
            c = inout(reg) weight[0] => _,
            d = inout(reg) weight[1] => _,
            groups = inout(reg) groups => _,
            stride = inout(reg) 64usize => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            options(nostack),
        );
    }
}

/// Whether tiles of bf16 can be used: the processor has them, the operating system lets this process use them (asked
/// for here), and they sum as documented.
pub(crate) fn offered() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        use std::sync::OnceLock;
        static OFFERED: OnceLock<bool> = OnceLock::new();
        *OFFERED.get_or_init(|| {
            if __cpuid(0).eax < 7 {
                return false;
            }
            let features = __cpuid_count(7, 0).edx;
            let (bf16, tile) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
            bf16 && tile && permitted() && agrees(&Hardware)
        })
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// Asks Linux for the state of tiles, which a process has not by default.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but this process's permission.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Multiplies tiles full of awkward numbers and compares every bit with the definition.
fn agrees(unit: &impl Unit) -> bool {
    const GROUPS: usize = 3;
    // From 2^-70 to 2^57, so that sums cancel, underflow and round in every way; a few denormals and infinities.
    let number = |i: usize| {
        let hash = (i as u32).wrapping_mul(0x9e37_79b1).rotate_left(15).wrapping_mul(0x85eb_ca6b);
        match hash & 0x7ff {
            0 => 0x0011,
            1 => 0x8001,
            2 => 0x7f80,
            3 => 0x8000,
            _ => (hash >> 16) as u16 & 0x803f | (57 + (hash >> 4 & 0x7f) as u16) << 7,
        }
    };
    let (Ok(mut input), Ok(mut weight)) =
        (Aligned::<u16>::zeroed(2 * GROUPS * NUMBERS), Aligned::<u16>::zeroed(2 * GROUPS * NUMBERS))
    else {
        return false;
    };
    input.iter_mut().enumerate().for_each(|(i, x)| *x = number(i));
    weight.iter_mut().enumerate().for_each(|(i, x)| *x = number(i + 100_000));
    let stacks = |all: &[u16]| [all.as_ptr(), all[GROUPS * NUMBERS..].as_ptr()];
    let (mut sums, mut want) = (Sums([1.0; 4 * TILE * TILE]), Sums([2.0; 4 * TILE * TILE]));
    // SAFETY: every pointer names `GROUPS` tiles; whoever calls this knows that the unit can be used.
    unsafe {
        unit.begin();
        unit.multiply(stacks(&input), stacks(&weight), GROUPS, &mut sums);
        unit.end();
        Model.multiply(stacks(&input), stacks(&weight), GROUPS, &mut want);
    }
    sums.0.iter().zip(want.0).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// The instruction by its documentation (Intel SDM, TDPBF16PS).
struct Model;

impl Unit for Model {
    unsafe fn begin(&self) {}

    unsafe fn end(&self) {}

    unsafe fn multiply(
        &self,
        input: [*const u16; 2],
        weight: [*const u16; 2],
        groups: usize,
        sums: &mut Sums,
    ) {
        let _flush = crate::cpu::pool::FlushDenormals::on();
        let wide = |from: *const u16| f32::from_bits(u32::from(*from) << 16);
        for (i, sum) in sums.0.iter_mut().enumerate() {
            let (row, output) = (i / (2 * TILE), i % (2 * TILE));
            let input = input[row / TILE].add(row % TILE * GROUP);
            let weight = weight[output / TILE].add(output % TILE * 2);
            *sum = 0.0;
            for group in 0..groups {
                let (mut even, mut odd) = (0.0f32, 0.0f32);
                for pair in 0..GROUP / 2 {
                    let x = input.add(group * NUMBERS + 2 * pair);
                    let w = weight.add(group * NUMBERS + pair * 2 * PANEL);
                    even = wide(x).mul_add(wide(w), even);
                    odd = wide(x.add(1)).mul_add(wide(w.add(1)), odd);
                }
                *sum += even + odd;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::cpu::detect::Isa;
    use crate::linear::{Gather, Write};
    use crate::weight::Store;
    use crate::{View, Weight};

    #[test]
    fn tiles_give_the_bits_of_vectors_for_every_number_of_rows_and_outputs() {
        let ctx = Context::cpu_with(Isa::best().min(Isa::Avx512), 3).unwrap();
        for (rows, outputs, cols) in
            [(1, 1, 1), (16, 16, 32), (17, 40, 70), (33, 33, 96), (70, 129, 31), (48, 200, 64)]
        {
            let number =
                |i: usize| ((i as f32 * 0.37).sin() * 3.0, half::bf16::from_f32((i as f32 * 0.73).cos()));
            let bytes: Vec<u8> = (0..outputs * cols).flat_map(|i| number(i).1.to_le_bytes()).collect();
            let view = View { dtype: DType::BF16, rows: outputs, cols, bytes: &bytes };
            let weight = Weight::pack(&ctx, &[view]).unwrap();
            let x: Vec<f32> = (0..rows * cols).map(|i| number(i).0).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i).0).collect();
            let list: Vec<u32> = (0..rows as u32).rev().collect();
            for how in [Write::Set, Write::Add] {
                let op =
                    Operands { x: &x, rows: Gather::List(&list), weight: &weight, bias: Some(&bias), how };
                let (mut tiles, mut vectors) = (vec![0.5; rows * outputs], vec![0.5; rows * outputs]);
                let Store::Bf16(packed) = &weight.store else { panic!("packed as bf16") };
                run(&ctx, &mut Aligned::empty(), &op, packed, &mut tiles, &Model).unwrap();
                crate::cpu::product::vectors(&ctx, &mut Aligned::empty(), &op, &mut vectors).unwrap();
                assert!(tiles == vectors, "{rows} x {outputs} x {cols}");
            }
        }
    }

    #[test]
    fn a_unit_that_sums_in_another_order_is_not_used() {
        struct OneChain;
        impl Unit for OneChain {
            unsafe fn begin(&self) {}
            unsafe fn end(&self) {}
            unsafe fn multiply(
                &self,
                input: [*const u16; 2],
                weight: [*const u16; 2],
                groups: usize,
                sums: &mut Sums,
            ) {
                // SAFETY: as for the caller.
                unsafe { Model.multiply(input, weight, groups, sums) };
                sums.0[77] += sums.0[77] * f32::EPSILON;
            }
        }
        assert!(agrees(&Model));
        assert!(!agrees(&OneChain));
    }
}
