// Numbers: format (as formats.cuh lists them), epilogue (0 set, 1 add, 2 silu, 3 gelu), order, whether there is a bias, n, k.
// Buffers: rows (one number), x [8, k] in bf16, the packed numbers and scales, bias [n] in f32, y [8, n] in f32 or
// [8, n / 2] in bf16.
#include "../../cuda/weightonly.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, const void*, const float*, void*, const unsigned*, unsigned, unsigned);
#define FORMAT(NAME, F) \
  {weightonly_##NAME##_set, weightonly_##NAME##_add, weightonly_##NAME##_silu, weightonly_##NAME##_gelu},
const Kernel kernels[][4] = {EACH_FORMAT(FORMAT)};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned format = it.number(), epilogue = it.number();
    const auto order = it.order();
    const bool bias = it.number();
    const unsigned n = it.number(), k = it.number();
    emulation::launch(order, 19, (n + PANELS * PANEL - 1) / (PANELS * PANEL), SHARERS * LANES, [&] {
      kernels[format][epilogue](it.buffer<uint4>(1), it.buffer<uint4>(2), it.buffer<void>(3),
                                bias ? it.buffer<float>(4) : nullptr, it.buffer<void>(5), it.buffer<unsigned>(0), n, k);
    });
    it.answer(5);
  }
}
