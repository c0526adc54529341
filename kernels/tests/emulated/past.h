// What a chained launch must leave alone until it has waited (cuda/chain.cuh), watched page by page.
//
// Memory of a device is write-protected; the first write to an allocation opens it and is remembered. A launch that is
// not chained finds everything before it done, so it closes all again. Until a block of a chained launch has waited, what was
// written since is shut even for reading, as it may still be under way, and the rest stays closed for writing. An
// allocation is one or the other as a whole. What a launch only read may be written too early unnoticed by the one that
// is next but one: no kernel here writes before it waits.
#pragma once

// <unistd.h>, which <signal.h> brings, has a function of the name of a kernel.
#define read read_of_unistd
#include <signal.h>
#include <unistd.h>
#undef read

#include <sys/mman.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulation::past {

// An allocation: whole pages.
struct Watched {
  std::atomic<uintptr_t> start{0}, end{0};  // start 0: none
  std::atomic<uint64_t> device{0};
  std::atomic<bool> written{false};
};
constexpr size_t MOST = 1 << 14;
constexpr size_t PAGE_BYTES = 4096;

inline Watched watched[MOST];
// How many of them were ever in use.
inline std::atomic<size_t> used{0};
// The thread that runs a block which has not waited yet.
inline std::atomic<long> waiting{0};
inline struct sigaction before;

inline long this_thread() { return syscall(SYS_gettid); }

inline void protect(const Watched& memory, int how) {
  const uintptr_t start = memory.start, end = memory.end;
  if (mprotect(reinterpret_cast<void*>(start), end - start, how) != 0) {
    // Perhaps on the small stack of a signal.
    static const char what[] = "emulation: mprotect failed\n";
    syscall(SYS_write, 2, what, sizeof what - 1);
    std::_Exit(3);
  }
}

inline void touched(int, siginfo_t* info, void*) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (size_t i = 0; i < used; ++i) {
    Watched& memory = watched[i];
    if (at < memory.start || at >= memory.end) continue;
    if (waiting == this_thread()) {
      static const char what[] = "emulation: memory of other launches was touched before wait_for_past\n";
      syscall(SYS_write, 2, what, sizeof what - 1);
      std::_Exit(3);
    }
    memory.written = true;
    protect(memory, PROT_READ | PROT_WRITE);
    return;
  }
  // None of ours: whoever was there before gets it when it happens again.
  sigaction(SIGSEGV, &before, nullptr);
}

// Held while the list changes.
struct Changing {
  static inline std::atomic_flag taken = ATOMIC_FLAG_INIT;
  Changing() {
    while (taken.test_and_set(std::memory_order_acquire)) {}
  }
  ~Changing() { taken.clear(std::memory_order_release); }
};

// Watches an allocation of whole pages from now on.
inline void watch(uint64_t device, uintptr_t start, size_t bytes) {
  const Changing changing;
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = touched;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGSEGV, &action, &before) == 0;
  }();
  size_t free = 0;
  while (free < MOST && watched[free].start != 0) ++free;
  if (!installed || free == MOST || start % PAGE_BYTES != 0 || bytes % PAGE_BYTES != 0) {
    std::fprintf(stderr, "emulation: cannot watch memory\n");
    std::abort();
  }
  Watched& memory = watched[free];
  memory.device = device;
  memory.written = false;
  memory.end = start + bytes;
  memory.start = start;
  if (used <= free) used = free + 1;
  protect(memory, PROT_READ);
}

// The allocation is given back.
inline void forget(uintptr_t start) {
  const Changing changing;
  for (size_t i = 0; i < used; ++i) {
    if (watched[i].start != start) continue;
    protect(watched[i], PROT_READ | PROT_WRITE);
    // The end first: between the two nothing lies in it.
    watched[i].end = 0;
    watched[i].start = 0;
    return;
  }
}

inline void protect_written(uint64_t device, int how, bool closed) {
  const Changing changing;
  for (size_t i = 0; i < used; ++i) {
    Watched& memory = watched[i];
    if (memory.start == 0 || memory.device != device || !memory.written) continue;
    protect(memory, how);
    if (closed) memory.written = false;
  }
}

// A launch that finds everything before it done.
inline void all_done(uint64_t device) { protect_written(device, PROT_READ, true); }

// A block of a chained launch begins.
inline void shut(uint64_t device) {
  protect_written(device, PROT_NONE, false);
  waiting = this_thread();
}

// All its threads have waited.
inline void open(uint64_t device) {
  waiting = 0;
  protect_written(device, PROT_READ | PROT_WRITE, false);
}

}  // namespace emulation::past
