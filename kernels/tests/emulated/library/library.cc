// What the emulated device calls.
#include "library.h"

#pragma GCC visibility push(default)
extern "C" {

// The number of a kernel; -1 if there is none of that name.
int emulated_kernel(const char* name) {
  const auto& all = listed();
  for (size_t i = 0; i < all.size(); ++i) {
    if (std::strcmp(all[i].name, name) == 0) return (int)i;
  }
  return -1;
}

// How many arguments it takes, and the bytes of each in `sizes`, which has room for 32.
unsigned emulated_arguments(int kernel, unsigned* sizes) {
  const auto& own = listed()[kernel].sizes;
  for (size_t i = 0; i < own.size() && i < 32; ++i) sizes[i] = own[i];
  return own.size();
}

// Memory of a device is watched for chained launches: whole pages.
void emulated_watch(uint64_t device, uint64_t start, uint64_t bytes) { emulation::past::watch(device, start, bytes); }
void emulated_forget(uint64_t start) { emulation::past::forget(start); }

void emulated_launch(int kernel, const unsigned* grid, unsigned threads, unsigned shared, unsigned order,
                     const uint64_t* values, unsigned chained, uint64_t device) {
  const auto call = listed()[kernel].call;
  emulation::launch(static_cast<emulation::Order>(order), 7, dim3(grid[0], grid[1], grid[2]), threads,
                    [=] { call(values); }, shared, chained, device);
}

}  // extern "C"
#pragma GCC visibility pop
