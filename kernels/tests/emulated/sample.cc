// Numbers: order, threads of a block (64, 256 or 1024), grid, vocabulary. Buffers: number of rows, records, lists, logits,
// changed, drawn, outcomes, alternatives.
#include "../../cuda/sample.cu"
#include "case.h"

int main() {
  Case it;
  while (it.next()) {
    const auto order = it.order();
    const unsigned threads = it.number(), grid = it.number(), n = it.number();
    emulation::launch(order, 3, grid, threads, [&] {
      const unsigned* const rows = it.buffer<unsigned>(0);
      const auto* const records = it.buffer<Record>(1);
      const unsigned* const lists = it.buffer<unsigned>(2);
      const float* const logits = it.buffer<float>(3);
      float* const changed = it.buffer<float>(4);
      unsigned* const drawn = it.buffer<unsigned>(5);
      Outcome* const outcomes = it.buffer<Outcome>(6);
      Alternative* const alternatives = it.buffer<Alternative>(7);
      if (threads == 64) {
        sample_rows<64>(*rows, records, lists, logits, changed, drawn, outcomes, alternatives, n);
      } else if (threads == 256) {
        sample_rows<256>(*rows, records, lists, logits, changed, drawn, outcomes, alternatives, n);
      } else {
        sample(rows, records, lists, logits, changed, drawn, outcomes, alternatives, n);
      }
    });
    it.answer(5);
    it.answer(6);
    it.answer(7);
  }
}
