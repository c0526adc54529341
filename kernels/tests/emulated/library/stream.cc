#include "../../../cuda/stream.cu"
#include "library.h"

KERNEL(copy);
KERNEL(read);
KERNEL(fill);
KERNEL(narrow);
