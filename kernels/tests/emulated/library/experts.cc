#include "../../../cuda/experts.cu"
#include "library.h"

KERNEL(route);
KERNEL(direct_gate_up_silu);
KERNEL(direct_gate_up_gelu);
KERNEL(direct_down);
KERNEL(group);
KERNEL(gather);
KERNEL(combine);
