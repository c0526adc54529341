//! The engine: one thread that owns sequences, blocks and the device (steps 5 to 9 in the life of a request).

pub mod executor;
pub mod request;
