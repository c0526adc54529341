// The kernels as a library: a table of them by name, and a launch with arguments as the driver of a GPU takes them. The
// emulated device opens it.
#pragma once

#include <new>
#include <tuple>
#include <type_traits>

struct Listed {
  const char* name;
  void (*call)(const uint64_t* values);
  std::vector<unsigned> sizes;  // of its arguments
};

inline std::vector<Listed>& listed() {
  static std::vector<Listed> all;
  return all;
}

template <auto KERNEL>
struct Callable;

template <typename... A, void (*KERNEL)(A...)>
struct Callable<KERNEL> {
  static_assert((std::is_trivially_copyable_v<A> && ...) && ((sizeof(A) <= sizeof(uint64_t)) && ...));

  template <typename T>
  static T take(const uint64_t value) {
    T result;
    std::memcpy(&result, &value, sizeof result);
    return result;
  }

  template <size_t... I>
  static void spread(const uint64_t* values, std::index_sequence<I...>) {
    KERNEL(take<A>(values[I])...);
  }

  static void call(const uint64_t* values) { spread(values, std::index_sequence_for<A...>{}); }

  static bool list(const char* name) {
    listed().push_back({name, &call, {sizeof(A)...}});
    return true;
  }
};

#define KERNEL(NAME) [[maybe_unused]] static const bool listed_##NAME = Callable<&NAME>::list(#NAME)
