// The product of many rows with a bf16 weight on Hopper (sm_90a), by products of whole warpgroups:
//   y[row][n] = sum over k of x[row][k] * w[n][k]
//
// The operands, what follows a sum and where it goes are product.cu's. The order of a sum is not: here it is one chain of
// wgmma k16 from zero, k ascending, then the bias, then what is there already. It is the same for every tile, row count
// and number of blocks, so a row gives the same bits alone and beside others; but other bits than product.cu gives, which
// has four parts. Rows of steps that are small or strict go there.
//
// A block has three warpgroups. One copies: 64 k of a tile of x and of w a stage, 16 bytes a cp.async, which places the
// swizzle itself and gets zeros beyond rows, n and k for free. Two multiply, 64 rows each, and take the registers that
// the first gives back. Stages go round by two barriers each: `full` counts the copying warps, `empty` the multiplying
// ones. Blocks are as many as multiprocessors and walk the tiles from a list in the order in which they share most: 16
// tiles of rows, then the next tile of n, so that 132 blocks read 2048 rows of x and about as many of w at a time, from the
// second-level cache. Tiles beyond the rows, which are counted on the device, are not on the list. Here it is that of rows
// with one weight; hopper_experts.cuh has another, of rows grouped by expert.
//
// Why cp.async and not the copy engine (TMA): one instruction of it would move a whole matrix of a stage, where here 96
// warp instructions move 48 KiB: 384 of the 1024 cycles that the products of a stage take, on another pipe, and about
// 120 issue slots of each scheduler. Predicted on an H200 with 750 TFLOP/s in cuBLASLt, 8192 rows of a Mistral weight:
// TMA 620 to 700 TFLOP/s, cp.async 500 to 620; 60 % is 450. TMA wants maps that the driver encodes for every buffer and
// shape, a new thing at the seam to devices, whose meaning nobody here could try out. So cp.async, until a measurement
// says that the difference is worth it.
//
// Bytes moved: as product.cu, 2 (128 + 256) bytes a k and 64 Kflop: 85 flops a byte from the second-level cache. What
// limits: shared memory, of whose 128 bytes a cycle the products read 80 and the copies write 48; then the epilogue, which
// no product runs beside: about 4,000 cycles after the 66,000 of a tile at k = 4096.

#include "parts.cuh"
#include "warpgroup.cuh"

#ifdef WARPGROUPS

// Tiles of rows that take turns before the next tile of n.
constexpr unsigned ROW_TILES = 16;
// Groups of copies that a thread leaves under way: two stages of 1024 cycles, where memory takes about 1200.
constexpr unsigned COPIES_AHEAD = 2;

// A tile as its multiplying warps share it: 16 rows each.
template <unsigned COLUMNS, unsigned STAGES>
using Wide = Tile<128, COLUMNS, 16, COLUMNS, STAGES>;
using Wide256 = Wide<256, 4>;
using Wide128 = Wide<128, 6>;

// Where a stage is, and how often all were gone through before it.
template <typename T>
struct Turn {
  unsigned slot = 0, parity = 0;
  __device__ __forceinline__ void next() {
    if (++slot == T::STAGES) slot = 0, parity ^= 1;
  }
};

// A tile: its weight, where it begins, and where the rows of that weight end.
struct Work {
  const uint4* w;
  unsigned row, end, column;
};

// Tile row and tile column of one of `down` by `across` tiles.
__device__ __forceinline__ uint2 in_turns(const unsigned index, const unsigned down, const unsigned across) {
  const unsigned top = index / (ROW_TILES * across) * ROW_TILES;
  const unsigned height = down - top < ROW_TILES ? down - top : ROW_TILES;
  const unsigned rest = index - top * across;
  return {top + rest % height, rest / height};
}

// A list of tiles says how many there are and what each of them is. Who walks it has a copy and asks for ascending ones.
// This one: all rows with one weight.
template <typename T>
struct OneWeight {
  const uint4* w;
  unsigned rows, down, across;

  __device__ __forceinline__ OneWeight(const Product& p, const unsigned rows)
      : w(p.w), rows(rows), down((rows + T::ROWS - 1) / T::ROWS), across((p.n + T::COLUMNS - 1) / T::COLUMNS) {}
  __device__ __forceinline__ unsigned count() const { return down * across; }
  __device__ __forceinline__ Work at(const unsigned index) {
    const uint2 tile = in_turns(index, down, across);
    return {w, tile.x * T::ROWS, rows, tile.y * T::COLUMNS};
  }
};

// The lines of a tile of one matrix that a copying thread has, one of LINES_APART, and its chunk in them.
struct Lines {
  const uint4* from;
  unsigned count;  // that are there

  static constexpr unsigned LINES_APART = WARPGROUP / STEP_CHUNKS;

  __device__ __forceinline__ Lines(
      const uint4* const matrix, const unsigned first, const unsigned end, const unsigned chunks,
      const unsigned thread) {
    const unsigned line = first + thread / STEP_CHUNKS;
    from = matrix + (size_t)line * chunks + thread % STEP_CHUNKS;
    count = line < end ? (end - line + LINES_APART - 1) / LINES_APART : 0;
  }

  // Begins the copies of the next stage; zeros beyond the matrix. A few at a time: more would keep more addresses than
  // the thread has registers.
  template <unsigned LINES>
  __device__ __forceinline__ void copy(uint4* to, const size_t apart, const bool is_within) {
    const uint4* line = from;
#pragma unroll 4
    for (unsigned i = 0; i < LINES / LINES_APART; ++i) {
      copy_async(to, line, is_within && i < count);
      to += LINES_APART * STEP_CHUNKS;
      line += apart;
    }
    from += STEP_CHUNKS;
  }
};

// Copies the stages of all tiles of this block.
template <typename T, typename List>
__device__ __forceinline__ void copy_tiles(
    const Product& p, List tiles, uint4* const stages, Barrier* const full, Barrier* const empty) {
  const unsigned thread = threadIdx.x % WARPGROUP, chunks = p.k / CHUNK;
  const unsigned line = thread / STEP_CHUNKS, at = thread % STEP_CHUNKS;
  const size_t apart = (size_t)Lines::LINES_APART * chunks;
  uint4* const own = stages + line * STEP_CHUNKS + (at ^ line % 8);
  Turn<T> filled, told;
  unsigned ahead = 0;
  // The copies of the oldest stage have come.
  const auto tell = [&] {
    publish();
    __syncwarp();
    if (thread % LANES == 0) barrier_arrive(full + told.slot);
    told.next();
  };
  for (unsigned index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const Work tile = tiles.at(index);
    Lines x(p.x, tile.row, tile.end, chunks, thread);
    Lines w(tile.w, tile.column, p.n, chunks, thread);
    for (unsigned chunk = 0; chunk < chunks; chunk += STEP_CHUNKS) {
      barrier_wait(empty + filled.slot, filled.parity ^ 1);
      uint4* const to = own + filled.slot * T::STAGE;
      x.copy<T::ROWS>(to, apart, chunk + at < chunks);
      w.copy<T::COLUMNS>(to + T::ROWS * STEP_CHUNKS, apart, chunk + at < chunks);
      copy_commit();
      filled.next();
      if (ahead < COPIES_AHEAD) {
        ++ahead;
        continue;
      }
      copy_wait<COPIES_AHEAD>();
      tell();
    }
  }
  copy_wait<0>();
  for (; ahead > 0; --ahead) tell();
}

// Multiplies them.
template <typename T, unsigned EPILOGUE, typename List>
__device__ __forceinline__ void multiply_tiles(
    const Product& p, List tiles, const uint4* const stages, Barrier* const full, Barrier* const empty) {
  const unsigned steps = (p.k + STEP_CHUNKS * CHUNK - 1) / (STEP_CHUNKS * CHUNK);
  const unsigned down = threadIdx.x / WARPGROUP * 64;
  // The products of this warp with a stage are done.
  const auto leave = [&](const unsigned slot) {
    if (threadIdx.x % LANES == 0) barrier_arrive(empty + slot);
  };
  Turn<T> turn;
  for (unsigned index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const Work tile = tiles.at(index);
    Sums<T> sum = {};
    unsigned before = 0;
    for (unsigned step = 0; step < steps; ++step) {
      barrier_wait(full + turn.slot, turn.parity);
      const uint4* const stage = stages + turn.slot * T::STAGE;
      const unsigned long long x = describe(stage + down * STEP_CHUNKS);
      const unsigned long long w = describe(stage + T::ROWS * STEP_CHUNKS);
      if (step == 0) pin(sum[0]);
      products_begin();
#pragma unroll
      for (unsigned chunk = 0; chunk < STEP_CHUNKS; chunk += 2) {
        multiply_add_group<T::COLUMNS>(sum[0], further(x, chunk), further(w, chunk));
      }
      products_commit();
      // Those of the stage before: the tensor cores have this one to go on with.
      products_wait<1>();
      if (step > 0) leave(before);
      before = turn.slot;
      turn.next();
    }
    products_wait<0>();
    pin(sum[0]);
    leave(before);
    const Operands op = {p.x, tile.w, tile.end, p.n, p.k / CHUNK, tile.row, tile.column};
    if constexpr (IS_GATE<EPILOGUE>) {
      put_gate<T, EPILOGUE>(p, op, sum);
    } else {
      put_part<T, EPILOGUE>(p, op, sum, true, true);
    }
  }
}

template <typename T, unsigned EPILOGUE, typename List>
__device__ __forceinline__ void product_hopper(const Product& p, const List& tiles) {
  constexpr unsigned MULTIPLYING = T::THREADS;
  static_assert(T::DOWN == 1 && T::WARPS == 8, "a warp has the rows of a warpgroup's product");
  static_assert(COPIES_AHEAD < T::STAGES, "a stage that nobody was told of would be waited for");
  static_assert(T::STAGE * 16 % SWIZZLED == 0 && T::ROWS * 128 % SWIZZLED == 0, "matrices begin where the swizzle does");
  __shared__ Barrier full[T::STAGES], empty[T::STAGES];
  DYNAMIC_SHARED(uint4, shared);
  if (blockIdx.x >= tiles.count()) return;
  uint4* const stages = shared + (SWIZZLED - shared_address(shared) % SWIZZLED) % SWIZZLED / 16;
  if (threadIdx.x < T::STAGES) {
    barrier_make(full + threadIdx.x, WARPGROUP / LANES);
    barrier_make(empty + threadIdx.x, MULTIPLYING / LANES);
  }
  __syncthreads();
  // 128 * 56 + 256 * 224 of the 65536 that a multiprocessor has; all were started with 168.
  if (threadIdx.x >= MULTIPLYING) {
    give_registers<56>();
    copy_tiles<T>(p, tiles, stages, full, empty);
  } else {
    take_registers<224>();
    multiply_tiles<T, EPILOGUE>(p, tiles, stages, full, empty);
  }
}

#endif
