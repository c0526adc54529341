// The product of 1 to 8 rows with a bf16 weight: y[row][n] = sum over k of x[row][k] * w[n][k].
//
// w is row-major as a checkpoint has it, x is bf16 (the producer of the row rounds it), sums and y are f32. Each weight
// is read from memory once whatever the row count; with few rows that read is the whole cost.
//
// Bytes moved: 2 n k (the weight) + 2 m k + 4 m n. Ceiling: the device's read bandwidth.
// In flight: every lane starts 8 independent 16-byte loads of the weight before the first use; 8 warps of a
// multiprocessor keep 32 KiB under way, where 4 TB/s at 800 ns want 25 KiB.
// Arithmetic a weight: m multiply-adds, one widening, m / 4 widenings of the input. At m = 8 that is about 12
// instructions a lane, which on Hopper takes about as long as the read: above 4 rows the tensor cores are the next step.
//
// The order of a sum depends on k and on the class (SPLIT) alone, not on the row count: a row gives the same bits alone
// and beside others. Two classes:
//   warp    one warp holds the whole k of 4 rows of w; no barrier; wants many rows of w
//   block   the four warps of a block share the k of 4 rows of w and add up through shared memory; for few or long rows
//
// k is a multiple of 8; x, w 16-byte aligned. Plain C++ with warp intrinsics, so that the emulation in tests/emulated
// runs this file unchanged.

#include "skinny.cuh"

// SPLIT warps share the k of one tile; a block has WARPS / SPLIT tiles.
template <unsigned ROWS, unsigned SPLIT, unsigned WARPS>
__device__ __forceinline__ void skinny(
    const uint4* __restrict__ x, const uint4* __restrict__ w, float* __restrict__ y, const unsigned n,
    const unsigned k) {
  const unsigned lane = threadIdx.x % LANES;
  const unsigned warp = threadIdx.x / LANES;
  const unsigned part = warp % SPLIT;
  const unsigned first = (blockIdx.x * (WARPS / SPLIT) + warp / SPLIT) * TILE;
  const unsigned chunks = k / CHUNK;

  // Past the last row of w a lane reads the last row again and stores nothing: no lane leaves before the shuffles.
  const uint4* rows[TILE];
#pragma unroll
  for (unsigned t = 0; t < TILE; ++t) rows[t] = w + (size_t)(first + t < n ? first + t : n - 1) * chunks;

  float sum[ROWS][TILE] = {};
  sum_rows<ROWS, SPLIT>(sum, x, rows, chunks, part);

  if constexpr (SPLIT == 1) {
#pragma unroll
    for (unsigned row = 0; row < ROWS; ++row) {
#pragma unroll
      for (unsigned t = 0; t < TILE; ++t) {
        if (lane == row * TILE + t && first + t < n) y[(size_t)row * n + first + t] = sum[row][t];
      }
    }
  } else {
    // Over the warps, in ascending order.
    static_assert(WARPS == SPLIT, "one tile a block");
    __shared__ float partial[SPLIT][ROWS * TILE];
#pragma unroll
    for (unsigned row = 0; row < ROWS; ++row) {
#pragma unroll
      for (unsigned t = 0; t < TILE; ++t) {
        if (lane == row * TILE + t) partial[part][lane] = sum[row][t];
      }
    }
    __syncthreads();
    if (threadIdx.x < ROWS * TILE) {
      const unsigned t = threadIdx.x % TILE;
      float total = partial[0][threadIdx.x];
#pragma unroll
      for (unsigned p = 1; p < SPLIT; ++p) total += partial[p][threadIdx.x];
      if (first + t < n) y[(size_t)(threadIdx.x / TILE) * n + first + t] = total;
    }
  }
}

#define SKINNY(ROWS)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, 1)                                                                 \
      skinny_warp_##ROWS(const uint4* x, const uint4* w, float* y, unsigned n, unsigned k) {                           \
    skinny<ROWS, 1, 8>(x, w, y, n, k);                                                                                 \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 1)                                                                 \
      skinny_block_##ROWS(const uint4* x, const uint4* w, float* y, unsigned n, unsigned k) {                          \
    skinny<ROWS, 4, 4>(x, w, y, n, k);                                                                                 \
  }

SKINNY(1)
SKINNY(2)
SKINNY(3)
SKINNY(4)
SKINNY(5)
SKINNY(6)
SKINNY(7)
SKINNY(8)
