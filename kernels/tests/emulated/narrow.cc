// Numbers: format (as formats.cuh lists them, and behind them bf16 by product.cu), tile (0 16 rows, 1 64, 2 128), whether its parts are
// spread, epilogue (0 set, 1 add, 2 silu, 3 gelu), order, whether there is a bias, rows of the bucket, n, k, parts.
// Buffers: rows (one number), x [bucket, k] in bf16, the packed numbers and scales, bias [n] in f32, y [bucket, n] in f32
// or [bucket, n / 2] in bf16, scratch and counters. Answers y and the counters.
#include "../../cuda/narrow.cu"
#include "../../cuda/product.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, const void*, const float*, void*, float*, unsigned*, const unsigned*,
                        unsigned, unsigned, unsigned);

#define ALL(TILE)                                                                                            \
  {narrow_##TILE##_set, narrow_##TILE##_add, narrow_##TILE##_silu, narrow_##TILE##_gelu, narrow_##TILE##_spread_set, \
   narrow_##TILE##_spread_add}

#define FORMAT(NAME, F) {ALL(NAME##_16), ALL(NAME##_64), ALL(NAME##_128)},
const Kernel kernels[][3][6] = {EACH_FORMAT(FORMAT)};
constexpr unsigned FORMATS = sizeof kernels / sizeof *kernels;

struct Shape {
  unsigned rows, columns, threads, bytes;
};

template <template <typename> class T, typename F>
constexpr Shape shape = {T<F>::ROWS, T<F>::COLUMNS, T<F>::THREADS, T<F>::BYTES};

#define SHAPES(NAME, F) {shape<Narrow16, Packed##F>, shape<Narrow64, Packed##F>, shape<Narrow128, Packed##F>},

const Shape shapes[][3] = {EACH_FORMAT(SHAPES)};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned format = it.number(), tile = it.number(), spread = it.number(), epilogue = it.number();
    const auto order = it.order();
    const bool bias = it.number();
    const unsigned bucket = it.number(), n = it.number(), k = it.number(), parts = it.number();
    if (format == FORMATS) {
      const auto kernel = (decltype(&product_64_set)[]){product_64_set, product_64_add, product_64_silu, product_64_gelu}[epilogue];
      const dim3 grid((bucket + Tile64::ROWS - 1) / Tile64::ROWS, (n + Tile64::COLUMNS - 1) / Tile64::COLUMNS, 1);
      emulation::launch(order, 23, grid, Tile64::THREADS, [&] {
        kernel(it.buffer<uint4>(1), it.buffer<uint4>(2), bias ? it.buffer<float>(4) : nullptr, it.buffer<void>(5),
               it.buffer<float>(6), it.buffer<unsigned>(7), it.buffer<unsigned>(0), n, k, parts);
      }, Tile64::BYTES);
    } else {
      const Shape& of = shapes[format][tile];
      const Kernel kernel = kernels[format][tile][epilogue + (spread ? 4 : 0)];
      const dim3 grid((bucket + of.rows - 1) / of.rows, (n + of.columns - 1) / of.columns, spread ? PARTS : 1);
      emulation::launch(order, 23, grid, of.threads, [&] {
        kernel(it.buffer<uint4>(1), it.buffer<uint4>(2), it.buffer<void>(3), bias ? it.buffer<float>(4) : nullptr,
               it.buffer<void>(5), it.buffer<float>(6), it.buffer<unsigned>(7), it.buffer<unsigned>(0), n, k, parts);
      }, of.bytes);
    }
    it.answer(5);
    it.answer(7);
  }
}
