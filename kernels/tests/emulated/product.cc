// Numbers: tile, epilogue (0 set, 1 add, 2 silu, 3 gelu), order, whether there is a bias, rows of the bucket, n, k, parts.
// Tiles: 0 16 rows, a warp a part; 1 16; 2 64; 3 64 spread; 4 128; 5 128 spread; 6 128 wide. Buffers: rows (one number),
// x [bucket, k] and w [n, k] in bf16, bias [n] in f32, y [bucket, n] in f32 or [bucket, n / 2] in bf16, scratch and
// counters. Answers y and the counters.
#include "../../cuda/product.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, const float*, void*, float*, unsigned*, const unsigned*, unsigned,
                        unsigned, unsigned);

struct Launch {
  Kernel kernels[4];
  unsigned rows, columns, threads, bytes;
  bool spread;
};

template <typename T>
Launch whole(Kernel set, Kernel add, Kernel silu, Kernel gelu) {
  return {{set, add, silu, gelu}, T::ROWS, T::COLUMNS, T::THREADS, T::BYTES, false};
}

const Launch launches[] = {
    {{product_16_parts_set, product_16_parts_add, nullptr, nullptr}, 16, 32, 128, PARTS * Tile16Part::BYTES, false},
    whole<Tile16>(product_16_set, product_16_add, product_16_silu, product_16_gelu),
    whole<Tile64>(product_64_set, product_64_add, product_64_silu, product_64_gelu),
    {{product_64_spread_set, product_64_spread_add, nullptr, nullptr}, 64, 128, 256, Tile64::BYTES, true},
    whole<Tile128>(product_128_set, product_128_add, product_128_silu, product_128_gelu),
    {{product_128_spread_set, product_128_spread_add, nullptr, nullptr}, 128, 128, 128, Tile128::BYTES, true},
    whole<Tile128Wide>(product_128_wide_set, product_128_wide_add, product_128_wide_silu, product_128_wide_gelu),
};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const Launch& launch = launches[it.number()];
    const Kernel kernel = launch.kernels[it.number()];
    const auto order = it.order();
    const bool bias = it.number();
    const unsigned bucket = it.number(), n = it.number(), k = it.number(), parts = it.number();
    const dim3 grid((bucket + launch.rows - 1) / launch.rows, (n + launch.columns - 1) / launch.columns,
                    launch.spread ? PARTS : 1);
    emulation::launch(
        order, 17, grid, launch.threads,
        [&] {
          kernel(it.buffer<uint4>(1), it.buffer<uint4>(2), bias ? it.buffer<float>(3) : nullptr, it.buffer<void>(4),
                 it.buffer<float>(5), it.buffer<unsigned>(6), it.buffer<unsigned>(0), n, k, parts);
        },
        launch.bytes);
    it.answer(4);
    it.answer(6);
  }
}
