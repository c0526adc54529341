// Warpgroups and barriers in shared memory: what the products of Hopper are made of, and no other generation has.
//
// A warpgroup is four warps, threads 128 i and on. Its products run beside the code that begins them: they read shared
// memory through the asynchronous proxy, which does not see what a thread or its cp.async wrote before that thread's
// publish(), and they own the registers of their sums until they are waited for. Every function has a second body in
// tests/emulated/warpgroup.h, where all of this is as late and as strict as the PTX manual allows.
#pragma once

#include "tensor.cuh"

// Whether this compilation has them: sm_90a and the emulation. Kernels of other generations do not exist.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUPS

constexpr unsigned WARPGROUP = 128;

// Counts arrivals. A phase ends with the last of those that it was made for, and the next one begins.
using Barrier = unsigned long long;

// Where the 128-byte swizzle repeats: eight rows of 128 bytes.
constexpr unsigned SWIZZLED = 1024;

#ifdef __CUDACC__

__device__ __forceinline__ void barrier_make(Barrier* const barrier, const unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// What this thread did before is seen by who waits for the phase.
__device__ __forceinline__ void barrier_arrive(Barrier* const barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// The device's clock in nanoseconds.
__device__ __forceinline__ unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Waits until the phase of this parity is over; the first phase has parity 0, and the one before it is over. What waits
// for ten seconds waits for ever: that ends the launch with an error, and with it the use of the device, but no host hangs.
__device__ __forceinline__ void barrier_wait(Barrier* const barrier, const unsigned parity) {
  constexpr unsigned long long FOR_EVER = 10ull * 1000 * 1000 * 1000;
  for (unsigned long long begin = 0;;) {
    unsigned over;
    asm volatile("{\n.reg .pred over;\nmbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, over;\n}"
                 : "=r"(over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    if (over) return;
    if (begin == 0) begin = nanoseconds();
    else if (nanoseconds() - begin > FOR_EVER) __trap();
  }
}

// Shows what this thread wrote to shared memory, by copies that it waited for too, to the products of warpgroups.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers a thread of this warpgroup may have from here on: fewer than it was started with, or more.
template <unsigned COUNT>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <unsigned COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Orders what was done with registers before the products that use them next.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the group of the products begun since the last one.
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups are under way.
template <unsigned PENDING>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from reading sums before they were waited for, or writing them later than here. No instruction.
template <unsigned TILES>
__device__ __forceinline__ void pin(float (&sum)[TILES][4]) {
#pragma unroll
  for (unsigned j = 0; j < TILES; ++j) {
    asm volatile("" : "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])::"memory");
  }
}

// Begins sum[64][N] += a[64][16] * b[N][16] over a warpgroup, bf16 into f32; a and b as `describe` says. Warp w of the
// warpgroup has rows 16 w and on, in sum[j] columns 8 j and on, as multiply_add has them.
template <unsigned N>
__device__ __forceinline__ void multiply_add_group(float (&sum)[N / 8][4], unsigned long long a, unsigned long long b);

#define FOUR(SUM, J) "+f"(SUM[J][0]), "+f"(SUM[J][1]), "+f"(SUM[J][2]), "+f"(SUM[J][3])
#define SIXTEEN(SUM, J) FOUR(SUM, J), FOUR(SUM, J + 1), FOUR(SUM, J + 2), FOUR(SUM, J + 3)

template <>
__device__ __forceinline__ void multiply_add_group<128>(
    float (&sum)[16][4], const unsigned long long a, const unsigned long long b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, %64, %65, 1, 1, 1, 0, 0;"
               : SIXTEEN(sum, 0), SIXTEEN(sum, 4), SIXTEEN(sum, 8), SIXTEEN(sum, 12)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void multiply_add_group<256>(
    float (&sum)[32][4], const unsigned long long a, const unsigned long long b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
               "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
               "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
               "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
               "}, %128, %129, 1, 1, 1, 0, 0;"
               : SIXTEEN(sum, 0), SIXTEEN(sum, 4), SIXTEEN(sum, 8), SIXTEEN(sum, 12), SIXTEEN(sum, 16), SIXTEEN(sum, 20), SIXTEEN(sum, 24), SIXTEEN(sum, 28)
               : "l"(a), "l"(b));
}

#undef SIXTEEN
#undef FOUR

#else

using emulation::barrier_arrive;
using emulation::barrier_make;
using emulation::barrier_wait;
using emulation::give_registers;
using emulation::multiply_add_group;
using emulation::pin;
using emulation::products_begin;
using emulation::products_commit;
using emulation::products_wait;
using emulation::publish;
using emulation::shared_address;
using emulation::take_registers;

#endif

// A matrix in shared memory for multiply_add_group: rows of 64 numbers, of which it takes 16; 128 bytes a row, 16-byte
// chunk c of row r at c ^ (r % 8), SWIZZLED bytes eight rows. `first` is row 0, SWIZZLED-aligned. The fields: address
// (bits 0 to 13), distance of chunks (16 to 29, not used with a swizzle), distance of eight rows (32 to 45), all in 16
// bytes; swizzle (62 and 63): 1, 128 bytes.
__device__ __forceinline__ unsigned long long describe(const void* const first) {
  return (shared_address(first) & 0x3ffff) >> 4 | 1ull << 16 | (unsigned long long)(SWIZZLED >> 4) << 32 | 1ull << 62;
}

// The same matrix, as many chunks of 16 bytes further along k.
__device__ __forceinline__ unsigned long long further(const unsigned long long matrix, const unsigned chunks) {
  return matrix + chunks;
}

#endif
