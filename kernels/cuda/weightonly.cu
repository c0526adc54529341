// The product of 1 to 8 rows of bf16 with a weight of 8, 6 or 4 bits: y[row][n] = sum over k of x[row][k] * w[n][k].
//
// Numbers of w are widened to bf16 in registers, exactly, and multiplied on the tensor cores: 16 rows of w are the
// rows of an mma and the rows of x its 8 columns, so that one row costs what eight cost. Formats:
//   int8   a bf16 scale for each 128 columns of a row: 8.1 bits. One scale a row would cost a row with one large number
//          the precision of all its others; with 128 it is that of Q8_0 less a few percent, and half the scales.
//   e4m3   an f32 scale a row: 8 bits, as checkpoints in fp8 have it. Its relative precision is the same for small
//          numbers and large ones, so groups would gain nothing; it is a sixteenth: int8 is the better 8 bits.
//   int4   numbers of -8 to 7, a bf16 scale for each 32 columns: 4.5 bits, the quality of Q4_0
// and candle's blocks, number for number:
//   q8_0   an f16 scale for each 32 columns: 8.5 bits
//   q6_k   -32 to 31, for each 16 columns a scale of 8 bits, which counts in an f16 of a block of 256: 6.6 bits
//   q4_k   0 to 15, for each 32 columns a scale and a minimum of 6 bits, a byte each, which count in two f16 of a block
//          of 256: 4.75 bits
// What follows a sum is in epilogue.cuh, the inner loop in weightonly.cuh.
//
// Packing (src/cuda/weightonly.rs): 16 rows by 128 columns are 2 KiB (q6_k 1.5, int4 and q4_k 1) in the order in which
// the lanes of a warp take them, 16 bytes a lane at a time. A warp reads whole lines of memory in order, and what a lane
// reads is what it multiplies: no shared memory, no shuffle.
//
// The order of a sum depends on the format and k alone: columns in steps of 128; warp p of 8 takes steps p, p + 8, …,
// ascending; in a step a chain of mma for each group with a scale, from zero, added times the scale (q4_k: behind it the
// sum of x over the group, a chain of mma with ones, times what each number of the group is off; e4m3: one chain over
// all steps, times the scale in the end); then the warps, ascending. Rows are counted on the device and change no bit.
//
// Bytes moved: n k (q6_k three quarters, int4 and q4_k half) + scales + 2 m k + the output. Ceiling: the device's read
// bandwidth. In flight: 8 KiB a warp (q6_k 6, int4 and q4_k 4), 64 (48, 32) KiB a block of 32 rows of w, two blocks a
// multiprocessor, where 4 TB/s at 800 ns want 25 KiB. Arithmetic: a thread has 3.4 instructions a number (q8_0 3.7, int4
// 2.8, q4_k 4.0, q6_k 4.8; by the size of the code for sm_90a). At 4 TB/s a multiprocessor gets 17 numbers a clock (q8_0
// 16, q6_k 21, q4_k 29, int4 31) and issues 128 instructions: int8, e4m3 and q8_0 take half of them and wait for the read,
// int4 two thirds; q6_k takes 100 and q4_k 116, which is about where issuing limits.
//
// Expected on an H200, of its bandwidth, not measured: int8, e4m3 and q8_0 80 %, int4 and q6_k 75 %, q4_k 65 %.
//
// n and k are multiples of 8 (gates: n of 16), filled with zeros to whole tiles and steps; k of candle's blocks is whole
// blocks. x is 16-byte aligned.

#include "weightonly.cuh"

// Panels of a block, and steps that a warp has in flight of each.
constexpr unsigned PANELS = 2, FLIGHT = 2;

template <typename F, unsigned EPILOGUE>
__device__ __forceinline__ void weightonly(
    const uint4* __restrict__ x, const uint4* __restrict__ w, const void* __restrict__ scales,
    const float* __restrict__ bias, void* __restrict__ y, const unsigned rows, const unsigned n, const unsigned k) {
  const unsigned g = threadIdx.x % LANES / 4;
  const unsigned panels = (n + PANEL - 1) / PANEL;
  float sum[PANELS][4] = {};
  sum_steps<F, FLIGHT>(sum, x + g * (k / CHUNK), g < rows, w, scales, k, blockIdx.x * PANELS, panels - 1);

  __shared__ Partial<PANELS> partial;
  leave(partial, sum);
  __syncthreads();

  const unsigned row = threadIdx.x / PANEL % MOST_ROWS, of = threadIdx.x % PANEL, p = threadIdx.x / (PANEL * MOST_ROWS);
  const unsigned column = (blockIdx.x * PANELS + p) * PANEL + of;
  if (row >= rows || column >= n || (IS_GATE<EPILOGUE> && of >= GATE_ROWS)) return;
  const auto total = [&](const unsigned of, const unsigned column) {
    const float total = joined<F>(partial, p, row, of, scales, column);
    return bias == nullptr ? total : __fadd_rn(total, __ldg(bias + column));
  };
  const float value = total(of, column);
  if constexpr (IS_GATE<EPILOGUE>) {
    const float up = total(of + GATE_ROWS, column + GATE_ROWS);
    static_cast<unsigned short*>(y)[(size_t)row * (n / 2) + column / 16 * 8 + of] =
        round_bf16(bend<EPILOGUE>(value) * up);
  } else {
    float* const to = static_cast<float*>(y) + (size_t)row * n + column;
    *to = EPILOGUE == ADD ? *to + value : value;
  }
}

static_assert(PANELS * PANEL * MOST_ROWS == SHARERS * LANES, "a thread a sum");

#define WEIGHTONLY(NAME, EPILOGUE, F)                                                                              \
  extern "C" __global__ void __launch_bounds__(256, 2) weightonly_##NAME(                                          \
      const uint4* x, const uint4* w, const void* scales, const float* bias, void* y, const unsigned* rows,        \
      unsigned n, unsigned k) {                                                                                    \
    weightonly<F, EPILOGUE>(x, w, scales, bias, y, *rows, n, k);                                                   \
  }
#define WEIGHTONLY_FORMAT(NAME, F)  \
  WEIGHTONLY(NAME##_set, SET, F)    \
  WEIGHTONLY(NAME##_add, ADD, F)    \
  WEIGHTONLY(NAME##_silu, SILU, F)  \
  WEIGHTONLY(NAME##_gelu, GELU, F)

EACH_FORMAT(WEIGHTONLY_FORMAT)
