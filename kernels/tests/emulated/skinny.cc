// Numbers: class (0 warp, 1 block), order, m, n, k. Buffers: x [m, k] and w [n, k] in bf16, y [m, n] in f32.
#include "../../cuda/skinny.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, float*, unsigned, unsigned);
const Kernel warp_class[] = {skinny_warp_1, skinny_warp_2, skinny_warp_3, skinny_warp_4,
                             skinny_warp_5, skinny_warp_6, skinny_warp_7, skinny_warp_8};
const Kernel block_class[] = {skinny_block_1, skinny_block_2, skinny_block_3, skinny_block_4,
                              skinny_block_5, skinny_block_6, skinny_block_7, skinny_block_8};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned split = it.number();
    const auto order = it.order();
    const unsigned m = it.number(), n = it.number(), k = it.number();
    const unsigned tiles = (n + TILE - 1) / TILE;
    const Kernel kernel = (split ? block_class : warp_class)[m - 1];
    emulation::launch(order, 11, split ? tiles : (tiles + 7) / 8, split ? 128 : 256,
                      [&] { kernel(it.buffer<uint4>(0), it.buffer<uint4>(1), it.buffer<float>(2), n, k); });
    it.answer(2);
  }
}
