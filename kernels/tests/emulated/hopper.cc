// Numbers: columns of a tile (0: 128, 1: 256), epilogue (0 set, 1 add, 2 silu, 3 gelu), order, whether there is a bias,
// blocks, n, k. Buffers: rows (one number), x [bucket, k] and w [n, k] in bf16, bias [n] in f32, y [bucket, n] in f32 or
// [bucket, n / 2] in bf16. Answers y.
#include "../../cuda/product.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, const float*, void*, const unsigned*, unsigned, unsigned);

const Kernel kernels[2][4] = {
    {product_hopper_128_set, product_hopper_128_add, product_hopper_128_silu, product_hopper_128_gelu},
    {product_hopper_256_set, product_hopper_256_add, product_hopper_256_silu, product_hopper_256_gelu},
};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned wide = it.number();
    const Kernel kernel = kernels[wide][it.number()];
    const auto order = it.order();
    const bool bias = it.number();
    const unsigned blocks = it.number(), n = it.number(), k = it.number();
    emulation::launch(
        order, 17, blocks, 384,
        [&] {
          kernel(it.buffer<uint4>(1), it.buffer<uint4>(2), bias ? it.buffer<float>(3) : nullptr, it.buffer<void>(4),
                 it.buffer<unsigned>(0), n, k);
        },
        (wide ? Wide256::BYTES : Wide128::BYTES) + SWIZZLED);
    it.answer(4);
  }
}
