// A case as the tests write it to standard input: numbers, then buffers. Each buffer is an allocation of exactly its
// size, so that the address sanitizer sees a step beyond; what the kernel is to write comes filled with NaN.
#pragma once

class Case {
 public:
  // Reads the next case; false at the end of the input.
  bool next() {
    unsigned count;
    if (std::fread(&count, sizeof count, 1, stdin) != 1) return false;
    numbers_.resize(count);
    read(numbers_.data(), count * sizeof(unsigned));
    at_ = 0;
    read(&count, sizeof count);
    buffers_.clear();
    for (unsigned i = 0; i < count; ++i) {
      uint64_t bytes;
      read(&bytes, sizeof bytes);
      void* memory = nullptr;
      if (posix_memalign(&memory, 256, bytes) != 0) std::abort();
      buffers_.push_back({std::unique_ptr<void, decltype(&std::free)>(memory, std::free), bytes});
      read(memory, bytes);
    }
    return true;
  }

  // The next of its numbers.
  unsigned number() { return numbers_.at(at_++); }

  float real() {
    const unsigned bits = number();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // The order in which threads are resumed.
  emulation::Order order() { return static_cast<emulation::Order>(number()); }

  template <typename T>
  T* buffer(size_t i) {
    return static_cast<T*>(buffers_.at(i).memory.get());
  }

  template <typename T>
  size_t length(size_t i) const {
    return buffers_.at(i).bytes / sizeof(T);
  }

  // Gives a buffer back to the test.
  void answer(size_t i) { std::fwrite(buffers_.at(i).memory.get(), 1, buffers_.at(i).bytes, stdout); }

 private:
  struct Buffer {
    std::unique_ptr<void, decltype(&std::free)> memory;
    size_t bytes;
  };

  static void read(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) {
      std::fprintf(stderr, "the case ends early\n");
      std::exit(2);
    }
  }

  std::vector<unsigned> numbers_;
  size_t at_ = 0;
  std::vector<Buffer> buffers_;
};
