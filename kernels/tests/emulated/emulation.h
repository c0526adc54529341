// Runs the kernels of a .cu file on the CPU: enough of CUDA for plain kernels, so that wrong indices, missing barriers
// and wrong arithmetic are found without a GPU. It says nothing about speed, registers or memory limits.
//
// The compiler reads this header before an unchanged .cu file (-include). Each thread of a block is a fiber with its own
// stack; blocks run one after the other. A fiber runs until it reaches a barrier or returns. A race shows as a result
// that depends on the order in which fibers are resumed, which the caller chooses; a barrier that some threads never
// reach ends the process with their place. Shared memory is plain static memory, so that the address sanitizer sees it.
//
// Shared memory keeps what the block before left in it. Not modelled: memory ordering, divergence within a warp (every warp operation wants all 32 lanes), atomics between
// blocks. Launches (<<<>>>) are no C++ and stay out of the .cu files.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 * 1024;

enum class Order { Ascending, Descending, Shuffled };
enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Returned };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  uint3 thread;
  uint64_t slot;  // what this lane publishes in a warp operation
};

struct Block {
  dim3 grid, size;
  uint3 index;
  std::vector<Fiber> fibers;
  unsigned running = 0;
  ucontext_t scheduler;
  std::function<void()> body;
};

inline Block* block = nullptr;

inline Fiber& self() { return block->fibers[block->running]; }

[[noreturn]] inline void stop(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  for (size_t i = 0; i < block->fibers.size(); ++i) {
    static const char* const names[] = {"ready", "at __syncthreads", "at a warp operation", "returned"};
    if (i % WARP == 0 || block->fibers[i].state != block->fibers[i - 1].state) {
      std::fprintf(stderr, "  block %u,%u thread %zu and on: %s\n", block->index.x, block->index.y, i,
                   names[(int)block->fibers[i].state]);
    }
  }
  std::exit(3);
}

inline void wait_at(State barrier) {
  Fiber& fiber = self();
  fiber.state = barrier;
  swapcontext(&fiber.context, &block->scheduler);
}

inline void enter() {
  block->body();
  Fiber& fiber = self();
  fiber.state = State::Returned;
  swapcontext(&fiber.context, &block->scheduler);
}

// Lets the fibers of [first, end) go on if all of them wait at `barrier`.
inline bool release(size_t first, size_t end, State barrier) {
  for (size_t i = first; i < end; ++i) {
    if (block->fibers[i].state != barrier) return false;
  }
  for (size_t i = first; i < end; ++i) block->fibers[i].state = State::Ready;
  return true;
}

inline void run_block(const std::vector<unsigned>& order) {
  const size_t threads = block->fibers.size();
  for (;;) {
    bool moved = false;
    bool left = false;
    for (unsigned i : order) {
      Fiber& fiber = block->fibers[i];
      if (fiber.state == State::Ready) {
        block->running = i;
        swapcontext(&block->scheduler, &fiber.context);
        moved = true;
      }
      left |= fiber.state != State::Returned;
    }
    for (size_t first = 0; first < threads; first += WARP) moved |= release(first, first + WARP, State::AtWarpBarrier);
    moved |= release(0, threads, State::AtBlockBarrier);
    if (!left) return;
    if (!moved) stop("a barrier that not all threads reach");
  }
}

inline void prepare(Fiber& fiber, uint3 thread) {
  fiber.state = State::Ready;
  fiber.thread = thread;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Runs `body`, a call of the kernel, for every thread of the grid. `seed` is for Order::Shuffled.
inline void launch(Order order, unsigned seed, dim3 grid, dim3 size, std::function<void()> body) {
  const unsigned threads = size.x * size.y * size.z;
  if (threads % WARP != 0) {
    std::fprintf(stderr, "emulation: blocks of whole warps only, got %u threads\n", threads);
    std::exit(3);
  }
  Block current;
  current.grid = grid;
  current.size = size;
  current.body = std::move(body);
  current.fibers.resize(threads);
  for (Fiber& fiber : current.fibers) fiber.stack.reset(new char[STACK]);
  block = &current;

  std::vector<unsigned> turns(threads);
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned b = 0; b < blocks; ++b) {
    const unsigned at = order == Order::Descending ? blocks - 1 - b : b;
    current.index = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
    for (unsigned i = 0; i < threads; ++i) {
      turns[i] = order == Order::Descending ? threads - 1 - i : i;
      prepare(current.fibers[i], {i % size.x, i / size.x % size.y, i / size.x / size.y});
    }
    if (order == Order::Shuffled) {
      for (unsigned i = threads - 1; i > 0; --i) {
        seed = seed * 1664525u + 1013904223u;
        std::swap(turns[i], turns[(uint64_t)seed * (i + 1) >> 32]);
      }
    }
    run_block(turns);
  }
  block = nullptr;
}

// Publish, wait for the warp, read another lane, wait again before the slot may be written anew.
template <typename T>
T shuffle(T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane publishes at most 8 bytes");
  std::memcpy(&self().slot, &value, sizeof(T));
  wait_at(State::AtWarpBarrier);
  T result;
  std::memcpy(&result, &block->fibers[block->running / WARP * WARP + from % WARP].slot, sizeof(T));
  wait_at(State::AtWarpBarrier);
  return result;
}

inline unsigned lane() { return block->running % WARP; }

inline void whole_warp(unsigned mask) {
  if (mask != 0xffffffffu) stop("a warp operation with a partial mask");
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

template <typename T> T __ldg(const T* from) { return *from; }
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
