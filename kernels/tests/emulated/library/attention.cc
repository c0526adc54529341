#include "../../../cuda/attend_plan.cu"
#include "../../../cuda/attend_decode.cu"
#include "../../../cuda/attend_prompt.cu"
#include "library.h"

KERNEL(attend_plan);
KERNEL(attend_decode_bf16_64);
KERNEL(attend_decode_bf16_128);
KERNEL(attend_decode_bf16_256);
KERNEL(attend_prompt_bf16_64);
KERNEL(attend_prompt_bf16_128);
KERNEL(attend_prompt_bf16_256);
KERNEL(attend_decode_e4m3_128);
KERNEL(attend_decode_e4m3_256);
KERNEL(attend_prompt_e4m3_128);
KERNEL(attend_prompt_e4m3_256);
