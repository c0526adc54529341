// The inner loop of a product of few rows: what a warp, alone or with others, sums of some rows of w.
//
// The order of a sum depends on k and on SPLIT alone: a lane takes the chunks of 8 that are LANES * SPLIT apart, ascending,
// then the lanes are added in a tree. Which rows of w stand beside one another changes nothing.
//
// In a chained launch (chain.cuh) a lane's first DEPTH * TILE loads of w are under way before the wait, and as many more on
// their way into the second-level cache: 32 KiB and 32 KiB a block of 256 threads. With one row three such blocks fit a
// multiprocessor (seven of 128 threads): 12 MB and 12 MB (15 and 15) on one of 132, 3 us of its memory each.
#pragma once

#include "chain.cuh"
#include "numbers.cuh"

// Rows of w to a group of lanes: each input that was loaded and widened is used this often.
constexpr unsigned TILE = 4;
// 16-byte loads of each row of w that a lane has in flight.
constexpr unsigned DEPTH = 2;

// Adds the products of one chunk of TILE rows of w with every row of x, k ascending.
template <unsigned ROWS>
__device__ __forceinline__ void add_chunk(
    float (&sum)[ROWS][TILE], const uint4* x, const unsigned chunks, const unsigned chunk,
    const uint4 (&packed)[TILE]) {
  float weight[TILE][CHUNK];
#pragma unroll
  for (unsigned t = 0; t < TILE; ++t) widen(packed[t], weight[t]);
#pragma unroll
  for (unsigned row = 0; row < ROWS; ++row) {
    float input[CHUNK];
    widen(x[row * chunks + chunk], input);
#pragma unroll
    for (unsigned t = 0; t < TILE; ++t) {
#pragma unroll
      for (unsigned i = 0; i < CHUNK; ++i) sum[row][t] = fmaf(input[i], weight[t][i], sum[row][t]);
    }
  }
}

// Rows of w that are known before the past is over: the first of them are loaded before it is waited for.
struct BeforePast {
  static constexpr bool WAITS = true;
};
// Those that the past chooses. It was waited for.
struct AfterPast {
  static constexpr bool WAITS = false;
};

// The sums of ROWS rows of x with the TILE `rows` of w, over this warp's part of k, in all its lanes. SPLIT warps share
// k; this is `part` of them.
template <unsigned ROWS, unsigned SPLIT, typename Begin = AfterPast>
__device__ __forceinline__ void sum_rows(
    float (&sum)[ROWS][TILE], const uint4* x, const uint4* const (&rows)[TILE], const unsigned chunks,
    const unsigned part, Begin = {}) {
  constexpr unsigned STRIDE = LANES * SPLIT, ROUND = DEPTH * STRIDE;
  unsigned chunk = part * LANES + threadIdx.x % LANES;
  uint4 packed[DEPTH][TILE];
  const auto is_whole = [&](const unsigned chunk) { return chunk + (DEPTH - 1) * STRIDE < chunks; };
  const auto load = [&] {
#pragma unroll
    for (unsigned d = 0; d < DEPTH; ++d) {
#pragma unroll
      for (unsigned t = 0; t < TILE; ++t) packed[d][t] = __ldcs(rows[t] + chunk + d * STRIDE);
    }
  };
  if (is_whole(chunk)) load();
  if constexpr (Begin::WAITS) {
    if (is_whole(chunk + ROUND)) {
#pragma unroll
      for (unsigned d = 0; d < DEPTH; ++d) {
#pragma unroll
        for (unsigned t = 0; t < TILE; ++t) prefetch(rows[t] + chunk + ROUND + d * STRIDE);
      }
    }
    wait_for_past();
  }
  const auto add = [&] {
#pragma unroll
    for (unsigned d = 0; d < DEPTH; ++d) add_chunk<ROWS>(sum, x, chunks, chunk + d * STRIDE, packed[d]);
    chunk += ROUND;
  };
  if (is_whole(chunk)) add();
  while (is_whole(chunk)) {
    load();
    add();
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
