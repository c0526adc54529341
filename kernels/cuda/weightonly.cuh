// The inner loop of a product of few rows with a weight of 8 or 4 bits: formats, and what the warps of a block sum of some
// panels. weightonly.cu says how a weight is packed, in which order sums are taken and what it costs.
#pragma once

#include "epilogue.cuh"
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
struct Int8 {
  static constexpr unsigned QUADS = 4, MMAS = 8;
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

// Adds a step of one panel to its sums: rows g and g + 8 of w, each with rows 2 t and 2 t + 1 of x.
template <typename F>
__device__ __forceinline__ void add_step(
    float (&sum)[4], const uint4 (&quads)[F::QUADS], const typename F::Scales& scales,
    const uint4 (&x)[STEP_MMAS / 2]) {
  float chain[4] = {};
#pragma unroll
  for (unsigned i = 0; i < STEP_MMAS; ++i) {
    unsigned a[4];
    F::fragment(a, quads, i);
    const unsigned b[2] = {word_of(x[i / 2], i % 2 * 2), word_of(x[i / 2], i % 2 * 2 + 1)};
    if constexpr (F::MMAS == 0) {
      multiply_add(sum, a, b);
    } else {
      multiply_add(chain, a, b);
      if ((i + 1) % F::MMAS != 0) continue;
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) {
        sum[e] = fmaf(F::scale(scales, e / 2, i), chain[e], sum[e]);
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
      for (unsigned i = 0; i < STEP_MMAS / 2; ++i) {
        const unsigned chunk = step * X_CHUNKS + i * 4 + t;
        input[i] = has_row && chunk < chunks ? __ldg(x + chunk) : uint4{0, 0, 0, 0};
      }
#pragma unroll
      for (unsigned p = 0; p < PANELS; ++p) add_step<F>(sum[p], quads[ahead][p], loaded[ahead][p], input);
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
