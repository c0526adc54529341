// Mixture of experts: which experts a row goes to, and their feed-forward layers.
//
//   route            logits of the router -> the experts of each row, ascending, and how much each counts
// Few rows (the launch code says up to how many), each pair of row and expert a product of its own:
//   direct_gate_up   row times gate and up of its expert, bent, in bf16
//   direct_down      those times down, weighted, added to the residual, the experts of a row one after the other
// More rows:
//   group            pairs counted by expert and put in order of experts; those of an expert in order of rows
//   gather           the input rows in that order, so that each expert has its rows side by side
//   combine          the weighted results of a row's experts, added to the residual one after the other
// with grouped products between (expert_product.cu).
//
// Weights of all experts stand behind one another: gate_up [experts][2 ffn][width], eight rows of gate and eight of up
// taking turns (epilogue.cuh), down [experts][width][ffn].
//
// Bytes moved: direct: the weights of every pair, 6 width ffn, twice where two rows share an expert and the second-level
// cache has lost it. Ceiling: the device's read bandwidth, as for skinny.cu. group: 16 a pair, in one block: latency, two
// passes of a warp an expert over the pairs, expected (not measured) about 3 us up to a few hundred rows. gather: 4 width
// a pair; combine: 4 width a pair and 8 width a row.
//
// Classes: direct has skinny.cu's bits: warp for gate and up, block for down. A row depends on nothing but itself, and its
// experts are added in ascending order, as on the CPU; no atomics.
//
// route and direct may be chained. They wait at once: the past says which weights they read.

#include "chain.cuh"
#include "epilogue.cuh"
#include "skinny.cuh"

constexpr unsigned ROUTE_THREADS = 64;
constexpr unsigned GROUP_THREADS = 1024;
constexpr unsigned MAX_EXPERTS = 64;

// Ascends with the logits in the total order of floats, and lower experts are better among equals.
__device__ __forceinline__ unsigned long long standing(const float logit, const unsigned expert) {
  const unsigned bits = __float_as_uint(logit);
  const unsigned key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)key << 32 | ~expert;
}

// A thread a row. `chosen` and `weights` are [rows][top_k], experts ascending. Weights are the softmax over all experts,
// over the chosen ones when `renormalise`.
extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)
    route(const unsigned* rows, const float* logits, unsigned* chosen, float* weights, const unsigned experts,
          const unsigned top_k, const unsigned renormalise) {
  let_next_begin();
  wait_for_past();
  const unsigned row = blockIdx.x * ROUTE_THREADS + threadIdx.x;
  if (row >= *rows) return;
  const float* const own = logits + (size_t)row * experts;
  unsigned long long last = ~0ull;
  float best = 0.0f, sum = 0.0f;
  for (unsigned choice = 0; choice < top_k; ++choice) {
    unsigned long long next = 0;
    for (unsigned expert = 0; expert < experts; ++expert) {
      const unsigned long long here = standing(own[expert], expert);
      if (here < last && here > next) next = here;
    }
    last = next;
    const float logit = own[~(unsigned)last];
    if (choice == 0) best = logit;
    sum += expf(logit - best);
  }
  if (!renormalise) {
    sum = 0.0f;
    for (unsigned expert = 0; expert < experts; ++expert) sum += expf(own[expert] - best);
  }
  unsigned at = row * top_k;
  for (unsigned expert = 0; expert < experts; ++expert) {
    const float logit = own[expert];
    if (standing(logit, expert) < last) continue;
    chosen[at] = expert;
    weights[at] = expf(logit - best) / sum;
    ++at;
  }
}

// A warp has two rows of gate and the two of up that belong to them; blockIdx.y is the pair. `bent` is [pairs][ffn].
template <unsigned ACTIVATION, unsigned WARPS>
__device__ __forceinline__ void direct_gate_up(
    const unsigned rows, const unsigned* chosen, const uint4* x, const uint4* __restrict__ gate_up, unsigned* bent,
    const unsigned width, const unsigned ffn, const unsigned top_k) {
  constexpr unsigned GATES = TILE / 2;
  const unsigned pair = blockIdx.y, row = pair / top_k;
  const unsigned first = (blockIdx.x * WARPS + threadIdx.x / LANES) * GATES;
  if (row >= rows || first >= ffn) return;
  const unsigned chunks = width / CHUNK;
  const uint4* const w = gate_up + (size_t)chosen[pair] * 2 * ffn * chunks;
  const unsigned gate = first / GATE_ROWS * 2 * GATE_ROWS + first % GATE_ROWS;
  const uint4* tile[TILE];
#pragma unroll
  for (unsigned t = 0; t < TILE; ++t) tile[t] = w + (size_t)(gate + t / GATES * GATE_ROWS + t % GATES) * chunks;

  float sum[1][TILE] = {};
  sum_rows<1, 1>(sum, x + (size_t)row * chunks, tile, chunks, 0);
  if (threadIdx.x % LANES == 0) {
    bent[((size_t)pair * ffn + first) / GATES] =
        pack_bf16(bend<ACTIVATION>(sum[0][0]) * sum[0][2], bend<ACTIVATION>(sum[0][1]) * sum[0][3]);
  }
}

#define DIRECT_GATE_UP(NAME, ACTIVATION)                                                                               \
  extern "C" __global__ void __launch_bounds__(256, 1)                                                                 \
      direct_gate_up_##NAME(const unsigned* rows, const unsigned* chosen, const uint4* x, const uint4* gate_up,        \
                            unsigned* bent, unsigned width, unsigned ffn, unsigned top_k) {                            \
    let_next_begin();                                                                                                  \
    wait_for_past();                                                                                                   \
    direct_gate_up<ACTIVATION, 8>(*rows, chosen, x, gate_up, bent, width, ffn, top_k);                                 \
  }

DIRECT_GATE_UP(silu, SILU)
DIRECT_GATE_UP(gelu, GELU)

// A block has TILE numbers of a row of the residual and goes through the row's experts; four warps share k.
extern "C" __global__ void __launch_bounds__(128, 1)
    direct_down(const unsigned* rows, const unsigned* chosen, const float* weights, const uint4* bent,
                const uint4* down, float* residual, const unsigned width, const unsigned ffn, const unsigned top_k) {
  let_next_begin();
  wait_for_past();
  constexpr unsigned WARPS = 4;
  __shared__ float partial[2][WARPS][TILE];
  const unsigned row = blockIdx.y, lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const unsigned first = blockIdx.x * TILE;
  if (row >= *rows) return;
  const unsigned chunks = ffn / CHUNK;
  float total = 0.0f;
  if (threadIdx.x < TILE) total = residual[(size_t)row * width + first + threadIdx.x];
  for (unsigned choice = 0; choice < top_k; ++choice) {
    const unsigned pair = row * top_k + choice;
    const uint4* const w = down + (size_t)chosen[pair] * width * chunks;
    const uint4* tile[TILE];
#pragma unroll
    for (unsigned t = 0; t < TILE; ++t) tile[t] = w + (size_t)(first + t) * chunks;
    float sum[1][TILE] = {};
    sum_rows<1, WARPS>(sum, bent + (size_t)pair * chunks, tile, chunks, warp);
    // Two places by turns: the sums of one choice are read while those of the next are written.
    float(&place)[WARPS][TILE] = partial[choice % 2];
#pragma unroll
    for (unsigned t = 0; t < TILE; ++t) {
      if (lane == t) place[warp][t] = sum[0][t];
    }
    __syncthreads();
    if (threadIdx.x < TILE) {
      float result = place[0][threadIdx.x];
#pragma unroll
      for (unsigned w = 1; w < WARPS; ++w) result += place[w][threadIdx.x];
      total = fmaf(weights[pair], result, total);
    }
  }
  if (threadIdx.x < TILE) residual[(size_t)row * width + first + threadIdx.x] = total;
}

// One block; a warp an expert. `starts` (one more than experts) says where each expert's pairs begin in `order`, which
// holds pairs; `places` is the other way round.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    group(const unsigned* rows, const unsigned* chosen, unsigned* starts, unsigned* order, unsigned* places,
          const unsigned experts, const unsigned top_k) {
  constexpr unsigned WARPS = GROUP_THREADS / LANES;
  __shared__ unsigned first[MAX_EXPERTS + 1];
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const unsigned pairs = *rows * top_k;
  for (unsigned expert = warp; expert < experts; expert += WARPS) {
    unsigned count = 0;
#pragma unroll 4
    for (unsigned pair = lane; pair < pairs; pair += LANES) count += chosen[pair] == expert;
#pragma unroll
    for (unsigned apart = LANES / 2; apart > 0; apart /= 2) count += __shfl_xor_sync(WHOLE_WARP, count, apart);
    if (lane == 0) first[expert + 1] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    first[0] = 0;
    for (unsigned expert = 0; expert < experts; ++expert) first[expert + 1] += first[expert];
  }
  __syncthreads();
  for (unsigned expert = threadIdx.x; expert <= experts; expert += GROUP_THREADS) starts[expert] = first[expert];
  for (unsigned expert = warp; expert < experts; expert += WARPS) {
    unsigned at = first[expert];
    // As many rounds for every lane: all of them vote.
    for (unsigned begin = 0; begin < pairs; begin += LANES) {
      const unsigned pair = begin + lane;
      const bool mine = pair < pairs && chosen[pair] == expert;
      const unsigned votes = __ballot_sync(WHOLE_WARP, mine);
      if (mine) {
        const unsigned place = at + __popc(votes & ((1u << lane) - 1));
        order[place] = pair;
        places[pair] = place;
      }
      at += __popc(votes);
    }
  }
}

// A block a pair: row i of `to` is the row of pair order[i].
extern "C" __global__ void __launch_bounds__(256)
    gather(const unsigned* rows, const unsigned* order, const uint4* x, uint4* to, const unsigned width,
           const unsigned top_k) {
  if (blockIdx.x >= *rows * top_k) return;
  const unsigned chunks = width / CHUNK;
  const size_t from = (size_t)(order[blockIdx.x] / top_k) * chunks, at = (size_t)blockIdx.x * chunks;
  for (unsigned chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) to[at + chunk] = __ldg(x + from + chunk);
}

// A block a row: residual += weight * result for its choices, ascending.
extern "C" __global__ void __launch_bounds__(256)
    combine(const unsigned* rows, const unsigned* places, const float* weights, const float4* results,
            float4* residual, const unsigned width, const unsigned top_k) {
  if (blockIdx.x >= *rows) return;
  const unsigned fours = width / 4;
  for (unsigned i = threadIdx.x; i < fours; i += blockDim.x) {
    float4 total = residual[(size_t)blockIdx.x * fours + i];
    for (unsigned choice = 0; choice < top_k; ++choice) {
      const unsigned pair = blockIdx.x * top_k + choice;
      const float weight = weights[pair];
      const float4 result = results[(size_t)places[pair] * fours + i];
      total.x = fmaf(weight, result.x, total.x);
      total.y = fmaf(weight, result.y, total.y);
      total.z = fmaf(weight, result.z, total.z);
      total.w = fmaf(weight, result.w, total.w);
    }
    residual[(size_t)blockIdx.x * fours + i] = total;
  }
}
