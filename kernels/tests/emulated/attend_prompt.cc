// Numbers: head size, whether keys are e4m3, order, blocks of the grid, heads of keys, group, window, sharpness. Buffers: spans, their count,
// tables, q in bf16, keys, values, scales; to be written: tiles, counts; out in bf16. Answers with counts and out.
#include "../../cuda/attend_plan.cu"
#include "../../cuda/attend_prompt.cu"
#include "case.h"

namespace {

template <unsigned DIM, typename Number, typename Attend>
void launch(Case& it, Attend attend) {
  static_assert(PAIRS == TILE_ROWS, "the plan's tiles are the kernel's");
  const auto order = it.order();
  const unsigned blocks = it.number(), kv_heads = it.number(), group = it.number(), window = it.number();
  const float scale_log2 = it.real();
  emulation::launch(order, 5, 1, PLAN_THREADS, [&] {
    attend_plan(it.buffer<uint4>(0), it.buffer<unsigned>(1), group, PAGE, window, 0, nullptr, it.buffer<uint2>(7),
                it.buffer<unsigned>(8));
  });
  emulation::launch(
      order, 7, blocks, PROMPT_THREADS,
      [&] {
        // All arguments from the tables on.
        const auto rest = [&](auto kernel) {
          kernel(it.buffer<unsigned>(2), it.buffer<uint4>(0), it.buffer<uint2>(7), it.buffer<unsigned>(8) + 1,
                 kv_heads, group, window, scale_log2, it.buffer<unsigned short>(9));
        };
        attend(it.buffer<unsigned short>(3), it.buffer<unsigned char>(4), it.buffer<unsigned char>(5),
               it.buffer<float>(6), rest);
      },
      Tile<DIM, Number>::SHARED);
  it.answer(8);
  it.answer(9);
}

}  // namespace

#define BF16(DIM)                                                                                            \
  launch<DIM, Bf16>(it, [](auto q, auto keys, auto values, auto, auto rest) {                                \
    rest([=](auto... other) { attend_prompt_bf16_##DIM(q, keys, values, other...); });                       \
  })
#define E4M3(DIM)                                                                                            \
  launch<DIM, E4m3>(it, [](auto q, auto keys, auto values, auto scales, auto rest) {                         \
    rest([=](auto... other) { attend_prompt_e4m3_##DIM(q, keys, values, scales, other...); });               \
  })

int main() {
  Case it;
  while (it.next()) {
    const unsigned dim = it.number(), e4m3 = it.number();
    switch (e4m3 ? dim + 1 : dim) {
      case 64: BF16(64); break;
      case 128: BF16(128); break;
      case 256: BF16(256); break;
      case 129: E4M3(128); break;
      case 257: E4M3(256); break;
      default: return 2;
    }
  }
}
