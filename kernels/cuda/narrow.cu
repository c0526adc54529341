// The product of any number of rows with a weight of 8, 6 or 4 bits on the tensor cores:
//   y[row][n] = sum over k of x[row][k] * w[n][k]
//
// w is what weightonly.cu multiplies with, packed the same way, each number times its scale rounded to bf16 (narrow.cuh).
// That is at most half a unit in the last of eight bits a number: a fifth of what int8 and q8_0 themselves are off, a
// tenth of q6_k, a fiftieth of int4 and q4_k.
// From there on it is product.cu: the same tiles, parts and epilogues, and the same bits as the product of bf16 with the
// widened weight, alone, beside others and in every bucket.
//
// Tiles (rows x n), all 64 k deep: 16 x 64, 64 x 128, 128 x 128, one part after the other in a block, or "spread", a block
// a part, where the tiles alone would not fill the device. A warp a part, as in product.cu, would have four warps
// widen what one multiplies.
//
// Bytes moved: n k (q6_k three quarters, int4 and q4_k half) + scales + 2 m k from the second-level cache for every n-tile
// + the output. Ceiling: up to about 100 rows (int4: 50) the read of w, above it the rate of mma. In flight: three stages of
// a tile's packed numbers: 12 KiB a block of 16 x 64 with four blocks a multiprocessor, 24 KiB of 64 x 128 with two. What
// limits: widening costs a thread 1.75 instructions a number (int4 1.5, e4m3, q8_0 and q4_k 3, q6_k 4) and shared memory two
// bytes more each way; a tile of 128 rows does it once for 128 multiplications, a tenth to a fifth of the time of its mma, a
// tile of 16 rows waits for memory.
//
// Why not by Hopper's own products (hopper.cuh), whose copying warpgroup would widen: of a stage of 256 columns a thread has
// 128 numbers, 224 instructions of int8 (e4m3 384, int4 192) and about 60 loads and stores, of the 1024 issue slots that the
// stage takes: time enough. But shared memory, of whose 128 bytes a cycle a stage takes 128 already, would have packed
// numbers written and read beside the widened ones: 160 (int4 144), so 0.8 of that rate at best; and in registers, which
// cost it nothing, two stages under way are 64 where the warpgroup has 56. From 330 rows on it is cheaper to widen the
// whole weight to memory first and multiply that: 3 bytes a number, 82 us of gate and up of a Mistral at 4.3 TB/s, where a
// row takes 0.26 us less at 520 TFLOP/s than at 330: predicted 14 % of the time of 512 rows, 31 % of that of 2048, for
// room for the largest weight in bf16 (235 MB there) and other bits from such a bucket on. Not done: no measurement says
// yet that mma reaches the 330.
//
// n and k are multiples of 8 (gates: n of 16), filled with zeros to whole panels and steps; x 16-byte aligned.

#include "chain.cuh"
#include "narrow.cuh"

// The grid is row tiles x n tiles (x parts where they are spread).
#define NARROW(NAME, THREADS, BLOCKS, ...)                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                        \
      narrow_##NAME(const uint4* x, const uint4* w, const void* scales, const float* bias, void* y, float* scratch,    \
                    unsigned* counters, const unsigned* rows, unsigned n, unsigned k, unsigned parts) {                \
    let_next_begin();                                                                                                  \
    wait_for_past();                                                                                                   \
    __VA_ARGS__({x, w, bias, y, scratch, counters, n, k, parts, scales}, *rows);                                       \
  }
#define NARROW_TILE(NAME, THREADS, BLOCKS, ...)                                  \
  NARROW(NAME##_set, THREADS, BLOCKS, product<__VA_ARGS__, SET>)                 \
  NARROW(NAME##_add, THREADS, BLOCKS, product<__VA_ARGS__, ADD>)                 \
  NARROW(NAME##_silu, THREADS, BLOCKS, product<__VA_ARGS__, SILU>)               \
  NARROW(NAME##_gelu, THREADS, BLOCKS, product<__VA_ARGS__, GELU>)               \
  NARROW(NAME##_spread_set, THREADS, BLOCKS, product_spread<__VA_ARGS__, SET>)   \
  NARROW(NAME##_spread_add, THREADS, BLOCKS, product_spread<__VA_ARGS__, ADD>)
#define NARROW_FORMAT(NAME, F)                          \
  NARROW_TILE(NAME##_16, 128, 4, Narrow16<Packed##F>)   \
  NARROW_TILE(NAME##_64, 256, 2, Narrow64<Packed##F>)   \
  NARROW_TILE(NAME##_128, 128, 2, Narrow128<Packed##F>)

EACH_FORMAT(NARROW_FORMAT)
