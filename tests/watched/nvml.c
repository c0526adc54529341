/* Stands in for the driver's management library: one GPU, hot and held back by it. Versions of structures and the sizes of
   texts are the caller's. */
#include <string.h>
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = (void *)1; return i ? 2 : 0; }
int nvmlDeviceGetName(void *d, char *name, unsigned n) { strncpy(name, "Stand-in GPU", n); return 0; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *t) { *t = 91; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 402400; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *mw) { *mw = 700000; return 0; }
int nvmlDeviceGetClockInfo(void *d, int clock, unsigned *mhz) { *mhz = 1200; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *d, memory *m) { m->total = 80ull << 30; m->used = 60ull << 30; return 0; }
/* Software's limit of power, and hardware's of heat. */
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *r) { *r = 0x4 | 0x40; return 0; }
