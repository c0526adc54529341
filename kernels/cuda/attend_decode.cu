// Paged attention of sequences with one row in the step: the keys split into pieces, all query heads of a group on one
// read of the keys and values.
//
// out[row][head] = softmax(q . K * scale) V over the positions that the row sees, head size 64, 128 or 256, at most 8
// query heads to a head of keys. Fused: scale, window, softmax, and the sum over the pieces (the block that finishes a
// row's head last adds them up, so that no second launch waits for the first).
//
// Bytes moved: 4 dim a position and head of keys; the rest (q, out, and a partial result of group * dim f32 per piece,
// written and read back through the second-level cache) is 3 % of it with pieces of 256 positions and groups of 4.
// Ceiling: the read bandwidth. An H200 gives a multiprocessor 18.6 bytes a clock: a page of 16 positions of a head of
// 128, 8 KiB, every 440 clocks.
//
// Arithmetic: with f32 multiply-adds a group of 8 needs 4 of them a byte, 17 T/s of the 30 T/s of an H200, and with the
// widening and the sums across lanes two thirds of all instructions: too near for a kernel that is to wait for memory
// alone, and beyond it with 8-bit keys. On the tensor cores a page is 16 instructions m16n8k16 whatever the group (a
// fifteenth of their time), and 372 instructions in all where there is time for 1,760. So: tensor cores, with the
// positions of a page (K q) or the numbers of a head (V p) as the 16 rows and the query heads of the group as the 8
// columns.
//
// In flight: each warp walks its own pages through a ring of its own in shared memory, 3 pages of 4 KiB ahead (head of
// 128; 2 of 8 KiB for 256), without a barrier of the block: 12 warps of a multiprocessor have 144 KiB under way (8 and
// 128 KiB for 256), where 4.3 TB/s at 1 us want 33 KiB. That covers the ends of pieces, where a block waits.
//
// Pages of e4m3 (with a scale for the keys of each head and one for the values) halve the bytes, and with them the time
// that a page may take; the rings have as many bytes and twice the pages. Four numbers are widened to bf16 by bit
// arithmetic and an exact multiplication a pair in 9 instructions: a page of a head of 128 has 592 in all where there is
// time for 880.
//
// Persistent blocks walk the device's list of pieces (attend_plan.cu), heads of keys fastest, as their pages are
// neighbours in memory. The bits of a row depend on its own position, the window and the size of a piece: within a
// piece page i goes to warp i % 4 and the warps are added in ascending order, as are the pieces of a row, whichever block
// does it. They do not depend on the grid or on other rows.

#include "chain.cuh"
#include "paged.cuh"
#include "tensor.cuh"

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * LANES;
// Query heads to a head of keys, at most: the columns of a product of the tensor cores.
constexpr unsigned GROUP = 8;
// A partial result: maximum and sum of each head, then the heads.
constexpr unsigned FACTS = 2 * GROUP;

template <unsigned DIM, typename Number>
struct Shape {
  static constexpr unsigned COLUMNS = DIM * Number::BYTES / 16;
  static constexpr unsigned PAGE_BYTES = PAGE * DIM * Number::BYTES;
  // Pages of a warp's ring.
  static constexpr unsigned SLOTS = (DIM == 64 ? 8 : DIM == 128 ? 4 : 3) * (2 / Number::BYTES);
  static constexpr unsigned RING = SLOTS * PAGE_BYTES;
  // Floats of a head when the warps are added up: 4 more than needed, so that a warp writes to 32 banks.
  static constexpr unsigned STRIDE = DIM + 4;
  static_assert(RING >= GROUP * STRIDE * 4, "the results of the warps take the place of their rings");
};

// Begins to copy a page. Rows of positions outside [start, end) become zeros and are not read: what another sequence
// left there must not matter, and zero times a number that is not one would not be zero.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void begin_page(
    unsigned char* slot, const unsigned char* page, const unsigned position, const unsigned start, const unsigned end) {
  constexpr unsigned COLUMNS = Shape<DIM, Number>::COLUMNS, ROWS = LANES / COLUMNS;
  const unsigned lane = threadIdx.x % LANES;
  const unsigned place = swizzled<COLUMNS>(lane / COLUMNS, lane % COLUMNS), after = position + lane / COLUMNS - start;
#pragma unroll
  for (unsigned i = 0; i < PAGE * COLUMNS / LANES; ++i) {
    copy_async(slot + (i * LANES + (place ^ i * ROWS % 8)) * 16, page + (i * LANES + lane) * 16,
               after + i * ROWS < end - start);
  }
}

// The group's queries as the right side of the product: head g in column g, zeros where there is none. In which order
// the numbers of a head are multiplied is that of the keys: with e4m3, four neighbours come in one word.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void load_queries(
    unsigned (&queries)[DIM / 16][2], const unsigned short* q, const unsigned group) {
  constexpr bool FOURS = Number::BYTES == 1;
  const unsigned lane = threadIdx.x % LANES, g = lane / 4, t = lane % 4;
  const unsigned* const words = (const unsigned*)q + g * (DIM / 2) + (FOURS ? 2 * t : t);
#pragma unroll
  for (unsigned k = 0; k < DIM / 16; ++k) {
    queries[k][0] = g < group ? words[8 * k] : 0;
    queries[k][1] = g < group ? words[8 * k + (FOURS ? 1 : 4)] : 0;
  }
}

// What a warp knows after some pages of heads 2 t and + 1, t = lane % 4: the greatest score, the sum of the weights (of
// the positions lane / 4 and + 8 of each page) and the weighted values: of every 16 numbers of a head, lane / 4 of both
// heads and lane / 4 + 8 of both; with e4m3 the numbers lane / 4 * 2 and + 1.
template <unsigned DIM>
struct Running {
  float most[2], sum[2];
  float values[DIM / 16][4];
};

// Scores of a page of keys: positions lane / 4 and + 8 of heads 2 t and + 1; -inf where not seen.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void score_page(
    float (&scores)[2][2], const unsigned (&queries)[DIM / 16][2], const unsigned char* slot, const unsigned position,
    const unsigned start, const unsigned end) {
  constexpr unsigned COLUMNS = Shape<DIM, Number>::COLUMNS;
  const unsigned lane = threadIdx.x % LANES;
  // Two chains of sums, so that a product need not wait for the one before it.
  float sum[2][4] = {};
  const unsigned place = swizzled<COLUMNS>(lane % 16, lane / 16);
#pragma unroll
  for (unsigned i = 0; i < COLUMNS / 2; ++i) {
    unsigned keys[4];
    load_matrices(keys, slot + (place ^ 2 * i) * 16);
    if constexpr (Number::BYTES == 2) {
      multiply_add(sum[i % 2], keys, queries[i]);
    } else {
#pragma unroll
      for (unsigned j = 0; j < 2; ++j) {
        const unsigned wide[4] = {lower_pair(keys[2 * j]), lower_pair(keys[2 * j + 1]), upper_pair(keys[2 * j]),
                                  upper_pair(keys[2 * j + 1])};
        multiply_add(sum[j], wide, queries[2 * i + j]);
      }
    }
  }
#pragma unroll
  for (unsigned i = 0; i < 2; ++i) {
    const unsigned at = position + lane / 4 + 8 * i;
    const bool seen = start <= at && at < end;
    scores[i][0] = seen ? sum[0][2 * i] + sum[1][2 * i] : -INFINITY;
    scores[i][1] = seen ? sum[0][2 * i + 1] + sum[1][2 * i + 1] : -INFINITY;
  }
}

// Adds a page of values, weighted by the scores of its keys. `sharpness` is what scores are multiplied with,
// times log2(e). Every
// page has a position that is seen, so the greatest score is a number.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void add_page(
    Running<DIM>& running, const float (&scores)[2][2], const unsigned char* slot, const float sharpness) {
  constexpr unsigned COLUMNS = Shape<DIM, Number>::COLUMNS;
  const unsigned lane = threadIdx.x % LANES;
  float shrink[2], weights[2][2];
#pragma unroll
  for (unsigned head = 0; head < 2; ++head) {
    float most = fmaxf(scores[0][head], scores[1][head]);
#pragma unroll
    for (unsigned apart = 4; apart < LANES; apart *= 2) most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, apart));
    most = fmaxf(most, running.most[head]);
    shrink[head] = power_of_two((running.most[head] - most) * sharpness);
    running.most[head] = most;
    const float shift = -most * sharpness;
    weights[0][head] = power_of_two(fmaf(scores[0][head], sharpness, shift));
    weights[1][head] = power_of_two(fmaf(scores[1][head], sharpness, shift));
  }
  const unsigned upper = pack_bf16(weights[0][0], weights[0][1]), lower = pack_bf16(weights[1][0], weights[1][1]);
  // The sum of what the values are multiplied with: the weights as they were rounded.
  running.sum[0] = fmaf(running.sum[0], shrink[0], first_of(upper) + first_of(lower));
  running.sum[1] = fmaf(running.sum[1], shrink[1], second_of(upper) + second_of(lower));
  const unsigned right[2] = {transpose_matrix(upper), transpose_matrix(lower)};
#pragma unroll
  for (unsigned i = 0; i < DIM / 16; ++i) {
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) running.values[i][j] *= shrink[j % 2];
  }
  const unsigned place = Number::BYTES == 2 ? swizzled<COLUMNS>(lane / 16 * 8 + lane % 8, lane / 8 % 2)
                                            : swizzled<COLUMNS>(lane % 16, lane / 16);
#pragma unroll
  for (unsigned i = 0; i < COLUMNS / 2; ++i) {
    unsigned values[4];
    load_matrices_transposed(values, slot + (place ^ 2 * i) * 16);
    if constexpr (Number::BYTES == 2) {
      multiply_add(running.values[i], values, right);
    } else {
      // Two neighbours of a position move as one number of 16 bits: the first are the upper rows, the second the lower.
#pragma unroll
      for (unsigned j = 0; j < 2; ++j) {
        const unsigned wide[4] = {even_pair(values[2 * j]), odd_pair(values[2 * j]), even_pair(values[2 * j + 1]),
                                  odd_pair(values[2 * j + 1])};
        multiply_add(running.values[2 * i + j], wide, right);
      }
    }
  }
}

// The weighted mean of `count` partial results in ascending order; each is `apart` floats behind the one before it.
// `facts` are the maximum and the sum of the head, `values` four of its numbers. Returns what they sum up to, with the
// greatest score and the sum of the weights.
struct Total {
  float most, sum;
  float4 values;
};

template <typename Load>
__device__ __forceinline__ Total add_up(const unsigned count, const float sharpness, Load load) {
  Total total = {-INFINITY, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
  for (unsigned i = 0; i < count; ++i) total.most = fmaxf(total.most, load.most(i));
#pragma unroll 4
  for (unsigned i = 0; i < count; ++i) {
    const float weight = power_of_two((load.most(i) - total.most) * sharpness);
    const float4 values = load.values(i);
    total.sum = fmaf(weight, load.sum(i), total.sum);
    total.values.x = fmaf(weight, values.x, total.values.x);
    total.values.y = fmaf(weight, values.y, total.values.y);
    total.values.z = fmaf(weight, values.z, total.values.z);
    total.values.w = fmaf(weight, values.w, total.values.w);
  }
  return total;
}

// Four numbers of the attention, as the product with the output weight reads them. `worth` is what a stored value is
// worth.
__device__ __forceinline__ void store(unsigned short* out, const Total& total, const float worth) {
  const float share = worth / total.sum;
  *(uint2*)out = {
      pack_bf16(total.values.x * share, total.values.y * share),
      pack_bf16(total.values.z * share, total.values.w * share)};
}

// Partial results of the warps of a block, in shared memory.
template <unsigned STRIDE>
struct OfWarps {
  const float (*facts)[FACTS];
  const float* place;
  unsigned head, at;

  __device__ __forceinline__ float most(const unsigned i) const { return facts[i][2 * head]; }
  __device__ __forceinline__ float sum(const unsigned i) const { return facts[i][2 * head + 1]; }
  __device__ __forceinline__ float4 values(const unsigned i) const {
    return *(const float4*)(place + (i * GROUP + head) * STRIDE + at);
  }
};

// Partial results of the pieces of a row, in memory, past the first-level cache: other multiprocessors wrote them.
template <unsigned DIM>
struct OfPieces {
  const float* partial;
  unsigned apart, head, at;

  __device__ __forceinline__ float most(const unsigned i) const {
    return __ldcg(partial + (size_t)i * apart + 2 * head);
  }
  __device__ __forceinline__ float sum(const unsigned i) const {
    return __ldcg(partial + (size_t)i * apart + 2 * head + 1);
  }
  __device__ __forceinline__ float4 values(const unsigned i) const {
    return __ldcg((const float4*)(partial + (size_t)i * apart + FACTS + head * DIM + at));
  }
};

// q and out: bf16, rows of kv_heads * group * DIM. partial: FACTS + group * DIM f32 for every piece and head of keys. arrived:
// a count for every piece and head of keys, zero before the first launch; each launch leaves zeros behind. A piece has at most WARPS * LANES pages.
// scales, of e4m3: what the keys of each head were multiplied with, then the values.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void attend_decode(
    const unsigned short* q, const unsigned char* keys, const unsigned char* values, const float* __restrict__ scales,
    const unsigned* tables, const uint4* pieces, const unsigned* piece_count, const unsigned kv_heads,
    const unsigned group, const float scale_log2, float* partial, unsigned* arrived, unsigned short* out) {
  let_next_begin();
  wait_for_past();
  using S = Shape<DIM, Number>;
  DYNAMIC_SHARED(unsigned char, rings);
  __shared__ float facts[WARPS][FACTS];
  __shared__ bool last;
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = lane / 4, t = lane % 4;
  unsigned char* const ring = rings + warp * S::RING;
  float* const results = (float*)rings;
  const unsigned items = *piece_count * kv_heads;

  for (unsigned item = blockIdx.x; item < items; item += gridDim.x) {
    const unsigned piece = item / kv_heads, head = item % kv_heads;
    const uint4 what = pieces[2 * piece];
    float sharpness = scale_log2, worth = 1.0f;
    if constexpr (Number::BYTES == 1) {
      sharpness /= scales[head];
      worth /= scales[kv_heads + head];
    }
    const unsigned row = what.x, start = what.z, end = what.w;
    const unsigned first_page = start / PAGE + warp, last_page = (end - 1) / PAGE;
    const unsigned pages = first_page > last_page ? 0 : (last_page - first_page) / WARPS + 1;
    // Lane i knows the block of the warp's page i.
    const unsigned block = lane < pages ? tables[what.y + first_page + lane * WARPS] : 0;

    // Keys and values of page i are copies 2 i and 2 i + 1, each to the next slot of the ring; past the last one an empty
    // group keeps the count.
    unsigned begun = 0, to = 0;
    const auto begin = [&] {
      const unsigned page = begun / 2;
      const unsigned from = __shfl_sync(WHOLE_WARP, block, page % LANES);
      if (page < pages) {
        const unsigned char* const cache = begun % 2 ? values : keys;
        begin_page<DIM, Number>(ring + to * S::PAGE_BYTES, cache + ((size_t)from * kv_heads + head) * S::PAGE_BYTES,
                                (first_page + page * WARPS) * PAGE, start, end);
      }
      copy_commit();
      ++begun;
      to = to + 1 == S::SLOTS ? 0 : to + 1;
    };
#pragma unroll 1
    for (unsigned i = 0; i + 1 < S::SLOTS; ++i) begin();

    const size_t place = ((size_t)row * kv_heads + head) * (group * DIM);
    unsigned queries[DIM / 16][2];
    load_queries<DIM, Number>(queries, q + place, group);

    Running<DIM> running = {{-INFINITY, -INFINITY}, {}, {}};
    unsigned slot = 0;
    // Waits for the oldest copy. Behind the barrier every lane is done with the slot before it, which is filled anew.
    const auto next = [&] {
      copy_wait<S::SLOTS - 2>();
      __syncwarp();
      const unsigned char* const ready = ring + slot * S::PAGE_BYTES;
      begin();
      slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
      return ready;
    };
#pragma unroll 1
    for (unsigned i = 0; i < pages; ++i) {
      float scores[2][2];
      score_page<DIM, Number>(scores, queries, next(), (first_page + i * WARPS) * PAGE, start, end);
      add_page<DIM, Number>(running, scores, next(), sharpness);
    }
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
      for (unsigned apart = 4; apart < LANES; apart *= 2) {
        running.sum[i] += __shfl_xor_sync(WHOLE_WARP, running.sum[i], apart);
      }
    }

    // The results take the place of the rings once all warps are done with theirs.
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      if (g == 0) {
        facts[warp][2 * (2 * t + i)] = running.most[i];
        facts[warp][2 * (2 * t + i) + 1] = running.sum[i];
      }
      // Of each 16 numbers, where the first of the lane is, and how far behind it the second.
      constexpr unsigned FIRST = Number::BYTES == 2 ? 1 : 2, SECOND = Number::BYTES == 2 ? 8 : 1;
      float* const head_results = results + (warp * GROUP + 2 * t + i) * S::STRIDE + g * FIRST;
#pragma unroll
      for (unsigned j = 0; j < DIM / 16; ++j) {
        head_results[16 * j] = running.values[j][i];
        head_results[16 * j + SECOND] = running.values[j][2 + i];
      }
    }
    __syncthreads();

    const uint4 whole = pieces[2 * piece + 1];
    const unsigned first = whole.x, count = whole.y;
    const unsigned record = FACTS + group * DIM;
    float* const mine = partial + (size_t)item * record;
    for (unsigned i = threadIdx.x; i < group * (DIM / 4); i += THREADS) {
      const unsigned of = i / (DIM / 4), at = i % (DIM / 4) * 4;
      const Total total = add_up(WARPS, sharpness, OfWarps<S::STRIDE>{facts, results, of, at});
      if (count == 1) {
        store(out + place + of * DIM + at, total, worth);
      } else {
        if (at == 0) *(float2*)(mine + 2 * of) = {total.most, total.sum};
        *(float4*)(mine + FACTS + of * DIM + at) = total.values;
      }
    }
    if (count > 1) {
      // What this block wrote is seen by the others before its arrival is.
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        unsigned* const counter = arrived + first * kv_heads + head;
        last = atomicAdd(counter, 1u) == count - 1;
        if (last) *counter = 0;
      }
      __syncthreads();
      if (last) {
        __threadfence();
        const float* const from = partial + ((size_t)first * kv_heads + head) * record;
        for (unsigned i = threadIdx.x; i < group * (DIM / 4); i += THREADS) {
          const unsigned of = i / (DIM / 4), at = i % (DIM / 4) * 4;
          store(out + place + of * DIM + at,
                add_up(count, sharpness, OfPieces<DIM>{from, kv_heads * record, of, at}), worth);
        }
      }
    }
    // The rings are filled anew when all threads have read the results.
    __syncthreads();
  }
}

#define ATTEND_DECODE(DIM, BLOCKS)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attend_decode_bf16_##DIM(                              \
      const unsigned short* q, const unsigned char* keys, const unsigned char* values, const unsigned* tables,         \
      const uint4* pieces, const unsigned* piece_count, unsigned kv_heads, unsigned group, float scale_log2,           \
      float* partial, unsigned* arrived, unsigned short* out) {                                                        \
    attend_decode<DIM, Bf16>(q, keys, values, nullptr, tables, pieces, piece_count, kv_heads, group, scale_log2,       \
                             partial, arrived, out);                                                                   \
  }

#define ATTEND_DECODE_E4M3(DIM, BLOCKS)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attend_decode_e4m3_##DIM(                              \
      const unsigned short* q, const unsigned char* keys, const unsigned char* values, const float* scales,            \
      const unsigned* tables, const uint4* pieces, const unsigned* piece_count, unsigned kv_heads, unsigned group,     \
      float scale_log2, float* partial, unsigned* arrived, unsigned short* out) {                                      \
    attend_decode<DIM, E4m3>(q, keys, values, scales, tables, pieces, piece_count, kv_heads, group, scale_log2,        \
                             partial, arrived, out);                                                                   \
  }

ATTEND_DECODE(64, 3)
ATTEND_DECODE(128, 3)
ATTEND_DECODE(256, 2)
ATTEND_DECODE_E4M3(128, 3)
ATTEND_DECODE_E4M3(256, 2)
