// Numbers: format (as formats.cuh lists them), kernel (0 silu, 1 gelu, 2 down), order, grid (x, y), width, ffn, experts a row.
// Buffers in the order of the kernel's arguments. Gives back what it wrote.
#include "../../cuda/expert_weightonly.cu"
#include "case.h"

namespace {

using GateUp = void (*)(
    const unsigned*, const unsigned*, const uint4*, const uint4*, const void*, unsigned short*, unsigned, unsigned, unsigned);
using Down = void (*)(const unsigned*, const unsigned*, const float*, const uint4*, const uint4*, const void*, float*, unsigned,
                      unsigned, unsigned);

struct Format {
  GateUp gate_up[2];
  Down down;
};

#define FORMAT(NAME, F) \
  {{expert_weightonly_##NAME##_silu, expert_weightonly_##NAME##_gelu}, expert_weightonly_##NAME##_down},

const Format formats[] = {EACH_FORMAT(FORMAT)};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const Format& format = formats[it.number()];
    const unsigned kernel = it.number();
    const auto order = it.order();
    const unsigned x = it.number(), y = it.number(), width = it.number(), ffn = it.number(), top_k = it.number();
    const auto words = [&](size_t i) { return it.buffer<unsigned>(i); };
    const auto chunks = [&](size_t i) { return it.buffer<uint4>(i); };
    emulation::launch(order, 31, dim3(x, y), SHARERS * LANES, [&] {
      if (kernel < 2) {
        format.gate_up[kernel](words(0), words(1), chunks(2), chunks(3), it.buffer<void>(4), it.buffer<unsigned short>(5),
                               width, ffn, top_k);
      } else {
        format.down(words(0), words(1), it.buffer<float>(2), chunks(3), chunks(4), it.buffer<void>(5), it.buffer<float>(6),
                    width, ffn, top_k);
      }
    });
    it.answer(kernel < 2 ? 5 : 6);
  }
}
