// What a draw is made of, bit for bit as src/draw.rs has it: weights in whole numbers, a counter-based generator.
//
// Every operation in f64 is rounded for itself (__dmul_rn, __dadd_rn: never contracted), so that weights are the CPU's.
#pragma once

typedef unsigned long long Mass;

// The weight of the most probable token.
constexpr Mass UNIT = 1ull << 42;
// Below this e^x is less than one unit.
constexpr double FAINTEST = -30.0;

// e^x in units of 2^-42, for x <= 0, cut to a whole number. NaN weighs nothing.
__device__ __forceinline__ Mass weight(const double x) {
  // 1.5 * 2^52: adding it leaves the nearest whole number in the low bits of the sum.
  constexpr double SHIFT = 6755399441055744.0;
  constexpr double LOG2_E = 1.4426950408889634;
  constexpr double LN2_HIGH = 0.6931471803691238;
  constexpr double LN2_LOW = 1.9082149292705877e-10;
  constexpr double TAYLOR[] = {1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0,
                               1.0 / 24.0,      1.0 / 6.0,      1.0 / 2.0,     1.0,          1.0};
  if (!(x >= FAINTEST)) return 0;
  const double shifted = __dadd_rn(__dmul_rn(x, LOG2_E), SHIFT);
  const double n = __dadd_rn(shifted, -SHIFT);
  const double r = __dadd_rn(__dadd_rn(x, -__dmul_rn(n, LN2_HIGH)), -__dmul_rn(n, LN2_LOW));
  double sum = 1.0 / 39916800.0;
#pragma unroll
  for (unsigned i = 0; i < sizeof TAYLOR / sizeof TAYLOR[0]; ++i) sum = __dadd_rn(__dmul_rn(sum, r), TAYLOR[i]);
  const long long exponent = __double_as_longlong(shifted) - __double_as_longlong(SHIFT) + 42 + 1023;
  return (Mass)__dmul_rn(sum, __longlong_as_double((long long)((unsigned long long)exponent << 52)));
}

// 64 random bits of a position of a choice of a request: Philox 4x32 with ten rounds.
__device__ __forceinline__ unsigned long long random_bits(
    unsigned key_low, unsigned key_high, const unsigned choice, const unsigned position) {
  unsigned counter[4] = {position, choice, 0, 0};
#pragma unroll
  for (unsigned round = 0; round < 10; ++round) {
    const unsigned long long x = 0xd2511f53ull * counter[0], y = 0xcd9e8d57ull * counter[2];
    counter[0] = (unsigned)(y >> 32) ^ counter[1] ^ key_low;
    counter[1] = (unsigned)y;
    counter[2] = (unsigned)(x >> 32) ^ counter[3] ^ key_high;
    counter[3] = (unsigned)x;
    key_low += 0x9e3779b9u;
    key_high += 0xbb67ae85u;
  }
  return (unsigned long long)counter[1] << 32 | counter[0];
}

// A whole number in 0..total from 64 random bits.
__device__ __forceinline__ Mass below(const unsigned long long random, const Mass total) {
  return __umul64hi(random, total);
}
