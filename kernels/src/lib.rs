//! The operations a decoder needs and candle lacks.
//!
//! Every operation works on whole, preallocated candle tensors with a row count, so that a step allocates nothing.
//! Each file holds one operation: its shapes, a naive f32 reference, and the dispatch to the fast version of the
//! device. Activations are f32 between operations; products round their input to the type of the weight.

mod attention;
mod buffer;
mod context;
mod cpu;
pub mod cuda;
pub mod draw;
mod embed;
mod error;
mod gate;
mod kv;
mod linear;
mod moe;
mod norm;
pub mod paged;
mod rope;
pub mod sample;
mod sampler;
mod weight;

pub use attention::attention;
pub use context::Context;
pub use cpu::detect::Isa;
pub use cpu::read::read_through;
pub use embed::embed;
pub use error::Error;
pub use gate::{Activation, gate};
pub use kv::{KvCache, KvShape};
pub use linear::{Write, linear, linear_rows};
pub use moe::{Routes, experts, route};
pub use norm::rms_norm;
pub use rope::{Heads, RopeTable, rope_store};
pub use sampler::Sampler;
pub use weight::{Quantize, View, Weight};
