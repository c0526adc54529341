// Numbers: head size, whether keys are e4m3, order, blocks of the grid, launches, heads of keys, group, piece, window, sharpness. Buffers: spans,
// their count, tables, q in bf16, keys, values, scales; to be written: pieces, tiles, counts, partial results; arrivals,
// zero at first; out in bf16. Answers with counts, arrivals and out.
#include "../../cuda/attend_plan.cu"
#include "../../cuda/attend_decode.cu"
#include "case.h"

namespace {

// Rows of a span that is split into pieces.
constexpr unsigned MOST_ROWS = 4;

template <unsigned DIM, typename Number, typename Attend>
void launch(Case& it, Attend attend) {
  const auto order = it.order();
  const unsigned blocks = it.number(), launches = it.number();
  const unsigned kv_heads = it.number(), group = it.number(), piece = it.number(), window = it.number();
  const float scale_log2 = it.real();
  for (unsigned i = 0; i < launches; ++i) {
    emulation::launch(order, 5, 1, PLAN_THREADS, [&] {
      attend_plan(it.buffer<uint4>(0), it.buffer<unsigned>(1), group, piece, window, MOST_ROWS, it.buffer<uint4>(7),
                  it.buffer<uint2>(8), it.buffer<unsigned>(9));
    });
    emulation::launch(
        order, 7, blocks, THREADS,
        [&] {
          // All arguments from the tables on.
          const auto rest = [&](auto kernel) {
            kernel(it.buffer<unsigned>(2), it.buffer<uint4>(7), it.buffer<unsigned>(9), kv_heads, group, scale_log2,
                   it.buffer<float>(10), it.buffer<unsigned>(11), it.buffer<unsigned short>(12));
          };
          attend(it.buffer<unsigned short>(3), it.buffer<unsigned char>(4), it.buffer<unsigned char>(5),
                 it.buffer<float>(6), rest);
        },
        WARPS * Shape<DIM, Number>::RING);
  }
  it.answer(9);
  it.answer(11);
  it.answer(12);
}

}  // namespace

#define BF16(DIM)                                                                                            \
  launch<DIM, Bf16>(it, [](auto q, auto keys, auto values, auto, auto rest) {                                \
    rest([=](auto... other) { attend_decode_bf16_##DIM(q, keys, values, other...); });                       \
  })
#define E4M3(DIM)                                                                                            \
  launch<DIM, E4m3>(it, [](auto q, auto keys, auto values, auto scales, auto rest) {                         \
    rest([=](auto... other) { attend_decode_e4m3_##DIM(q, keys, values, scales, other...); });               \
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
