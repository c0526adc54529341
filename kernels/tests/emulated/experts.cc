// Numbers: kernel, order, grid (x, y), then those of the kernel. Buffers in the order of its arguments. Gives back what it
// wrote.
#include "../../cuda/experts.cu"
#include "case.h"

namespace {

enum Kernel { ROUTE, GATE_UP, DOWN, GROUP, GATHER, COMBINE };

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned kernel = it.number();
    const auto order = it.order();
    const unsigned x = it.number(), y = it.number();
    const auto words = [&](size_t i) { return it.buffer<unsigned>(i); };
    const auto reals = [&](size_t i) { return it.buffer<float>(i); };
    const auto chunks = [&](size_t i) { return it.buffer<uint4>(i); };
    const auto run = [&](unsigned threads, auto body) { emulation::launch(order, 9, dim3(x, y), threads, body); };
    if (kernel == ROUTE) {
      const unsigned experts = it.number(), top_k = it.number(), renormalise = it.number();
      run(ROUTE_THREADS, [&] { route(words(0), reals(1), words(2), reals(3), experts, top_k, renormalise); });
      it.answer(2);
      it.answer(3);
    } else if (kernel == GATE_UP) {
      const unsigned gelu = it.number(), width = it.number(), ffn = it.number(), top_k = it.number();
      const auto own = gelu ? direct_gate_up_gelu : direct_gate_up_silu;
      run(256, [&] { own(words(0), words(1), chunks(2), chunks(3), words(4), width, ffn, top_k); });
      it.answer(4);
    } else if (kernel == DOWN) {
      const unsigned width = it.number(), ffn = it.number(), top_k = it.number();
      run(128, [&] { direct_down(words(0), words(1), reals(2), chunks(3), chunks(4), reals(5), width, ffn, top_k); });
      it.answer(5);
    } else if (kernel == GROUP) {
      const unsigned experts = it.number(), top_k = it.number();
      run(GROUP_THREADS, [&] { group(words(0), words(1), words(2), words(3), words(4), experts, top_k); });
      it.answer(2);
      it.answer(3);
      it.answer(4);
    } else if (kernel == GATHER) {
      const unsigned width = it.number(), top_k = it.number();
      run(256, [&] { gather(words(0), words(1), chunks(2), chunks(3), width, top_k); });
      it.answer(3);
    } else {
      const unsigned width = it.number(), top_k = it.number();
      run(256, [&] {
        combine(words(0), words(1), reals(2), it.buffer<float4>(3), it.buffer<float4>(4), width, top_k);
      });
      it.answer(4);
    }
  }
}
