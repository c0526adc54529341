// A weight of 8, 6 or 4 bits on its way to the tensor cores of a tile: packed numbers are copied to shared memory beside the
// lines of x, widened there, times their scale and rounded to bf16, into the lines that a weight of bf16 would have.
// weightonly.cu says what the formats are, src/cuda/weightonly.rs how they lie.
#pragma once

#include "formats.cuh"
#include "pairs.cuh"
#include "parts.cuh"

// Rows of a panel, columns of a step, bytes of a quad: how a weight is packed.
constexpr unsigned PANEL = 16, STEP = 128, QUAD = 512;

// A format. A *piece* is what a lane has of a stage: 16 numbers, chunks t and t + 4 of the line of its row.
//   QUADS   of a panel's step      PIECE   bytes of a piece
//   at      where the piece of row g + 8 `half` of stage `step` begins in a step's bytes, less 16 bytes a lane
//   scale   of a row of a panel in a stage
//   chunk   one of a piece's two chunks, widened
// and of numbers of six bits, whose groups want the columns in another order:
//   UPPER, upper_at   the same of the piece of their upper bits
//   half_chunk        half of chunk 2 `which` or + 1 of the line, that of lane t of four, widened
struct PackedInt8 {
  static constexpr unsigned QUADS = 4, PIECE = 16, UPPER = 0;
  using Scale = unsigned;

  static __device__ __forceinline__ unsigned at(const unsigned step, const unsigned half) {
    return (step % 2 * 2 + half) * QUAD;
  }
  // Twice, for two numbers at a time.
  static __device__ __forceinline__ Scale scale(
      const void* const from, const size_t panel_step, const unsigned, const unsigned row, const unsigned) {
    return __ldg(static_cast<const unsigned short*>(from) + panel_step * PANEL + row) * 0x10001u;
  }
  static __device__ __forceinline__ uint4 chunk(const unsigned char* const piece, const unsigned which, const Scale scale) {
    const uint2 words = reinterpret_cast<const uint2*>(piece)[which];
    return {times(widen_int8(words.x), scale), times(widen_int8(words.x >> 8), scale),
            times(widen_int8(words.y), scale), times(widen_int8(words.y >> 8), scale)};
  }
};

// A pair times its scale, rounded once.
__device__ __forceinline__ unsigned scaled(const unsigned pair, const float scale) {
  return pack_bf16(__fmul_rn(first_of(pair), scale), __fmul_rn(second_of(pair), scale));
}

struct PackedFp8 {
  static constexpr unsigned QUADS = 4, PIECE = 16, UPPER = 0;
  using Scale = float;

  static __device__ __forceinline__ unsigned at(const unsigned step, const unsigned half) { return PackedInt8::at(step, half); }
  static __device__ __forceinline__ Scale scale(
      const void* const from, const size_t, const unsigned panel, const unsigned row, const unsigned) {
    return __ldg(static_cast<const float*>(from) + panel * PANEL + row);
  }
  static __device__ __forceinline__ uint4 chunk(const unsigned char* const piece, const unsigned which, const Scale scale) {
    const uint2 words = reinterpret_cast<const uint2*>(piece)[which];
    return {scaled(even_pair(words.x), scale), scaled(odd_pair(words.x), scale), scaled(even_pair(words.y), scale),
            scaled(odd_pair(words.y), scale)};
  }
};

struct PackedInt4 {
  static constexpr unsigned QUADS = 2, PIECE = 8, UPPER = 0;
  // Of both chunks: each lies in a group of its own.
  using Scale = unsigned;

  static __device__ __forceinline__ unsigned at(const unsigned step, const unsigned half) {
    return half * QUAD + step % 2 * PIECE;
  }
  static __device__ __forceinline__ Scale scale(
      const void* const from, const size_t panel_step, const unsigned, const unsigned row, const unsigned step) {
    return __ldg(static_cast<const unsigned*>(from) + (panel_step * PANEL + row) * 2 + step % 2);
  }
  static __device__ __forceinline__ uint4 chunk(const unsigned char* const piece, const unsigned which, const Scale scale) {
    const unsigned word = reinterpret_cast<const unsigned*>(piece)[which];
    const unsigned own = (which == 0 ? scale & 0xffffu : scale >> 16) * 0x10001u;
    return {times(widen_int4(word), own), times(widen_int4(word >> 4), own), times(widen_int4(word >> 8), own),
            times(widen_int4(word >> 12), own)};
  }
};

// candle's blocks. A number times its scale is exact in f32, and so are both terms of Q4K.
struct PackedQ8_0 {
  static constexpr unsigned QUADS = 4, PIECE = 16, UPPER = 0;
  // Of both chunks: each lies in a group of its own.
  using Scale = unsigned;

  static __device__ __forceinline__ unsigned at(const unsigned step, const unsigned half) { return PackedInt8::at(step, half); }
  static __device__ __forceinline__ Scale scale(
      const void* const from, const size_t panel_step, const unsigned panel, const unsigned row, const unsigned step) {
    return PackedInt4::scale(from, panel_step, panel, row, step);
  }
  static __device__ __forceinline__ uint4 chunk(const unsigned char* const piece, const unsigned which, const Scale scale) {
    const uint2 words = reinterpret_cast<const uint2*>(piece)[which];
    const float own = widen_f16(which == 0 ? scale & 0xffffu : scale >> 16);
    return {scaled(widen_int8(words.x), own), scaled(widen_int8(words.x >> 8), own),
            scaled(widen_int8(words.y), own), scaled(widen_int8(words.y >> 8), own)};
  }
};

struct PackedQ6K {
  static constexpr unsigned QUADS = 3, PIECE = 8, UPPER = 4;
  // Of four groups, and what they count in.
  struct Scale { unsigned groups, unit; };

  static __device__ __forceinline__ unsigned at(const unsigned step, const unsigned half) { return PackedInt4::at(step, half); }
  static __device__ __forceinline__ unsigned upper_at(const unsigned step, const unsigned half) {
    return 2 * QUAD + (half * 2 + step % 2) * UPPER;
  }
  static __device__ __forceinline__ Scale scale(
      const void* const from, const size_t panel_step, const unsigned, const unsigned row, const unsigned step) {
    const unsigned char* const all = static_cast<const unsigned char*>(from) + panel_step * PANEL * 10;
    return {__ldg(reinterpret_cast<const unsigned*>(all) + row * 2 + step % 2),
            __ldg(reinterpret_cast<const unsigned short*>(all + PANEL * 8) + row)};
  }
  static __device__ __forceinline__ uint2 half_chunk(
      const unsigned char* const piece, const unsigned char* const upper_piece, const unsigned which, const Scale scale) {
    const unsigned lower = reinterpret_cast<const unsigned*>(piece)[which / 2] >> which % 2 * 8;
    const unsigned upper = *reinterpret_cast<const unsigned*>(upper_piece) >> which * 4;
    const float own = times_byte(widen_f16(scale.unit), scale.groups, which, 128.0f);
    return {scaled(widen_six(lower, upper), own), scaled(widen_six(lower >> 4, upper >> 2), own)};
  }
};

struct PackedQ4K {
  static constexpr unsigned QUADS = 2, PIECE = 8, UPPER = 0;
  // Scale and minimum of two groups, and what they count in.
  struct Scale { unsigned groups, units; };

  static __device__ __forceinline__ unsigned at(const unsigned step, const unsigned half) { return PackedInt4::at(step, half); }
  static __device__ __forceinline__ Scale scale(
      const void* const from, const size_t panel_step, const unsigned, const unsigned row, const unsigned step) {
    const unsigned char* const all = static_cast<const unsigned char*>(from) + panel_step * PANEL * 12;
    return {__ldg(reinterpret_cast<const unsigned*>(all) + row * 2 + step % 2),
            __ldg(reinterpret_cast<const unsigned*>(all + PANEL * 8) + row)};
  }
  static __device__ __forceinline__ unsigned number(const unsigned word, const float scale, const float minimum) {
    const unsigned pair = widen_four(word);
    return pack_bf16(fmaf(first_of(pair), scale, -minimum), fmaf(second_of(pair), scale, -minimum));
  }
  static __device__ __forceinline__ uint4 chunk(const unsigned char* const piece, const unsigned which, const Scale scale) {
    const unsigned word = reinterpret_cast<const unsigned*>(piece)[which];
    const float own = times_byte(widen_f16(scale.units & 0xffffu), scale.groups, which * 2);
    const float minimum = times_byte(widen_f16(scale.units >> 16), scale.groups, which * 2 + 1);
    return {number(word, own, minimum), number(word >> 4, own, minimum), number(word >> 8, own, minimum),
            number(word >> 12, own, minimum)};
  }
};

// A tile whose weight is packed. A stage holds lines of x and packed numbers; behind the stages are the lines of two
// stages of w, widened.
template <typename F, unsigned ROWS_, unsigned COLUMNS_, unsigned WARP_ROWS_, unsigned WARP_COLUMNS_, unsigned STAGES_>
struct NarrowTile : Tile<ROWS_, COLUMNS_, WARP_ROWS_, WARP_COLUMNS_, STAGES_> {
  using Format = F;
  static constexpr unsigned LINES = ROWS_ * STEP_CHUNKS, WIDE = COLUMNS_ * STEP_CHUNKS;  // in chunks
  static constexpr unsigned STAGE = LINES + COLUMNS_ * 4 * (F::PIECE + F::UPPER) / 16;
  static constexpr unsigned BYTES = (STAGES_ * STAGE + 2 * WIDE) * 16;
};

template <typename F>
using Narrow16 = NarrowTile<F, 16, 64, 16, 16, 5>;
template <typename F>
using Narrow64 = NarrowTile<F, 64, 128, 32, 32, 4>;
template <typename F>
using Narrow128 = NarrowTile<F, 128, 128, 64, 64, 3>;

template <typename F, unsigned... SIZES>
struct Feed<NarrowTile<F, SIZES...>> {
  using T = NarrowTile<F, SIZES...>;
  // Of a thread, in a stage.
  static constexpr unsigned PIECES = T::COLUMNS * 4 / T::THREADS;
  static_assert(PIECES * T::THREADS == T::COLUMNS * 4 && T::STAGES > 2, "every thread has as many pieces");

  // Piece `i` of a thread: its row of the tile, and where it is in memory.
  struct Piece {
    unsigned index, panel, half, lane;

    __device__ __forceinline__ Piece(const Operands& op, const unsigned thread, const unsigned i)
        : index(i * T::THREADS + thread), panel(op.first_column / PANEL + index / (2 * LANES)),
          half(index / LANES % 2), lane(index % LANES) {}
    __device__ __forceinline__ unsigned row() const { return half * 8 + lane / 4; }
  };

  // Multiplies as a tile of bf16 does. A thread widens what it copied itself, a stage ahead of what is multiplied, so
  // that one barrier a stage does: it shows the lines of x and of w at once.
  template <typename Finish>
  static __device__ __forceinline__ void accumulate(
      const Operands& op, uint4* const stages, const unsigned thread, const unsigned from, const unsigned end,
      const unsigned each, Finish finish) {
    const unsigned panels = (op.n + PANEL - 1) / PANEL, steps = (op.chunks + STEP / CHUNK - 1) / (STEP / CHUNK);
    uint4* const wide = stages + T::STAGES * T::STAGE;
    const auto packed = [&](const unsigned step, const Piece& piece) {
      unsigned char* const at = reinterpret_cast<unsigned char*>(stages + step % T::STAGES * T::STAGE + T::LINES);
      return at + piece.index * F::PIECE;
    };
    // Behind all pieces of a stage.
    const auto packed_upper = [&](const unsigned step, const Piece& piece) {
      unsigned char* const at = reinterpret_cast<unsigned char*>(stages + step % T::STAGES * T::STAGE + T::LINES);
      return at + T::COLUMNS * 4 * F::PIECE + piece.index * F::UPPER;
    };
    const auto begin_copies = [&](const unsigned step) {
      if (step < end) {
        copy_lines<T::ROWS, T::THREADS>(
            stages + step % T::STAGES * T::STAGE, op.x, op.first_row, op.rows, op.chunks, step * STEP_CHUNKS, thread);
#pragma unroll
        for (unsigned i = 0; i < PIECES; ++i) {
          const Piece piece(op, thread, i);
          const size_t panel_step = (size_t)(op.first_panel + piece.panel) * steps + step / 2;
          const unsigned char* const numbers =
              reinterpret_cast<const unsigned char*>(op.w) + panel_step * F::QUADS * QUAD + piece.lane * 16;
          copy_async<F::PIECE>(packed(step, piece), numbers + F::at(step, piece.half), piece.panel < panels);
          if constexpr (F::UPPER > 0) {
            copy_async<F::UPPER>(packed_upper(step, piece), numbers + F::upper_at(step, piece.half), piece.panel < panels);
          }
        }
      }
      copy_commit();
    };
    typename F::Scale scales[PIECES];
    const auto load_scales = [&](const unsigned step) {
      if (step >= end) return;
#pragma unroll
      for (unsigned i = 0; i < PIECES; ++i) {
        const Piece piece(op, thread, i);
        // Beyond the last panel those of the last, for zeros that nobody stores.
        const unsigned panel = op.first_panel + min(piece.panel, panels - 1);
        scales[i] = F::scale(op.scales, (size_t)panel * steps + step / 2, panel, piece.row(), step);
      }
    };
    const auto widen_stage = [&](const unsigned step) {
      if (step >= end) return;
      uint4* const lines = wide + step % 2 * T::WIDE;
#pragma unroll
      for (unsigned i = 0; i < PIECES; ++i) {
        const Piece piece(op, thread, i);
        const unsigned row = piece.index / (2 * LANES) * PANEL + piece.row();
        const unsigned t = piece.lane % 4;
        if constexpr (F::UPPER > 0) {
#pragma unroll
          for (unsigned c = 0; c < 4; ++c) {
            // Odd rows the other two pairs of chunks first: four rows then store to all banks.
            const unsigned which = c ^ row % 2 * 2;
            uint4* const line = lines + row * STEP_CHUNKS + ((which * 2 + t / 2) ^ row % 8);
            reinterpret_cast<uint2*>(line)[t % 2] =
                F::half_chunk(packed(step, piece), packed_upper(step, piece), which, scales[i]);
          }
        } else {
#pragma unroll
          for (unsigned c = 0; c < 2; ++c) {
            // Odd rows the other chunk first: eight lanes then store to all banks.
            const unsigned which = (c ^ row) % 2;
            const unsigned chunk = t + which * 4;
            lines[row * STEP_CHUNKS + (chunk ^ row % 8)] = F::chunk(packed(step, piece), which, scales[i]);
          }
        }
      }
      load_scales(step + 1);
    };

    load_scales(from);
    for (unsigned ahead = 0; ahead < T::STAGES - 1; ++ahead) begin_copies(from + ahead);
    copy_wait<T::STAGES - 2>();
    widen_stage(from);
    for (unsigned first = from; first < end; first += each) {
      const unsigned past = first + each < end ? first + each : end;
      Sums<T> sum = {};
      for (unsigned step = first; step < past; ++step) {
        copy_wait<T::STAGES - 3>();
        // The lines of this step are there for all, and all are done with those that are filled next.
        __syncthreads();
        begin_copies(step + T::STAGES - 1);
        widen_stage(step + 1);
        multiply<T>(sum, stages + step % T::STAGES * T::STAGE, wide + step % 2 * T::WIDE, thread / LANES);
      }
      finish(sum);
    }
    copy_wait<0>();
  }
};
