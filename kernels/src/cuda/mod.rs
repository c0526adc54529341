//! NVIDIA devices: finding one without needing CUDA to start, and the launch code of `cuda/*.cu`.
//!
//! All work of a device runs on one stream, candle's own, from one thread. Kernels are embedded as machine code for every
//! generation served; nothing is compiled on the user's host but for generations that came later.

pub mod device;
pub mod module;
pub mod row;
pub mod skinny;
pub mod stream;
