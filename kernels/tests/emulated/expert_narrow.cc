// Numbers: format (as formats.cuh lists them; bf16 otherwise, by expert_product.cu), tile (0 16 rows, 1 64, 2 128), epilogue (0 set,
// 1 silu, 2 gelu), order, tiles of rows, experts, n, k. Buffers: starts, x [rows, k] in bf16, the numbers and scales of all
// experts, y [rows, n] in f32 or [rows, n / 2] in bf16.
#include "../../cuda/expert_narrow.cu"
#include "../../cuda/expert_product.cu"
#include "case.h"

namespace {

using Kernel = void (*)(const unsigned*, const uint4*, const uint4*, const void*, void*, unsigned, unsigned, unsigned);
using Wide = void (*)(const unsigned*, const uint4*, const uint4*, void*, unsigned, unsigned, unsigned);

struct Launch {
  Kernel kernels[3];
  unsigned columns, threads, bytes;
};

#define TILE(NAME, T) \
  {{expert_narrow_##NAME##_set, expert_narrow_##NAME##_silu, expert_narrow_##NAME##_gelu}, T::COLUMNS, T::THREADS, T::BYTES}
#define FORMAT(NAME, F) \
  {TILE(NAME##_16, Narrow16<Packed##F>), TILE(NAME##_64, Narrow64<Packed##F>), TILE(NAME##_128, Narrow128<Packed##F>)},

const Launch launches[][3] = {EACH_FORMAT(FORMAT)};
const Wide wide[] = {expert_product_64_set, expert_product_64_silu, expert_product_64_gelu};

}  // namespace

int main() {
  Case it;
  while (it.next()) {
    const unsigned format = it.number(), tile = it.number(), epilogue = it.number();
    const auto order = it.order();
    const unsigned tiles = it.number(), experts = it.number(), n = it.number(), k = it.number();
    const auto grid = [&](unsigned columns) { return dim3(tiles, (n + columns - 1) / columns); };
    const auto starts = it.buffer<unsigned>(0);
    const auto x = it.buffer<uint4>(1), w = it.buffer<uint4>(2);
    if (format < sizeof launches / sizeof *launches) {
      const Launch& of = launches[format][tile];
      emulation::launch(order, 29, grid(of.columns), of.threads, [&] {
        of.kernels[epilogue](starts, x, w, it.buffer<void>(3), it.buffer<void>(4), experts, n, k);
      }, of.bytes);
    } else {
      emulation::launch(order, 29, grid(Tile64::COLUMNS), Tile64::THREADS, [&] {
        wide[epilogue](starts, x, w, it.buffer<void>(4), experts, n, k);
      }, Tile64::BYTES);
    }
    it.answer(4);
  }
}
