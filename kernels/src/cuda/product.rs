//! The product of any number of rows with a row-major bf16 weight on the tensor cores (`cuda/product.cu`).
//!
//! A row's bits do not depend on the bucket, the other rows or the tile that is chosen here.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use crate::Activation;

/// n and k are multiples of this, the numbers in 16 bytes; n of two of them where gates are bent.
pub(super) const CHUNK: usize = 8;
/// Parts of k that are summed by themselves, and the widest weight for which there are several. Any change changes bits.
pub(super) const PARTS: usize = 4;
const MANY_PARTS: usize = 16384;
/// Numbers of the largest tile whose parts are spread over blocks.
const SPREAD_TILE: usize = 128 * 128;

/// Row `j` of the gate, and the same of up, in the weight of a gated product: they take turns by eight, so that
/// the thread that has a gate's sum has the sum of its partner.
pub fn gate_row(j: usize) -> (usize, usize) {
    let gate = j / CHUNK * 2 * CHUNK + j % CHUNK;
    (gate, gate + CHUNK)
}

/// What becomes of the sums, and where they go: `[bucket, n]`.
#[derive(Clone, Copy, Debug)]
pub enum Finish<'a> {
    Set(&'a Buffer<f32>),
    /// Adds to what is there: the residual.
    Add(&'a Buffer<f32>),
    /// The activation of the gate times up, `[bucket, n / 2]`: the rows of the weight lie as [`gate_row`] says.
    Gate(Activation, &'a Buffer<bf16>),
}

impl Finish<'_> {
    pub(super) fn is_gate(&self) -> bool {
        matches!(self, Finish::Gate(..))
    }

    /// The place of the epilogue in lists of kernels.
    pub(super) fn index(&self) -> usize {
        match self {
            Finish::Set(_) => 0,
            Finish::Add(_) => 1,
            Finish::Gate(Activation::Silu, _) => 2,
            Finish::Gate(Activation::GeluTanh, _) => 3,
        }
    }

    /// Where the output lies, if it has room for `rows` rows of a product `n` wide.
    pub(super) fn room(&self, rows: usize, n: usize) -> u64 {
        let (address, numbers, wanted) = match self {
            Finish::Set(y) | Finish::Add(y) => (y.address(), y.len(), rows * n),
            Finish::Gate(_, y) => (y.address(), y.len(), rows * n / 2),
        };
        assert!(numbers >= wanted, "bug: {numbers} numbers of output where {wanted} are written");
        assert!(
            !self.is_gate() || n.is_multiple_of(2 * CHUNK),
            "bug: {n} rows of gate and up are no whole turns"
        );
        address
    }
}

/// Kernel names' ends, as [`Finish::index`] counts them.
pub(super) const EPILOGUES: [&str; 4] = ["set", "add", "silu", "gelu"];

/// What every product of bf16 wants of its operands.
pub(super) fn assert_operands(
    bucket: usize,
    count: &Buffer<u32>,
    x: &Buffer<bf16>,
    w: &Buffer<bf16>,
    (n, k): (usize, usize),
    bias: Option<&Buffer<f32>>,
) {
    assert!(bucket > 0 && n > 0 && !count.is_empty(), "bug: a product of {bucket} rows and {n} outputs");
    assert!(k > 0 && k.is_multiple_of(CHUNK), "bug: k = {k} is not a multiple of {CHUNK}");
    assert!(
        x.len() >= bucket * k && w.len() >= n * k && bias.is_none_or(|bias| bias.len() >= n),
        "bug: a buffer is smaller than its shape"
    );
    assert!(n.is_multiple_of(CHUNK), "bug: n = {n} is not a multiple of {CHUNK}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    /// 16 rows, a warp a part.
    Rows16Parts,
    Rows16,
    Rows64,
    /// Parts over blocks.
    Rows64Spread,
    Rows128,
    Rows128Spread,
    /// For prompts, where the device has the shared memory.
    Rows128Wide,
}

use Tile::*;

const TILES: [Tile; 7] = [Rows16Parts, Rows16, Rows64, Rows64Spread, Rows128, Rows128Spread, Rows128Wide];

/// A tile in the kernels.
struct Facts {
    name: &'static str,
    rows: usize,
    columns: usize,
    threads: u32,
    stages: u32,
    /// Pipelines of a block.
    groups: u32,
    /// The epilogues that there are.
    epilogues: usize,
}

impl Tile {
    fn facts(self) -> Facts {
        let facts = |name, rows, columns, threads, stages, groups, epilogues| Facts {
            name,
            rows,
            columns,
            threads,
            stages,
            groups,
            epilogues,
        };
        match self {
            Rows16Parts => facts("16_parts", 16, 32, 128, 4, 4, 2),
            Rows16 => facts("16", 16, 64, 128, 5, 1, 4),
            Rows64 => facts("64", 64, 128, 256, 4, 1, 4),
            Rows64Spread => facts("64_spread", 64, 128, 256, 4, 1, 2),
            Rows128 => facts("128", 128, 128, 128, 3, 1, 4),
            Rows128Spread => facts("128_spread", 128, 128, 128, 3, 1, 2),
            Rows128Wide => facts("128_wide", 128, 256, 256, 3, 1, 4),
        }
    }
}

impl Facts {
    /// Stages of 64 columns of x and w.
    fn shared(&self) -> u32 {
        self.groups * self.stages * (self.rows + self.columns) as u32 * 128
    }

    fn tiles(&self, bucket: usize, n: usize) -> (usize, usize) {
        (bucket.div_ceil(self.rows), n.div_ceil(self.columns))
    }

    fn blocks(&self, bucket: usize, n: usize) -> usize {
        let (down, across) = self.tiles(bucket, n);
        down * across
    }
}

/// Parts of the k of a product; part of its meaning, so the shape and the epilogue alone may decide.
pub(super) fn parts(n: usize, is_gate: bool) -> usize {
    if is_gate || n > MANY_PARTS { 1 } else { PARTS }
}

#[derive(Debug)]
pub struct Product {
    device: Device,
    /// By tile and epilogue; empty for a tile that the device has no room for.
    kernels: Vec<Vec<Kernel>>,
    /// One block of the spread tiles a multiprocessor.
    most_spread: usize,
    partial: Buffer<f32>,
    counters: Buffer<u32>,
}

impl Product {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let mut kernels = Vec::new();
        for tile in TILES {
            let facts = tile.facts();
            let name = |epilogue: &&str| {
                device.kernel(&format!("product_{}_{epilogue}", facts.name), facts.shared())
            };
            kernels.push(match EPILOGUES[..facts.epilogues].iter().map(name).collect() {
                // Devices before and beside the A100 have 99 KiB a block.
                Err(DeviceError::Failed { .. }) if tile == Rows128Wide => Vec::new(),
                found => found?,
            });
        }
        let most_spread = device.multiprocessors() as usize;
        Ok(Self {
            kernels,
            most_spread,
            partial: Buffer::new(device, most_spread * PARTS * SPREAD_TILE)?,
            counters: Buffer::zeros(device, most_spread)?,
            device: device.clone(),
        })
    }

    /// How many tiles may be spread at most, and where their parts and counters lie.
    pub(super) fn room_of_parts(&self) -> (usize, Buffer<f32>, Buffer<u32>) {
        let Self { most_spread, partial, counters, .. } = self;
        (*most_spread, partial.part(0, partial.len()), counters.part(0, counters.len()))
    }

    fn tile(&self, bucket: usize, n: usize, is_gate: bool) -> Tile {
        let several = parts(n, is_gate) > 1;
        let spread = |tile: Tile| several && tile.facts().blocks(bucket, n) <= self.most_spread;
        let fills = Rows128Wide.facts().blocks(bucket, n) >= self.most_spread;
        match bucket {
            1..=16 if several => Rows16Parts,
            1..=16 => Rows16,
            17..=64 if spread(Rows64Spread) => Rows64Spread,
            17..=64 => Rows64,
            _ if spread(Rows128Spread) => Rows128Spread,
            _ if fills && !self.kernels[Rows128Wide as usize].is_empty() => Rows128Wide,
            _ => Rows128,
        }
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
        (n, k): (usize, usize),
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        assert_operands(bucket, count, x, w, (n, k), bias);
        let y = finish.room(bucket, n);
        let tile = self.tile(bucket, n, finish.is_gate());
        let facts = tile.facts();
        let (down, across) = facts.tiles(bucket, n);
        let deep = if matches!(tile, Rows64Spread | Rows128Spread) { PARTS } else { 1 };
        let launch = Launch::new(self.kernels[tile as usize][finish.index()], down, facts.threads).chained();
        let launch = launch.by(across, deep).shared(facts.shared()).buffer(x).buffer(w);
        let launch = launch.address(bias.map_or(0, Buffer::address)).address(y);
        let launch = launch.buffer(&self.partial).buffer(&self.counters).buffer(count);
        let launch = launch.count(n).count(k).count(parts(n, finish.is_gate()));
        // SAFETY: the arguments are the kernel's; the buffers hold the shape of the bucket (asserted above) and begin at
        // 256 bytes; spread tiles are at most as many as there are counters and places for their parts.
        unsafe { launch.on(&*self.device) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_gate_and_up_fill_the_weight() {
        let mut rows: Vec<usize> = (0..24).map(gate_row).flat_map(|(gate, up)| [gate, up]).collect();
        assert_eq!((gate_row(0), gate_row(7), gate_row(8)), ((0, 8), (7, 15), (16, 24)));
        rows.sort();
        assert_eq!(rows, (0..48).collect::<Vec<_>>());
    }
}
