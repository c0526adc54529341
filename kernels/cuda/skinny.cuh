// The inner loop of a product of few rows: what a warp, alone or with others, sums of some rows of w.
//
// The order of a sum depends on k and on SPLIT alone: a lane takes the chunks of 8 that are LANES * SPLIT apart, ascending,
// then the lanes are added in a tree. Which rows of w stand beside one another changes nothing.
#pragma once

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

// The sums of ROWS rows of x with the TILE `rows` of w, over this warp's part of k, in all its lanes. SPLIT warps share
// k; this is `part` of them.
template <unsigned ROWS, unsigned SPLIT>
__device__ __forceinline__ void sum_rows(
    float (&sum)[ROWS][TILE], const uint4* __restrict__ x, const uint4* const (&rows)[TILE], const unsigned chunks,
    const unsigned part) {
  constexpr unsigned STRIDE = LANES * SPLIT;
  unsigned chunk = part * LANES + threadIdx.x % LANES;
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
}
