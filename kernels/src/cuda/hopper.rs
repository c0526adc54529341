//! The product of many rows with a row-major bf16 weight by instructions that Hopper alone has (`cuda/hopper.cuh`).
//!
//! A row's bits do not depend on the bucket, the other rows or the tile that is chosen here, but they are not those of a
//! [`Product`]: the order of sums is another. What has to have the bits of few rows does not come here.
//!
//! The kernels are emulated by what the manual says, and a device has the last word: [`Hopper::check`] compares both
//! products there before this one is used. Rows grouped by expert have products of the same kind in [`super::hopper_experts`].

use std::cmp::Ordering::{Equal, Less};

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::product::{EPILOGUES, Finish, Product, assert_operands};
use super::stream::number;
use crate::Activation;

/// Products of at most so many rows read a weight at the speed of memory in smaller tiles; here half of every tile would
/// be empty.
pub const FEW_ROWS: usize = 64;
/// Takes the products of all generations where it is `sm_80`: should these fail on a device in a way that the check at
/// the start cannot survive.
const ISA: &str = "HEARTH_GPU_ISA";

pub(super) const ROWS: usize = 128;
/// A warpgroup that copies, two that multiply.
pub(super) const THREADS: u32 = 384;

/// A tile in the kernels.
#[derive(Debug)]
pub(super) struct Tile {
    pub(super) columns: usize,
    stages: u32,
    /// What a round of a tile on every multiprocessor takes, against that of others.
    cost: usize,
}

/// The narrow one does half the work in a little more than half the time: shared memory limits it.
pub(super) const TILES: [Tile; 2] =
    [Tile { columns: 128, stages: 6, cost: 11 }, Tile { columns: 256, stages: 4, cost: 20 }];

impl Tile {
    /// Stages of 64 columns of x and w, and what puts them at a multiple of 1024.
    pub(super) fn shared(&self) -> u32 {
        self.stages * (ROWS + self.columns) as u32 * 128 + 1024
    }

    /// How many there are where there are so many tiles of rows.
    pub(super) fn count(&self, down: usize, n: usize) -> usize {
        down * n.div_ceil(self.columns)
    }
}

/// Whether there is work for three quarters of the device at least.
pub(super) fn fills(down: usize, n: usize, multiprocessors: usize) -> bool {
    TILES[0].count(down, n) * 4 >= multiprocessors * 3
}

/// The tile that is done first: rounds of all multiprocessors, by what a round takes.
pub(super) fn first_done(down: usize, n: usize, multiprocessors: usize) -> usize {
    let cost = |tile: &Tile| tile.count(down, n).div_ceil(multiprocessors) * tile.cost;
    usize::from(cost(&TILES[1]) <= cost(&TILES[0]))
}

/// Whether `HEARTH_GPU_ISA` asks for the products of all generations.
pub(super) fn is_set_aside() -> bool {
    std::env::var_os(ISA).is_some_and(|isa| isa == "sm_80")
}

/// Kernels of both tiles by the ends of their names; None where the device is of another generation.
pub(super) fn kernels(
    device: &Device,
    prefix: &str,
    epilogues: &[&str],
) -> Result<Option<[Vec<Kernel>; 2]>, DeviceError> {
    let mut kernels = [Vec::new(), Vec::new()];
    for (tile, kernels) in TILES.iter().zip(&mut kernels) {
        for epilogue in epilogues {
            let name = format!("{prefix}_{}_{epilogue}", tile.columns);
            kernels.push(match device.kernel(&name, tile.shared()) {
                Err(DeviceError::Kernel(_)) => return Ok(None),
                found => found?,
            });
        }
    }
    Ok(Some(kernels))
}

/// What failed while both products were compared failed for these.
pub(super) fn trying<T>(compared: Result<T, DeviceError>) -> Result<T, DeviceError> {
    compared.map_err(|error| match error {
        DeviceError::Failed { call, reason } => {
            let reason = format!("{reason} (trying the products of Hopper; {ISA}=sm_80 does without)");
            DeviceError::Failed { call, reason }
        }
        error => error,
    })
}

/// How the products of Hopper differ from those of all generations on a device.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "the products of Hopper{of} come out wrong on this device (row {row}, column {column}, \
     in tiles of {columns}: {got} instead of {wanted}) and are not used: prompts take the products of all generations, which are slower"
)]
pub struct Differs {
    /// Which of them.
    of: &'static str,
    columns: usize,
    row: usize,
    column: usize,
    got: f32,
    wanted: f32,
}

impl Differs {
    /// Where the numbers of some rows are not near those that are wanted. They are sums of about 200 terms of at most 1,
    /// about 5 in all: two orders are 1e-5 apart at most. Gates are rounded to 8 bits, perhaps to neighbours.
    pub(super) fn between(
        got: &[f32],
        wanted: &[f32],
        rows: usize,
        is_gate: bool,
        columns: usize,
        of: &'static str,
    ) -> Option<Self> {
        let differs = |(got, wanted): (&f32, &f32)| {
            let allowed = if is_gate { wanted.abs() / 64.0 + 1e-3 } else { 1e-3 };
            !matches!((got - wanted).abs().partial_cmp(&allowed), Some(Less | Equal))
        };
        let (at, width) = (got.iter().zip(wanted).position(differs)?, wanted.len() / rows);
        let (row, column) = (at / width, at % width);
        Some(Self { of, columns, row, column, got: got[at], wanted: wanted[at] })
    }
}

#[derive(Debug)]
pub struct Hopper {
    device: Device,
    /// By tile and epilogue.
    kernels: [Vec<Kernel>; 2],
    multiprocessors: usize,
}

impl Hopper {
    /// None where the device is of another generation, or `HEARTH_GPU_ISA` is `sm_80`.
    pub fn load(device: &Device) -> Result<Option<Self>, DeviceError> {
        if is_set_aside() {
            return Ok(None);
        }
        let kernels = kernels(device, "product_hopper", &EPILOGUES)?;
        let multiprocessors = device.multiprocessors() as usize;
        Ok(kernels.map(|kernels| Self { device: device.clone(), kernels, multiprocessors }))
    }

    /// Whether a weight `n` rows high has work here for three quarters of the device at least. With less, the parts of
    /// the sums that a [`Product`] spreads over blocks are worth more than the faster instruction.
    pub fn takes(&self, bucket: usize, n: usize) -> bool {
        bucket > FEW_ROWS && fills(bucket.div_ceil(ROWS), n, self.multiprocessors)
    }

    /// `y[row, n] = sum over k of x[row, k] * w[n, k] (+ bias[n])` for the first `count` rows, at most `bucket`.
    /// Panics when a buffer is too small for the shape.
    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    pub fn launch(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        shape: (usize, usize),
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let tile = first_done(bucket.div_ceil(ROWS), shape.0, self.multiprocessors);
        self.launch_tiles((tile, self.multiprocessors), bucket, count, x, w, shape, bias, finish)
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    fn launch_tiles(
        &self,
        (tile, most): (usize, usize),
        bucket: usize,
        count: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        (n, k): (usize, usize),
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        assert_operands(bucket, count, x, w, (n, k), bias);
        let y = finish.room(bucket, n);
        let facts = &TILES[tile];
        let blocks = facts.count(bucket.div_ceil(ROWS), n).min(most);
        let launch = Launch::new(self.kernels[tile][finish.index()], blocks, THREADS).shared(facts.shared());
        let launch = launch.buffer(x).buffer(w).address(bias.map_or(0, Buffer::address)).address(y);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape of the bucket (asserted above) and begin at
        // 256 bytes.
        unsafe { launch.buffer(count).count(n).count(k).on(&*self.device) }
    }

    /// Whether both tiles give what a [`Product`] gives, up to what another order of sums may change: ragged edges, every
    /// stage twice and more, several tiles a block, sums and gates. Takes a moment and a few hundred KiB.
    pub fn check(&self, product: &Product) -> Result<Option<Differs>, DeviceError> {
        trying(self.compare(product))
    }

    fn compare(&self, product: &Product) -> Result<Option<Differs>, DeviceError> {
        const BLOCKS: usize = 2;
        let (rows, n, k) = (130, 272, 200);
        let device = &self.device;
        let random = |seed, length: usize| -> Vec<bf16> {
            (0..length).map(|index| number(index as u32, seed, 1.0)).collect()
        };
        let x = Buffer::of(device, &random(1, rows * k))?;
        let w = Buffer::of(device, &random(2, n * k))?;
        let bias = Buffer::of(device, &vec![0.5; n])?;
        let count = Buffer::of(device, &[rows as u32])?;
        for is_gate in [false, true] {
            // What is not written stays NaN, which is near nothing.
            let numbers = |tile: Option<usize>| -> Result<Vec<f32>, DeviceError> {
                let sums = Buffer::of(device, &vec![f32::NAN; rows * n])?;
                let gated = Buffer::of(device, &vec![bf16::NAN; rows * n / 2])?;
                let finish =
                    if is_gate { Finish::Gate(Activation::Silu, &gated) } else { Finish::Set(&sums) };
                let (shape, bias) = ((n, k), Some(&bias));
                match tile {
                    None => product.launch(rows, &count, &x, &w, shape, bias, finish)?,
                    Some(tile) => {
                        self.launch_tiles((tile, BLOCKS), rows, &count, &x, &w, shape, bias, finish)?
                    }
                }
                if is_gate { Ok(gated.get()?.into_iter().map(bf16::to_f32).collect()) } else { sums.get() }
            };
            let wanted = numbers(None)?;
            for (tile, Tile { columns, .. }) in TILES.iter().enumerate() {
                let got = numbers(Some(tile))?;
                if let Some(differs) = Differs::between(&got, &wanted, rows, is_gate, *columns, "") {
                    return Ok(Some(differs));
                }
            }
        }
        Ok(None)
    }
}
