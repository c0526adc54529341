// The product of 1 to 8 rows of bf16 with a weight of 8 or 4 bits: y[row][n] = sum over k of x[row][k] * w[n][k].
//
// Numbers of w are widened to bf16 in registers, exactly, and multiplied on the tensor cores: 16 rows of w are the
// rows of an mma and the rows of x its 8 columns, so that one row costs what eight cost. Formats:
//   int8   a bf16 scale for each 128 columns of a row: 8.1 bits. One scale a row would cost a row with one large number
//          the precision of all its others; with 128 it is that of Q8_0 less a few percent, and half the scales.
//   e4m3   an f32 scale a row: 8 bits, as checkpoints in fp8 have it. Its relative precision is the same for small
//          numbers and large ones, so groups would gain nothing; it is a sixteenth: int8 is the better 8 bits.
//   int4   numbers of -8 to 7, a bf16 scale for each 32 columns: 4.5 bits, the quality of Q4_0
// What follows a sum is in epilogue.cuh.
//
// Packing (src/cuda/weightonly.rs): 16 rows by 128 columns are 2 KiB (int4: 1) in the order in which the lanes of a
// warp take them, 16 bytes a lane at a time. A warp reads whole lines of memory in order, and what a lane reads is
// what it multiplies: no shared memory, no shuffle.
//
// The order of a sum depends on the format and k alone: columns in steps of 128; warp p of 8 takes steps p, p + 8, …,
// ascending; in a step a chain of mma for each group with a scale, from zero, added times the scale (e4m3: one chain
// over all steps, times the scale in the end); then the warps, ascending. Rows are counted on the device and change no
// bit.
//
// Bytes moved: n k (int4: half) + scales + 2 m k + the output. Ceiling: the device's read bandwidth. In flight: 8 KiB
// a warp (int4: 4), 64 (32) KiB a block of 32 rows of w, two blocks a multiprocessor, where 4 TB/s at 800 ns want 25
// KiB. Arithmetic a number: 1.25 whole-number instructions (e4m3 1.75, int4 1) and half a bf16 one. At 4 TB/s a
// multiprocessor gets 17 (int4: 35) numbers a clock and does 64 such instructions: the read is what limits.
//
// n and k are multiples of 8 (gates: n of 16), filled with zeros to whole tiles and steps; x 16-byte aligned.

#include "epilogue.cuh"
#include "pairs.cuh"
#include "tensor.cuh"

// Rows of w of an mma, columns of a step, 16-byte chunks of x in it, mma in it, rows of x.
constexpr unsigned PANEL = 16, STEP = 128, X_CHUNKS = STEP / CHUNK, STEP_MMAS = STEP / 16, MOST_ROWS = 8;
// Panels of a block, and the warps that share their k.
constexpr unsigned PANELS = 2, SHARERS = 8;
// Steps that a warp has in flight.
constexpr unsigned FLIGHT = 2;

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

template <typename F, unsigned EPILOGUE>
__device__ __forceinline__ void weightonly(
    const uint4* __restrict__ x, const uint4* __restrict__ w, const void* __restrict__ scales,
    const float* __restrict__ bias, void* __restrict__ y, const unsigned rows, const unsigned n, const unsigned k) {
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const unsigned g = lane / 4, t = lane % 4;
  const unsigned chunks = k / CHUNK, steps = (k + STEP - 1) / STEP, panels = (n + PANEL - 1) / PANEL;

  float sum[PANELS][4] = {};
  for (unsigned first = warp; first < steps; first += FLIGHT * SHARERS) {
    uint4 quads[FLIGHT][PANELS][F::QUADS];
    typename F::Scales loaded[FLIGHT][PANELS];
#pragma unroll
    for (unsigned ahead = 0; ahead < FLIGHT; ++ahead) {
      // Beyond the last step and the last panel it reads the last again and adds or stores nothing.
      const unsigned step = min(first + ahead * SHARERS, steps - 1);
#pragma unroll
      for (unsigned p = 0; p < PANELS; ++p) {
        const size_t at = (size_t)min(blockIdx.x * PANELS + p, panels - 1) * steps + step;
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
        input[i] = g < rows && chunk < chunks ? __ldg(x + g * chunks + chunk) : uint4{0, 0, 0, 0};
      }
#pragma unroll
      for (unsigned p = 0; p < PANELS; ++p) add_step<F>(sum[p], quads[ahead][p], loaded[ahead][p], input);
    }
  }

  // Over the warps; rows of x apart by a stride that keeps the lanes in different banks.
  constexpr unsigned APART = PANEL + 4;
  __shared__ float partial[SHARERS][PANELS][MOST_ROWS][APART];
#pragma unroll
  for (unsigned p = 0; p < PANELS; ++p) {
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) partial[warp][p][2 * t + e % 2][g + e / 2 * 8] = sum[p][e];
  }
  __syncthreads();

  const unsigned row = threadIdx.x / PANEL % MOST_ROWS, of = threadIdx.x % PANEL, p = threadIdx.x / (PANEL * MOST_ROWS);
  const unsigned column = (blockIdx.x * PANELS + p) * PANEL + of;
  if (row >= rows || column >= n || (IS_GATE<EPILOGUE> && of >= GATE_ROWS)) return;
  const auto total = [&](const unsigned of, const unsigned column) {
    float total = partial[0][p][row][of];
#pragma unroll
    for (unsigned sharer = 1; sharer < SHARERS; ++sharer) total += partial[sharer][p][row][of];
    if constexpr (F::MMAS == 0) total = __fmul_rn(total, __ldg(static_cast<const float*>(scales) + column));
    return bias == nullptr ? total : __fadd_rn(total, __ldg(bias + column));
  };
  const float value = total(of, column);
  if constexpr (IS_GATE<EPILOGUE>) {
    const float up = total(of + GATE_ROWS, column + GATE_ROWS);
    static_cast<unsigned short*>(y)[(size_t)row * (n / 2) + column / 16 * 8 + of] =
        round_bf16(bend<EPILOGUE>(value) * up);
  } else {
    float* const to = static_cast<float*>(y) + (size_t)row * n + column;
    *to = EPILOGUE == ADD ? *to + value : value;
  }
}

static_assert(PANELS * PANEL * MOST_ROWS == SHARERS * LANES, "a thread a sum");

#define WEIGHTONLY(NAME, EPILOGUE, F)                                                                              \
  extern "C" __global__ void __launch_bounds__(256, 2) weightonly_##NAME(                                          \
      const uint4* x, const uint4* w, const void* scales, const float* bias, void* y, const unsigned* rows,        \
      unsigned n, unsigned k) {                                                                                    \
    weightonly<F, EPILOGUE>(x, w, scales, bias, y, *rows, n, k);                                                   \
  }
#define WEIGHTONLY_FORMAT(NAME, F)  \
  WEIGHTONLY(NAME##_set, SET, F)    \
  WEIGHTONLY(NAME##_add, ADD, F)    \
  WEIGHTONLY(NAME##_silu, SILU, F)  \
  WEIGHTONLY(NAME##_gelu, GELU, F)

WEIGHTONLY_FORMAT(int8, Int8)
WEIGHTONLY_FORMAT(e4m3, Fp8)
WEIGHTONLY_FORMAT(int4, Int4)
