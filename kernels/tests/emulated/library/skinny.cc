#include "../../../cuda/skinny.cu"
#include "library.h"

KERNEL(skinny_warp_1);
KERNEL(skinny_warp_2);
KERNEL(skinny_warp_3);
KERNEL(skinny_warp_4);
KERNEL(skinny_warp_5);
KERNEL(skinny_warp_6);
KERNEL(skinny_warp_7);
KERNEL(skinny_warp_8);
KERNEL(skinny_block_1);
KERNEL(skinny_block_2);
KERNEL(skinny_block_3);
KERNEL(skinny_block_4);
KERNEL(skinny_block_5);
KERNEL(skinny_block_6);
KERNEL(skinny_block_7);
KERNEL(skinny_block_8);
