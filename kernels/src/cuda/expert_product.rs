//! Products of rows grouped by expert, each with its expert's weight (`cuda/expert_product.cu`).

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::product::{EPILOGUES, Finish};

/// A tile in the kernels.
struct Tile {
    name: &'static str,
    rows: usize,
    columns: usize,
    threads: u32,
    stages: u32,
}

const TILES: [Tile; 4] = [
    Tile { name: "16", rows: 16, columns: 64, threads: 128, stages: 5 },
    Tile { name: "64", rows: 64, columns: 128, threads: 256, stages: 4 },
    Tile { name: "128", rows: 128, columns: 128, threads: 128, stages: 3 },
    Tile { name: "128_wide", rows: 128, columns: 256, threads: 256, stages: 3 },
];
const WIDE: usize = 3;

impl Tile {
    /// Stages of 64 columns of x and w.
    fn shared(&self) -> u32 {
        self.stages * (self.rows + self.columns) as u32 * 128
    }

    fn down(&self, rows: usize, experts: usize) -> usize {
        tiles(self.rows, rows, experts)
    }
}

/// What every product of grouped rows wants of its operands.
pub(super) fn assert_grouped(
    rows: usize,
    starts: &Buffer<u32>,
    x: &Buffer<bf16>,
    w: &Buffer<bf16>,
    experts: usize,
    (n, k): (usize, usize),
    finish: &Finish<'_>,
) {
    assert!(rows > 0 && n > 0 && experts > 0, "bug: {rows} rows, {n} outputs, {experts} experts");
    assert!(k > 0 && k.is_multiple_of(8), "bug: k = {k} is not a multiple of 8");
    assert!(!matches!(finish, Finish::Add(_)), "bug: results of experts are not added");
    assert!(
        starts.len() > experts && x.len() >= rows * k && w.len() >= experts * n * k,
        "bug: a buffer is smaller than its shape"
    );
}

/// The most tiles, `tall` rows each, that `rows` rows of `experts` experts can make.
pub(super) fn tiles(tall: usize, rows: usize, experts: usize) -> usize {
    rows.min((rows + experts * (tall - 1)) / tall)
}

#[derive(Debug)]
pub struct ExpertProduct {
    device: Device,
    /// By tile and epilogue; empty for a tile that the device has no room for.
    kernels: Vec<Vec<Kernel>>,
}

impl ExpertProduct {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let mut kernels = Vec::new();
        for (index, tile) in TILES.iter().enumerate() {
            let name = |epilogue: &&str| {
                // Nothing is added to what is there: a row's experts are weighted first.
                let epilogue = if *epilogue == "add" { "set" } else { epilogue };
                device.kernel(&format!("expert_product_{}_{epilogue}", tile.name), tile.shared())
            };
            kernels.push(match EPILOGUES.iter().map(name).collect() {
                // Devices before and beside the A100 have 99 KiB a block.
                Err(DeviceError::Failed { .. }) if index == WIDE => Vec::new(),
                found => found?,
            });
        }
        Ok(Self { device: device.clone(), kernels })
    }

    /// By the rows that an expert has on average, and whether the widest tiles are enough for the device.
    fn tile(&self, rows: usize, experts: usize, n: usize) -> usize {
        let blocks = TILES[WIDE].down(rows, experts) * n.div_ceil(TILES[WIDE].columns);
        match rows.div_ceil(experts) {
            0..=8 => 0,
            9..=64 => 1,
            _ if blocks >= self.device.multiprocessors() as usize && !self.kernels[WIDE].is_empty() => WIDE,
            _ => 2,
        }
    }

    /// Multiplies rows `starts[e]..starts[e + 1]` of `x` `[rows, k]` with weight `e` of `w` `[experts, n, k]`. `rows` is
    /// the most that there can be; the output is as long.
    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    pub fn launch(
        &self,
        rows: usize,
        starts: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        experts: usize,
        (n, k): (usize, usize),
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        assert_grouped(rows, starts, x, w, experts, (n, k), &finish);
        let y = finish.room(rows, n);
        let index = self.tile(rows, experts, n);
        let tile = &TILES[index];
        let kernel = self.kernels[index][finish.index()];
        let launch = Launch::new(kernel, tile.down(rows, experts), tile.threads);
        let launch = launch.by(n.div_ceil(tile.columns), 1).shared(tile.shared());
        let launch = launch.buffer(starts).buffer(x).buffer(w).address(y).count(experts).count(n).count(k);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape (asserted above), and the last of `starts` is
        // at most `rows`, the promise of who grouped them.
        unsafe { launch.on(&*self.device) }
    }
}
