#include "../../../cuda/row.cu"
#include "library.h"

KERNEL(embed);
KERNEL(clear);
KERNEL(add_norm_1);
KERNEL(add_norm_2);
KERNEL(add_norm_3);
KERNEL(add_norm_4);
KERNEL(pick_norm_1);
KERNEL(pick_norm_2);
KERNEL(pick_norm_3);
KERNEL(pick_norm_4);
KERNEL(turn_bf16_64);
KERNEL(turn_bf16_128);
KERNEL(turn_bf16_256);
KERNEL(turn_e4m3_64);
KERNEL(turn_e4m3_128);
KERNEL(turn_e4m3_256);
