// The work lists of attention, made on the device once per step from what the step says of its sequences, so that a
// captured step can be replayed without the host knowing a length. All layers of a step use the same lists.
//
// The rows of a span of at most `split` rows become *pieces* for attend_decode.cu: the positions that a row sees, cut at
// absolute multiples of `piece`. What a row's pieces are depends on its position and the window alone, never on its
// neighbours, so that a token of a draft has the bits it has alone; each row of a draft reads its past anew. Any other
// span becomes *tiles* for attend_prompt.cu: TILE_ROWS at a time of its (row, head of a group) pairs, the last ones
// first, because they see the most and so should begin first. `split` = 0 gives every span to attend_prompt.cu.
//
// Bytes moved: 16 a span, 32 a piece, 8 a tile: nothing. One block; its time is a few microseconds once per step.

#include "chain.cuh"
#include "paged.cuh"

constexpr unsigned PLAN_THREADS = 256;
// Query rows of a tile, as in attend_prompt.cu.
constexpr unsigned TILE_ROWS = 64;

__device__ __forceinline__ unsigned pieces_of(const unsigned position, const unsigned piece, const unsigned window) {
  return position / piece - first_seen(position, window) / piece + 1;
}

// counts[0] pieces and counts[1] tiles. A piece is two records:
//   row, start of the block table, first position, position behind the last
//   the row's first piece, how many it has, 0, 0
// A tile is the number of its span and its own within the span.
extern "C" __global__ void __launch_bounds__(PLAN_THREADS) attend_plan(
    const uint4* spans, const unsigned* span_count, const unsigned group, const unsigned piece, const unsigned window,
    const unsigned split, uint4* pieces, uint2* tiles, unsigned* counts) {
  let_next_begin();
  wait_for_past();
  // How many pieces and tiles come before a span of the batch and with it; two copies, as one is read while the other
  // is written.
  __shared__ uint2 upto[2][PLAN_THREADS];
  const unsigned thread = threadIdx.x;
  const unsigned lane = thread % LANES, warp = thread / LANES;
  const unsigned total = *span_count;
  uint2 before = {0, 0};
  for (unsigned base = 0; base < total; base += PLAN_THREADS) {
    uint2 mine = {0, 0};
    if (base + thread < total) {
      const Span span = span_of(spans[base + thread]);
      if (span.rows <= split) {
        for (unsigned row = 0; row < span.rows; ++row) mine.x += pieces_of(span.position + row, piece, window);
      } else {
        mine.y = (span.rows * group + TILE_ROWS - 1) / TILE_ROWS;
      }
    }
    upto[0][thread] = mine;
    __syncthreads();
    unsigned from = 0;
    for (unsigned apart = 1; apart < PLAN_THREADS; apart *= 2) {
      uint2 sum = upto[from][thread];
      if (thread >= apart) {
        const uint2 other = upto[from][thread - apart];
        sum.x += other.x;
        sum.y += other.y;
      }
      upto[1 - from][thread] = sum;
      __syncthreads();
      from = 1 - from;
    }

    // A warp writes the lists of a span.
    const unsigned here = total - base < PLAN_THREADS ? total - base : PLAN_THREADS;
    for (unsigned i = warp; i < here; i += PLAN_THREADS / LANES) {
      const Span span = span_of(spans[base + i]);
      const uint2 end = upto[from][i];
      const uint2 skip = i > 0 ? upto[from][i - 1] : uint2{0, 0};
      unsigned first = before.x + skip.x;
      const unsigned rows = end.x > skip.x ? span.rows : 0;
      for (unsigned row = 0; row < rows; ++row) {
        const unsigned position = span.position + row, start = first_seen(position, window);
        const unsigned own = pieces_of(position, piece, window);
        for (unsigned n = lane; n < own; n += LANES) {
          const unsigned low = (start / piece + n) * piece, high = low + piece;
          pieces[2 * (first + n)] = {
              span.row + row, span.table, low < start ? start : low, high < position + 1 ? high : position + 1};
          pieces[2 * (first + n) + 1] = {first, own, 0, 0};
        }
        first += own;
      }
      const unsigned count = end.y - skip.y;
      for (unsigned n = lane; n < count; n += LANES) tiles[before.y + skip.y + n] = {base + i, count - 1 - n};
    }
    const uint2 all = upto[from][PLAN_THREADS - 1];
    before.x += all.x;
    before.y += all.y;
    __syncthreads();
  }
  if (thread == 0) {
    counts[0] = before.x;
    counts[1] = before.y;
  }
}
