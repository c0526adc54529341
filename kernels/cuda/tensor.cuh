// The tensor cores, the copies that feed them, and dynamic shared memory: what plain C++ cannot say.
//
// Every function has a second body in tests/emulated/emulation.h, so that the kernels run unchanged on the CPU. All of it
// is sm_80; nothing here needs a later device.
#pragma once

#include "numbers.cuh"

#ifdef __CUDACC__

// Names the block's dynamic shared memory. 128-byte aligned, so that rows may be swizzled.
#define DYNAMIC_SHARED(TYPE, NAME)                       \
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
  TYPE* const NAME = reinterpret_cast<TYPE*>(dynamic_shared_bytes)

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return (unsigned)__cvta_generic_to_shared(pointer);
}

// Begins to copy 16 bytes to shared memory, past the first-level cache, or 8 or 4 through it; zeros where `valid` is false,
// and `from` is not read.
template <unsigned BYTES = 16>
__device__ __forceinline__ void copy_async(void* to, const void* from, const bool valid) {
  static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4, "what the instruction copies");
  const unsigned bytes = valid ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                 "r"(bytes));
  }
}

// Closes the group of the copies begun since the last one.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::); }

// Waits until at most PENDING of this thread's groups are under way. A barrier shows what came to the other threads.
template <unsigned PENDING>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
}

// Four 8 x 8 matrices of 16-bit numbers. Lane 8 i + r gives the address of row r of matrix i (16 bytes, aligned); lane l
// gets columns 2 (l % 4) and + 1 of row l / 4 of matrix i in word i.
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row)));
}

// The same, each matrix transposed: lane l gets rows 2 (l % 4) and + 1 of column l / 4.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row)));
}

// Transposes an 8 x 8 matrix of 16-bit numbers over a warp: lane l gives columns 2 (l % 4) and + 1 of row l / 4 and gets
// those of the transposed matrix, which are rows of column l / 4.
__device__ __forceinline__ unsigned transpose_matrix(const unsigned word) {
  unsigned out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
  return out;
}

// sum[16][8] += a[16][16] * b[16][8] over a warp, bf16 into f32. With g = lane / 4 and t = lane % 4, pairs in a word:
//   a[0], a[1]  rows g, g + 8, columns 2 t, + 1        a[2], a[3]  the same rows, columns 2 t + 8, + 9
//   b[0], b[1]  rows 2 t, + 1 and 2 t + 8, + 9 of column g
//   sum[0..2]   row g, columns 2 t, + 1                sum[2..4]   row g + 8
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

#define DYNAMIC_SHARED(TYPE, NAME) TYPE* const NAME = static_cast<TYPE*>(emulation::dynamic_shared())

using emulation::copy_async;
using emulation::copy_commit;
using emulation::copy_wait;
using emulation::load_matrices;
using emulation::load_matrices_transposed;
using emulation::multiply_add;
using emulation::transpose_matrix;

#endif
