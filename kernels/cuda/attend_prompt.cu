// Paged causal attention of sequences with several rows in the step: the chunks of a prompt, which see what came before
// them in the pages. Tensor cores, softmax on the way.
//
// out[row][head] = softmax(q . K * scale) V over the positions that the row sees, head size 64, 128 or 256. A block takes
// 64 of the (row, query head of a group) pairs of a span, rows outermost, so that all heads of a group use one copy of the
// keys in shared memory and the rows of a tile are close together whatever the group. Fused: scale, causal order, window,
// softmax. Pages outside the window of the tile are not read.
//
// Bytes moved: q and out once; keys and values once per 64 / group rows, from the second-level cache (the
// blocks that run together work on the same sequence: 4 KiB a position for 8 heads of 128). Arithmetic: 4 dim
// multiply-adds a pair and position, 128 a byte of shared memory filled. Ceiling: the tensor cores through mma.sync, which
// an H200 runs at about 60 % of its rate, and shared memory, whose loads feed two products each: about half of that rate.
// Attention is 4 % of a prompt of 2,048 positions of a model of 7B, so this is not where its time goes.
//
// In flight: while a tile of keys (64 positions; 32 for heads of 256) is worked on the next is on its way, 32 KiB a block
// and two blocks a multiprocessor; the block numbers of the one after that are read meanwhile.
//
// Pages of e4m3 are widened to bf16 by each warp for itself, about nine instructions a product of the tensor cores: they
// save memory, not time, and a prompt is slower with them.
//
// The bits of a row depend on its position, the window and what it sees, not on its chunk, its place in a tile, its
// neighbours or the grid: tiles of keys begin at absolute multiples and are walked upwards, a tile of which a row sees
// nothing changes nothing (its weights are zero and what was summed before is multiplied by one), and every row of a
// product of the tensor cores is a sum of its own. They differ from those of attend_decode.cu, which adds pieces up.
//
// A short chunk far into a long sequence has few tiles (rows * group / 64 a head of keys), and a block walks all keys of
// its own: below about 512 rows a step the device is not full. Drafts of a few rows belong to attend_decode.cu.

#include "chain.cuh"
#include "paged.cuh"
#include "tensor.cuh"

// Pairs of row and head to a block, as in attend_plan.cu: 16 a warp.
constexpr unsigned PAIRS = 64;
constexpr unsigned PROMPT_THREADS = PAIRS / 16 * LANES;

template <unsigned DIM, typename Number>
struct Tile {
  // 16-byte chunks of a row of queries, and of one of keys or values.
  static constexpr unsigned QUERY_COLUMNS = DIM / CHUNK;
  static constexpr unsigned COLUMNS = DIM * Number::BYTES / 16;
  // Positions of a tile of keys.
  static constexpr unsigned KEYS = DIM == 256 ? 32 : 64;
  static constexpr unsigned PAGES = KEYS / PAGE;
  static constexpr unsigned PAGE_BYTES = PAGE * DIM * Number::BYTES;
  // Chunks of a tile of keys, or of values.
  static constexpr unsigned CHUNKS = KEYS * COLUMNS;
  static constexpr unsigned SHARED = (PAIRS * QUERY_COLUMNS + 4 * CHUNKS) * 16;
  // Queries stay in registers where there is room for them.
  static constexpr bool HOLDS_QUERIES = DIM <= 128;
};

// The 64 pairs of an item.
struct Item {
  Span span;
  unsigned head, group;
  unsigned first, count;  // pairs of the span
  unsigned start, end;    // positions that any of them sees

  __device__ __forceinline__ unsigned row(const unsigned pair) const { return (first + pair) / group; }
  // Which of the heads of all rows of the step.
  __device__ __forceinline__ size_t place(const unsigned pair, const unsigned heads) const {
    return (size_t)(span.row + row(pair)) * heads + head * group + (first + pair) % group;
  }
};

// Begins to copy the queries of the item; zeros behind the last pair.
template <unsigned DIM>
__device__ __forceinline__ void begin_queries(
    uint4* queries, const Item& item, const unsigned short* q, const unsigned heads) {
  constexpr unsigned COLUMNS = DIM / CHUNK;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < PAIRS * COLUMNS; i += PROMPT_THREADS) {
    const unsigned pair = i / COLUMNS, column = i % COLUMNS;
    copy_async(queries + swizzled<COLUMNS>(pair, column), q + item.place(pair, heads) * DIM + column * CHUNK,
               item.first + pair < item.count);
  }
}

// The blocks of the pages of a tile of keys. What no row of the item sees has none: its table may name none any more.
template <unsigned PAGES>
__device__ __forceinline__ void find_pages(
    unsigned (&blocks)[PAGES], const Item& item, const unsigned* tables, const unsigned tile) {
#pragma unroll
  for (unsigned i = 0; i < PAGES; ++i) {
    const unsigned page = tile * PAGES + i;
    const bool any = item.start / PAGE <= page && page * PAGE < item.end;
    blocks[i] = any ? tables[item.span.table + page] : 0;
  }
}

// Begins to copy a tile of keys or of values; zeros where no row of the item looks.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void begin_tile(
    uint4* to, const unsigned char* cache, const unsigned (&blocks)[Tile<DIM, Number>::PAGES],
    const Item& item, const unsigned kv_heads, const unsigned tile) {
  using T = Tile<DIM, Number>;
  // Rows that the block copies at once: a part of a page, so that the page is known when the loop is unrolled.
  constexpr unsigned ROWS = PROMPT_THREADS / T::COLUMNS;
  static_assert(PAGE % ROWS == 0, "a round of copies lies within a page");
  const unsigned own = threadIdx.x / T::COLUMNS, column = threadIdx.x % T::COLUMNS;
  const unsigned place = swizzled<T::COLUMNS>(own, column), after = tile * T::KEYS + own - item.start;
#pragma unroll
  for (unsigned i = 0; i < T::KEYS / ROWS; ++i) {
    const unsigned char* const page =
        cache + ((size_t)blocks[i * ROWS / PAGE] * kv_heads + item.head) * T::PAGE_BYTES;
    copy_async(to + i * PROMPT_THREADS + (place ^ i * ROWS % 8),
               page + (i * PROMPT_THREADS % (PAGE * T::COLUMNS) + threadIdx.x) * 16,
               after + i * ROWS < item.end - item.start);
  }
}

// What a warp knows of its 16 pairs after some tiles; a lane has pairs g and g + 8, g = lane / 4: the greatest score, the
// sum of the weights (of its own columns) and the weighted values, columns 2 t and + 1 of every eight, t = lane % 4; with
// e4m3 columns 4 t and + 2 of every sixteen, then 4 t + 1 and + 3.
template <unsigned DIM>
struct Sums {
  float most[2], sum[2];
  float values[DIM / 8][4];
};

// The fragments of queries for 16 numbers of the head, in the order that keys have: with e4m3, four neighbours of a
// position come in one word.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void load_query(unsigned (&out)[4], const uint4* queries, const unsigned k) {
  constexpr unsigned COLUMNS = DIM / CHUNK;
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = lane / 4, t = lane % 4;
  if constexpr (Number::BYTES == 2) {
    load_matrices(out, queries + (swizzled<COLUMNS>(warp * 16 + lane % 16, lane / 16) ^ 2 * k));
  } else {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const uint2 four = ((const uint2*)(queries + swizzled<COLUMNS>(warp * 16 + g + 8 * half, 2 * k + t / 2)))[t % 2];
      out[half] = four.x;
      out[2 + half] = four.y;
    }
  }
}

// Adds a tile. `seen[i]` are the first and the last position that pair g + 8 i sees; `masked` says whether some pair of
// the block does not see all of the tile; `sharpness` is what scores are multiplied with, times log2(e).
template <unsigned DIM, typename Number>
__device__ __forceinline__ void add_tile(
    Sums<DIM>& sums, const unsigned (&held)[Tile<DIM, Number>::HOLDS_QUERIES ? DIM / 16 : 1][4], const uint4* queries,
    const uint4* keys, const uint4* values, const unsigned tile, const unsigned (&seen)[2][2], const bool masked,
    const float sharpness) {
  using T = Tile<DIM, Number>;
  constexpr unsigned KEYS = T::KEYS, COLUMNS = T::COLUMNS;
  const unsigned lane = threadIdx.x % LANES, t = lane % 4;

  float scores[KEYS / 8][4] = {};
  const unsigned key_place = Number::BYTES == 2 ? swizzled<COLUMNS>(lane / 16 * 8 + lane % 8, lane / 8 % 2)
                                                : swizzled<COLUMNS>(lane, 0);
#pragma unroll
  for (unsigned k = 0; k < DIM / 16; ++k) {
    unsigned query[4];
    if constexpr (T::HOLDS_QUERIES) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) query[i] = held[k][i];
    } else {
      load_query<DIM, Number>(query, queries, k);
    }
    if constexpr (Number::BYTES == 2) {
#pragma unroll
      for (unsigned n = 0; n < KEYS / 16; ++n) {
        unsigned key[4];
        load_matrices(key, keys + n * 16 * COLUMNS + (key_place ^ 2 * k));
        multiply_add(scores[2 * n], query, {key[0], key[1]});
        multiply_add(scores[2 * n + 1], query, {key[2], key[3]});
      }
    } else {
      // A chunk has 16 numbers of a position: a load has those of 32 positions.
#pragma unroll
      for (unsigned n = 0; n < KEYS / 32; ++n) {
        unsigned key[4];
        load_matrices(key, keys + n * 32 * COLUMNS + (key_place ^ k));
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
          multiply_add(scores[4 * n + i], query, {lower_pair(key[i]), upper_pair(key[i])});
        }
      }
    }
  }

  if (masked) {
#pragma unroll
    for (unsigned n = 0; n < KEYS / 8; ++n) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned at = tile * KEYS + n * 8 + 2 * t + i % 2;
        if (at < seen[i / 2][0] || at > seen[i / 2][1]) scores[n][i] = -INFINITY;
      }
    }
  }

  // Weights take the place of the scores, as the left side of the product with the values.
  unsigned weights[KEYS / 16][4];
  float shrink[2];
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    float most = sums.most[half];
#pragma unroll
    for (unsigned n = 0; n < KEYS / 8; ++n) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, 1));
    most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, 2));
    // A pair that has seen nothing yet: weights of zero, not of no number.
    const float base = most == -INFINITY ? 0.0f : most;
    // One, exactly, where the greatest stays.
    shrink[half] = power_of_two((sums.most[half] - base) * sharpness);
    sums.most[half] = most;
    const float shift = -base * sharpness;
    float sum = 0.0f;
#pragma unroll
    for (unsigned n = 0; n < KEYS / 8; ++n) {
      const unsigned word = pack_bf16(
          power_of_two(fmaf(scores[n][2 * half], sharpness, shift)),
          power_of_two(fmaf(scores[n][2 * half + 1], sharpness, shift)));
      weights[n / 2][n % 2 * 2 + half] = word;
      // The sum of what the values are multiplied with: the weights as they were rounded.
      sum += first_of(word) + second_of(word);
    }
    sums.sum[half] = fmaf(sums.sum[half], shrink[half], sum);
  }

  const unsigned value_place =
      Number::BYTES == 2 ? swizzled<COLUMNS>(lane % 16, lane / 16) : swizzled<COLUMNS>(lane, 0);
#pragma unroll
  for (unsigned i = 0; i < DIM / 16; ++i) {
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) {
      sums.values[2 * i][j] *= shrink[j / 2];
      sums.values[2 * i + 1][j] *= shrink[j / 2];
    }
    if constexpr (Number::BYTES == 2) {
#pragma unroll
      for (unsigned k = 0; k < KEYS / 16; ++k) {
        unsigned value[4];
        load_matrices_transposed(value, values + k * 16 * COLUMNS + (value_place ^ 2 * i));
        multiply_add(sums.values[2 * i], weights[k], {value[0], value[1]});
        multiply_add(sums.values[2 * i + 1], weights[k], {value[2], value[3]});
      }
    } else {
      // Two neighbours of a position move as one number of 16 bits: the first make a product, the second another.
#pragma unroll
      for (unsigned k = 0; k < KEYS / 32; ++k) {
        unsigned value[4];
        load_matrices_transposed(value, values + k * 32 * COLUMNS + (value_place ^ i));
#pragma unroll
        for (unsigned j = 0; j < 2; ++j) {
          multiply_add(sums.values[2 * i], weights[2 * k + j], {even_pair(value[2 * j]), even_pair(value[2 * j + 1])});
          multiply_add(sums.values[2 * i + 1], weights[2 * k + j], {odd_pair(value[2 * j]), odd_pair(value[2 * j + 1])});
        }
      }
    }
  }
}

// Divides by the sums and writes the rows of the item, through the warp's own part of the queries' place. `worth` is
// what a stored value is worth.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void store_rows(
    Sums<DIM>& sums, uint4* queries, const Item& item, const unsigned heads, const float worth,
    unsigned short* out) {
  constexpr unsigned COLUMNS = DIM / CHUNK;
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    float sum = sums.sum[half];
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
    const float share = worth / sum;
#pragma unroll
    for (unsigned i = 0; i < DIM / 16; ++i) {
      const float (&low)[4] = sums.values[2 * i], (&high)[4] = sums.values[2 * i + 1];
      const float a = low[2 * half] * share, b = low[2 * half + 1] * share;
      const float c = high[2 * half] * share, d = high[2 * half + 1] * share;
      const unsigned row = warp * 16 + g + 8 * half;
      if constexpr (Number::BYTES == 2) {
        ((unsigned*)(queries + swizzled<COLUMNS>(row, 2 * i)))[t] = pack_bf16(a, b);
        ((unsigned*)(queries + swizzled<COLUMNS>(row, 2 * i + 1)))[t] = pack_bf16(c, d);
      } else {
        ((uint2*)(queries + swizzled<COLUMNS>(row, 2 * i + t / 2)))[t % 2] = {pack_bf16(a, c), pack_bf16(b, d)};
      }
    }
  }
  __syncwarp();
#pragma unroll 4
  for (unsigned i = lane; i < 16 * COLUMNS; i += LANES) {
    const unsigned pair = warp * 16 + i / COLUMNS, column = i % COLUMNS;
    if (item.first + pair < item.count) {
      *(uint4*)(out + item.place(pair, heads) * DIM + column * CHUNK) = queries[swizzled<COLUMNS>(pair, column)];
    }
  }
}

// q and out: bf16, rows of kv_heads * group * DIM. scales, of e4m3: what the keys of each head were multiplied with, then
// the values.
template <unsigned DIM, typename Number>
__device__ __forceinline__ void attend_prompt(
    const unsigned short* q, const unsigned char* keys,
    const unsigned char* values, const float* __restrict__ scales, const unsigned* tables,
    const uint4* spans, const uint2* tiles, const unsigned* tile_count,
    const unsigned kv_heads, const unsigned group, const unsigned window, const float scale_log2,
    unsigned short* out) {
  let_next_begin();
  wait_for_past();
  using T = Tile<DIM, Number>;
  DYNAMIC_SHARED(uint4, queries);
  // Keys and values of a tile, then those of the next.
  uint4* const shared_tiles = queries + PAIRS * T::QUERY_COLUMNS;
  const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const unsigned items = *tile_count * kv_heads;

  // Heads of keys fastest: the longest walks of a span begin first.
  for (unsigned number = blockIdx.x; number < items; number += gridDim.x) {
    const uint2 which = tiles[number / kv_heads];
    Item item;
    item.span = span_of(spans[which.x]);
    item.head = number % kv_heads;
    item.group = group;
    item.first = which.y * PAIRS;
    item.count = item.span.rows * group;
    const unsigned low = item.span.position + item.row(0);
    const unsigned high =
        item.span.position + item.row(item.first + PAIRS <= item.count ? PAIRS - 1 : item.count - 1 - item.first);
    item.start = first_seen(low, window);
    item.end = high + 1;
    float sharpness = scale_log2, worth = 1.0f;
    if constexpr (Number::BYTES == 1) {
      sharpness /= scales[item.head];
      worth /= scales[kv_heads + item.head];
    }
    const unsigned first_tile = item.start / T::KEYS, last_tile = high / T::KEYS;

    unsigned blocks[T::PAGES];
    const auto begin = [&](const unsigned tile) {
      if (tile <= last_tile) {
        uint4* const to = shared_tiles + tile % 2 * (2 * T::CHUNKS);
        begin_tile<DIM, Number>(to, keys, blocks, item, kv_heads, tile);
        begin_tile<DIM, Number>(to + T::CHUNKS, values, blocks, item, kv_heads, tile);
      }
      copy_commit();
      find_pages<T::PAGES>(blocks, item, tables, tile + 1);
    };
    // Queries are the first group of copies, the first tile the second.
    begin_queries<DIM>(queries, item, q, kv_heads * group);
    copy_commit();
    find_pages<T::PAGES>(blocks, item, tables, first_tile);
    begin(first_tile);
    copy_wait<1>();
    __syncthreads();

    unsigned held[T::HOLDS_QUERIES ? DIM / 16 : 1][4];
    if constexpr (T::HOLDS_QUERIES) {
#pragma unroll
      for (unsigned k = 0; k < DIM / 16; ++k) load_query<DIM, Number>(held[k], queries, k);
    }
    unsigned seen[2][2];
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      seen[half][1] = item.span.position + item.row(warp * 16 + lane / 4 + 8 * half);
      seen[half][0] = first_seen(seen[half][1], window);
    }
    const unsigned last_start = first_seen(high, window);

    Sums<DIM> sums = {{-INFINITY, -INFINITY}, {}, {}};
#pragma unroll 1
    for (unsigned tile = first_tile; tile <= last_tile; ++tile) {
      copy_wait<0>();
      // The tile is there for all, and all are done with the one before it, whose place the next one takes.
      __syncthreads();
      begin(tile + 1);
      const uint4* const at = shared_tiles + tile % 2 * (2 * T::CHUNKS);
      const bool masked = tile * T::KEYS < last_start || (tile + 1) * T::KEYS > low + 1;
      add_tile<DIM, Number>(sums, held, queries, at, at + T::CHUNKS, tile, seen, masked, sharpness);
    }
    store_rows<DIM, Number>(sums, queries, item, kv_heads * group, worth, out);
    // The next item fills the same places.
    __syncthreads();
  }
}

#define ATTEND_PROMPT(DIM)                                                                                             \
  extern "C" __global__ void __launch_bounds__(PROMPT_THREADS, 2) attend_prompt_bf16_##DIM(                            \
      const unsigned short* q, const unsigned char* keys, const unsigned char* values, const unsigned* tables,         \
      const uint4* spans, const uint2* tiles, const unsigned* tile_count, unsigned kv_heads, unsigned group,           \
      unsigned window, float scale_log2, unsigned short* out) {                                                        \
    attend_prompt<DIM, Bf16>(q, keys, values, nullptr, tables, spans, tiles, tile_count, kv_heads, group, window,      \
                             scale_log2, out);                                                                         \
  }

#define ATTEND_PROMPT_E4M3(DIM)                                                                                        \
  extern "C" __global__ void __launch_bounds__(PROMPT_THREADS, 2) attend_prompt_e4m3_##DIM(                            \
      const unsigned short* q, const unsigned char* keys, const unsigned char* values, const float* scales,            \
      const unsigned* tables, const uint4* spans, const uint2* tiles, const unsigned* tile_count, unsigned kv_heads,   \
      unsigned group, unsigned window, float scale_log2, unsigned short* out) {                                        \
    attend_prompt<DIM, E4m3>(q, keys, values, scales, tables, spans, tiles, tile_count, kv_heads, group, window,       \
                             scale_log2, out);                                                                         \
  }

ATTEND_PROMPT(64)
ATTEND_PROMPT(128)
ATTEND_PROMPT(256)
ATTEND_PROMPT_E4M3(128)
ATTEND_PROMPT_E4M3(256)
