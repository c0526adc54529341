// A tile of a product on the tensor cores: its pipeline, its sums, and where they go. product.cu says how sums are ordered
// and what it costs; other products of the same order stand on this too (narrow.cuh: weights of fewer bits).
#pragma once

#include "epilogue.cuh"
#include "tensor.cuh"

// 16-byte chunks of k in a stage: a row is one swizzled line of 128 bytes.
constexpr unsigned STEP_CHUNKS = 8;
// Parts of k where they are several.
constexpr unsigned PARTS = 4;

// A tile of y, how its warps share it, and the stages of its pipeline. It belongs to a group of WARPS warps.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned WARP_ROWS_, unsigned WARP_COLUMNS_, unsigned STAGES_>
struct Tile {
  static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_, STAGES = STAGES_;
  static constexpr unsigned WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
  static constexpr unsigned WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
  static constexpr unsigned WARPS = ROWS / WARP_ROWS * WARPS_ACROSS;
  static constexpr unsigned THREADS = WARPS * LANES;
  // mma tiles of a warp.
  static constexpr unsigned DOWN = WARP_ROWS / 16, ACROSS = WARP_COLUMNS / 8;
  static constexpr unsigned STAGE = (ROWS + COLUMNS) * STEP_CHUNKS;  // in chunks
  static constexpr unsigned BYTES = STAGES * STAGE * 16;
  static_assert(ACROSS % 2 == 0, "two tiles of w come with one ldmatrix");
};

// How the k of a product is cut.
struct Parts {
  unsigned steps;  // stages of the whole k
  unsigned each;   // stages of a part; the last may have fewer
  unsigned count;  // parts that have any
};

__device__ __forceinline__ Parts cut(const unsigned k, const unsigned parts) {
  const unsigned steps = (k + STEP_CHUNKS * CHUNK - 1) / (STEP_CHUNKS * CHUNK);
  const unsigned each = (steps + parts - 1) / parts;
  return {steps, each, (steps + each - 1) / each};
}

// What a block works on.
struct Operands {
  const uint4* x;
  const uint4* w;
  unsigned rows, n, chunks;  // chunks of k
  unsigned first_row, first_column;
  const void* scales = nullptr;
  unsigned first_panel = 0;
};

template <typename T>
__device__ __forceinline__ void meet() {
  if constexpr (T::WARPS == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// Begins the copies of one matrix's lines of a stage; zeros beyond its rows and beyond k.
template <unsigned LINES, unsigned THREADS>
__device__ __forceinline__ void copy_lines(
    uint4* const to, const uint4* const from, const unsigned first, const unsigned end, const unsigned chunks,
    const unsigned chunk, const unsigned thread) {
  static_assert(LINES * STEP_CHUNKS % THREADS == 0, "every thread copies as many chunks");
  const unsigned at = thread % STEP_CHUNKS;
#pragma unroll
  for (unsigned i = 0; i < LINES * STEP_CHUNKS / THREADS; ++i) {
    const unsigned line = i * (THREADS / STEP_CHUNKS) + thread / STEP_CHUNKS;
    const bool valid = first + line < end && chunk + at < chunks;
    copy_async(to + line * STEP_CHUNKS + (at ^ line % 8), from + (size_t)(first + line) * chunks + chunk + at, valid);
  }
}

template <typename T>
using Sums = float[T::DOWN][T::ACROSS][4];

// Multiplies the lines of a stage into the sums of a warp, k ascending.
template <typename T>
__device__ __forceinline__ void multiply(
    Sums<T>& sum, const uint4* const x_lines, const uint4* const w_lines, const unsigned warp) {
  const unsigned lane = threadIdx.x % LANES;
  const unsigned down = warp / T::WARPS_ACROSS * T::WARP_ROWS;
  const unsigned across = warp % T::WARPS_ACROSS * T::WARP_COLUMNS;
  // Lane 8 i + r names row r of matrix i. x: rows 0 and 8 at k 0, the same at k 8. w: row 0 at k 0 and 8, then row 8.
  const unsigned swizzle = lane % 8;
  const uint4* const x = x_lines + (down + lane % 16) * STEP_CHUNKS;
  const uint4* const w = w_lines + (across + lane / 16 * 8 + lane % 8) * STEP_CHUNKS;
#pragma unroll
  for (unsigned chunk = 0; chunk < STEP_CHUNKS; chunk += 2) {
    unsigned a[T::DOWN][4];
    unsigned b[T::ACROSS / 2][4];
#pragma unroll
    for (unsigned i = 0; i < T::DOWN; ++i) {
      load_matrices(a[i], x + i * 16 * STEP_CHUNKS + ((chunk + lane / 16) ^ swizzle));
    }
#pragma unroll
    for (unsigned j = 0; j < T::ACROSS / 2; ++j) {
      load_matrices(b[j], w + j * 16 * STEP_CHUNKS + ((chunk + lane / 8 % 2) ^ swizzle));
    }
#pragma unroll
    for (unsigned i = 0; i < T::DOWN; ++i) {
#pragma unroll
      for (unsigned j = 0; j < T::ACROSS; ++j) {
        const unsigned right[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        multiply_add(sum[i][j], a[i], right);
      }
    }
  }
}

// How a tile's operands come to its stages: here both as they lie in memory.
template <typename T>
struct Feed {
  // Multiplies the stages [from, end) and calls `finish` with the sums of every part. The copies run ahead over the
  // border of two parts.
  template <typename Finish>
  static __device__ __forceinline__ void accumulate(
      const Operands& op, uint4* const stages, const unsigned thread, const unsigned from, const unsigned end,
      const unsigned each, Finish finish) {
    const auto begin_copies = [&](const unsigned step) {
      if (step < end) {
        uint4* const stage = stages + step % T::STAGES * T::STAGE;
        const unsigned chunk = step * STEP_CHUNKS;
        copy_lines<T::ROWS, T::THREADS>(stage, op.x, op.first_row, op.rows, op.chunks, chunk, thread);
        copy_lines<T::COLUMNS, T::THREADS>(
            stage + T::ROWS * STEP_CHUNKS, op.w, op.first_column, op.n, op.chunks, chunk, thread);
      }
      copy_commit();
    };
    for (unsigned ahead = 0; ahead < T::STAGES - 1; ++ahead) begin_copies(from + ahead);

    for (unsigned first = from; first < end; first += each) {
      const unsigned past = first + each < end ? first + each : end;
      Sums<T> sum = {};
      for (unsigned step = first; step < past; ++step) {
        copy_wait<T::STAGES - 2>();
        // The copies of this step are there for all, and all are done with the stage that is filled next.
        meet<T>();
        begin_copies(step + T::STAGES - 1);
        const uint4* const stage = stages + step % T::STAGES * T::STAGE;
        multiply<T>(sum, stage, stage + T::ROWS * STEP_CHUNKS, thread / LANES);
      }
      finish(sum);
    }
    copy_wait<0>();
  }
};

// Where the four sums of a thread for mma tile (i, j) of its warp belong: a pair in `row`, a pair in row + 8.
struct Place {
  unsigned row, column;
};

template <typename T>
__device__ __forceinline__ Place place(const Operands& op, const unsigned thread, const unsigned i, const unsigned j) {
  const unsigned lane = thread % LANES, warp = thread / LANES;
  return {op.first_row + warp / T::WARPS_ACROSS * T::WARP_ROWS + i * 16 + lane / 4,
          op.first_column + warp % T::WARPS_ACROSS * T::WARP_COLUMNS + j * 8 + lane % 4 * 2};
}

__device__ __forceinline__ float2 plus(const float2 a, const float2 b) { return {a.x + b.x, a.y + b.y}; }

// Two neighbours of the bias; nothing where there is none.
__device__ __forceinline__ float2 biased(const float2 sum, const float* const bias, const unsigned column) {
  return bias == nullptr ? sum : plus(sum, __ldg(reinterpret_cast<const float2*>(bias + column)));
}

// What every kernel here is given. scratch and counters are for spread parts: a tile's sums of every part, and how many
// blocks of a tile are done (zero before and after a launch).
struct Product {
  const uint4* x;
  const uint4* w;
  const float* bias;
  void* y;
  float* scratch;
  unsigned* counters;
  unsigned n, k, parts;
  const void* scales = nullptr;  // of a weight of fewer bits
  unsigned first_panel = 0;      // of it, where it is one of several behind one another

  __device__ __forceinline__ float2* at(const unsigned row, const unsigned column) const {
    return reinterpret_cast<float2*>(static_cast<float*>(y) + (size_t)row * n + column);
  }
};

// Adds one part of a tile to y.
template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void put_part(
    const Product& p, const Operands& op, const Sums<T>& sum, const bool first, const bool last) {
#pragma unroll
  for (unsigned i = 0; i < T::DOWN; ++i) {
#pragma unroll
    for (unsigned j = 0; j < T::ACROSS; ++j) {
      const Place to = place<T>(op, threadIdx.x, i, j);
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = to.row + half * 8;
        if (row >= op.rows || to.column >= op.n) continue;
        float2 value = {sum[i][j][2 * half], sum[i][j][2 * half + 1]};
        if (last) value = biased(value, p.bias, to.column);
        float2* const y = p.at(row, to.column);
        *y = first && EPILOGUE == SET ? value : plus(*y, value);
      }
    }
  }
}

// Bends the gates of a tile.
template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void put_gate(const Product& p, const Operands& op, const Sums<T>& sum) {
#pragma unroll
  for (unsigned i = 0; i < T::DOWN; ++i) {
#pragma unroll
    for (unsigned j = 0; j < T::ACROSS; j += 2) {
      const Place to = place<T>(op, threadIdx.x, i, j);
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = to.row + half * 8;
        if (row >= op.rows || to.column >= op.n) continue;
        const float2 gate = biased({sum[i][j][2 * half], sum[i][j][2 * half + 1]}, p.bias, to.column);
        const float2 up =
            biased({sum[i][j + 1][2 * half], sum[i][j + 1][2 * half + 1]}, p.bias, to.column + GATE_ROWS);
        const size_t at = (size_t)row * (op.n / 2) + to.column / 16 * 8 + to.column % 16;
        static_cast<unsigned*>(p.y)[at / 2] =
            pack_bf16(bend<EPILOGUE>(gate.x) * up.x, bend<EPILOGUE>(gate.y) * up.y);
      }
    }
  }
}

// Whole tile, every part in this block.
template <typename T, unsigned EPILOGUE>
__device__ __forceinline__ void product_tile(
    const Product& p, const unsigned rows, const unsigned first_row, const unsigned first_column) {
  DYNAMIC_SHARED(uint4, stages);
  const Operands op = {p.x, p.w, rows, p.n, p.k / CHUNK, first_row, first_column, p.scales, p.first_panel};
  const Parts parts = cut(p.k, IS_GATE<EPILOGUE> ? 1 : p.parts);
  unsigned part = 0;
  Feed<T>::accumulate(op, stages, threadIdx.x, 0, parts.steps, parts.each, [&](const Sums<T>& sum) {
    if constexpr (IS_GATE<EPILOGUE>) {
      put_gate<T, EPILOGUE>(p, op, sum);
    } else {
      put_part<T, EPILOGUE>(p, op, sum, part == 0, part + 1 == parts.count);
    }
    ++part;
  });
}

using Tile16 = Tile<16, 64, 16, 16, 5>;
using Tile64 = Tile<64, 128, 32, 32, 4>;
using Tile128 = Tile<128, 128, 64, 64, 3>;
using Tile128Wide = Tile<128, 256, 64, 64, 3>;
