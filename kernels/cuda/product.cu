// The product of any number of rows with a bf16 weight on the tensor cores:
//   y[row][n] = sum over k of x[row][k] * w[n][k]
//
// w is row-major as a checkpoint has it, x is bf16, sums are f32. What follows a sum and its bias is in epilogue.cuh:
// the activation of a feed-forward layer and the addition to the residual stream cost no pass of their own.
//
// The order of a sum is one for every tile, so a row gives the same bits alone, beside others, in a decode step and in
// a chunk of a prompt. It depends on n, k and the epilogue alone (`parts`, which the launch code takes from them):
//   a part is 64 * ceil(ceil(k / 64) / parts) consecutive k; in it one chain of mma.m16n8k16 from zero, k ascending;
//   the last part gets the bias; parts are added to each other (SET) or to y (ADD) one by one, ascending.
// Four parts up to n = 16384: a weight of 4096 rows has 128 tiles of 32, and four warps that share the k of each keep
// enough loads under way on every multiprocessor. One part for wider weights, and for gates, whose two sums must be
// whole before they are bent.
//
// Tiles (rows x n), all 64 k deep, and who takes the parts:
//   16 x 32     each of four warps one part, with its own pipeline and no barrier in the loop; joined in shared memory
//   16 x 64     one part; four warps share the rows of x
//   64 x 128, 128 x 128, 128 x 256   the block, one part after the other, each added to y by the thread that owns it;
//               or, but for the last, "spread": a block a part, sums to `scratch`, joined by the block that ends last
// Which of them runs depends on the bucket and the device, and changes no bit.
//
// Bytes moved: 2 n k once (blocks that share a tile of w run together) + 2 m k from the second-level cache for every
// n-tile + the output. Ceiling: up to about 200 rows the read of w, above it the rate of mma, about 60 % of wgmma's on
// Hopper. Bytes of w in flight: 48 KiB a block of 16 x 32 and of 64 x 128, 32 KiB of 16 x 64 and of 128 x 128, with
// two to four blocks a multiprocessor, where 4 TB/s at 800 ns want 25 KiB. What limits: the cache, from which x comes
// again for every n-tile: half the bytes of w at 16 rows by 32, half at 64 by 128. At 128 by 128 both come at 64 flops
// a byte, more than the cache gives the tensor cores; hence 128 by 256 (85 flops a byte) where the device has the
// shared memory, and 64 x 64 of it a warp, so that ldmatrix takes two thirds of what shared memory gives.
//
// Shared memory: rows of 128 bytes, 16-byte chunk c of row r at c ^ (r % 8), so neither the copies nor ldmatrix meet a
// bank twice. n and k are multiples of 8 (gates: n of 16); x and w 16-byte aligned. Rows are counted on the device.
// May be chained: waits at once, and so gains the time of a launch alone.

#include "chain.cuh"
#include "parts.cuh"

// A part a warp: each has its own stages and meets the others only at the end.
template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void product_warps(const Product& p, const unsigned rows) {
  static_assert(T::WARPS == 1 && !IS_GATE<EPILOGUE>, "a warp a part");
  static_assert(T::ROWS * T::COLUMNS * 4 <= T::BYTES, "the sums take the place of the stages");
  static_assert(T::DOWN == 1 && T::ACROSS == PARTS, "a warp joins an mma tile");
  DYNAMIC_SHARED(uint4, shared);
  const Operands op = {p.x, p.w, rows, p.n, p.k / CHUNK, blockIdx.x * T::ROWS, blockIdx.y * T::COLUMNS};
  if (op.first_row >= rows) return;
  const Parts parts = cut(p.k, PARTS);
  const unsigned warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  uint4* const stages = shared + warp * T::STAGES * T::STAGE;
  const unsigned from = warp * parts.each;
  const unsigned end = from + parts.each < parts.steps ? from + parts.each : parts.steps;
  Feed<T>::accumulate(op, stages, lane, from, end, parts.each, [&](const Sums<T>& sum) {
    // All lanes have read their last stage.
    __syncwarp();
#pragma unroll
    for (unsigned j = 0; j < T::ACROSS; ++j) {
      reinterpret_cast<float4*>(stages)[j * LANES + lane] = {sum[0][j][0], sum[0][j][1], sum[0][j][2], sum[0][j][3]};
    }
  });
  __syncthreads();
  join_parts<EPILOGUE>(p, op, place<T>(op, lane, 0, warp), parts.count, [&](const unsigned part) {
    return reinterpret_cast<const float4*>(shared + part * T::STAGES * T::STAGE)[threadIdx.x];
  });
}

using Tile16Part = Tile<16, 32, 16, 32, 4>;

// The grid is row tiles x n tiles (x parts where they are spread).
#define PRODUCT(NAME, THREADS, BLOCKS, ...)                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                        \
      product_##NAME(const uint4* x, const uint4* w, const float* bias, void* y, float* scratch, unsigned* counters,   \
                     const unsigned* rows, unsigned n, unsigned k, unsigned parts) {                                   \
    let_next_begin();                                                                                                  \
    wait_for_past();                                                                                                   \
    __VA_ARGS__({x, w, bias, y, scratch, counters, n, k, parts}, *rows);                                               \
  }
#define WHOLE(TILE, THREADS, BLOCKS, ...)                              \
  PRODUCT(TILE##_set, THREADS, BLOCKS, product<__VA_ARGS__, SET>)      \
  PRODUCT(TILE##_add, THREADS, BLOCKS, product<__VA_ARGS__, ADD>)      \
  PRODUCT(TILE##_silu, THREADS, BLOCKS, product<__VA_ARGS__, SILU>)    \
  PRODUCT(TILE##_gelu, THREADS, BLOCKS, product<__VA_ARGS__, GELU>)
#define SPREAD(TILE, THREADS, BLOCKS, ...)                                    \
  PRODUCT(TILE##_spread_set, THREADS, BLOCKS, product_spread<__VA_ARGS__, SET>) \
  PRODUCT(TILE##_spread_add, THREADS, BLOCKS, product_spread<__VA_ARGS__, ADD>)

PRODUCT(16_parts_set, 128, 2, product_warps<Tile16Part, SET>)
PRODUCT(16_parts_add, 128, 2, product_warps<Tile16Part, ADD>)
WHOLE(16, 128, 4, Tile16)
WHOLE(64, 256, 2, Tile64)
SPREAD(64, 256, 2, Tile64)
WHOLE(128, 128, 2, Tile128)
SPREAD(128, 128, 2, Tile128)
WHOLE(128_wide, 256, 1, Tile128Wide)

// Many rows on Hopper. Here, so that no file is without kernels on the other generations.
#include "hopper.cuh"

#ifdef WARPGROUPS

// The grid is any number of blocks; one a multiprocessor is best.
#define HOPPER(TILE, ENDING, T, EPILOGUE)                                                                  \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                     \
      product_hopper_##TILE##_##ENDING(const uint4* x, const uint4* w, const float* bias, void* y,         \
                                       const unsigned* rows, unsigned n, unsigned k) {                     \
    const Product p = {x, w, bias, y, nullptr, nullptr, n, k, 1};                                          \
    product_hopper<T, EPILOGUE>(p, OneWeight<T>(p, *rows));                                                \
  }
#define HOPPER_TILE(TILE, T)      \
  HOPPER(TILE, set, T, SET)       \
  HOPPER(TILE, add, T, ADD)       \
  HOPPER(TILE, silu, T, SILU)     \
  HOPPER(TILE, gelu, T, GELU)

HOPPER_TILE(128, Wide128)
HOPPER_TILE(256, Wide256)

#endif
