// What a step does to rows between its products: tokens to activations, residual and norm, positions and the KV write.
//
//   embed        row of the bf16 table times a scale -> f32 residual row; a token may be one that is still on the device
//   clear        zeros in the residual: where a rank's part of a sum begins that another rank adds to what was there
//   add_norm     residual += delta, and its RMS norm in bf16 for the next product, in one pass
//   pick_norm    the same for the rows whose logits are wanted, gathered; the residual stays as it is
//   turn         the f32 rows of the qkv product: queries turned by their positions to bf16 rows, keys turned and values
//                as they are into their pages, bf16 or e4m3
//
// Bytes moved a row: embed 6 width; clear 4 width; add_norm 14 width (10 without delta: no write of the residual); turn 6 a number.
// Ceiling: the device's bandwidth with many rows; with few rows the time of a launch, since a row is 8 to 60 KB.
// What limits: latency. A block has a whole row and starts all of its loads before the first use.
//
// One class: what a row gives depends on the row alone. The squares of a row are summed in an order that depends on the
// width only: 512 chains, a tree over each warp, the warps in ascending order. Turning rounds as the CPU does (nothing
// is contracted), so keys and queries have the CPU's bits where the product had them.
//
// Rows are counted on the device (`rows`): the grid is that of the largest count, and blocks beyond it return.
// All but embed, the first of a step, may be chained; a norm has its weight in registers before the wait.

#include "chain.cuh"
#include "numbers.cuh"

// A token that the last sampling drew: `PENDING | i` is what its row i gave.
constexpr unsigned PENDING = 1u << 31;
// Positions of a block of keys and values.
constexpr unsigned BLOCK = 16;
constexpr unsigned NORM_THREADS = 512;
constexpr unsigned TURN_THREADS = 256;

// A block a row. A token that is not in the table reads its first row: the host refuses such tokens, and a row whose
// draw failed is never looked at.
extern "C" __global__ void __launch_bounds__(256)
    embed(const unsigned* rows, const unsigned* tokens, const unsigned* drawn, const uint4* table, float4* residual,
          const unsigned width, const unsigned vocabulary, const float scale) {
  let_next_begin();
  const unsigned row = blockIdx.x;
  if (row >= *rows) return;
  unsigned token = tokens[row];
  if (token & PENDING) token = drawn[token & ~PENDING];
  if (token >= vocabulary) token = 0;
  const unsigned chunks = width / CHUNK;
  for (unsigned chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
    float number[CHUNK];
    widen(__ldg(table + (size_t)token * chunks + chunk), number);
    float4* const to = residual + ((size_t)row * chunks + chunk) * 2;
    to[0] = {number[0] * scale, number[1] * scale, number[2] * scale, number[3] * scale};
    to[1] = {number[4] * scale, number[5] * scale, number[6] * scale, number[7] * scale};
  }
}

// A block a row.
extern "C" __global__ void __launch_bounds__(256) clear(const unsigned* rows, float4* residual, const unsigned width) {
  if (blockIdx.x >= *rows) return;
  const unsigned fours = width / 4;
  for (unsigned four = threadIdx.x; four < fours; four += blockDim.x) {
    residual[(size_t)blockIdx.x * fours + four] = {0.0f, 0.0f, 0.0f, 0.0f};
  }
}

// The sum over the block, in every thread.
__device__ __forceinline__ float block_sum(const float value) {
  constexpr unsigned WARPS = NORM_THREADS / LANES;
  __shared__ float partial[WARPS];
  const float sum = warp_sum(value);
  if (threadIdx.x % LANES == 0) partial[threadIdx.x / LANES] = sum;
  __syncthreads();
  float total = partial[0];
#pragma unroll
  for (unsigned warp = 1; warp < WARPS; ++warp) total += partial[warp];
  return total;
}

// The weight of a norm, PER fours of numbers to a thread.
template <unsigned PER>
__device__ __forceinline__ void load_weight(float4 (&w)[PER], const float4* const weight, const unsigned width) {
#pragma unroll
  for (unsigned i = 0; i < PER; ++i) {
    const unsigned at = threadIdx.x + i * NORM_THREADS;
    if (at < width / 4) w[i] = __ldg(weight + at);
  }
}

// Row `from` of the residual, plus `delta` where there is one, normed into row `to` of `out`. PER fours of numbers to a
// thread; `keep` writes the sum back.
template <unsigned PER>
__device__ __forceinline__ void norm(
    float4* residual, const float4* delta, const float4 (&weight)[PER], uint2* out, const size_t from,
    const size_t to, const bool keep, const unsigned width, const float epsilon, const float offset) {
  const unsigned fours = width / 4;
  float4 x[PER];
#pragma unroll
  for (unsigned i = 0; i < PER; ++i) {
    const unsigned at = threadIdx.x + i * NORM_THREADS;
    x[i] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (at < fours) x[i] = residual[from * fours + at];
  }
  if (delta) {
#pragma unroll
    for (unsigned i = 0; i < PER; ++i) {
      const unsigned at = threadIdx.x + i * NORM_THREADS;
      if (at < fours) {
        const float4 more = delta[from * fours + at];
        x[i] = {x[i].x + more.x, x[i].y + more.y, x[i].z + more.z, x[i].w + more.w};
        if (keep) residual[from * fours + at] = x[i];
      }
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < PER; ++i) {
    squares = fmaf(x[i].x, x[i].x, squares);
    squares = fmaf(x[i].y, x[i].y, squares);
    squares = fmaf(x[i].z, x[i].z, squares);
    squares = fmaf(x[i].w, x[i].w, squares);
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / (float)width + epsilon);
#pragma unroll
  for (unsigned i = 0; i < PER; ++i) {
    const unsigned at = threadIdx.x + i * NORM_THREADS;
    if (at < fours) {
      const float4 w = weight[i];
      out[to * fours + at] = {
          pack_bf16(__fmul_rn(__fmul_rn(x[i].x, scale), offset + w.x), __fmul_rn(__fmul_rn(x[i].y, scale), offset + w.y)),
          pack_bf16(__fmul_rn(__fmul_rn(x[i].z, scale), offset + w.z), __fmul_rn(__fmul_rn(x[i].w, scale), offset + w.w))};
    }
  }
}

// width is a multiple of 8 and at most 2048 PER. `delta` may be null. `offset` is 1 for weights that are stored less 1.
#define BEGIN_NORM(PER)               \
  let_next_begin();                   \
  float4 w[PER];                      \
  load_weight<PER>(w, weight, width); \
  wait_for_past();
#define NORM(PER)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                                           \
      add_norm_##PER(const unsigned* rows, float4* residual, const float4* delta, const float4* weight, uint2* out,    \
                     unsigned width, float epsilon, float offset) {                                                    \
    BEGIN_NORM(PER)                                                                                                    \
    if (blockIdx.x >= *rows) return;                                                                                   \
    norm<PER>(residual, delta, w, out, blockIdx.x, blockIdx.x, true, width, epsilon, offset);                          \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                                           \
      pick_norm_##PER(const unsigned* picked, const unsigned* list, float4* residual, const float4* delta,             \
                      const float4* weight, uint2* out, unsigned width, float epsilon, float offset) {                 \
    BEGIN_NORM(PER)                                                                                                    \
    if (blockIdx.x >= *picked) return;                                                                                 \
    norm<PER>(residual, delta, w, out, list[blockIdx.x], blockIdx.x, false, width, epsilon, offset);                   \
  }

NORM(1)
NORM(2)
NORM(3)
NORM(4)

// f32 to the bits of an e4m3, to nearest, ties to even; beyond 448 is 448.
__device__ __forceinline__ unsigned round_e4m3(const float value) {
  const unsigned sign = __float_as_uint(value) >> 31 << 7;
  const float size = fminf(fabsf(value), 448.0f);
  // Below the normal numbers the steps are 2^-9.
  if (size < 0.015625f) return sign | (unsigned)__float2int_rn(size * 512.0f);
  const unsigned bits = __float_as_uint(size);
  return sign | (((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - (120u << 3));
}

// Four numbers of a page.
struct Bf16Page {
  typedef uint2 Four;
  static __device__ __forceinline__ Four pack(const float4 v, float) {
    return {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
  }
};
struct E4m3Page {
  typedef unsigned Four;
  static __device__ __forceinline__ Four pack(const float4 v, const float scale) {
    return round_e4m3(v.x * scale) | round_e4m3(v.y * scale) << 8 | round_e4m3(v.z * scale) << 16 |
           round_e4m3(v.w * scale) << 24;
  }
};

// a cos - b sin and b cos + a sin, each product rounded.
__device__ __forceinline__ void turn_pair(float& a, float& b, const float cos, const float sin) {
  const float first = __fadd_rn(__fmul_rn(a, cos), -__fmul_rn(b, sin));
  b = __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin));
  a = first;
}

// A thread has four pairs of a head: numbers 4 part.. and DIM / 2 + 4 part... Heads in the order of a row of `qkv`:
// queries, keys, values. `turns` holds per position DIM / 2 cosines, then as many sines. Pages are
// [block][kv head][16 positions][DIM]. `scales`, where pages are e4m3: what keys are multiplied with, a kv head, then
// the same for values.
template <unsigned DIM, typename Page>
__device__ __forceinline__ void turn(
    const unsigned* rows, const float4* qkv, const float4* __restrict__ turns, const unsigned* positions,
    const unsigned* slots, const float* __restrict__ scales, uint2* q, typename Page::Four* keys, typename Page::Four* values,
    const unsigned q_heads, const unsigned kv_heads) {
  let_next_begin();
  wait_for_past();
  constexpr unsigned PARTS = DIM / 8;
  const unsigned heads = q_heads + 2 * kv_heads;
  const unsigned part = threadIdx.x % PARTS;
  const unsigned item = blockIdx.x * (TURN_THREADS / PARTS) + threadIdx.x / PARTS;
  const unsigned row = item / heads, head = item % heads;
  if (row >= *rows) return;

  const float4* const from = qkv + (size_t)item * (DIM / 4);
  float4 a = from[part], b = from[PARTS + part];
  if (head < q_heads + kv_heads) {
    const float4* const turned = turns + (size_t)positions[row] * (DIM / 4);
    const float4 cos = __ldg(turned + part), sin = __ldg(turned + PARTS + part);
    turn_pair(a.x, b.x, cos.x, sin.x);
    turn_pair(a.y, b.y, cos.y, sin.y);
    turn_pair(a.z, b.z, cos.z, sin.z);
    turn_pair(a.w, b.w, cos.w, sin.w);
  }
  if (head < q_heads) {
    uint2* const to = q + ((size_t)row * q_heads + head) * (DIM / 4);
    to[part] = Bf16Page::pack(a, 1.0f);
    to[PARTS + part] = Bf16Page::pack(b, 1.0f);
    return;
  }
  const bool value = head >= q_heads + kv_heads;
  const unsigned kv_head = head - q_heads - (value ? kv_heads : 0);
  const unsigned slot = slots[row];
  const float scale = scales ? __ldg(scales + (value ? kv_heads : 0) + kv_head) : 1.0f;
  typename Page::Four* const to =
      (value ? values : keys) + (((size_t)(slot / BLOCK) * kv_heads + kv_head) * BLOCK + slot % BLOCK) * (DIM / 4);
  to[part] = Page::pack(a, scale);
  to[PARTS + part] = Page::pack(b, scale);
}

#define TURN(DIM)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(TURN_THREADS)                                                           \
      turn_bf16_##DIM(const unsigned* rows, const float4* qkv, const float4* turns, const unsigned* positions,         \
                      const unsigned* slots, uint2* q, uint2* keys, uint2* values, unsigned q_heads,                   \
                      unsigned kv_heads) {                                                                             \
    turn<DIM, Bf16Page>(rows, qkv, turns, positions, slots, nullptr, q, keys, values, q_heads, kv_heads);              \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(TURN_THREADS)                                                           \
      turn_e4m3_##DIM(const unsigned* rows, const float4* qkv, const float4* turns, const unsigned* positions,         \
                      const unsigned* slots, const float* scales, uint2* q, unsigned* keys, unsigned* values,          \
                      unsigned q_heads, unsigned kv_heads) {                                                           \
    turn<DIM, E4m3Page>(rows, qkv, turns, positions, slots, scales, q, keys, values, q_heads, kv_heads);               \
  }

TURN(64)
TURN(128)
TURN(256)
