/* The driver as far as hwloop asks it: two devices, of which CUDA takes SECOND first. */
#include <string.h>

enum { SECOND = 1 };

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal == 0 ? SECOND : 0; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == SECOND ? "the fast one" : "the other", size); return 0;
}
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    memset(uuid, device == SECOND ? 0x22 : 0x11, 16); return 0;
}
