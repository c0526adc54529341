// Warpgroups and barriers in shared memory on the CPU: what cuda/warpgroup.cuh says of each, as late and as strict as the
// PTX manual allows. Where the rules are broken, the process ends and says how.
//
// - The asynchronous proxy has its own view of dynamic shared memory, NaN at first. A thread's publish() brings what that
//   thread's copies brought, and nothing else: what is stored plainly is never seen.
// - A product reads its matrices when it is begun. Nobody may begin a copy to the KiB where they lie, nor publish one,
//   before all warps have waited for it.
// - The registers of a sum hold NaN from the product's beginning until it is waited for, and products_begin must have
//   come between their last use and the first product.
// - Descriptors are decoded from the manual's tables, not from how the kernels place things.
#pragma once

namespace emulation {

constexpr unsigned GROUP = 4 * WARP;

// A barrier: a mark that it was made, the parity of the phase under way, arrivals that a phase wants, and arrivals that
// are still to come.
constexpr unsigned long long MADE = 0x5aull << 56;

inline unsigned arrivals_of(unsigned long long barrier) { return barrier >> 20 & 0xfffff; }
inline unsigned missing_of(unsigned long long barrier) { return barrier & 0xfffff; }

inline void made(const unsigned long long* barrier) {
  aligned(barrier, 8);
  if (*barrier >> 56 != MADE >> 56) stop("a barrier that nobody made");
}

inline void barrier_make(unsigned long long* barrier, unsigned arrivals) {
  if (arrivals == 0) stop("a barrier of no arrivals");
  *barrier = MADE | (unsigned long long)arrivals << 20 | arrivals;
}

inline void barrier_arrive(unsigned long long* barrier) {
  made(barrier);
  *barrier -= 1;
  if (missing_of(*barrier) == 0) *barrier = (*barrier ^ 1ull << 40) | arrivals_of(*barrier);
}

// The phase of a parity is over when the one under way has the other.
inline void barrier_wait(unsigned long long* barrier, unsigned parity) {
  made(barrier);
  if (parity > 1) stop("a parity that is neither 0 nor 1");
  const auto is_over = [=] { return (*barrier >> 40 & 1) != parity; };
  if (is_over()) return;
  self().until = is_over;
  wait_at(State::AtPhase);
}

template <unsigned COUNT>
void give_registers() {
  static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "what the instruction takes");
}
template <unsigned COUNT>
void take_registers() {
  give_registers<COUNT>();
}

inline std::vector<unsigned char>& asynchronous() {
  auto& bytes = block->published;
  if (bytes.empty()) bytes.assign(block->dynamic_bytes, 0xff);
  return bytes;
}

inline void publish() {
  for (const Copy& copy : self().unpublished) {
    if (!is_dynamic(copy.to)) continue;
    std::memcpy(asynchronous().data() + (shared_address(copy.to) - SHARED_BASE), copy.to, copy.bytes);
    note_written(copy.to);
  }
  self().unpublished.clear();
}

// A matrix of rows along k ("K-major"), as its 64 bits describe it. Bits 0 to 13: where it begins; 32 to 45: bytes from
// eight rows to the next eight; both in units of 16 bytes. 16 to 29: not used with a swizzle. 49 to 51: the base offset,
// 0 where the pattern of the swizzle begins at a multiple of its size. 62 and 63: the swizzle; 1: bits 4 to 6 of an
// address are exchanged by their exclusive or with bits 7 to 9.
struct Matrix {
  unsigned start, stride;

  explicit Matrix(uint64_t bits) : start((bits & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) stop("a matrix without the 128-byte swizzle");
    if ((bits >> 49 & 7) != 0 || (start & 0x3ff) >= 128) stop("a swizzled matrix that does not begin at 1024 bytes");
  }

  unsigned at(unsigned row, unsigned k) const {
    const unsigned address = start + row / 8 * stride + row % 8 * 128 + 2 * k;
    return address ^ (address >> 7 & 7) << 4;
  }

  // Its first 16 numbers of each row. Notes where they lay.
  std::vector<float> numbers(unsigned rows, std::map<unsigned, unsigned>& written) const {
    std::vector<float> out(rows * 16);
    for (unsigned i = 0; i < rows * 16; ++i) {
      const unsigned address = at(i / 16, i % 16), offset = address - SHARED_BASE;
      if (address < SHARED_BASE || offset + 2 > block->dynamic_bytes) stop("a product that reads beyond shared memory");
      uint16_t bits;
      std::memcpy(&bits, asynchronous().data() + offset, 2);
      out[i] = half_of(bits, 0);
      written[address >> 10] = block->written[address >> 10];
    }
    return out;
  }
};

inline std::vector<GroupProduct>& group_products() { return block->products[block->running / GROUP]; }

inline void undisturbed(const GroupProduct& product) {
  for (const auto& [kib, count] : product.written) {
    if (block->written[kib] != count) stop("shared memory that was written to while a product read it");
  }
}

inline void products_begin() { self().ordered = true; }

template <unsigned N>
void multiply_add_group(float (&sum)[N / 8][4], uint64_t a, uint64_t b) {
  Fiber& fiber = self();
  auto& all = group_products();
  if (fiber.sums.count(&sum[0][0]) == 0) {
    if (!fiber.ordered) stop("a product of registers whose use nothing ordered");
    fiber.sums[&sum[0][0]].assign(&sum[0][0], &sum[0][0] + N / 2);
    std::memset(sum, 0xff, sizeof sum);
  }
  if (fiber.begun == all.size()) {
    GroupProduct product{a, b, {}, {}, {}};
    product.left = Matrix(a).numbers(64, product.written);
    product.right = Matrix(b).numbers(N, product.written);
    all.push_back(std::move(product));
  }
  const GroupProduct& product = all[fiber.begun];
  if (product.a != a || product.b != b || product.right.size() != N * 16) {
    stop("warps of a warpgroup that multiply different matrices");
  }
  undisturbed(product);
  fiber.products.back().push_back({fiber.begun++, &sum[0][0]});
}

inline void products_commit() { self().products.emplace_back(); }

// This thread's share of a product; added exactly and rounded once, as multiply_add's.
inline void carry_out(const Underway& underway) {
  const GroupProduct& product = group_products()[underway.product];
  undisturbed(product);
  std::vector<float>& sum = self().sums.at(underway.sum);
  const unsigned row = block->running % GROUP / WARP * 16 + lane() / 4, column = lane() % 4 * 2;
  for (size_t i = 0; i < sum.size(); ++i) {
    const float* const left = product.left.data() + (row + i % 4 / 2 * 8) * 16;
    const float* const right = product.right.data() + (i / 4 * 8 + column + i % 2) * 16;
    double total = sum[i];
    for (unsigned k = 0; k < 16; ++k) total += (double)left[k] * right[k];
    sum[i] = (float)total;
  }
}

template <unsigned PENDING>
void products_wait() {
  Fiber& fiber = self();
  while (fiber.products.size() - 1 > PENDING) {
    for (const Underway& underway : fiber.products.front()) carry_out(underway);
    fiber.products.erase(fiber.products.begin());
  }
  // Registers that no product owns any more have their sums.
  for (auto owned = fiber.sums.begin(); owned != fiber.sums.end();) {
    bool is_pending = false;
    for (const auto& group : fiber.products) {
      for (const Underway& underway : group) is_pending |= underway.sum == owned->first;
    }
    if (is_pending) {
      ++owned;
      continue;
    }
    std::memcpy(owned->first, owned->second.data(), owned->second.size() * sizeof(float));
    owned = fiber.sums.erase(owned);
    fiber.ordered = false;
  }
  // The warp waits as one.
  wait_at(State::AtWarpBarrier);
}

template <unsigned TILES>
void pin(float (&)[TILES][4]) {}

inline void finished() {
  if (!self().sums.empty()) stop("a thread that ends before its products");
  if (self().begun != group_products().size()) stop("a product that not all warps of a warpgroup begin");
}

}  // namespace emulation
