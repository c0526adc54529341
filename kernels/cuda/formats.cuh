// The formats of weights of fewer bits: what kernels are called, and the structs that say how they are read. Few rows take
// them from weightonly.cuh under this name, many from narrow.cuh with Packed before it. src/cuda/weightonly/format.rs has the
// same in the same order.
#pragma once

#define EACH_FORMAT(DO) \
  DO(int8, Int8)        \
  DO(e4m3, Fp8)         \
  DO(int4, Int4)        \
  DO(q8_0, Q8_0)        \
  DO(q6_k, Q6K)         \
  DO(q4_k, Q4K)
