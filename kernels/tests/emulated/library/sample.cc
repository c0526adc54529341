#include "../../../cuda/sample.cu"
#include "library.h"

KERNEL(sample);
