// Numbers: head size, order, blocks of the grid, launches, heads of keys, group, piece, window, sharpness. Buffers: spans,
// their count, tables, q, keys and values in bf16; to be written: pieces, tiles, counts, partial results; arrivals,
// zero at first; out in bf16. Answers with counts, arrivals and out.
#include "../../cuda/attend_plan.cu"
#include "../../cuda/attend_decode.cu"
#include "case.h"

namespace {

// Rows of a span that is split into pieces.
constexpr unsigned MOST_ROWS = 4;

template <unsigned DIM, typename Kernel>
void launch(Case& it, Kernel kernel) {
  const auto order = it.order();
  const unsigned blocks = it.number(), launches = it.number();
  const unsigned kv_heads = it.number(), group = it.number(), piece = it.number(), window = it.number();
  const float sharpness = it.real();
  for (unsigned i = 0; i < launches; ++i) {
    emulation::launch(order, 5, 1, PLAN_THREADS, [&] {
      attend_plan(it.buffer<uint4>(0), it.buffer<unsigned>(1), group, piece, window, MOST_ROWS, it.buffer<uint4>(6),
                  it.buffer<uint2>(7), it.buffer<unsigned>(8));
    });
    emulation::launch(
        order, 7, blocks, THREADS,
        [&] {
          kernel(it.buffer<unsigned short>(3), it.buffer<unsigned short>(4), it.buffer<unsigned short>(5),
                 it.buffer<unsigned>(2), it.buffer<uint4>(6), it.buffer<unsigned>(8),
                 kv_heads, group, sharpness, it.buffer<float>(9), it.buffer<unsigned>(10),
                 it.buffer<unsigned short>(11));
        },
        WARPS * Shape<DIM>::RING);
  }
  it.answer(8);
  it.answer(10);
  it.answer(11);
}

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    switch (it.number()) {
      case 64: launch<64>(it, attend_decode_64); break;
      case 128: launch<128>(it, attend_decode_128); break;
      case 256: launch<256>(it, attend_decode_256); break;
      default: return 2;
    }
  }
}
