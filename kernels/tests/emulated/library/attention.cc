#include "../../../cuda/attend_plan.cu"
#include "../../../cuda/attend_decode.cu"
#include "../../../cuda/attend_prompt.cu"
#include "library.h"

KERNEL(attend_plan);
KERNEL(attend_decode_64);
KERNEL(attend_decode_128);
KERNEL(attend_decode_256);
KERNEL(attend_prompt_64);
KERNEL(attend_prompt_128);
KERNEL(attend_prompt_256);
