// Numbers: tile (0 16 rows, 1 64, 2 128, 3 128 wide), epilogue (0 set, 1 silu, 2 gelu), order, tiles of rows, experts, n, k. Buffers:
// starts, x [rows, k] and w [experts, n, k] in bf16, y [rows, n] in f32 or [rows, n / 2] in bf16.
#include "../../cuda/expert_product.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const unsigned*, const uint4*, const uint4*, void*, unsigned, unsigned, unsigned);

struct Launch {
  Kernel kernels[3];
  unsigned columns, threads, bytes;
};

const Launch launches[] = {
    {{expert_product_16_set, expert_product_16_silu, expert_product_16_gelu}, 64, 128, Tile16::BYTES},
    {{expert_product_64_set, expert_product_64_silu, expert_product_64_gelu}, 128, 256, Tile64::BYTES},
    {{expert_product_128_set, expert_product_128_silu, expert_product_128_gelu}, 128, 128, Tile128::BYTES},
    {{expert_product_128_wide_set, expert_product_128_wide_silu, expert_product_128_wide_gelu}, 256, 256,
     Tile128Wide::BYTES},
};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const Launch& launch = launches[it.number()];
    const Kernel kernel = launch.kernels[it.number()];
    const auto order = it.order();
    const unsigned tiles = it.number(), experts = it.number(), n = it.number(), k = it.number();
    emulation::launch(
        order, 13, dim3(tiles, (n + launch.columns - 1) / launch.columns), launch.threads,
        [&] {
          kernel(it.buffer<unsigned>(0), it.buffer<uint4>(1), it.buffer<uint4>(2), it.buffer<void>(3), experts, n, k);
        },
        launch.bytes);
    it.answer(3);
  }
}
