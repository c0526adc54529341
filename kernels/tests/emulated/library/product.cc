#include "../../../cuda/product.cu"
#include "library.h"

KERNEL(product_16_parts_set);
KERNEL(product_16_parts_add);
KERNEL(product_16_set);
KERNEL(product_16_add);
KERNEL(product_16_silu);
KERNEL(product_16_gelu);
KERNEL(product_64_set);
KERNEL(product_64_add);
KERNEL(product_64_silu);
KERNEL(product_64_gelu);
KERNEL(product_64_spread_set);
KERNEL(product_64_spread_add);
KERNEL(product_128_set);
KERNEL(product_128_add);
KERNEL(product_128_silu);
KERNEL(product_128_gelu);
KERNEL(product_128_spread_set);
KERNEL(product_128_spread_add);
KERNEL(product_128_wide_set);
KERNEL(product_128_wide_add);
KERNEL(product_128_wide_silu);
KERNEL(product_128_wide_gelu);
KERNEL(product_hopper_128_set);
KERNEL(product_hopper_128_add);
KERNEL(product_hopper_128_silu);
KERNEL(product_hopper_128_gelu);
KERNEL(product_hopper_256_set);
KERNEL(product_hopper_256_add);
KERNEL(product_hopper_256_silu);
KERNEL(product_hopper_256_gelu);
