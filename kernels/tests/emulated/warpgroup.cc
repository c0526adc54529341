// One product of a warpgroup through everything in warpgroup.cuh, [64][64] x [128][64]: copied by a second warpgroup to
// where the swizzle wants it, published, multiplied, waited for.
// Numbers: order, fault. Buffers: a and b in bf16, sum [64][128] in f32. Answers the sum.
#include "../../cuda/warpgroup.cuh"
#include "case.h"

enum Fault : unsigned {
  NONE,
  NOT_PUBLISHED,
  NOT_COPIED,
  NOT_SWIZZLED,
  WRONG_STRIDE,
  NOT_AT_THE_PATTERN,
  BEYOND_SHARED_MEMORY,
  NOT_ORDERED,
  READ_TOO_EARLY,
  WRITTEN_TOO_EARLY,
  NOT_ALL_WARPS,
  NOT_THE_SAME_MATRIX,
  NEVER_WAITED_FOR,
  TOO_FEW_ARRIVALS,
  WRONG_PARITY,
  NOT_MADE,
};

constexpr unsigned LINES = 64 + 128, BYTES = LINES * 128 + SWIZZLED;

__global__ void tile(const uint4* a, const uint4* b, float* out, const unsigned fault) {
  DYNAMIC_SHARED(uint4, shared);
  __shared__ Barrier full, unmade;
  uint4* const lines = shared + (SWIZZLED - shared_address(shared) % SWIZZLED) % SWIZZLED / 16;
  if (threadIdx.x == 0) barrier_make(&full, fault == TOO_FEW_ARRIVALS ? 5 : 4);
  __syncthreads();
  const unsigned thread = threadIdx.x % WARPGROUP, warp = thread / LANES;
  if (threadIdx.x >= WARPGROUP) {
    for (unsigned i = thread; i < LINES * 8; i += WARPGROUP) {
      const unsigned line = i / 8, chunk = i % 8;
      copy_async(lines + line * 8 + (fault == NOT_SWIZZLED ? chunk : chunk ^ line % 8),
                 i < 64 * 8 ? a + i : b + (i - 64 * 8), true);
    }
    copy_commit();
    if (fault != NOT_COPIED) copy_wait<0>();
    if (fault != NOT_PUBLISHED) publish();
    __syncwarp();
    if (thread % LANES == 0) barrier_arrive(fault == NOT_MADE ? &unmade : &full);
    if (fault == WRITTEN_TOO_EARLY) {
      barrier_wait(&full, 0);
      // As late as the products allow that are not waited for.
      for (unsigned i = 0; i < 4; ++i) __syncwarp();
      copy_async(lines + thread, a, true);
    }
    return;
  }
  barrier_wait(&full, fault == WRONG_PARITY ? 1 : 0);
  float sum[16][4] = {};
  unsigned long long left = describe(lines), right = describe(lines + 64 * 8);
  if (fault == WRONG_STRIDE) right -= 32ull << 32;
  if (fault == NOT_AT_THE_PATTERN) right += 128 >> 4;
  if (fault == BEYOND_SHARED_MEMORY) right += SWIZZLED >> 4;
  if (fault == NOT_THE_SAME_MATRIX && warp == 2) left = further(left, 2);
  if (fault != NOT_ORDERED) products_begin();
  const bool is_there = fault != NOT_ALL_WARPS || warp != 3;
  for (unsigned chunk = 0; chunk < 8 && is_there; chunk += 2) {
    multiply_add_group<128>(sum, further(left, chunk), further(right, chunk));
  }
  products_commit();
  for (unsigned i = 0; i < 8; ++i) __syncwarp();
  if (fault == NEVER_WAITED_FOR) return;
  if (fault == READ_TOO_EARLY) {
    products_wait<1>();
  } else {
    products_wait<0>();
  }
  pin(sum);
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned row = warp * 16 + thread % LANES / 4 + i % 4 / 2 * 8;
    out[row * 128 + i / 4 * 8 + thread % 4 * 2 + i % 2] = sum[i / 4][i % 4];
  }
  products_wait<0>();
}

int main() {
  Case it;
  while (it.next()) {
    const auto order = it.order();
    const unsigned fault = it.number();
    emulation::launch(order, 5, 1, 2 * WARPGROUP, [&] { tile(it.buffer<uint4>(0), it.buffer<uint4>(1), it.buffer<float>(2), fault); },
                      BYTES);
    it.answer(2);
  }
}
