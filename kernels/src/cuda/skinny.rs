//! The product of 1 to 8 rows with a row-major bf16 weight (`cuda/skinny.cu`).

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;

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
    warp: Vec<Kernel>,
    block: Vec<Kernel>,
}

impl Skinny {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let class = |class: Class| -> Result<Vec<Kernel>, DeviceError> {
            (1..=MAX_ROWS).map(|m| device.kernel(&format!("skinny_{}_{m}", class.name()), 0)).collect()
        };
        Ok(Self { warp: class(Class::Warp)?, block: class(Class::Block)?, device: device.clone() })
    }

    /// The kernels of a class, by row count.
    pub fn kernels(&self, class: Class) -> &[Kernel] {
        match class {
            Class::Warp => &self.warp,
            Class::Block => &self.block,
        }
    }

    /// `y[m, n] = x[m, k] * w[n, k]^T`: x and w bf16, y f32. Panics when a buffer is too small for the shape.
    pub fn launch(
        &self,
        class: Class,
        (m, n, k): (usize, usize, usize),
        x: &Buffer<bf16>,
        w: &Buffer<bf16>,
        y: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        assert!((1..=MAX_ROWS).contains(&m) && n > 0, "bug: a skinny product of {m} rows and {n} outputs");
        assert!(k > 0 && k.is_multiple_of(CHUNK), "bug: k = {k} is not a multiple of {CHUNK}");
        assert!(
            x.len() >= m * k && w.len() >= n * k && y.len() >= m * n,
            "bug: a buffer is smaller than its shape"
        );
        let tiles = n.div_ceil(TILE);
        let (blocks, threads) = match class {
            Class::Warp => (tiles.div_ceil(8), 256),
            Class::Block => (tiles, 128),
        };
        let launch = Launch::new(self.kernels(class)[m - 1], blocks, threads);
        let launch = launch.buffer(x).buffer(w).buffer(y).count(n).count(k);
        // SAFETY: the five arguments are the kernel's; the buffers hold the shape (asserted above) and begin at 256 bytes.
        unsafe { launch.on(&*self.device) }
    }
}
