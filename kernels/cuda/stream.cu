// What a measurement needs beside the operations: the two ceilings of memory, random weights made on the device, and
// the rounding between two products.

#include "numbers.cuh"

// Copies 16-byte words; every thread has four independent loads in flight. words is a multiple of 4 * blockDim.x.
extern "C" __global__ void __launch_bounds__(256)
    copy(const uint4* __restrict__ from, uint4* __restrict__ to) {
  const size_t base = (size_t)blockIdx.x * 4 * blockDim.x + threadIdx.x;
  uint4 word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = __ldcs(from + base + i * blockDim.x);
#pragma unroll
  for (int i = 0; i < 4; ++i) __stcs(to + base + i * blockDim.x, word[i]);
}

// Reads as `copy` does, eight loads in flight, and keeps nothing: the ceiling of a product, which writes next to nothing.
// The store never happens in practice, but the compiler cannot know. words is a multiple of 8 * blockDim.x.
extern "C" __global__ void __launch_bounds__(256) read(const uint4* __restrict__ from, unsigned* __restrict__ sink) {
  const size_t base = (size_t)blockIdx.x * 8 * blockDim.x + threadIdx.x;
  uint4 word[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) word[i] = __ldcs(from + base + i * blockDim.x);
  unsigned mixed = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) mixed ^= word[i].x ^ word[i].y ^ word[i].z ^ word[i].w;
  if (mixed == 0x5eed1e55u) *sink = mixed;
}

// out[i] = scale * u, u uniform in [-1, 1), a function of (seed, i) alone: the host makes the same numbers.
extern "C" __global__ void __launch_bounds__(256)
    fill(unsigned short* __restrict__ out, unsigned count, unsigned seed, float scale) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  unsigned h = i + seed * 0x9e3779b9u;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  h ^= h >> 16;
  out[i] = round_bf16(((float)(h >> 8) * (1.0f / 8388608.0f) - 1.0f) * scale);
}

// The output of a product as the input of the next.
extern "C" __global__ void __launch_bounds__(256)
    narrow(const float* __restrict__ from, unsigned short* __restrict__ to, unsigned count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = round_bf16(from[i]);
}
