// Numbers: head size, order, blocks of the grid, heads of keys, group, window, sharpness. Buffers: spans, their count,
// tables, q, keys and values in bf16; to be written: tiles, counts; out in bf16. Answers with counts and out.
#include "../../cuda/attend_plan.cu"
#include "../../cuda/attend_prompt.cu"
#include "case.h"

namespace {

template <unsigned DIM, typename Kernel>
void launch(Case& it, Kernel kernel) {
  static_assert(PAIRS == TILE_ROWS, "the plan's tiles are the kernel's");
  const auto order = it.order();
  const unsigned blocks = it.number(), kv_heads = it.number(), group = it.number(), window = it.number();
  const float sharpness = it.real();
  emulation::launch(order, 5, 1, PLAN_THREADS, [&] {
    attend_plan(it.buffer<uint4>(0), it.buffer<unsigned>(1), group, PAGE, window, 0, nullptr, it.buffer<uint2>(6),
                it.buffer<unsigned>(7));
  });
  emulation::launch(
      order, 7, blocks, PROMPT_THREADS,
      [&] {
        kernel(it.buffer<unsigned short>(3), it.buffer<unsigned short>(4), it.buffer<unsigned short>(5),
               it.buffer<unsigned>(2), it.buffer<uint4>(0), it.buffer<uint2>(6), it.buffer<unsigned>(7) + 1, kv_heads,
               group, window, sharpness, it.buffer<unsigned short>(8));
      },
      Tile<DIM>::SHARED);
  it.answer(7);
  it.answer(8);
}

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    switch (it.number()) {
      case 64: launch<64>(it, attend_prompt_64); break;
      case 128: launch<128>(it, attend_prompt_128); break;
      case 256: launch<256>(it, attend_prompt_256); break;
      default: return 2;
    }
  }
}
