// Small numbers widened to bf16, two in a word, without a table.
#pragma once

#include "numbers.cuh"

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

// Two e4m3, in the upper bytes of the halves of a word, as bf16. The bits of an e4m3 in the places of those of a bf16
// are its value times 2^-120, small ones of few bits included.
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

// The difference of two pairs of bf16 that is exact in bf16.
__device__ __forceinline__ unsigned minus(const unsigned pair, const unsigned other) {
#ifdef __CUDACC__
  unsigned out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(other), "r"(0xbf80bf80u), "r"(pair));
  return out;
#else
  return pack_bf16(first_of(pair) - first_of(other), second_of(pair) - second_of(other));
#endif
}

// Two int8, in the lower bytes of the halves of a word; what is above them does not count. Their lower seven bits below
// the leading bit of 128 are 128 and as many more; less 128, or 256 where the sign is set.
__device__ __forceinline__ unsigned widen_int8(const unsigned word) {
  return minus((word & 0x007f007fu) | 0x43004300u, (word & 0x00800080u) ^ 0x43004300u);
}

// Two numbers of four bits, in the lowest bits of the halves of a word, less 8.
__device__ __forceinline__ unsigned widen_int4(const unsigned word) {
  return minus((word & 0x000f000fu) | 0x43004300u, 0x43084308u);
}

// The same, as they are: 0 to 15.
__device__ __forceinline__ unsigned widen_four(const unsigned word) {
  return minus((word & 0x000f000fu) | 0x43004300u, 0x43004300u);
}

// Two numbers of six bits, the lower four in the lowest bits of the halves of a word and the upper two in those of another,
// less 32.
__device__ __forceinline__ unsigned widen_six(const unsigned lower, const unsigned upper) {
  return minus((lower & 0x000f000fu) | 0x43004300u | (upper << 4 & 0x00300030u), 0x43204320u);
}

// The products of two pairs of bf16, rounded once.
__device__ __forceinline__ unsigned times(const unsigned pair, const unsigned other) {
#ifdef __CUDACC__
  unsigned out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(pair), "r"(other), "r"(0x80008000u));
  return out;
#else
  return pack_bf16(first_of(pair) * first_of(other), second_of(pair) * second_of(other));
#endif
}
