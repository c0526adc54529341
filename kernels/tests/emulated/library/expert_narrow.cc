#include "../../../cuda/expert_narrow.cu"
#include "library.h"

#define TILE(NAME)                     \
  KERNEL(expert_narrow_##NAME##_set);  \
  KERNEL(expert_narrow_##NAME##_silu); \
  KERNEL(expert_narrow_##NAME##_gelu)
#define FORMAT(NAME, F) \
  TILE(NAME##_16);      \
  TILE(NAME##_64);      \
  TILE(NAME##_128);

EACH_FORMAT(FORMAT)
