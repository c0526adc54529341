// The experts of up to 8 rows with weights of 8 or 4 bits: what direct_gate_up and direct_down of experts.cu do with bf16,
// in the way in which weightonly.cu reads and multiplies.
//
//   gate_up   rows times gate and up of their expert, bent, in bf16: [pairs][ffn]
//   down      those times down, weighted, added to the residual, experts ascending
//
// Panels of all experts stand behind one another, each expert's own filled to whole ones, and so do their scales. The rows
// are the columns of an mma, as in weightonly.cu: those that did not choose an expert are zeros in its product, so all rows
// that share an expert cost one reading of it. An expert's pairs are served by the blocks of the first of them; in down a
// block has 16 numbers of all rows and goes through the experts that any of them chose.
//
// The order of a sum is weightonly.cu's; a row's experts are added in ascending order. A row depends on itself, its experts
// and the format alone; no atomics.
//
// Bytes moved: the weights of every expert that is chosen, once: 3 width ffn bytes (int4: half) + scales, + 2 width (ffn) a
// row for every block, from the second-level cache. Ceiling: the device's read bandwidth. In flight: 64 (int4: 32) KiB a
// block, two a multiprocessor. What limits: before its first load a block reads who chose what, a trip to the second-level
// cache; down has nothing in flight where the sums of an expert are joined, which the block beside it hides.

#include "weightonly.cuh"

// Panels of a block, and steps that a warp has in flight of each.
constexpr unsigned GATE_PANELS = 2, DOWN_PANELS = 1, DOWN_FLIGHT = 4;
template <typename F>
constexpr unsigned GATE_FLIGHT = 2;
// The second step would cost a register more than two blocks a multiprocessor leave.
template <>
constexpr unsigned GATE_FLIGHT<Q6K> = 1;
constexpr unsigned NONE = ~0u;

// The pair of a row and an expert; NONE where the row did not choose it or is not there.
__device__ __forceinline__ unsigned pair_of(
    const unsigned* __restrict__ chosen, const unsigned expert, const unsigned row, const unsigned rows,
    const unsigned top_k) {
  unsigned found = NONE;
  if (row >= rows) return found;
  for (unsigned choice = 0; choice < top_k; ++choice) {
    const unsigned pair = row * top_k + choice;
    if (__ldg(chosen + pair) == expert) found = pair;
  }
  return found;
}

// A block has two panels of gate and up, which take turns by eight rows; blockIdx.y is the pair.
template <typename F, unsigned ACTIVATION>
__device__ __forceinline__ void expert_gate_up(
    const unsigned rows, const unsigned* __restrict__ chosen, const uint4* __restrict__ x,
    const uint4* __restrict__ w, const void* __restrict__ scales, unsigned short* bent, const unsigned width,
    const unsigned ffn, const unsigned top_k) {
  const unsigned lane = threadIdx.x % LANES;
  if (blockIdx.y >= rows * top_k) return;
  const unsigned expert = __ldg(chosen + blockIdx.y);
  bool is_served = false;
  for (unsigned pair = lane; pair < blockIdx.y; pair += LANES) is_served |= __ldg(chosen + pair) == expert;
  if (__any_sync(WHOLE_WARP, is_served)) return;

  const unsigned panels = (2 * ffn + PANEL - 1) / PANEL, first = expert * panels;
  const bool has_row = pair_of(chosen, expert, lane / 4, rows, top_k) != NONE;
  float sum[GATE_PANELS][4] = {};
  sum_steps<F, GATE_FLIGHT<F>>(
      sum, x + lane / 4 * (width / CHUNK), has_row, w, scales, width, first + blockIdx.x * GATE_PANELS,
      first + panels - 1);

  __shared__ Partial<GATE_PANELS> partial;
  leave(partial, sum);
  __syncthreads();
  const unsigned row = threadIdx.x / PANEL % MOST_ROWS, of = threadIdx.x % PANEL, p = threadIdx.x / (PANEL * MOST_ROWS);
  const unsigned panel = blockIdx.x * GATE_PANELS + p;
  if (panel >= panels || of >= GATE_ROWS) return;
  const unsigned pair = pair_of(chosen, expert, row, rows, top_k);
  if (pair == NONE) return;
  const size_t row_of_w = (size_t)(first + panel) * PANEL + of;
  const float gate = joined<F>(partial, p, row, of, scales, row_of_w);
  const float up = joined<F>(partial, p, row, of + GATE_ROWS, scales, row_of_w + GATE_ROWS);
  bent[(size_t)pair * ffn + panel * GATE_ROWS + of] = round_bf16(bend<ACTIVATION>(gate) * up);
}

// A block has a panel: 16 numbers of all rows of the residual.
template <typename F>
__device__ __forceinline__ void expert_down(
    const unsigned rows, const unsigned* __restrict__ chosen, const float* __restrict__ weights,
    const uint4* __restrict__ bent, const uint4* __restrict__ w, const void* __restrict__ scales, float* residual,
    const unsigned width, const unsigned ffn, const unsigned top_k) {
  const unsigned lane = threadIdx.x % LANES;
  // The experts that any row chose.
  unsigned long long open = 0;
  for (unsigned pair = lane; pair < rows * top_k; pair += LANES) open |= 1ull << __ldg(chosen + pair);
#pragma unroll
  for (unsigned apart = LANES / 2; apart > 0; apart /= 2) open |= __shfl_xor_sync(WHOLE_WARP, open, apart);

  const unsigned panels = (width + PANEL - 1) / PANEL, chunks = ffn / CHUNK;
  const unsigned row = threadIdx.x / PANEL, of = threadIdx.x % PANEL, column = blockIdx.x * PANEL + of;
  const bool is_owner = row < rows && column < width;
  float* const own = residual + (size_t)row * width + column;
  float total = is_owner ? *own : 0.0f;
  // Two places by turns: the sums of one expert are read while those of the next are written.
  __shared__ Partial<DOWN_PANELS> partial[2];
  for (unsigned turn = 0; open != 0; turn ^= 1, open &= open - 1) {
    const unsigned expert = __ffsll(open) - 1, first = expert * panels;
    const unsigned input = pair_of(chosen, expert, lane / 4, rows, top_k);
    const bool has_row = input != NONE;
    float sum[DOWN_PANELS][4] = {};
    sum_steps<F, DOWN_FLIGHT>(
        sum, bent + (size_t)(has_row ? input : 0) * chunks, has_row, w, scales, ffn, first + blockIdx.x,
        first + panels - 1);
    leave(partial[turn], sum);
    __syncthreads();
    const unsigned pair = is_owner ? pair_of(chosen, expert, row, rows, top_k) : NONE;
    if (pair == NONE) continue;
    const size_t row_of_w = (size_t)(first + blockIdx.x) * PANEL + of;
    total = fmaf(weights[pair], joined<F>(partial[turn], 0, row, of, scales, row_of_w), total);
  }
  if (is_owner) *own = total;
}

static_assert(GATE_PANELS * PANEL * MOST_ROWS == SHARERS * LANES, "a thread a sum");

#define EXPERT_GATE_UP(NAME, F, ACTIVATION)                                                                        \
  extern "C" __global__ void __launch_bounds__(256, 2) expert_weightonly_##NAME(                                   \
      const unsigned* rows, const unsigned* chosen, const uint4* x, const uint4* w, const void* scales,            \
      unsigned short* bent, unsigned width, unsigned ffn, unsigned top_k) {                                        \
    expert_gate_up<F, ACTIVATION>(*rows, chosen, x, w, scales, bent, width, ffn, top_k);                           \
  }
#define EXPERT_DOWN(NAME, F)                                                                                       \
  extern "C" __global__ void __launch_bounds__(256, 2) expert_weightonly_##NAME(                                   \
      const unsigned* rows, const unsigned* chosen, const float* weights, const uint4* bent, const uint4* w,       \
      const void* scales, float* residual, unsigned width, unsigned ffn, unsigned top_k) {                         \
    expert_down<F>(*rows, chosen, weights, bent, w, scales, residual, width, ffn, top_k);                          \
  }
#define EXPERT_WEIGHTONLY_FORMAT(NAME, F)  \
  EXPERT_GATE_UP(NAME##_silu, F, SILU)     \
  EXPERT_GATE_UP(NAME##_gelu, F, GELU)     \
  EXPERT_DOWN(NAME##_down, F)

EACH_FORMAT(EXPERT_WEIGHTONLY_FORMAT)
