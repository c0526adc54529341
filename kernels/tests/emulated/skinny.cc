// Reads cases from standard input, runs cuda/skinny.cu on each, writes the outputs to standard output.
// A case: class (0 warp, 1 block), order, seed, m, n, k as u32; x [m, k] and w [n, k] as bf16 bits. Output: y [m, n] f32,
// NaN where nothing was written. Buffers have exactly the size of their contents, so that the address sanitizer sees a
// step beyond.
#include "../../cuda/skinny.cu"

namespace {

using Kernel = void (*)(const uint4*, const uint4*, float*, unsigned, unsigned);
const Kernel warp_class[] = {skinny_warp_1, skinny_warp_2, skinny_warp_3, skinny_warp_4,
                             skinny_warp_5, skinny_warp_6, skinny_warp_7, skinny_warp_8};
const Kernel block_class[] = {skinny_block_1, skinny_block_2, skinny_block_3, skinny_block_4,
                              skinny_block_5, skinny_block_6, skinny_block_7, skinny_block_8};

void read_all(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) {
    std::fprintf(stderr, "the case ends early\n");
    std::exit(2);
  }
}

}  // namespace

int main() {
  unsigned head[6];
  while (std::fread(head, sizeof head, 1, stdin) == 1) {
    const auto [split, order, seed, m, n, k] = head;
    const size_t x_bytes = 2ul * m * k, w_bytes = 2ul * n * k, count = (size_t)m * n;
    auto* x = static_cast<uint4*>(std::aligned_alloc(16, x_bytes));
    auto* w = static_cast<uint4*>(std::aligned_alloc(16, w_bytes));
    auto* y = static_cast<float*>(std::malloc(count * sizeof(float)));
    read_all(x, x_bytes);
    read_all(w, w_bytes);
    std::memset(y, 0xff, count * sizeof(float));

    const unsigned tiles = (n + TILE - 1) / TILE;
    const Kernel kernel = (split ? block_class : warp_class)[m - 1];
    emulation::launch(static_cast<emulation::Order>(order), seed, split ? tiles : (tiles + 7) / 8, split ? 128 : 256,
                      [=] { kernel(x, w, y, n, k); });
    std::fwrite(y, sizeof(float), count, stdout);
    std::free(x);
    std::free(w);
    std::free(y);
  }
}
