// Runs the kernels of a .cu file on the CPU: enough of CUDA for plain kernels, so that wrong indices, missing barriers
// and wrong arithmetic are found without a GPU. It says nothing about speed, registers or memory limits.
//
// The compiler reads this header before an unchanged .cu file (-include). Each thread of a block is a fiber with its own
// stack; blocks run one after the other. A fiber runs until it reaches a barrier or returns. A race shows as a result
// that depends on the order in which fibers are resumed, which the caller chooses; a barrier that some threads never
// reach ends the process with their place. Shared memory is plain static memory, so that the address sanitizer sees it.
//
// Static shared memory keeps what the block before left in it; dynamic shared memory is made anew for each block and
// filled with NaN. An asynchronous copy is carried out only when it is waited for. Not modelled: memory ordering between
// threads, and divergence within a warp (every warp operation wants all 32 lanes). Launches (<<<>>>) are no C++ and stay
// out of the .cu files. Warpgroups and barriers in shared memory are in warpgroup.h.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "past.h"

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 * 1024;

// WarpByWarp: a warp goes as far as it can before the next one begins, so that one is a whole barrier ahead.
// Straggling: the same, but one warp is left behind until no other can go any further, each warp in turn.
enum class Order { Ascending, Descending, Shuffled, WarpByWarp, Straggling };
enum class State { Ready, AtBlockBarrier, AtWarpBarrier, AtPhase, AtPast, Returned };

// A copy of 16 bytes that was begun and not waited for. No source: zeros.
struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
};

// A product of a warpgroup that this thread began (warpgroup.h).
struct Underway {
  size_t product;  // of its warpgroup's
  float* sum;
};

// A product of a warpgroup as its first thread began it: what was multiplied, from the bytes that the asynchronous proxy
// saw, and how often each of the KiB was written to before.
struct GroupProduct {
  uint64_t a, b;
  std::vector<float> left, right;
  std::map<unsigned, unsigned> written;
};

// Where a fiber or the scheduler is. The address sanitizer follows swapcontext; without it a jump saves two system
// calls a switch.
struct Place {
  ucontext_t context;
  jmp_buf jump;
  bool begun = false;
};

inline void go(Place& from, Place& to) {
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.jump) == 0) {
    from.begun = true;
    if (to.begun) _longjmp(to.jump, 1);
    setcontext(&to.context);
  }
#endif
}

struct Fiber {
  Place place;
  std::unique_ptr<char[]> stack;
  State state;
  uint3 thread;
  uint64_t slot;                          // what this lane publishes in a warp operation
  // Values that this lane publishes, by turns: one is free again when all lanes have come to the next.
  uint64_t published[2][4];
  unsigned turn;
  std::vector<std::vector<Copy>> copies;  // groups of copies under way; the last one is open
  std::vector<Copy> unpublished;          // those that came, which the asynchronous proxy does not see yet
  std::function<bool()> until;            // what it waits for at a phase
  std::vector<std::vector<Underway>> products;  // groups of products under way; the last one is open
  std::map<float*, std::vector<float>> sums;    // of registers that products under way own
  size_t begun;                                 // products
  bool ordered;                                 // whether products_begin followed the last use of registers
};

struct Block {
  Block(std::vector<Fiber>& fibers, unsigned threads) : fibers(fibers), threads(threads) {}
  std::vector<Fiber>& fibers;
  unsigned threads;
  dim3 grid, size;
  uint3 index{};
  unsigned running = 0;
  std::unique_ptr<unsigned char, decltype(&std::free)> dynamic{nullptr, std::free};
  size_t dynamic_bytes = 0;
  std::vector<unsigned char> published;            // dynamic shared memory as the asynchronous proxy sees it
  std::vector<unsigned> written;                   // by KiB of shared addresses: how often copies to it were begun or seen
  std::vector<std::vector<GroupProduct>> products;  // by warpgroup, in the order in which they were begun
  Place scheduler;
  std::function<void()> body;
  uint64_t device = 0;
  bool past_is_over = true;  // whether all threads have waited for it, where the launch is chained
};

inline Block* block = nullptr;

inline Fiber& self() { return block->fibers[block->running]; }

[[noreturn]] inline void stop(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  for (size_t i = 0; i < block->threads; ++i) {
    static const char* const names[] = {"ready", "at __syncthreads", "at a warp operation",
                                        "at the phase of a barrier", "at wait_for_past", "returned"};
    if (i % WARP == 0 || block->fibers[i].state != block->fibers[i - 1].state) {
      std::fprintf(stderr, "  block %u,%u thread %zu and on: %s\n", block->index.x, block->index.y, i,
                   names[(int)block->fibers[i].state]);
    }
  }
  std::exit(3);
}

[[noreturn]] inline void stop_launch(const char* what, unsigned threads) {
  std::fprintf(stderr, "emulation: %s %u threads\n", what, threads);
  std::exit(3);
}

inline void wait_at(State barrier) {
  Fiber& fiber = self();
  fiber.state = barrier;
  go(fiber.place, block->scheduler);
}

inline void finished();  // warpgroup.h

// A fiber serves block after block: making one costs more than most kernels.
inline void enter() {
  for (;;) {
    block->body();
    finished();
    Fiber& fiber = self();
    fiber.state = State::Returned;
    go(fiber.place, block->scheduler);
  }
}

// Lets the fibers of [first, end) go on if all of them wait at `barrier`.
inline bool release(size_t first, size_t end, State barrier) {
  for (size_t i = first; i < end; ++i) {
    if (block->fibers[i].state != barrier) return false;
  }
  for (size_t i = first; i < end; ++i) block->fibers[i].state = State::Ready;
  return true;
}

// Lets those go on that wait for a phase which is over. Says whether there was one.
inline bool release_phases(size_t first, size_t end) {
  bool moved = false;
  for (size_t i = first; i < end; ++i) {
    Fiber& fiber = block->fibers[i];
    if (fiber.state != State::AtPhase || !fiber.until()) continue;
    fiber.state = State::Ready;
    moved = true;
  }
  return moved;
}

// Ends the past for a block of a chained launch when all its threads wait for it. Says whether it did.
inline bool release_past() {
  if (block->past_is_over) return false;
  for (size_t i = 0; i < block->threads; ++i) {
    if (block->fibers[i].state == State::Returned) stop("a thread of a chained launch that returns without wait_for_past");
  }
  if (!release(0, block->threads, State::AtPast)) return false;
  block->past_is_over = true;
  past::open(block->device);
  return true;
}

// Resumes those of some fibers that are ready. Says whether there was one.
inline bool resume(const unsigned* order, size_t count) {
  bool moved = false;
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = block->fibers[order[i]];
    if (fiber.state != State::Ready) continue;
    block->running = order[i];
    go(block->scheduler, fiber.place);
    moved = true;
  }
  return moved;
}

inline void run_block(const std::vector<unsigned>& order, Order kind) {
  const size_t threads = block->threads, warps = threads / WARP;
  const bool straggling = kind == Order::Straggling, warp_by_warp = straggling || kind == Order::WarpByWarp;
  // Which warp stays behind, and how many did since something moved.
  size_t straggler = 0, still = 0;
  for (;;) {
    bool moved = false;
    if (warp_by_warp) {
      for (size_t first = 0; first < threads; first += WARP) {
        if (straggling && first == straggler * WARP) continue;
        while (resume(&order[first], WARP)) {
          release(first, first + WARP, State::AtWarpBarrier);
          release_phases(first, first + WARP);
          moved = true;
        }
      }
    } else {
      moved = resume(order.data(), threads);
    }
    bool left = false;
    for (size_t i = 0; i < threads; ++i) left |= block->fibers[i].state != State::Returned;
    for (size_t first = 0; first < threads; first += WARP) moved |= release(first, first + WARP, State::AtWarpBarrier);
    moved |= release(0, threads, State::AtBlockBarrier);
    moved |= release_phases(0, threads);
    moved |= release_past();
    if (!left) return;
    still = moved ? 0 : still + 1;
    if (still > (straggling ? warps : 0)) stop("a barrier that not all threads reach");
    if (!moved) straggler = (straggler + 1) % warps;
  }
}

inline void prepare(Fiber& fiber, uint3 thread) {
  fiber.state = State::Ready;
  fiber.thread = thread;
  fiber.copies.assign(1, {});
  fiber.unpublished.clear();
  fiber.products.assign(1, {});
  fiber.sums.clear();
  fiber.begun = 0;
  fiber.ordered = false;
  fiber.turn = 0;
  if (fiber.stack) return;
  fiber.stack.reset(new char[STACK]);
  getcontext(&fiber.place.context);
  fiber.place.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.place.context.uc_stack.ss_size = STACK;
  fiber.place.context.uc_link = nullptr;
  makecontext(&fiber.place.context, enter, 0);
}

// Runs `body`, a call of the kernel, for every thread of the grid. `seed` is for Order::Shuffled; `dynamic_bytes` of
// shared memory come with the launch. The memory of a chained launch is that of `device`.
inline void launch(Order order, unsigned seed, dim3 grid, dim3 size, std::function<void()> body,
                   size_t dynamic_bytes = 0, bool chained = false, uint64_t device = 0) {
  const unsigned threads = size.x * size.y * size.z;
  if (threads % WARP != 0) stop_launch("blocks of whole warps only, got", threads);
  static std::vector<Fiber> fibers(1024);
  if (threads > fibers.size()) stop_launch("at most 1024 threads a block, got", threads);
  Block current(fibers, threads);
  current.grid = grid;
  current.size = size;
  current.body = std::move(body);
  current.device = device;
  block = &current;
  if (!chained) past::all_done(device);

  std::vector<unsigned> turns(threads);
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned b = 0; b < blocks; ++b) {
    const unsigned at = order == Order::Descending ? blocks - 1 - b : b;
    current.index = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
    for (unsigned i = 0; i < threads; ++i) {
      turns[i] = order == Order::Descending ? threads - 1 - i : i;
      prepare(fibers[i], {i % size.x, i / size.x % size.y, i / size.x / size.y});
    }
    if (order == Order::Shuffled) {
      for (unsigned i = threads - 1; i > 0; --i) {
        seed = seed * 1664525u + 1013904223u;
        std::swap(turns[i], turns[(uint64_t)seed * (i + 1) >> 32]);
      }
    }
    if (dynamic_bytes > 0) {
      void* bytes = nullptr;
      if (posix_memalign(&bytes, 128, dynamic_bytes) != 0) std::abort();
      current.dynamic.reset(static_cast<unsigned char*>(bytes));
      std::memset(current.dynamic.get(), 0xff, dynamic_bytes);
    }
    current.dynamic_bytes = dynamic_bytes;
    current.published.clear();
    current.written.assign(1 << 8, 0);
    current.products.assign((threads + 4 * WARP - 1) / (4 * WARP), {});
    current.past_is_over = !chained;
    if (chained) past::shut(device);
    run_block(turns, order);
  }
  block = nullptr;
}

// Every lane publishes a value and waits for the warp; the result reads that of another lane.
template <typename T>
auto publish(const T& value) {
  static_assert(sizeof(T) <= sizeof(Fiber::published[0]), "a lane publishes at most 32 bytes");
  const unsigned turn = self().turn++ % 2;
  std::memcpy(self().published[turn], &value, sizeof(T));
  wait_at(State::AtWarpBarrier);
  return [turn](unsigned lane) {
    T result;
    std::memcpy(&result, block->fibers[block->running / WARP * WARP + lane % WARP].published[turn], sizeof(T));
    return result;
  };
}

template <typename T>
T shuffle(T value, unsigned from) {
  return publish(value)(from);
}

// Every lane of the warp publishes a pointer; `use` reads them, and nobody goes on before all have.
template <typename T, typename Use>
void together(T* mine, Use use) {
  self().slot = reinterpret_cast<uintptr_t>(mine);
  wait_at(State::AtWarpBarrier);
  use([](unsigned lane) { return reinterpret_cast<T*>(block->fibers[block->running / WARP * WARP + lane].slot); });
  wait_at(State::AtWarpBarrier);
}

inline unsigned lane() { return block->running % WARP; }

inline void whole_warp(unsigned mask) {
  if (mask != 0xffffffffu) stop("a warp operation with a partial mask");
}

// What cuda/tensor.cuh says of each.
inline void* dynamic_shared() {
  if (!block->dynamic) stop("dynamic shared memory that the launch did not ask for");
  return block->dynamic.get();
}

// Where the window of shared memory puts the dynamic part: 128-byte aligned, as it is declared, and no more.
constexpr unsigned SHARED_BASE = 384;

inline bool is_dynamic(const void* pointer) {
  const auto* at = static_cast<const unsigned char*>(pointer);
  return block->dynamic && at >= block->dynamic.get() && at < block->dynamic.get() + block->dynamic_bytes;
}

inline unsigned shared_address(const void* pointer) {
  if (!is_dynamic(pointer)) stop("the shared address of what is not dynamic shared memory");
  return SHARED_BASE + (unsigned)(static_cast<const unsigned char*>(pointer) - block->dynamic.get());
}

// A copy to there was begun, or its bytes are seen now.
inline void note_written(const void* to) {
  if (is_dynamic(to)) ++block->written[shared_address(to) >> 10];
}

inline void aligned(const void* pointer, size_t to) {
  if (reinterpret_cast<uintptr_t>(pointer) % to != 0) stop("an address that is not aligned");
}

inline void wait_for_past() {
  if (!block->past_is_over) wait_at(State::AtPast);
}

// Only sees that it could be read.
inline void prefetch(const void* from) { (void)*static_cast<const volatile unsigned char*>(from); }

template <unsigned BYTES = 16>
void copy_async(void* to, const void* from, bool valid) {
  aligned(to, BYTES);
  if (valid) aligned(from, BYTES);
  note_written(to);
  if (valid && !block->past_is_over) prefetch(from);
  self().copies.back().push_back({to, valid ? from : nullptr, BYTES});
}

inline void copy_commit() { self().copies.emplace_back(); }

template <unsigned PENDING>
void copy_wait() {
  auto& groups = self().copies;
  while (groups.size() - 1 > PENDING) {
    for (const Copy& copy : groups.front()) {
      if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
      else std::memset(copy.to, 0, copy.bytes);
      self().unpublished.push_back(copy);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(unsigned (&out)[4], const void* row) {
  aligned(row, 16);
  const unsigned at = lane();
  together(const_cast<void*>(row), [&](auto of) {
    for (unsigned i = 0; i < 4; ++i) std::memcpy(&out[i], (const char*)of(8 * i + at / 4) + at % 4 * 4, 4);
  });
}

inline void load_matrices_transposed(unsigned (&out)[4], const void* row) {
  aligned(row, 16);
  const unsigned at = lane();
  together(const_cast<void*>(row), [&](auto of) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned r = 8 * i + at % 4 * 2;
      const unsigned first = ((const uint16_t*)of(r))[at / 4], second = ((const uint16_t*)of(r + 1))[at / 4];
      out[i] = first | second << 16;
    }
  });
}

inline unsigned transpose_matrix(unsigned word) {
  unsigned out = 0;
  const unsigned g = lane() / 4, t = lane() % 4;
  together(&word, [&](auto of) {
    for (unsigned i = 0; i < 2; ++i) out |= (*of((2 * t + i) * 4 + g / 2) >> g % 2 * 16 & 0xffffu) << 16 * i;
  });
  return out;
}

inline float half_of(unsigned word, unsigned which) {
  const unsigned bits = which ? word & 0xffff0000u : word << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The device adds the sixteen products of an element in an order of its own; here they are added exactly and rounded once.
inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Fragments {
    unsigned a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto of = publish(mine);
  const unsigned g = lane() / 4, t = lane() % 4;
  // The rows and columns of this lane's four elements.
  double left[2][16], right[2][16];
  for (unsigned pair = 0; pair < 4; ++pair) {
    const Fragments row = of(g * 4 + pair), columns[2] = {of(2 * t * 4 + pair), of((2 * t + 1) * 4 + pair)};
    for (unsigned i = 0; i < 2; ++i) {
      for (unsigned k = 0; k < 4; ++k) {
        const unsigned at = k / 2 * 8 + 2 * pair + k % 2;
        left[i][at] = half_of(row.a[i + k / 2 * 2], k % 2);
        right[i][at] = half_of(columns[i].b[k / 2], k % 2);
      }
    }
  }
  for (unsigned i = 0; i < 4; ++i) {
    double total = sum[i];
    for (unsigned k = 0; k < 16; ++k) total += left[i / 2][k] * right[i % 2][k];
    sum[i] = (float)total;
  }
}

}  // namespace emulation

#define threadIdx (emulation::self().thread)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)

inline void __syncthreads() { emulation::wait_at(emulation::State::AtBlockBarrier); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned apart) {
  emulation::whole_warp(mask);
  return emulation::shuffle(value, emulation::lane() ^ apart);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned from) {
  emulation::whole_warp(mask);
  return emulation::shuffle(value, from);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned apart) {
  emulation::whole_warp(mask);
  const unsigned from = emulation::lane() + apart;
  return emulation::shuffle(value, from < emulation::WARP ? from : emulation::lane());
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::whole_warp(mask);
  emulation::wait_at(emulation::State::AtWarpBarrier);
}

inline unsigned __ballot_sync(unsigned mask, bool value) {
  emulation::whole_warp(mask);
  unsigned mine = value, votes = 0;
  emulation::together(&mine, [&](auto of) {
    for (unsigned lane = 0; lane < emulation::WARP; ++lane) votes |= *of(lane) << lane;
  });
  return votes;
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) == 0xffffffffu; }
// Bytes of two words, chosen each by a digit of `which`: 0 to 3 of the first, 4 to 7 of the second.
inline unsigned __byte_perm(unsigned first, unsigned second, unsigned which) {
  const uint64_t both = (uint64_t)second << 32 | first;
  unsigned out = 0;
  for (unsigned i = 0; i < 4; ++i) out |= (unsigned)(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
inline int __ffsll(unsigned long long bits) { return __builtin_ffsll((long long)bits); }
inline void __threadfence() {}

// One thread runs at a time, so plain arithmetic is atomic.
template <typename T, typename V> T atomicAdd(T* to, V value) { return std::exchange(*to, *to + (T)value); }
template <typename T, typename V> T atomicMax(T* to, V value) { return std::exchange(*to, std::max(*to, (T)value)); }
template <typename T, typename V> T atomicMin(T* to, V value) { return std::exchange(*to, std::min(*to, (T)value)); }
template <typename T, typename V> T atomicOr(T* to, V value) { return std::exchange(*to, *to | (T)value); }

template <typename T> T __ldg(const T* from) { return *from; }
template <typename T> T __ldcg(const T* from) { return *from; }
template <typename T> T __ldcs(const T* from) { return *from; }
template <typename T> void __stcs(T* to, T value) { *to = value; }

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
using std::max;
using std::min;

// Rounded each for itself: nothing here is contracted (-ffp-contract=off).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __float2int_rn(float value) { return (int)std::nearbyint(value); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

#include "warpgroup.h"
