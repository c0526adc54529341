#include "../../../cuda/weightonly.cu"
#include "library.h"

#define FORMAT(NAME, F)            \
  KERNEL(weightonly_##NAME##_set);  \
  KERNEL(weightonly_##NAME##_add);  \
  KERNEL(weightonly_##NAME##_silu); \
  KERNEL(weightonly_##NAME##_gelu);

EACH_FORMAT(FORMAT)
