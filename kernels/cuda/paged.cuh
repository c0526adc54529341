// Paged keys and values, and what a step says of its sequences.
//
// The cache of a layer is two buffers, keys and values, [block][kv head][PAGE positions][dim]: a head's page is one
// contiguous piece of memory. A *span* is the rows of one sequence in a step; their keys and values are in the cache
// before attention begins. All counts that change from step to step are read from device memory.
#pragma once

#include "pairs.cuh"

// Positions of a block.
constexpr unsigned PAGE = 16;

// The rows of a sequence in a step, four words: its first row, how many, the position of the first, and where its block
// table begins in the array of all tables.
struct Span {
  unsigned row, rows, position, table;
};

__device__ __forceinline__ Span span_of(const uint4 record) { return {record.x, record.y, record.z, record.w}; }

// The first position that a row at `position` sees: the last `window` up to its own. All: window = ~0.
__device__ __forceinline__ unsigned first_seen(const unsigned position, const unsigned window) {
  return position < window ? 0 : position + 1 - window;
}

// What a page holds. Numbers of a head in e4m3 are multiplied with a scale of the head before they are rounded.
struct Bf16 {
  static constexpr unsigned BYTES = 2;
};
struct E4m3 {
  static constexpr unsigned BYTES = 1;
};

// Where 16-byte chunk `column` of row `row` lies in a tile of shared memory with rows of COLUMNS chunks, a multiple of 8:
// eight rows of one column are in different banks, and so are eight columns of one row. Bits that are turned over in the
// column, or in the lowest three of the row, are turned over in the place: loops begin with a lane's own and turn over
// what they know when they are unrolled.
template <unsigned COLUMNS>
__device__ __forceinline__ unsigned swizzled(const unsigned row, const unsigned column) {
  static_assert(COLUMNS % 8 == 0, "a column stays among eight");
  return row * COLUMNS + (column ^ row % 8);
}
