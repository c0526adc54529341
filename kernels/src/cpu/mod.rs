//! The CPU: its threads, what its instructions offer, and the kernels written for them.

pub(crate) mod amx;
pub(crate) mod attend;
pub(crate) mod detect;
pub(crate) mod lanes;
pub(crate) mod pool;
pub(crate) mod product;
pub(crate) mod read;
