// Numbers: columns of a tile (0: 128, 1: 256), epilogue (0 set, 1 silu, 2 gelu), order, blocks, experts, n, k. Buffers:
// starts, x [rows, k] and w [experts, n, k] in bf16, y [rows, n] in f32 or [rows, n / 2] in bf16. Answers y.
#include "../../cuda/expert_product.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const unsigned*, const uint4*, const uint4*, void*, unsigned, unsigned, unsigned);

const Kernel kernels[2][3] = {
    {expert_product_hopper_128_set, expert_product_hopper_128_silu, expert_product_hopper_128_gelu},
    {expert_product_hopper_256_set, expert_product_hopper_256_silu, expert_product_hopper_256_gelu},
};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned wide = it.number();
    const Kernel kernel = kernels[wide][it.number()];
    const auto order = it.order();
    const unsigned blocks = it.number(), experts = it.number(), n = it.number(), k = it.number();
    emulation::launch(
        order, 19, blocks, 384,
        [&] {
          kernel(it.buffer<unsigned>(0), it.buffer<uint4>(1), it.buffer<uint4>(2), it.buffer<void>(3), experts, n, k);
        },
        (wide ? Wide256::BYTES : Wide128::BYTES) + SWIZZLED);
    it.answer(3);
  }
}
