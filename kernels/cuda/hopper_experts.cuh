// Products of rows grouped by expert on Hopper (sm_90a): hopper.cuh's with another list of tiles.
//
// Rows of an expert stand side by side from starts[e] to starts[e + 1], weights of all experts behind one another
// (expert_product.cu). A tile of 128 rows belongs to one expert: its rows beyond that expert's last are zeros and are not
// stored. Experts come one after the other, each in hopper.cuh's order, so that the row tiles of an expert run side by
// side with the same piece of its weight: at 512 rows an expert, 132 blocks work on 4 row tiles and 33 tiles of n, and
// every weight comes from memory once. An expert without rows has no tile.
//
// A block finds its tiles in shared memory: where experts begin and how many row tiles are before each, counted once
// before the roles part. It walks the list upwards, so an expert is looked for where the last tile was.
//
// Bytes moved: 2 n k of every expert that has rows + 2 k of each row for every n-tile, from the second-level cache + the
// output. Ceiling: up to about 130 rows an expert the read of the weights (2 n k bytes at 4.3 TB/s take as long as 128 rows
// at 550 TFLOP/s), above it the rate of wgmma. What limits: hopper.cuh's bounds, and tiles that are not full: half a tile
// an expert on average, 11 % of the work at 512 rows an expert and 20 % at 256.
//
// One class: that of hopper.cuh. A row's bits depend on the row and its expert alone.
#pragma once

#include "hopper.cuh"

#ifdef WARPGROUPS

constexpr unsigned MOST_EXPERTS = 64;

// Each row with the weight of its expert.
template <typename T>
struct ByExpert {
  const uint4* w;
  size_t each;             // chunks of an expert's weight
  const unsigned* starts;  // by expert: its first row
  const unsigned* above;   // and the row tiles of those before it; both one more than experts, in shared memory
  unsigned tiles, across;
  unsigned expert = 0;  // of the last tile

  __device__ __forceinline__ unsigned count() const { return tiles * across; }
  __device__ __forceinline__ Work at(const unsigned index) {
    while (index >= above[expert + 1] * across) ++expert;
    const unsigned first = above[expert];
    const uint2 tile = in_turns(index - first * across, above[expert + 1] - first, across);
    return {w + expert * each, starts[expert] + tile.x * T::ROWS, starts[expert + 1], tile.y * T::COLUMNS};
  }
};

template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void expert_product_hopper(
    const Product& p, const unsigned* __restrict__ const borders, const unsigned experts) {
  __shared__ unsigned starts[MOST_EXPERTS + 1], above[MOST_EXPERTS + 1];
  const unsigned own = threadIdx.x;
  if (own <= experts) starts[own] = borders[own];
  __syncthreads();
  if (own <= experts) {
    unsigned tiles = 0;
    for (unsigned expert = 0; expert < own; ++expert) {
      tiles += (starts[expert + 1] - starts[expert] + T::ROWS - 1) / T::ROWS;
    }
    above[own] = tiles;
  }
  __syncthreads();
  const unsigned across = (p.n + T::COLUMNS - 1) / T::COLUMNS;
  const ByExpert<T> tiles = {p.w, (size_t)p.n * (p.k / CHUNK), starts, above, above[experts], across};
  product_hopper<T, EPILOGUE>(p, tiles);
}

// The grid is any number of blocks; one a multiprocessor is best. n is that of one expert's weight.
#define EXPERT_HOPPER(TILE, ENDING, T, EPILOGUE)                                                                       \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                                 \
      expert_product_hopper_##TILE##_##ENDING(const unsigned* starts, const uint4* x, const uint4* w, void* y,         \
                                              unsigned experts, unsigned n, unsigned k) {                              \
    expert_product_hopper<T, EPILOGUE>({x, w, nullptr, y, nullptr, nullptr, n, k, 1}, starts, experts);                \
  }
#define EXPERT_HOPPER_TILE(TILE, T)      \
  EXPERT_HOPPER(TILE, set, T, SET)       \
  EXPERT_HOPPER(TILE, silu, T, SILU)     \
  EXPERT_HOPPER(TILE, gelu, T, GELU)

EXPERT_HOPPER_TILE(128, Wide128)
EXPERT_HOPPER_TILE(256, Wide256)

#endif
