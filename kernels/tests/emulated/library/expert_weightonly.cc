#include "../../../cuda/expert_weightonly.cu"
#include "library.h"

#define FORMAT(NAME, F)                    \
  KERNEL(expert_weightonly_##NAME##_silu); \
  KERNEL(expert_weightonly_##NAME##_gelu); \
  KERNEL(expert_weightonly_##NAME##_down);

EACH_FORMAT(FORMAT)
