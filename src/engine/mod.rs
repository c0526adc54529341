//! The engine: one thread that owns sequences, blocks and the device (steps 5 to 9 in the life of a request).

pub mod arbiter;
pub mod clock;
pub mod executor;
#[allow(dead_code)]
pub mod handle;
pub mod request;
pub mod scripted;
#[allow(dead_code)] // the first loop leaves parts of the seam unused
mod sequence;
#[allow(dead_code)]
mod stream;
mod thread;
