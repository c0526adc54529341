// One tile through everything in tensor.cuh: copied to shared memory, loaded as matrices, multiplied.
// Numbers: order, whether b comes as [16][8] (its rows are loaded transposed) or as [8][16]. Buffers: a [16][16] and b in bf16, sum [16][8] in f32.
#include "../../cuda/tensor.cuh"
#include "case.h"

__global__ void tile(const uint4* a, const uint4* b, float* sum, bool transposed) {
  DYNAMIC_SHARED(uint4, shared);
  const unsigned lane = threadIdx.x;
  copy_async(shared + lane, a + lane, true);
  copy_commit();
  copy_async(shared + 32 + lane, b + lane, lane < 16);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  unsigned left[4], right[4];
  // Matrices: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
  load_matrices(left, shared + lane % 16 * 2 + lane / 16);
  if (transposed) load_matrices_transposed(right, shared + 32 + lane % 16);
  else load_matrices(right, shared + 32 + lane % 8 * 2 + lane / 8 % 2);
  float result[4] = {};
  multiply_add(result, left, {right[0], right[1]});
  for (unsigned i = 0; i < 4; ++i) sum[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = result[i];
}

int main() {
  Case it;
  while (it.next()) {
    const auto order = it.order();
    const bool transposed = it.number();
    emulation::launch(order, 5, 1, 32, [&] { tile(it.buffer<uint4>(0), it.buffer<uint4>(1), it.buffer<float>(2), transposed); },
                      48 * 16 + 16 * 16);
    it.answer(2);
  }
}
