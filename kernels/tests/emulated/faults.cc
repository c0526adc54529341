// Kernels with a planted fault each, to show that the emulation notices. Argument: which one.
#include "../../cuda/chain.cuh"
#include "../../cuda/tensor.cuh"

// Adds up 64 numbers over two warps; `barrier` says whether the second half waits for the first.
template <bool BARRIER>
__global__ void sum_of_warps(const float* in, float* out) {
  __shared__ float partial[2];
  const float sum = warp_sum(in[threadIdx.x]);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if (BARRIER) __syncthreads();
  if (threadIdx.x == 0) *out = partial[0] + partial[1];
}

__global__ void barrier_under_if(float* out) {
  if (threadIdx.x < 32) __syncthreads();
  *out = 1.0f;
}

__global__ void one_too_far(const float* in, float* out) { *out = in[threadIdx.x + 1]; }

__global__ void one_too_far_in_shared_memory() {
  DYNAMIC_SHARED(float, numbers);
  numbers[threadIdx.x + 1] = 0.0f;
}

// Copies 256 bytes and adds up their floats; waits until PENDING groups are under way.
template <unsigned PENDING>
__global__ void copied(const float* in, float* out, unsigned offset) {
  DYNAMIC_SHARED(float, numbers);
  if (threadIdx.x < 16) copy_async(numbers + 4 * threadIdx.x, in + 4 * threadIdx.x + offset, true);
  copy_commit();
  copy_wait<PENDING>();
  __syncthreads();
  const float sum = warp_sum(numbers[threadIdx.x]);
  if (threadIdx.x == 0) *out = sum;
}

__global__ void written(float* x) { x[threadIdx.x + blockIdx.x * 64] = 1.0f; }

// Sums of x times the weight, a block each. `fault`: what is done too early, or not.
__global__ void chained(const float* x, const float* weight, float* out, const std::string& fault) {
  DYNAMIC_SHARED(float, numbers);
  let_next_begin();
  const bool is_last = blockIdx.x == 2;
  if (fault == "return without waiting" && is_last) return;
  float sum = weight[threadIdx.x];
  if (fault == "read before the wait" && is_last && threadIdx.x == 63) sum *= x[0];
  if (fault == "write before the wait" && threadIdx.x == 0) out[blockIdx.x] = 0.0f;
  if (fault == "copy before the wait" && threadIdx.x == 32) copy_async(numbers, x, true);
  if (fault != "half of a block waits" || threadIdx.x < 32) wait_for_past();
  sum = warp_sum(sum * x[threadIdx.x + blockIdx.x * 64]);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// A launch that writes x and one chained to it, which reads x; twice, as the second writes what the first one did.
int chain(const std::string& fault) {
  float* memory[3];
  for (float*& pages : memory) {
    void* start = nullptr;
    if (posix_memalign(&start, 4096, 4096) != 0) return 1;
    pages = static_cast<float*>(start);
    std::fill(pages, pages + 1024, 1.0f);
    emulation::past::watch(1, reinterpret_cast<uintptr_t>(start), 4096);
  }
  const auto [x, weight, out] = memory;
  for (auto order : {emulation::Order::Ascending, emulation::Order::WarpByWarp}) {
    emulation::launch(order, 7, 3, 64, [&, x = x] { written(x); }, 0, false, 1);
    emulation::launch(order, 7, 3, 64, [&, x = x, weight = weight, out = out] { chained(x, weight, out, fault); }, 256,
                      true, 1);
    std::printf("%g ", out[2]);
  }
  return 0;
}

int main(int, char** arguments) {
  const std::string fault = arguments[1];
  if (fault == "chained" || fault.find("wait") != std::string::npos) {
    if (fault != "wait too short") return chain(fault);
  }
  std::vector<float> in(64, 1.0f);
  for (auto order : {emulation::Order::Ascending, emulation::Order::Descending, emulation::Order::Shuffled}) {
    float out = 0.0f;
    emulation::launch(order, 7, 1, 64, [&] {
      if (fault == "none") sum_of_warps<true>(in.data(), &out);
      if (fault == "missing barrier") sum_of_warps<false>(in.data(), &out);
      if (fault == "barrier under if") barrier_under_if(&out);
      if (fault == "one too far") one_too_far(in.data(), &out);
      if (fault == "one too far in shared memory") one_too_far_in_shared_memory();
      if (fault == "wait too short") copied<1>(in.data(), &out, 0);
      if (fault == "not aligned") copied<0>(in.data(), &out, 1);
    }, 256);
    std::printf("%g ", std::abs(out));
  }
}
