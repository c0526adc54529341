// Products of rows grouped by expert, each with its expert's weight of 8 bits or fewer, on the tensor cores: expert_product.cu
// with the weight of narrow.cu.
//
// Panels of all experts stand behind one another, each expert's own filled to whole ones, and so do their scales. A block
// finds its tile of an expert's rows as in expert_product.cu; from there on it is a tile of narrow.cu with one part. Same
// bits as the product of bf16 with the widened weights, whatever the tile: a row's bits depend on the row, its expert and
// the format alone.
//
// Bytes moved: n k (int4: half) + scales of every expert that has rows + 2 k of each row for every n-tile, from the
// second-level cache + the output. Ceiling: the device's read bandwidth as long as an expert has fewer than about 100 (50)
// rows, then the rate of mma. What limits: as in narrow.cu, and the look for the own expert before the first copy.

#include "grouped.cuh"
#include "narrow.cuh"

template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void expert_narrow(Product p, const unsigned* __restrict__ starts, const unsigned experts) {
  const OwnTile own = own_tile<T::ROWS>(blockIdx.x, starts, experts);
  if (own.end == 0) return;
  p.first_panel = own.expert * ((p.n + PANEL - 1) / PANEL);
  product_tile<T, EPILOGUE>(p, own.end, own.first, blockIdx.y * T::COLUMNS);
}

// The grid is tiles of rows x n tiles. n is that of one expert's weight.
#define EXPERT_NARROW(NAME, THREADS, BLOCKS, ...)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                        \
      expert_narrow_##NAME(const unsigned* starts, const uint4* x, const uint4* w, const void* scales, void* y,        \
                           unsigned experts, unsigned n, unsigned k) {                                                 \
    expert_narrow<__VA_ARGS__>({x, w, nullptr, y, nullptr, nullptr, n, k, 1, scales}, starts, experts);                \
  }
#define EXPERT_NARROW_TILE(NAME, THREADS, BLOCKS, ...)               \
  EXPERT_NARROW(NAME##_set, THREADS, BLOCKS, __VA_ARGS__, SET)       \
  EXPERT_NARROW(NAME##_silu, THREADS, BLOCKS, __VA_ARGS__, SILU)     \
  EXPERT_NARROW(NAME##_gelu, THREADS, BLOCKS, __VA_ARGS__, GELU)
#define EXPERT_NARROW_FORMAT(NAME, F)                          \
  EXPERT_NARROW_TILE(NAME##_16, 128, 4, Narrow16<Packed##F>)   \
  EXPERT_NARROW_TILE(NAME##_64, 256, 2, Narrow64<Packed##F>)   \
  EXPERT_NARROW_TILE(NAME##_128, 128, 2, Narrow128<Packed##F>)

EACH_FORMAT(EXPERT_NARROW_FORMAT)
