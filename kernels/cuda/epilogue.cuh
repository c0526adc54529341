// What becomes of a finished sum of a product.
#pragma once

#include "numbers.cuh"

// SET   y = sum
// ADD   y = y + sum: the residual stream; every element belongs to one thread
// SILU, GELU   act(gate) * up, rounded to bf16. Eight rows of gate and eight of up take turns in the weight: row
//       16 j + r is gate row 8 j + r, and row 16 j + 8 + r up row 8 j + r. A thread that holds columns of a tile of
//       eight then holds the same columns of the next tile, and nothing is exchanged.
constexpr unsigned SET = 0, ADD = 1, SILU = 2, GELU = 3;
constexpr unsigned GATE_ROWS = 8;

template <unsigned EPILOGUE>
constexpr bool IS_GATE = EPILOGUE == SILU || EPILOGUE == GELU;

// The gate, bent. Both are x / (1 + e^-y): the tanh of GELU is a sigmoid of twice its argument, less cancellation.
template <unsigned EPILOGUE>
__device__ __forceinline__ float bend(const float x) {
  static_assert(IS_GATE<EPILOGUE>, "an activation");
  if constexpr (EPILOGUE == SILU) {
    return x / (1.0f + expf(-x));
  } else {
    return x / (1.0f + expf(-2.0f * 0.7978846f * (x + x * x * (x * 0.044715f))));
  }
}
