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
// What follows a sum is in epilogue.cuh: bias, residual and gates cost no pass of their own. A tile of a gated product
// has two rows of gate and the two of up that belong to them. Rows are those of the bucket: one that is beyond the
// step's gives numbers that nobody reads.
//
// k is a multiple of 8 (gates: n of 16); x, w 16-byte aligned. Plain C++ with warp intrinsics, so that the emulation in
// tests/emulated runs this file unchanged. May be chained: the first weights are under way before the wait.

#include "epilogue.cuh"
#include "skinny.cuh"

// The row of w that is row `t` of a tile.
template <unsigned EPILOGUE>
__device__ __forceinline__ unsigned weight_row(const unsigned tile, const unsigned t) {
  if constexpr (IS_GATE<EPILOGUE>) {
    const unsigned gate = tile * (TILE / 2) + t % 2;
    return gate / GATE_ROWS * 2 * GATE_ROWS + gate % GATE_ROWS + t / 2 * GATE_ROWS;
  } else {
    return tile * TILE + t;
  }
}

// Finishes the sums of a tile, one a worker; `of(row * TILE + t)` is a sum.
template <unsigned ROWS, unsigned EPILOGUE, typename Of>
__device__ __forceinline__ void put_tile(
    const float* const bias, void* const y, const unsigned n, const unsigned tile, const unsigned worker, Of of) {
  constexpr unsigned OUTPUTS = IS_GATE<EPILOGUE> ? TILE / 2 : TILE;
  const unsigned row = worker / OUTPUTS, t = worker % OUTPUTS;
  const unsigned from = weight_row<EPILOGUE>(tile, t);
  if (row >= ROWS || from >= n) return;
  const auto biased = [&](const unsigned t, const unsigned from) {
    const float sum = of(row * TILE + t);
    return bias == nullptr ? sum : sum + __ldg(bias + from);
  };
  const float sum = biased(t, from);
  if constexpr (IS_GATE<EPILOGUE>) {
    const float up = biased(t + 2, from + GATE_ROWS);
    static_cast<unsigned short*>(y)[(size_t)row * (n / 2) + tile * OUTPUTS + t] = round_bf16(bend<EPILOGUE>(sum) * up);
  } else {
    float* const to = static_cast<float*>(y) + (size_t)row * n + from;
    *to = EPILOGUE == ADD ? *to + sum : sum;
  }
}

// SPLIT warps share the k of one tile; a block has WARPS / SPLIT tiles.
template <unsigned ROWS, unsigned EPILOGUE, unsigned SPLIT, unsigned WARPS>
__device__ __forceinline__ void skinny(
    const uint4* x, const uint4* __restrict__ w, const float* __restrict__ bias, void* y, const unsigned n,
    const unsigned k) {
  let_next_begin();
  const unsigned lane = threadIdx.x % LANES;
  const unsigned warp = threadIdx.x / LANES;
  const unsigned part = warp % SPLIT;
  const unsigned tile = blockIdx.x * (WARPS / SPLIT) + warp / SPLIT;
  const unsigned chunks = k / CHUNK;

  // Past the last row of w a lane reads the last row again and stores nothing: no lane leaves before the shuffles.
  const uint4* rows[TILE];
#pragma unroll
  for (unsigned t = 0; t < TILE; ++t) {
    const unsigned row = weight_row<EPILOGUE>(tile, t);
    rows[t] = w + (size_t)(row < n ? row : n - 1) * chunks;
  }

  float sum[ROWS][TILE] = {};
  sum_rows<ROWS, SPLIT>(sum, x, rows, chunks, part, BeforePast{});

  if constexpr (SPLIT == 1) {
    put_tile<ROWS, EPILOGUE>(bias, y, n, tile, lane, [&](const unsigned wanted) {
      // All lanes hold all sums; an index would put them into memory.
      float found = 0.0f;
#pragma unroll
      for (unsigned i = 0; i < ROWS * TILE; ++i) found = i == wanted ? sum[i / TILE][i % TILE] : found;
      return found;
    });
  } else {
    // Over the warps, in ascending order.
    static_assert(WARPS == SPLIT, "one tile a block");
    __shared__ float partial[SPLIT][ROWS * TILE];
#pragma unroll
    for (unsigned i = 0; i < ROWS * TILE; ++i) {
      if (lane == i) partial[part][lane] = sum[i / TILE][i % TILE];
    }
    __syncthreads();
    put_tile<ROWS, EPILOGUE>(bias, y, n, tile, threadIdx.x, [&](const unsigned wanted) {
      float total = partial[0][wanted];
#pragma unroll
      for (unsigned p = 1; p < SPLIT; ++p) total += partial[p][wanted];
      return total;
    });
  }
}

// At one row as many warps as without the loads before the wait, for which the compiler would take more registers.
#define SKINNY(NAME, EPILOGUE, ROWS)                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, ROWS == 1 ? 3 : 1) skinny_warp_##NAME##_##ROWS(                     \
      const uint4* x, const uint4* w, const float* bias, void* y, unsigned n, unsigned k) {                            \
    skinny<ROWS, EPILOGUE, 1, 8>(x, w, bias, y, n, k);                                                                 \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, ROWS == 1 ? 6 : 1) skinny_block_##NAME##_##ROWS(                    \
      const uint4* x, const uint4* w, const float* bias, void* y, unsigned n, unsigned k) {                            \
    skinny<ROWS, EPILOGUE, 4, 4>(x, w, bias, y, n, k);                                                                 \
  }
#define SKINNY_ROWS(NAME, EPILOGUE) \
  SKINNY(NAME, EPILOGUE, 1)         \
  SKINNY(NAME, EPILOGUE, 2)         \
  SKINNY(NAME, EPILOGUE, 3)         \
  SKINNY(NAME, EPILOGUE, 4)         \
  SKINNY(NAME, EPILOGUE, 5)         \
  SKINNY(NAME, EPILOGUE, 6)         \
  SKINNY(NAME, EPILOGUE, 7)         \
  SKINNY(NAME, EPILOGUE, 8)

SKINNY_ROWS(set, SET)
SKINNY_ROWS(add, ADD)
SKINNY_ROWS(silu, SILU)
SKINNY_ROWS(gelu, GELU)
