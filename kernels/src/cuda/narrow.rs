//! The product of any number of rows with a weight of 8, 6 or 4 bits on the tensor cores (`cuda/narrow.cu`): that of bf16
//! with the weight widened, bit for bit.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::product::{CHUNK, EPILOGUES, Finish, PARTS, Product, parts};
use super::weightonly::{Format, PANEL, STEP, Weight};

/// A tile in the kernels, all of whose stages are 64 columns deep.
pub(super) struct Tile {
    pub(super) name: &'static str,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) threads: u32,
    stages: u32,
}

pub(super) const TILES: [Tile; 3] = [
    Tile { name: "16", rows: 16, columns: 64, threads: 128, stages: 5 },
    Tile { name: "64", rows: 64, columns: 128, threads: 256, stages: 4 },
    Tile { name: "128", rows: 128, columns: 128, threads: 128, stages: 3 },
];

impl Tile {
    /// Stages of x and of packed numbers, and two of widened ones.
    pub(super) fn shared(&self, format: Format) -> u32 {
        let packed = 64 * format.bits() as u32 / 8;
        let (rows, columns) = (self.rows as u32, self.columns as u32);
        self.stages * (rows * 128 + columns * packed) + 2 * columns * 128
    }
}

/// Of a format and a tile: by epilogue, parts in one block and, the first two of them again, a block each.
type Kernels = Vec<Kernel>;

#[derive(Debug)]
pub struct Narrow {
    device: Device,
    /// By format and tile; empty for a tile that the device has no room for.
    kernels: Vec<[Kernels; 3]>,
    /// As a [`Product`] has them, whose they are: launches take turns.
    most_spread: usize,
    partial: Buffer<f32>,
    counters: Buffer<u32>,
}

impl Narrow {
    pub fn load(device: &Device, product: &Product) -> Result<Self, DeviceError> {
        let of_tile = |format: Format, tile: &Tile| -> Result<Kernels, DeviceError> {
            let spread = EPILOGUES[..2].iter().map(|epilogue| format!("spread_{epilogue}"));
            let epilogues = EPILOGUES.iter().map(|epilogue| (*epilogue).to_owned()).chain(spread);
            let name = |epilogue| format!("narrow_{}_{}_{epilogue}", format.name(), tile.name);
            match epilogues.map(|e| device.kernel(&name(e), tile.shared(format))).collect() {
                // Devices before and beside the A100 have 99 KiB a block.
                Err(DeviceError::Failed { .. }) if tile.rows == 128 => Ok(Vec::new()),
                found => found,
            }
        };
        let of = |format: Format| -> Result<[Kernels; 3], DeviceError> {
            let [few, some, many] = &TILES;
            Ok([of_tile(format, few)?, of_tile(format, some)?, of_tile(format, many)?])
        };
        let (most_spread, partial, counters) = product.room_of_parts();
        let kernels = Format::ALL.into_iter().map(of).collect::<Result<_, _>>()?;
        Ok(Self { device: device.clone(), kernels, most_spread, partial, counters })
    }

    /// `y[row, n] = sum over k of x[row, k] * w[n, k] (+ bias[n])` for the first `count` rows, at most `bucket`. A row's
    /// bits depend on nothing but itself, the weight and its format.
    pub fn launch(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Weight,
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let Weight { format, n, k, ref numbers, ref scales } = *w;
        assert!(bucket > 0 && !count.is_empty(), "bug: a product of {bucket} rows");
        assert!(
            n > 0 && n.is_multiple_of(CHUNK) && k > 0 && k.is_multiple_of(CHUNK),
            "bug: {n} x {k} numbers are no whole chunks"
        );
        assert!(format.takes(k), "bug: {k} columns are no whole blocks");
        let (panels, (bytes, scale_bytes)) = (n.div_ceil(PANEL), format.panel_bytes(k));
        assert!(
            x.len() >= bucket * k
                && numbers.len() >= panels * bytes
                && scales.len() >= panels * scale_bytes
                && bias.is_none_or(|bias| bias.len() >= n),
            "bug: a buffer is smaller than its shape"
        );
        assert!(k.div_ceil(STEP) < 1 << 24, "bug: {k} columns");
        let y = finish.room(bucket, n);
        let kernels = &self.kernels[format as usize];
        let most = if kernels[2].is_empty() { 1 } else { 2 };
        let size = match bucket {
            1..=16 => 0,
            17..=64 => 1,
            _ => most,
        };
        let tile = &TILES[size];
        let (down, across) = (bucket.div_ceil(tile.rows), n.div_ceil(tile.columns));
        let parts = parts(n, finish.is_gate());
        let is_spread = parts > 1 && down * across <= self.most_spread;
        let (kernel, deep) = match is_spread {
            true => (kernels[size][EPILOGUES.len() + finish.index()], PARTS),
            false => (kernels[size][finish.index()], 1),
        };
        let launch =
            Launch::new(kernel, down, tile.threads).chained().by(across, deep).shared(tile.shared(format));
        let launch = launch.buffer(x).buffer(numbers).buffer(scales).address(bias.map_or(0, Buffer::address));
        let launch = launch.address(y).buffer(&self.partial).buffer(&self.counters).buffer(count);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape of the bucket (asserted above) and begin at
        // 256 bytes; spread tiles are at most as many as there are counters and places for their parts.
        unsafe { launch.count(n).count(k).count(parts).on(&*self.device) }
    }
}
