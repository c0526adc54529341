// Products of rows grouped by expert, each with its expert's weight, on the tensor cores.
//
// Rows of an expert stand side by side (experts.cu: group and gather) from starts[e] to starts[e + 1]; weights of all
// experts stand behind one another. A block takes a tile of one expert's rows; how many tiles an expert has is read on
// the device, so the grid is that of the most tiles that a bucket's rows can make, and blocks beyond them return. An
// expert without rows has no tile and its weight is not read.
//
// Bytes moved: 2 n k of every expert that has rows (blocks that share a tile of a weight run together) + 2 k of each row
// for every n-tile, from the second-level cache + the output. Ceiling: the device's read bandwidth as long as an expert has
// fewer than about 200 rows, then the rate of mma. What limits: as in product.cu; before its first copy a block reads
// where experts begin, one trip to the second-level cache, which other blocks of the multiprocessor hide.
//
// One class: each sum is one chain of mma.m16n8k16 from zero, k ascending, whatever the tile; that of product.cu with one
// part. A row's bits depend on the row and its expert alone.

#include "grouped.cuh"
#include "tile.cuh"

template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void expert_product(Product p, const unsigned* __restrict__ starts, const unsigned experts) {
  const OwnTile own = own_tile<T::ROWS>(blockIdx.x, starts, experts);
  if (own.end == 0) return;
  p.w += (size_t)own.expert * p.n * (p.k / CHUNK);
  product_tile<T, EPILOGUE>(p, own.end, own.first, blockIdx.y * T::COLUMNS);
}

// The grid is tiles of rows x n tiles. n is that of one expert's weight.
#define EXPERT_PRODUCT(NAME, THREADS, BLOCKS, ...)                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                        \
      expert_product_##NAME(const unsigned* starts, const uint4* x, const uint4* w, void* y, unsigned experts,         \
                            unsigned n, unsigned k) {                                                                  \
    expert_product<__VA_ARGS__>({x, w, nullptr, y, nullptr, nullptr, n, k, 1}, starts, experts);                       \
  }
#define EXPERT_PRODUCTS(TILE, THREADS, BLOCKS, ...)                    \
  EXPERT_PRODUCT(TILE##_set, THREADS, BLOCKS, __VA_ARGS__, SET)        \
  EXPERT_PRODUCT(TILE##_silu, THREADS, BLOCKS, __VA_ARGS__, SILU)      \
  EXPERT_PRODUCT(TILE##_gelu, THREADS, BLOCKS, __VA_ARGS__, GELU)

EXPERT_PRODUCTS(16, 128, 4, Tile16)
EXPERT_PRODUCTS(64, 256, 2, Tile64)
EXPERT_PRODUCTS(128, 128, 2, Tile128)
EXPERT_PRODUCTS(128_wide, 256, 1, Tile128Wide)

// Many rows an expert on Hopper. Here, so that no file is without kernels on the other generations.
#include "hopper_experts.cuh"
