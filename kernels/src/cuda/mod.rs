//! NVIDIA devices: finding one without needing CUDA to start, and the launch code of `cuda/*.cu`.
//!
//! All work of a device runs on one stream, from one thread. Kernels are embedded as machine code for every generation
//! served; nothing is compiled on the user's host but for generations that came later. The driver's libcuda is all that a
//! host needs, and it is opened only when a device is looked for. All launch code stands
//! on the seam in [`driver`] and is the same for a GPU and for the emulated device of the tests.

pub mod attention;
pub mod buffer;
pub mod driver;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod expert_product;
pub mod experts;
#[cfg(feature = "cuda")]
pub mod find;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod hopper;
pub mod hopper_experts;
pub mod launch;
pub mod narrow;
pub mod packed_experts;
pub mod presence;
pub mod product;
pub mod record;
pub mod row;
pub mod sample;
pub mod skinny;
pub mod stream;
pub mod weightonly;
