//! The product of 1 to 8 rows with a row-major bf16 weight (`cuda/skinny.cu`).

use std::array;

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DevicePtr, DevicePtrMut, DriverError};
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use half::bf16;

use super::module::Module;

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

pub struct Skinny {
    module: Module,
    warp: [CudaFunction; MAX_ROWS],
    block: [CudaFunction; MAX_ROWS],
}

impl Skinny {
    pub fn load(device: &CudaDevice) -> Result<Self, DriverError> {
        let module = Module::load(device, include_bytes!(concat!(env!("OUT_DIR"), "/skinny.fatbin")))?;
        let class = |class: Class| -> Result<[CudaFunction; MAX_ROWS], DriverError> {
            let functions: [_; MAX_ROWS] =
                array::from_fn(|m| module.function(&format!("skinny_{}_{}", class.name(), m + 1)));
            let functions: Vec<_> = functions.into_iter().collect::<Result<_, _>>()?;
            Ok(functions.try_into().unwrap_or_else(|_| unreachable!("bug: as many as were looked up")))
        };
        Ok(Self { warp: class(Class::Warp)?, block: class(Class::Block)?, module })
    }

    /// `y[m, n] = x[m, k] * w[n, k]^T`: x and w bf16, y f32. Panics when a buffer is too small for the shape.
    pub fn launch(
        &self,
        class: Class,
        (m, n, k): (usize, usize, usize),
        x: &impl DevicePtr<bf16>,
        w: &impl DevicePtr<bf16>,
        y: &mut impl DevicePtrMut<f32>,
    ) -> Result<(), DriverError> {
        assert!((1..=MAX_ROWS).contains(&m) && n > 0, "bug: a skinny product of {m} rows and {n} outputs");
        assert!(k > 0 && k.is_multiple_of(CHUNK), "bug: k = {k} is not a multiple of {CHUNK}");
        assert!(
            x.len() >= m * k && w.len() >= n * k && y.len() >= m * n,
            "bug: a buffer is smaller than its shape"
        );
        let tiles = n.div_ceil(TILE) as u32;
        let (function, blocks, threads) = match class {
            Class::Warp => (&self.warp[m - 1], tiles.div_ceil(8), 256),
            Class::Block => (&self.block[m - 1], tiles, 128),
        };
        let config =
            LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let stream = self.module.stream();
        let (n, k) = (n as u32, k as u32);
        let (x, _x) = x.device_ptr(stream);
        let (w, _w) = w.device_ptr(stream);
        let (y, _y) = y.device_ptr_mut(stream);
        // SAFETY: the five arguments are the kernel's; the buffers hold the shape (asserted above), device allocations
        // are 256-byte aligned and a view that is not would fault, and y is borrowed mutably, so nothing aliases it.
        unsafe {
            stream.launch_builder(function).arg(&x).arg(&w).arg(&y).arg(&n).arg(&k).launch(config)?;
        }
        Ok(())
    }

    /// Registers of each function and bytes of local memory (spills), by class and row count.
    pub fn resources(&self) -> Result<Vec<(Class, usize, i32, i32)>, DriverError> {
        let mut all = Vec::new();
        for (class, functions) in [(Class::Warp, &self.warp), (Class::Block, &self.block)] {
            for (m, function) in functions.iter().enumerate() {
                all.push((class, m + 1, function.num_regs()?, function.local_size_bytes()?));
            }
        }
        Ok(all)
    }
}
