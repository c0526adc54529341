//! Products of rows grouped by expert by instructions that Hopper alone has (`cuda/hopper_experts.cuh`), where experts have
//! many rows.
//!
//! A row's bits depend on the row and its expert alone. Like those of a [`super::hopper::Hopper`] they may be other bits
//! than those of the products of all generations, and [`HopperExperts::check`] compares both before these are used.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::expert_product::{ExpertProduct, assert_grouped};
use super::hopper::{self, Differs, FEW_ROWS, ROWS, THREADS, TILES};
use super::launch::Launch;
use super::product::{EPILOGUES, Finish};
use super::stream::number;
use crate::Activation;

/// Borders of experts that a block has room for.
const MOST_EXPERTS: usize = 64;

#[derive(Debug)]
pub struct HopperExperts {
    device: Device,
    /// By tile and epilogue.
    kernels: [Vec<Kernel>; 2],
    multiprocessors: usize,
}

/// Tiles of rows to be expected: the last of each expert is half full on average.
fn down(rows: usize, experts: usize) -> usize {
    (rows + experts * ROWS / 2).div_ceil(ROWS).min(rows)
}

impl HopperExperts {
    /// None where the device is of another generation, or `HEARTH_GPU_ISA` is `sm_80`.
    pub fn load(device: &Device) -> Result<Option<Self>, DeviceError> {
        if hopper::is_set_aside() {
            return Ok(None);
        }
        // Nothing is added to what is there: a row's experts are weighted first.
        let epilogues = EPILOGUES.map(|epilogue| if epilogue == "add" { "set" } else { epilogue });
        let kernels = hopper::kernels(device, "expert_product_hopper", &epilogues)?;
        let multiprocessors = device.multiprocessors() as usize;
        Ok(kernels.map(|kernels| Self { device: device.clone(), kernels, multiprocessors }))
    }

    /// Whether an expert has more than 64 of the rows on average, and all of them work for three quarters of the device.
    ///
    /// The products of all generations have tiles of 64 rows up to there, which read a weight as fast as memory gives it.
    /// From 65 rows on they too need 128 rows' worth of work an expert (two tiles of 64 or one of 128), which here takes
    /// three fifths of the time, no longer than the read of the weight.
    pub fn takes(&self, rows: usize, experts: usize, n: usize) -> bool {
        rows > FEW_ROWS * experts && hopper::fills(down(rows, experts), n, self.multiprocessors)
    }

    /// Multiplies rows `starts[e]..starts[e + 1]` of `x` `[rows, k]` with weight `e` of `w` `[experts, n, k]`. `rows` is
    /// the most that there can be; the output is as long. Panics when a buffer is too small for the shape.
    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    pub fn launch(
        &self,
        rows: usize,
        starts: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        experts: usize,
        shape: (usize, usize),
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let tile = hopper::first_done(down(rows, experts), shape.0, self.multiprocessors);
        self.launch_tiles((tile, self.multiprocessors), rows, starts, x, w, experts, shape, finish)
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    fn launch_tiles(
        &self,
        (tile, blocks): (usize, usize),
        rows: usize,
        starts: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        experts: usize,
        (n, k): (usize, usize),
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        assert_grouped(rows, starts, x, w, experts, (n, k), &finish);
        assert!(experts <= MOST_EXPERTS, "bug: {experts} experts");
        let y = finish.room(rows, n);
        let launch = Launch::new(self.kernels[tile][finish.index()], blocks, THREADS);
        let launch = launch.shared(TILES[tile].shared()).buffer(starts).buffer(x).buffer(w).address(y);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape (asserted above), and the last of `starts` is
        // at most `rows`, the promise of who grouped them.
        unsafe { launch.count(experts).count(n).count(k).on(&*self.device) }
    }

    /// Whether both tiles give what an [`ExpertProduct`] gives, up to what another order of sums may change: experts
    /// without rows, with few and with more than a tile, several tiles a block, sums and gates. Takes a moment and a few
    /// hundred KiB.
    pub fn check(&self, product: &ExpertProduct) -> Result<Option<Differs>, DeviceError> {
        hopper::trying(self.compare(product))
    }

    fn compare(&self, product: &ExpertProduct) -> Result<Option<Differs>, DeviceError> {
        const BLOCKS: usize = 2;
        const STARTS: [u32; 5] = [0, 3, 3, 133, 150];
        let (rows, experts, n, k) = (150, STARTS.len() - 1, 272, 200);
        let device = &self.device;
        let random = |seed, length: usize| -> Vec<bf16> {
            (0..length).map(|index| number(index as u32, seed, 1.0)).collect()
        };
        let x = Buffer::of(device, &random(3, rows * k))?;
        let w = Buffer::of(device, &random(4, experts * n * k))?;
        let starts = Buffer::of(device, &STARTS)?;
        for is_gate in [false, true] {
            // What is not written stays NaN, which is near nothing.
            let numbers = |tile: Option<usize>| -> Result<Vec<f32>, DeviceError> {
                let sums = Buffer::of(device, &vec![f32::NAN; rows * n])?;
                let gated = Buffer::of(device, &vec![bf16::NAN; rows * n / 2])?;
                let finish =
                    if is_gate { Finish::Gate(Activation::Silu, &gated) } else { Finish::Set(&sums) };
                match tile {
                    None => product.launch(rows, &starts, &x, &w, experts, (n, k), finish)?,
                    Some(tile) => {
                        let how = (tile, BLOCKS);
                        self.launch_tiles(how, rows, &starts, &x, &w, experts, (n, k), finish)?
                    }
                }
                if is_gate { Ok(gated.get()?.into_iter().map(bf16::to_f32).collect()) } else { sums.get() }
            };
            let wanted = numbers(None)?;
            for (tile, facts) in TILES.iter().enumerate() {
                let of = " with rows grouped by expert";
                let differs =
                    Differs::between(&numbers(Some(tile))?, &wanted, rows, is_gate, facts.columns, of);
                if differs.is_some() {
                    return Ok(differs);
                }
            }
        }
        Ok(None)
    }
}
