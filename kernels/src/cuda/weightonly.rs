//! The product of 1 to 8 rows with a weight of 8, 6 or 4 bits (`cuda/weightonly.cu`), and how such a weight is packed.
//!
//! A *panel* is 16 rows of the weight, a *step* 128 of its columns, the last of each filled with zeros. Panel by panel and
//! step by step, numbers lie as the lanes of a warp multiply them: row `r` of the panel, column `c` of the step belong to
//! lane `4 (r % 8) + c % 32 / 8`, which has 16 bytes of each *quad* (512 bytes):
//!
//! ```text
//! int8, e4m3, q8_0   4 quads: quad 2 (c / 64) + r / 8, word c % 64 / 32 * 2 + c % 8 / 4; in the word columns 0, 2, 1, 3
//! int4, q4_k         2 quads: quad r / 8, word c / 32; in the word, lowest four bits first, columns 0, 2, 4, 6, 1, 3, 5, 7
//! ```
//!
//! so that a mask takes two neighbours out of a word at once. q6_k has groups of 16 columns, which is what one mma takes:
//! `c` belongs to lane `4 (r % 8) + c % 16 / 4`, and it has 3 quads:
//!
//! ```text
//! lower four bits    quad r / 8, word c / 32; in the word columns 0, 2, 16, 18, 1, 3, 17, 19 from the first that is the lane's
//! upper two          quad 2, word r / 8 * 2 + c / 64; columns 0, 2, 16, 18, 32, 34, 48, 50, then those behind each
//! ```
//!
//! Scales, by panel and step: int8 a bf16 for each row, `[16]`; int4 a bf16 and q8_0 an f16 for each 32 columns, `[16][4]`;
//! q6_k a byte for each 16 columns, 128 more than it is, `[16][8]`, behind them an f16 that they count in, `[16]`; q4_k scale
//! and minimum for each 32 columns, a byte each, `[16][4][2]`, behind them the two f16 that they count in, `[16][2]`. A block
//! of q6_k and q4_k is two steps, which both have its f16. e4m3 has an f32 for each row, `[panel][16]`.

mod format;
mod kquant;
mod pack;

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::product::{EPILOGUES, Finish};
pub use format::{Format, PANEL, STEP};
pub use pack::{Packed, pack_panel};

/// Rows that one launch takes.
pub const MAX_ROWS: usize = 8;
/// Panels of a block.
const PANELS: usize = 2;
/// Numbers of x in 16 bytes: k is a multiple of this, and n.
const CHUNK: usize = 8;

/// A packed weight on a device.
#[derive(Debug)]
pub struct Weight {
    pub format: Format,
    pub n: usize,
    pub k: usize,
    pub numbers: Buffer<u8>,
    pub scales: Buffer<u8>,
}

impl Weight {
    pub fn of(device: &Device, packed: &Packed) -> Result<Self, DeviceError> {
        let Packed { format, n, k, ref numbers, ref scales } = *packed;
        Ok(Self { format, n, k, numbers: Buffer::of(device, numbers)?, scales: Buffer::of(device, scales)? })
    }
}

#[derive(Debug)]
pub struct WeightOnly {
    device: Device,
    /// By format and epilogue.
    kernels: Vec<Vec<Kernel>>,
}

impl WeightOnly {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let of = |format: Format| -> Result<Vec<Kernel>, DeviceError> {
            let name = |epilogue: &str| format!("weightonly_{}_{epilogue}", format.name());
            EPILOGUES.iter().map(|epilogue| device.kernel(&name(epilogue), 0)).collect()
        };
        let kernels = Format::ALL.into_iter().map(of).collect::<Result<_, _>>()?;
        Ok(Self { device: device.clone(), kernels })
    }

    /// `y[row, n] = sum over k of x[row, k] * w[n, k] (+ bias[n])` for the first `count` rows, at most `bucket`, which
    /// is at most [`MAX_ROWS`]. A row's bits depend on nothing but itself, the weight and its format.
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
        assert!((1..=MAX_ROWS).contains(&bucket) && !count.is_empty(), "bug: a product of {bucket} rows");
        assert!(
            n > 0 && n.is_multiple_of(CHUNK) && k > 0 && k.is_multiple_of(CHUNK),
            "bug: {n} x {k} numbers are no whole chunks"
        );
        assert!(format.takes(k), "bug: {k} columns are no whole blocks");
        let panels = n.div_ceil(PANEL);
        let (bytes, scale_bytes) = format.panel_bytes(k);
        assert!(
            x.len() >= bucket * k
                && numbers.len() >= panels * bytes
                && scales.len() >= panels * scale_bytes
                && bias.is_none_or(|bias| bias.len() >= n),
            "bug: a buffer is smaller than its shape"
        );
        let y = finish.room(bucket, n);
        let kernel = self.kernels[format as usize][finish.index()];
        let launch =
            Launch::new(kernel, panels.div_ceil(PANELS), 256).buffer(x).buffer(numbers).buffer(scales);
        let launch = launch.address(bias.map_or(0, Buffer::address)).address(y).buffer(count);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape of the bucket (asserted above) and begin at
        // 256 bytes.
        unsafe { launch.count(n).count(k).on(&*self.device) }
    }
}

/// Numbers for tests, of several sizes.
#[cfg(test)]
fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 97) as f32 / 50.0)).collect()
}
