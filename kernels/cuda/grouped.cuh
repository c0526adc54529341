// Which rows a block has where rows are grouped by expert: those of expert e from starts[e] to starts[e + 1].
#pragma once

#include "numbers.cuh"

// Experts whose borders are read together.
constexpr unsigned AT_ONCE = 8;

// A tile of an expert's rows: from `first` on, none beyond `end`, which is 0 where there is no tile.
struct OwnTile {
  unsigned expert, first, end;
};

// Tile `tile` of ROWS rows, counted expert by expert; an expert without rows has none.
template <unsigned ROWS>
__device__ __forceinline__ OwnTile own_tile(
    unsigned tile, const unsigned* __restrict__ starts, const unsigned experts) {
  OwnTile own = {};
  for (unsigned expert = 0; expert < experts && own.end == 0; expert += AT_ONCE) {
    unsigned border[AT_ONCE + 1];
#pragma unroll
    for (unsigned i = 0; i <= AT_ONCE; ++i) border[i] = starts[min(expert + i, experts)];
#pragma unroll
    for (unsigned i = 0; i < AT_ONCE; ++i) {
      if (own.end > 0) continue;
      const unsigned tiles = (border[i + 1] - border[i] + ROWS - 1) / ROWS;
      if (tile < tiles) {
        own = {expert + i, border[i] + tile * ROWS, border[i + 1]};
      } else {
        tile -= tiles;
      }
    }
  }
  return own;
}
