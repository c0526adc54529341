// Numbers as the kernels store and load them.
#pragma once

constexpr unsigned LANES = 32;
constexpr unsigned WHOLE_WARP = 0xffffffffu;
// bf16 numbers in 16 bytes, the widest load of a lane.
constexpr unsigned CHUNK = 8;

// f32 to the bits of a bf16, to nearest, ties to even. Finite numbers only: the callers' checks keep NaN out of products.
__device__ __forceinline__ unsigned short round_bf16(const float value) {
  const unsigned bits = __float_as_uint(value);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Two of them in a word, the first in the lower half. One instruction on the device, the same rounding.
__device__ __forceinline__ unsigned pack_bf16(const float first, const float second) {
#ifdef __CUDACC__
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
#else
  return round_bf16(first) | (unsigned)round_bf16(second) << 16;
#endif
}

// 2 to the power of `x`: exactly 1 for 0, 0 for minus infinity and below -126.
__device__ __forceinline__ float power_of_two(const float x) {
#ifdef __CUDACC__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return x < -126.0f ? 0.0f : exp2f(x);
#endif
}

// The two numbers of a word: a bf16 is the upper half of an f32.
__device__ __forceinline__ float first_of(const unsigned word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float second_of(const unsigned word) { return __uint_as_float(word & 0xffff0000u); }

// The value of an f16, finite: its bits with the exponent of an f32, or small ones of few bits, times a power of two.
__device__ __forceinline__ float widen_f16(const unsigned bits) {
#ifdef __CUDACC__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
  return value;
#else
  const float magnitude = __uint_as_float((bits & 0x7fffu) << 13) * 0x1p112f;
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
#endif
}

// A number of at most 11 bits times byte `i` of a word less `less`, which is 0 or 128; exactly. The byte stands in an f32 of
// 2^15 and as many more, whose part that is not wanted is the same for all bytes and is taken off in the same instruction.
__device__ __forceinline__ float times_byte(
    const float number, const unsigned word, const unsigned i, const float less = 0.0f) {
  const float raised = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7404u | i << 4));
  return fmaf(raised, number, -(0x1p15f + less) * number);
}

// The eight numbers of 16 bytes.
__device__ __forceinline__ void widen(const uint4 packed, float (&out)[CHUNK]) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    out[2 * i] = first_of(words[i]);
    out[2 * i + 1] = second_of(words[i]);
  }
}

// Eight numbers in 16 bytes.
__device__ __forceinline__ uint4 pack_chunk(const float (&in)[CHUNK]) {
  return {pack_bf16(in[0], in[1]), pack_bf16(in[2], in[3]), pack_bf16(in[4], in[5]), pack_bf16(in[6], in[7])};
}

// The sum over a warp: a fixed tree, after which every lane holds it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (unsigned apart = LANES / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(WHOLE_WARP, value, apart);
  return value;
}
