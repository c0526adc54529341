//! The operations a decoder needs and candle lacks.
//!
//! Every operation works on whole, preallocated candle tensors with a row count, so that a step allocates nothing.
//! Each file holds one operation: its shapes, a naive f32 reference, and the dispatch to the fast version of the
//! device. Activations are f32 between operations; products round their input to the type of the weight.

pub mod paged;
pub mod sample;
