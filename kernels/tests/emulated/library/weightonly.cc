#include "../../../cuda/weightonly.cu"
#include "library.h"

KERNEL(weightonly_int8_set);
KERNEL(weightonly_int8_add);
KERNEL(weightonly_int8_silu);
KERNEL(weightonly_int8_gelu);
KERNEL(weightonly_e4m3_set);
KERNEL(weightonly_e4m3_add);
KERNEL(weightonly_e4m3_silu);
KERNEL(weightonly_e4m3_gelu);
KERNEL(weightonly_int4_set);
KERNEL(weightonly_int4_add);
KERNEL(weightonly_int4_silu);
KERNEL(weightonly_int4_gelu);
