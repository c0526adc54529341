// The inner loop of a product of few rows with a weight of 8, 6 or 4 bits: formats, and what the warps of a block sum of some
// panels. weightonly.cu says how a weight is packed, in which order sums are taken and what it costs.
#pragma once

#include "epilogue.cuh"
#include "formats.cuh"
#include "pairs.cuh"
#include "tensor.cuh"

// Rows of w of an mma, columns of a step, 16-byte chunks of x in it, mma in it, rows of x.
constexpr unsigned PANEL = 16, STEP = 128, X_CHUNKS = STEP / CHUNK, STEP_MMAS = STEP / 16, MOST_ROWS = 8;
// Warps that share the k of a block's panels.
constexpr unsigned SHARERS = 8;

__device__ __forceinline__ unsigned word_of(const uint4& quad, const unsigned i) {
  return i == 0 ? quad.x : i == 1 ? quad.y : i == 2 ? quad.z : quad.w;
}

__device__ __forceinline__ float widened(const unsigned bits) { return __uint_as_float(bits << 16); }

// A format: QUADS of 16 bytes that a lane has of a step, MMAS to a scale (0: none here), and
//   fragment   rows g and g + 8 of mma `i` of a step (tensor.cuh: a)
//   scale      of row g (+ 8 half) for mma `i`, from what `scales` has loaded
//   OFFSETS    whether a group also has `offset`, a number that is added to each of it
struct Int8 {
  static constexpr unsigned QUADS = 4, MMAS = 8;
  static constexpr bool OFFSETS = false;
  struct Scales { unsigned rows[2]; };

  static __device__ __forceinline__ void fragment(unsigned (&a)[4], const uint4 (&quads)[QUADS], const unsigned i) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned word = word_of(quads[i / 4 * 2 + half], i % 4);
      a[half] = widen_int8(word);
      a[2 + half] = widen_int8(word >> 8);
    }
  }
  static __device__ __forceinline__ Scales scales(const void* const from, const size_t step, const unsigned row) {
    const unsigned short* const at = static_cast<const unsigned short*>(from) + step * PANEL + row;
    return {{__ldg(at), __ldg(at + 8)}};
  }
  static __device__ __forceinline__ float scale(const Scales& scales, const unsigned half, unsigned) {
    return widened(scales.rows[half]);
  }
};

struct Fp8 {
  static constexpr unsigned QUADS = 4, MMAS = 0;
  static constexpr bool OFFSETS = false;
  struct Scales {};

  static __device__ __forceinline__ void fragment(unsigned (&a)[4], const uint4 (&quads)[QUADS], const unsigned i) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned word = word_of(quads[i / 4 * 2 + half], i % 4);
      a[half] = even_pair(word);
      a[2 + half] = odd_pair(word);
    }
  }
  static __device__ __forceinline__ Scales scales(const void*, size_t, unsigned) { return {}; }
};

struct Int4 {
  static constexpr unsigned QUADS = 2, MMAS = 2;
  static constexpr bool OFFSETS = false;
  struct Scales { uint2 rows[2]; };

  static __device__ __forceinline__ void fragment(unsigned (&a)[4], const uint4 (&quads)[QUADS], const unsigned i) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned word = word_of(quads[half], i / 2) >> i % 2 * 8;
      a[half] = widen_int4(word);
      a[2 + half] = widen_int4(word >> 4);
    }
  }
  static __device__ __forceinline__ Scales scales(const void* const from, const size_t step, const unsigned row) {
    const uint2* const at = static_cast<const uint2*>(from) + step * PANEL + row;
    return {{__ldg(at), __ldg(at + 8)}};
  }
  static __device__ __forceinline__ float scale(const Scales& scales, const unsigned half, const unsigned i) {
    const unsigned word = i / 4 == 0 ? scales.rows[half].x : scales.rows[half].y;
    return i / 2 % 2 == 0 ? first_of(word) : second_of(word);
  }
};

// candle's blocks. The numbers lie as those of int8.
struct Q8_0 {
  static constexpr unsigned QUADS = 4, MMAS = 2;
  static constexpr bool OFFSETS = false;
  struct Scales { uint2 rows[2]; };

  static __device__ __forceinline__ void fragment(unsigned (&a)[4], const uint4 (&quads)[QUADS], const unsigned i) {
    Int8::fragment(a, quads, i);
  }
  static __device__ __forceinline__ Scales scales(const void* const from, const size_t step, const unsigned row) {
    const uint2* const at = static_cast<const uint2*>(from) + step * PANEL + row;
    return {{__ldg(at), __ldg(at + 8)}};
  }
  static __device__ __forceinline__ float scale(const Scales& scales, const unsigned half, const unsigned i) {
    const unsigned word = i / 4 == 0 ? scales.rows[half].x : scales.rows[half].y;
    return widen_f16(i / 2 % 2 == 0 ? word & 0xffffu : word >> 16);
  }
};

// A scale for each mma, whose columns follow each other: a lane has four of 16.
struct Q6K {
  static constexpr unsigned QUADS = 3, MMAS = 1, BYTES = PANEL * (8 + 2);
  static constexpr bool OFFSETS = false;
  struct Scales {
    uint2 rows[2];
    unsigned short units[2];
  };

  static __device__ __forceinline__ void fragment(unsigned (&a)[4], const uint4 (&quads)[QUADS], const unsigned i) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned lower = word_of(quads[half], i / 2) >> i % 2 * 8;
      const unsigned upper = word_of(quads[2], half * 2 + i / 4) >> i % 4 * 4;
      a[half] = widen_six(lower, upper);
      a[2 + half] = widen_six(lower >> 4, upper >> 2);
    }
  }
  static __device__ __forceinline__ Scales scales(const void* const from, const size_t step, const unsigned row) {
    const unsigned char* const all = static_cast<const unsigned char*>(from) + step * BYTES;
    const uint2* const rows = reinterpret_cast<const uint2*>(all) + row;
    const unsigned short* const units = reinterpret_cast<const unsigned short*>(all + PANEL * 8) + row;
    return {{__ldg(rows), __ldg(rows + 8)}, {__ldg(units), __ldg(units + 8)}};
  }
  static __device__ __forceinline__ float scale(const Scales& scales, const unsigned half, const unsigned i) {
    const unsigned word = i / 4 == 0 ? scales.rows[half].x : scales.rows[half].y;
    return times_byte(widen_f16(scales.units[half]), word, i % 4, 128.0f);
  }
};

// The numbers lie as those of int4 and are made as they are there, less 8: `offset` has the eight scales, which for
// numbers around zero leaves little of the minimum.
struct Q4K {
  static constexpr unsigned QUADS = 2, MMAS = 2, BYTES = PANEL * (8 + 4);
  static constexpr bool OFFSETS = true;
  struct Scales {
    uint2 rows[2];
    unsigned units[2];
  };

  static __device__ __forceinline__ void fragment(unsigned (&a)[4], const uint4 (&quads)[QUADS], const unsigned i) {
    Int4::fragment(a, quads, i);
  }
  static __device__ __forceinline__ Scales scales(const void* const from, const size_t step, const unsigned row) {
    const unsigned char* const all = static_cast<const unsigned char*>(from) + step * BYTES;
    const uint2* const rows = reinterpret_cast<const uint2*>(all) + row;
    const unsigned* const units = reinterpret_cast<const unsigned*>(all + PANEL * 8) + row;
    return {{__ldg(rows), __ldg(rows + 8)}, {__ldg(units), __ldg(units + 8)}};
  }
  static __device__ __forceinline__ unsigned word(const Scales& scales, const unsigned half, const unsigned i) {
    return i / 4 == 0 ? scales.rows[half].x : scales.rows[half].y;
  }
  static __device__ __forceinline__ float scale(const Scales& scales, const unsigned half, const unsigned i) {
    return times_byte(widen_f16(scales.units[half] & 0xffffu), word(scales, half, i), i / 2 % 2 * 2);
  }
  static __device__ __forceinline__ float offset(const Scales& scales, const unsigned half, const unsigned i) {
    const float minimum = times_byte(widen_f16(scales.units[half] >> 16), word(scales, half, i), i / 2 % 2 * 2 + 1);
    return fmaf(8.0f, scale(scales, half, i), -minimum);
  }
};

// What mma 2 i and 2 i + 1 of a step multiply with, of a row of x: a chunk, whose columns take turns with those of the
// other lanes; or, where a group is an mma, half a chunk for each.
template <typename F>
__device__ __forceinline__ uint4 columns(
    const uint4* __restrict__ x, const bool has_row, const unsigned step, const unsigned i, const unsigned t,
    const unsigned chunks) {
  if constexpr (F::MMAS == 1) {
    // Steps are whole: k is a multiple of 256.
    if (!has_row) return {0, 0, 0, 0};
    const uint2* const halves = reinterpret_cast<const uint2*>(x + step * X_CHUNKS + i * 4) + t;
    const uint2 first = __ldg(halves), second = __ldg(halves + 4);
    return {first.x, first.y, second.x, second.y};
  } else {
    const unsigned chunk = step * X_CHUNKS + i * 4 + t;
    return has_row && chunk < chunks ? __ldg(x + chunk) : uint4{0, 0, 0, 0};
  }
}

// The pairs of mma `i` of a step.
__device__ __forceinline__ void pairs_of(unsigned (&b)[2], const uint4 (&x)[STEP_MMAS / 2], const unsigned i) {
  b[0] = word_of(x[i / 2], i % 2 * 2);
  b[1] = word_of(x[i / 2], i % 2 * 2 + 1);
}

// Sums of rows 2 t and 2 t + 1 of x over the groups of a step, for their offsets: once for all panels, as a product with
// ones.
template <typename F>
struct SumsOfX {
  float of[STEP_MMAS / (F::MMAS == 0 ? 1 : F::MMAS)][2];

  __device__ __forceinline__ void take(const uint4 (&x)[STEP_MMAS / 2]) {
    if constexpr (F::OFFSETS) {
      const unsigned ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll
      for (unsigned group = 0; group < STEP_MMAS / F::MMAS; ++group) {
        float chain[4] = {};
#pragma unroll
        for (unsigned i = 0; i < F::MMAS; ++i) {
          unsigned b[2];
          pairs_of(b, x, group * F::MMAS + i);
          multiply_add(chain, ones, b);
        }
        of[group][0] = chain[0];
        of[group][1] = chain[1];
      }
    }
  }
};

// Adds a step of one panel to its sums: rows g and g + 8 of w, each with rows 2 t and 2 t + 1 of x.
template <typename F>
__device__ __forceinline__ void add_step(
    float (&sum)[4], const uint4 (&quads)[F::QUADS], const typename F::Scales& scales,
    const uint4 (&x)[STEP_MMAS / 2], const SumsOfX<F>& of_x) {
  float chain[4] = {};
#pragma unroll
  for (unsigned i = 0; i < STEP_MMAS; ++i) {
    unsigned a[4];
    F::fragment(a, quads, i);
    unsigned b[2];
    pairs_of(b, x, i);
    if constexpr (F::MMAS == 0) {
      multiply_add(sum, a, b);
    } else {
      multiply_add(chain, a, b);
      if ((i + 1) % F::MMAS != 0) continue;
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) {
        sum[e] = fmaf(F::scale(scales, e / 2, i), chain[e], sum[e]);
        if constexpr (F::OFFSETS) sum[e] = fmaf(F::offset(scales, e / 2, i), of_x.of[i / F::MMAS][e % 2], sum[e]);
        chain[e] = 0.0f;
      }
    }
  }
}

// The sums of PANELS panels from `first_panel` on, none beyond `last_panel`, over this warp's steps, with up to MOST_ROWS
// rows of x: `x` is row g of them, if there is one.
// A warp has FLIGHT steps in flight, which changes no bit.
template <typename F, unsigned FLIGHT, unsigned PANELS>
__device__ __forceinline__ void sum_steps(
    float (&sum)[PANELS][4], const uint4* __restrict__ x, const bool has_row, const uint4* __restrict__ w,
    const void* __restrict__ scales, const unsigned k, const unsigned first_panel, const unsigned last_panel) {
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const unsigned g = lane / 4, t = lane % 4;
  const unsigned chunks = k / CHUNK, steps = (k + STEP - 1) / STEP;
  for (unsigned first = warp; first < steps; first += FLIGHT * SHARERS) {
    uint4 quads[FLIGHT][PANELS][F::QUADS];
    typename F::Scales loaded[FLIGHT][PANELS];
#pragma unroll
    for (unsigned ahead = 0; ahead < FLIGHT; ++ahead) {
      // Beyond the last step and the last panel it reads the last again and adds or stores nothing.
      const unsigned step = min(first + ahead * SHARERS, steps - 1);
#pragma unroll
      for (unsigned p = 0; p < PANELS; ++p) {
        const size_t at = (size_t)min(first_panel + p, last_panel) * steps + step;
#pragma unroll
        for (unsigned q = 0; q < F::QUADS; ++q) quads[ahead][p][q] = __ldcs(w + (at * F::QUADS + q) * LANES + lane);
        loaded[ahead][p] = F::scales(scales, at, g);
      }
    }
#pragma unroll
    for (unsigned ahead = 0; ahead < FLIGHT; ++ahead) {
      const unsigned step = first + ahead * SHARERS;
      if (step >= steps) break;
      uint4 input[STEP_MMAS / 2];
#pragma unroll
      for (unsigned i = 0; i < STEP_MMAS / 2; ++i) input[i] = columns<F>(x, has_row, step, i, t, chunks);
      SumsOfX<F> of_x;
      of_x.take(input);
#pragma unroll
      for (unsigned p = 0; p < PANELS; ++p) add_step<F>(sum[p], quads[ahead][p], loaded[ahead][p], input, of_x);
    }
  }
}

// Where the warps of a block leave their sums for each other; rows of x apart by a stride that keeps the lanes in
// different banks.
template <unsigned PANELS>
using Partial = float[SHARERS][PANELS][MOST_ROWS][PANEL + 4];

template <unsigned PANELS>
__device__ __forceinline__ void leave(Partial<PANELS>& partial, const float (&sum)[PANELS][4]) {
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const unsigned g = lane / 4, t = lane % 4;
#pragma unroll
  for (unsigned p = 0; p < PANELS; ++p) {
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) partial[warp][p][2 * t + e % 2][g + e / 2 * 8] = sum[p][e];
  }
}

// A finished sum: of a row of x with row `of` of a panel, which is row `row_of_w` of the weight.
template <typename F, unsigned PANELS>
__device__ __forceinline__ float joined(
    const Partial<PANELS>& partial, const unsigned p, const unsigned row, const unsigned of,
    const void* __restrict__ scales, const size_t row_of_w) {
  float total = partial[0][p][row][of];
#pragma unroll
  for (unsigned sharer = 1; sharer < SHARERS; ++sharer) total += partial[sharer][p][row][of];
  if constexpr (F::MMAS == 0) total = __fmul_rn(total, __ldg(static_cast<const float*>(scales) + row_of_w));
  return total;
}
