//! The CUDA kernels on the CPU: `cuda/*.cu`, unchanged, compiled by the C++ compiler through `emulation.h` and compared
//! with a reference. Finds wrong indices, missing barriers and wrong arithmetic where there is no GPU.
//!
//! A file here for each file of kernels: `NAME.cc` launches them, `NAME.rs` makes the cases and holds the reference.

mod attend_decode;
mod attend_prompt;
mod expert_narrow;
mod expert_product;
mod expert_weightonly;
mod experts;
mod faults;
mod hopper;
mod hopper_experts;
mod narrow;
mod paged;
mod product;
mod program;
mod row;
mod sample;
mod skinny;
mod tensor;
mod warpgroup;
mod weightonly;
