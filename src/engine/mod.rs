//! The engine: one thread that owns sequences, blocks and the device (steps 5 to 9 in the life of a request).

pub mod arbiter;
mod batch;
mod blocks;
pub mod clock;
mod commit;
pub mod device;
pub mod executor;
pub mod handle;
pub mod local;
mod plan;
mod prefix;
pub mod replicas;
pub mod request;
pub mod room;
#[cfg(test)]
mod scenarios;
pub mod scripted;
mod sequence;
mod slots;
mod stop;
mod stream;
mod thread;
pub mod timings;
