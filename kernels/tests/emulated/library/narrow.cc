#include "../../../cuda/narrow.cu"
#include "library.h"

#define TILE(NAME)                    \
  KERNEL(narrow_##NAME##_set);        \
  KERNEL(narrow_##NAME##_add);        \
  KERNEL(narrow_##NAME##_silu);       \
  KERNEL(narrow_##NAME##_gelu);       \
  KERNEL(narrow_##NAME##_spread_set); \
  KERNEL(narrow_##NAME##_spread_add);
#define FORMAT(NAME, F) TILE(NAME##_16) TILE(NAME##_64) TILE(NAME##_128)

EACH_FORMAT(FORMAT)
