// Who takes the parts of a product's k: one block all of them, or a block each. product.cu says why.
#pragma once

#include "tile.cuh"

// Whole tile, every part in this block.
template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void product(const Product& p, const unsigned rows) {
  const unsigned first_row = blockIdx.x * T::ROWS;
  if (first_row < rows) product_tile<T, EPILOGUE>(p, rows, first_row, blockIdx.y * T::COLUMNS);
}

// The parts of two neighbours, one after the other onto each other or onto y. `of(part)` has the four sums of a thread.
template <unsigned EPILOGUE, typename Of>
__device__ __forceinline__ void join_parts(
    const Product& p, const Operands& op, const Place to, const unsigned count, Of of) {
  if (to.column >= op.n) return;
  float4 part[PARTS];
#pragma unroll
  for (unsigned i = 0; i < PARTS; ++i) {
    if (i < count) part[i] = of(i);
  }
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = to.row + half * 8;
    if (row >= op.rows) continue;
    float2* const y = p.at(row, to.column);
    float2 total = {};
    if constexpr (EPILOGUE == ADD) total = *y;
#pragma unroll
    for (unsigned i = 0; i < PARTS; ++i) {
      if (i >= count) continue;
      float2 value = half == 0 ? float2{part[i].x, part[i].y} : float2{part[i].z, part[i].w};
      if (i + 1 == count) value = biased(value, p.bias, to.column);
      total = i == 0 && EPILOGUE == SET ? value : plus(total, value);
    }
    *y = total;
  }
}

// A part in this block; the block of a tile that is last joins them.
template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void product_spread(const Product& p, const unsigned rows) {
  static_assert(!IS_GATE<EPILOGUE>, "gates have one part");
  DYNAMIC_SHARED(uint4, stages);
  const Operands op = {p.x, p.w, rows, p.n, p.k / CHUNK, blockIdx.x * T::ROWS, blockIdx.y * T::COLUMNS,
                       p.scales};
  const Parts parts = cut(p.k, PARTS);
  if (op.first_row >= rows || blockIdx.z >= parts.count) return;
  const unsigned tile = blockIdx.y * gridDim.x + blockIdx.x;
  // Every thread's own numbers as it holds them: what it wrote the thread of the same number reads, in another block.
  constexpr unsigned QUADS = T::DOWN * T::ACROSS;
  float4* const partial =
      reinterpret_cast<float4*>(p.scratch) + (size_t)tile * PARTS * QUADS * T::THREADS + threadIdx.x;
  const unsigned from = blockIdx.z * parts.each;
  const unsigned end = from + parts.each < parts.steps ? from + parts.each : parts.steps;
  Feed<T>::accumulate(op, stages, threadIdx.x, from, end, parts.each, [&](const Sums<T>& sum) {
#pragma unroll
    for (unsigned q = 0; q < QUADS; ++q) {
      const float(&quad)[4] = sum[q / T::ACROSS][q % T::ACROSS];
      partial[(blockIdx.z * QUADS + q) * T::THREADS] = {quad[0], quad[1], quad[2], quad[3]};
    }
  });

  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(p.counters + tile, 1u) + 1 == parts.count;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) p.counters[tile] = 0;
#pragma unroll 2
  for (unsigned q = 0; q < QUADS; ++q) {
    const Place to = place<T>(op, threadIdx.x, q / T::ACROSS, q % T::ACROSS);
    join_parts<EPILOGUE>(p, op, to, parts.count, [&](const unsigned part) {
      return __ldcg(partial + (part * QUADS + q) * T::THREADS);
    });
  }
}
