//! The product of 1 to 8 rows with a row-major bf16 weight (`cuda/skinny.cu`).

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::product::{EPILOGUES, Finish};

/// Rows that one launch takes.
pub const MAX_ROWS: usize = 8;
/// Rows of the weight to a tile, as in the kernel.
const TILE: usize = 4;
/// Numbers in 16 bytes: k is a multiple of this.
const CHUNK: usize = 8;

/// Who shares the k of a tile. The order of a sum, and so its bits, depends on this and on k alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One warp; eight tiles a block.
    Warp,
    /// The four warps of a block.
    Block,
}

impl Class {
    pub const ALL: [Class; 2] = [Class::Warp, Class::Block];

    pub fn name(self) -> &'static str {
        match self {
            Class::Warp => "warp",
            Class::Block => "block",
        }
    }
}

#[derive(Debug)]
pub struct Skinny {
    device: Device,
    /// By epilogue and row count.
    warp: [Vec<Kernel>; 4],
    block: [Vec<Kernel>; 4],
}

impl Skinny {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let kernels = |class: Class, epilogue: &str| -> Result<Vec<Kernel>, DeviceError> {
            (1..=MAX_ROWS)
                .map(|m| device.kernel(&format!("skinny_{}_{epilogue}_{m}", class.name()), 0))
                .collect()
        };
        let class = |class: Class| -> Result<[Vec<Kernel>; 4], DeviceError> {
            let [set, add, silu, gelu] = EPILOGUES.map(|epilogue| kernels(class, epilogue));
            Ok([set?, add?, silu?, gelu?])
        };
        Ok(Self { warp: class(Class::Warp)?, block: class(Class::Block)?, device: device.clone() })
    }

    /// The plain kernels of a class, by row count.
    pub fn kernels(&self, class: Class) -> &[Kernel] {
        &self.class(class)[0]
    }

    fn class(&self, class: Class) -> &[Vec<Kernel>; 4] {
        match class {
            Class::Warp => &self.warp,
            Class::Block => &self.block,
        }
    }

    /// `y[m, n] = x[m, k] * w[n, k]^T`: x and w bf16, y f32. Panics when a buffer is too small for the shape.
    pub fn launch(
        &self,
        class: Class,
        shape: (usize, usize, usize),
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        y: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        self.finish(class, shape, x, w, None, Finish::Set(y))
    }

    /// The same with a bias and what is to become of the sums. The rows are those of the bucket: all are written.
    pub fn finish(
        &self,
        class: Class,
        (m, n, k): (usize, usize, usize),
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        assert!((1..=MAX_ROWS).contains(&m) && n > 0, "bug: a skinny product of {m} rows and {n} outputs");
        assert!(k > 0 && k.is_multiple_of(CHUNK), "bug: k = {k} is not a multiple of {CHUNK}");
        assert!(
            x.len() >= m * k && w.len() >= n * k && bias.is_none_or(|bias| bias.len() >= n),
            "bug: a buffer is smaller than its shape"
        );
        let y = finish.room(m, n);
        let tiles = n.div_ceil(TILE);
        let (blocks, threads) = match class {
            Class::Warp => (tiles.div_ceil(8), 256),
            Class::Block => (tiles, 128),
        };
        let launch = Launch::new(self.class(class)[finish.index()][m - 1], blocks, threads).chained();
        let launch = launch.buffer(x).buffer(w).address(bias.map_or(0, Buffer::address)).address(y);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape (asserted above) and begin at 256 bytes.
        unsafe { launch.count(n).count(k).on(&*self.device) }
    }
}
