#include "../../../cuda/expert_product.cu"
#include "library.h"

KERNEL(expert_product_16_set);
KERNEL(expert_product_16_silu);
KERNEL(expert_product_16_gelu);
KERNEL(expert_product_64_set);
KERNEL(expert_product_64_silu);
KERNEL(expert_product_64_gelu);
KERNEL(expert_product_128_set);
KERNEL(expert_product_128_silu);
KERNEL(expert_product_128_gelu);
KERNEL(expert_product_128_wide_set);
KERNEL(expert_product_128_wide_silu);
KERNEL(expert_product_128_wide_gelu);
KERNEL(expert_product_hopper_128_gelu);
KERNEL(expert_product_hopper_128_set);
KERNEL(expert_product_hopper_128_silu);
KERNEL(expert_product_hopper_256_gelu);
KERNEL(expert_product_hopper_256_set);
KERNEL(expert_product_hopper_256_silu);
