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

#include "numbers.cuh"

// Rows of w to a group of lanes: each input that was loaded and widened is used this often.
constexpr unsigned TILE = 4;
// 16-byte loads of each row of w that a lane has in flight.
constexpr unsigned DEPTH = 2;

// Adds the products of one chunk of TILE rows of w with every row of x, k ascending.
template <unsigned ROWS>
__device__ __forceinline__ void add_chunk(
    float (&sum)[ROWS][TILE], const uint4* __restrict__ x, const unsigned chunks, const unsigned chunk,
    const uint4 (&packed)[TILE]) {
  float weight[TILE][CHUNK];
#pragma unroll
  for (unsigned t = 0; t < TILE; ++t) widen(packed[t], weight[t]);
#pragma unroll
  for (unsigned row = 0; row < ROWS; ++row) {
    float input[CHUNK];
    widen(__ldg(x + row * chunks + chunk), input);
#pragma unroll
    for (unsigned t = 0; t < TILE; ++t) {
#pragma unroll
      for (unsigned i = 0; i < CHUNK; ++i) sum[row][t] = fmaf(input[i], weight[t][i], sum[row][t]);
    }
  }
}

// SPLIT warps share the k of one tile; a block has WARPS / SPLIT tiles.
template <unsigned ROWS, unsigned SPLIT, unsigned WARPS>
__device__ __forceinline__ void skinny(
    const uint4* __restrict__ x, const uint4* __restrict__ w, float* __restrict__ y, const unsigned n,
    const unsigned k) {
  constexpr unsigned STRIDE = LANES * SPLIT;
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
  unsigned chunk = part * LANES + lane;
  for (; chunk + (DEPTH - 1) * STRIDE < chunks; chunk += DEPTH * STRIDE) {
    uint4 packed[DEPTH][TILE];
#pragma unroll
    for (unsigned d = 0; d < DEPTH; ++d) {
#pragma unroll
      for (unsigned t = 0; t < TILE; ++t) packed[d][t] = __ldcs(rows[t] + chunk + d * STRIDE);
    }
#pragma unroll
    for (unsigned d = 0; d < DEPTH; ++d) add_chunk<ROWS>(sum, x, chunks, chunk + d * STRIDE, packed[d]);
  }
  for (; chunk < chunks; chunk += STRIDE) {
    uint4 packed[TILE];
#pragma unroll
    for (unsigned t = 0; t < TILE; ++t) packed[t] = __ldcs(rows[t] + chunk);
    add_chunk<ROWS>(sum, x, chunks, chunk, packed);
  }

  // Over the lanes.
#pragma unroll
  for (unsigned row = 0; row < ROWS; ++row) {
#pragma unroll
    for (unsigned t = 0; t < TILE; ++t) sum[row][t] = warp_sum(sum[row][t]);
  }

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
