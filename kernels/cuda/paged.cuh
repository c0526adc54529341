// Paged keys and values, and what a step says of its sequences.
//
// The cache of a layer is two buffers, keys and values, [block][kv head][PAGE positions][dim]: a head's page is one
// contiguous piece of memory. A *span* is the rows of one sequence in a step; their keys and values are in the cache
// before attention begins. All counts that change from step to step are read from device memory.
#pragma once

#include "numbers.cuh"

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

// Two bf16 times 2^120, exactly.
__device__ __forceinline__ unsigned scale_up(const unsigned word) {
#ifdef __CUDACC__
  unsigned out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(word), "r"(0x7b807b80u), "r"(0x80008000u));
  return out;
#else
  return pack_bf16(first_of(word) * 0x1p120f, second_of(word) * 0x1p120f);
#endif
}

// Two e4m3, in the upper bytes of the halves of a word, as bf16. The bits of an e4m3 in the places of those of a bf16 are
// its value times 2^-120, small ones of few bits included.
__device__ __forceinline__ unsigned widen_e4m3(const unsigned word) {
  return scale_up((word & 0x80008000u) | (word >> 4 & 0x07f007f0u));
}

// Bytes 0 and 1, 2 and 3, 0 and 2, 1 and 3 of a word of four e4m3.
__device__ __forceinline__ unsigned lower_pair(const unsigned word) {
  return widen_e4m3(__byte_perm(word, 0, 0x1404));
}
__device__ __forceinline__ unsigned upper_pair(const unsigned word) {
  return widen_e4m3(__byte_perm(word, 0, 0x3424));
}
__device__ __forceinline__ unsigned even_pair(const unsigned word) { return widen_e4m3(word << 8); }
__device__ __forceinline__ unsigned odd_pair(const unsigned word) { return widen_e4m3(word); }

// Where 16-byte chunk `column` of row `row` lies in a tile of shared memory with rows of COLUMNS chunks, a multiple of 8:
// eight rows of one column are in different banks, and so are eight columns of one row. Bits that are turned over in the
// column, or in the lowest three of the row, are turned over in the place: loops begin with a lane's own and turn over
// what they know when they are unrolled.
template <unsigned COLUMNS>
__device__ __forceinline__ unsigned swizzled(const unsigned row, const unsigned column) {
  static_assert(COLUMNS % 8 == 0, "a column stays among eight");
  return row * COLUMNS + (column ^ row % 8);
}
