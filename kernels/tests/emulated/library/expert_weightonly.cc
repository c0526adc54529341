#include "../../../cuda/expert_weightonly.cu"
#include "library.h"

#define FORMAT(NAME)                       \
  KERNEL(expert_weightonly_##NAME##_silu); \
  KERNEL(expert_weightonly_##NAME##_gelu); \
  KERNEL(expert_weightonly_##NAME##_down)

FORMAT(int8);
FORMAT(e4m3);
FORMAT(int4);
