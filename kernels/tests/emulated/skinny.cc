// Numbers: class (0 warp, 1 block), epilogue (0 set, 1 add, 2 silu, 3 gelu), order, whether there is a bias, m, n, k.
// Buffers: x [m, k] and w [n, k] in bf16, bias [n] in f32, y [m, n] in f32 or [m, n / 2] in bf16.
#include "../../cuda/skinny.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, const float*, void*, unsigned, unsigned);
const Kernel warp_class[4][8] = {
    {skinny_warp_set_1, skinny_warp_set_2, skinny_warp_set_3, skinny_warp_set_4,
     skinny_warp_set_5, skinny_warp_set_6, skinny_warp_set_7, skinny_warp_set_8},
    {skinny_warp_add_1, skinny_warp_add_2, skinny_warp_add_3, skinny_warp_add_4,
     skinny_warp_add_5, skinny_warp_add_6, skinny_warp_add_7, skinny_warp_add_8},
    {skinny_warp_silu_1, skinny_warp_silu_2, skinny_warp_silu_3, skinny_warp_silu_4,
     skinny_warp_silu_5, skinny_warp_silu_6, skinny_warp_silu_7, skinny_warp_silu_8},
    {skinny_warp_gelu_1, skinny_warp_gelu_2, skinny_warp_gelu_3, skinny_warp_gelu_4,
     skinny_warp_gelu_5, skinny_warp_gelu_6, skinny_warp_gelu_7, skinny_warp_gelu_8},
};
const Kernel block_class[4][8] = {
    {skinny_block_set_1, skinny_block_set_2, skinny_block_set_3, skinny_block_set_4,
     skinny_block_set_5, skinny_block_set_6, skinny_block_set_7, skinny_block_set_8},
    {skinny_block_add_1, skinny_block_add_2, skinny_block_add_3, skinny_block_add_4,
     skinny_block_add_5, skinny_block_add_6, skinny_block_add_7, skinny_block_add_8},
    {skinny_block_silu_1, skinny_block_silu_2, skinny_block_silu_3, skinny_block_silu_4,
     skinny_block_silu_5, skinny_block_silu_6, skinny_block_silu_7, skinny_block_silu_8},
    {skinny_block_gelu_1, skinny_block_gelu_2, skinny_block_gelu_3, skinny_block_gelu_4,
     skinny_block_gelu_5, skinny_block_gelu_6, skinny_block_gelu_7, skinny_block_gelu_8},
};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned split = it.number(), epilogue = it.number();
    const auto order = it.order();
    const bool bias = it.number();
    const unsigned m = it.number(), n = it.number(), k = it.number();
    const unsigned tiles = (n + TILE - 1) / TILE;
    const Kernel kernel = (split ? block_class : warp_class)[epilogue][m - 1];
    emulation::launch(order, 11, split ? tiles : (tiles + 7) / 8, split ? 128 : 256, [&] {
      kernel(it.buffer<uint4>(0), it.buffer<uint4>(1), bias ? it.buffer<float>(2) : nullptr, it.buffer<void>(3), n, k);
    });
    it.answer(3);
  }
}
