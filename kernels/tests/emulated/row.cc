// Numbers: kernel, order, grid in blocks, then those of the kernel. Buffers in the order of its arguments; an empty one
// is null. Gives back what it wrote.
#include "../../cuda/row.cu"
#include "case.h"

namespace {

using Add = void (*)(const unsigned*, float4*, const float4*, const float4*, uint2*, unsigned, float, float);
using Pick = void (*)(const unsigned*, const unsigned*, float4*, const float4*, const float4*, uint2*, unsigned, float,
                      float);
const Add add[] = {add_norm_1, add_norm_2, add_norm_3, add_norm_4};
const Pick pick[] = {pick_norm_1, pick_norm_2, pick_norm_3, pick_norm_4};

enum Kernel { EMBED, ADD_NORM, PICK_NORM, TURN_BF16, TURN_E4M3, CLEAR };

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned kernel = it.number();
    const auto order = it.order();
    const unsigned grid = it.number();
    const auto words = [&](size_t i) { return it.buffer<unsigned>(i); };
    const auto fours = [&](size_t i) { return it.length<char>(i) ? it.buffer<float4>(i) : nullptr; };
    const auto pairs = [&](size_t i) { return it.buffer<uint2>(i); };
    if (kernel == EMBED) {
      const unsigned width = it.number(), vocabulary = it.number();
      const float scale = it.real();
      emulation::launch(order, 5, grid, 256, [&] {
        embed(words(0), words(1), words(2), it.buffer<uint4>(3), fours(4), width, vocabulary, scale);
      });
      it.answer(4);
    } else if (kernel == CLEAR) {
      const unsigned width = it.number();
      emulation::launch(order, 5, grid, 256, [&] { clear(words(0), fours(1), width); });
      it.answer(1);
    } else if (kernel == ADD_NORM || kernel == PICK_NORM) {
      const unsigned width = it.number();
      const float epsilon = it.real(), offset = it.real();
      const unsigned which = (width + 2047) / 2048 - 1;
      emulation::launch(order, 5, grid, NORM_THREADS, [&] {
        if (kernel == ADD_NORM) {
          add[which](words(0), fours(1), fours(2), fours(3), pairs(4), width, epsilon, offset);
        } else {
          pick[which](words(0), words(5), fours(1), fours(2), fours(3), pairs(4), width, epsilon, offset);
        }
      });
      it.answer(1);
      it.answer(4);
    } else {
      const unsigned dim = it.number(), q = it.number(), kv = it.number();
      emulation::launch(order, 5, grid, TURN_THREADS, [&] {
        if (kernel == TURN_BF16) {
          const auto turn = dim == 64 ? turn_bf16_64 : dim == 128 ? turn_bf16_128 : turn_bf16_256;
          turn(words(0), fours(1), fours(2), words(3), words(4), pairs(6), pairs(7), pairs(8), q, kv);
        } else {
          const auto turn = dim == 64 ? turn_e4m3_64 : dim == 128 ? turn_e4m3_128 : turn_e4m3_256;
          turn(words(0), fours(1), fours(2), words(3), words(4), it.buffer<float>(5), pairs(6), words(7), words(8), q,
               kv);
        }
      });
      it.answer(6);
      it.answer(7);
      it.answer(8);
    }
  }
}
