// Launches that begin before the one in front of them is done (programmatic dependent launch): from Hopper on.
//
// Between two kernels that wait for one another a device drains and fills again, 2 to 4 us in which it reads nothing. A
// launch that is *chained* (Launch::chained) is begun as soon as every block of the one in front of it has said
// `let_next_begin` or is done; its blocks take the room that is left, read what does not depend on the past, and wait.
//
// `wait_for_past` returns when the launch in front is done as a whole and what it wrote can be seen. As that one waited
// in its turn, so is everything before it. Hence the rules:
//
//   * Before `wait_for_past` a kernel reads weights, which no kernel writes, and touches nothing else: no counts, no
//     activations, and it writes nothing. What it would overwrite may still be read.
//   * Every thread of every block waits, also one that has nothing to do and returns. A block that did not wait could
//     end before the past, and with it the launch; whoever waits for it would begin too early.
//   * `let_next_begin` is the first thing a kernel does. Nothing is promised by it: the next launch holds its first
//     weights in registers and in the second-level cache until this one is done. It cannot take room that this launch
//     needs, for it begins only when the last block of this one has.
//   * What other kernels write is read by plain loads (or cp.async), never by __ldg and never through `const
//     __restrict__`: both say that it does not change while the kernel runs, which is not so, and such a load may be
//     moved in front of the wait, or find what the first-level cache held before.
//
// Launched as any other, a kernel finds its past done and nobody to begin: both cost an instruction. The emulated device
// runs each block of a chained launch up to the wait with all memory shut that was written since the last launch that was
// not chained (tests/emulated/past.h).
#pragma once

#ifdef __CUDACC__

__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_past() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Brings 16 bytes, and what is beside them, into the second-level cache: weights that are read after the wait.
__device__ __forceinline__ void prefetch(const void* from) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

#else

using emulation::prefetch;
using emulation::wait_for_past;

inline void let_next_begin() {}

#endif
