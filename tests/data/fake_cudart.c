/* The calls of libcudart that hwloop makes, with NVIDIA's signatures: each checks what arrives. */
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 12060
#endif
#ifndef DRIVER
#define DRIVER 12060
#endif

enum { SUCCESS = 0, INVALID = 1, INSUFFICIENT_DRIVER = 35 };
static char stream, events[2], graph, executable;
static int next_event, capturing;

const char *cudaGetErrorString(int error) {
    if (error == INSUFFICIENT_DRIVER) return "CUDA driver version is insufficient for CUDA runtime version";
    return error == INVALID ? "invalid argument" : "no error";
}
int cudaGetLastError(void) { return SUCCESS; }
int cudaSetDevice(int device) {
    /* Within one major version a driver runs newer runtimes too. */
    if (VERSION / 1000 > DRIVER / 1000) return INSUFFICIENT_DRIVER;
    return device == 0 ? SUCCESS : INVALID;
}
int cudaDriverGetVersion(int *version) { *version = DRIVER; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return SUCCESS; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute; return device; }
int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = (size_t)1 << 33; *total = (size_t)1 << 34; return SUCCESS;
}
int cudaMalloc(void **address, size_t size) {
    if (size != (size_t)1 << 32) return INVALID;
    *address = (void *)0x7F0000001000; return SUCCESS;
}
int cudaFree(void *address) { return address == (void *)0x7F0000001000 ? SUCCESS : INVALID; }
int cudaMallocHost(void **address, size_t size) { *address = malloc(size); return SUCCESS; }
int cudaFreeHost(void *address) { free(address); return SUCCESS; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *on) {
    if (on != &stream || (kind != 1 && kind != 2)) return INVALID;
    memcpy(to, from, size); return SUCCESS;
}
int cudaStreamCreateWithFlags(void **made, unsigned int flags) {
    if (flags != 1) return INVALID;
    *made = &stream; return SUCCESS;
}
int cudaStreamSynchronize(void *on) { return on == &stream ? SUCCESS : INVALID; }
int cudaStreamDestroy(void *on) { return on == &stream ? SUCCESS : INVALID; }
int cudaEventCreate(void **event) { *event = &events[next_event++ % 2]; return SUCCESS; }
int cudaEventRecord(void *event, void *on) { return event && on == &stream ? SUCCESS : INVALID; }
int cudaEventElapsedTime(float *ms, void *start, void *end) {
    if (start != &events[0] || end != &events[1]) return INVALID;
    *ms = 1.5f; return SUCCESS;
}
int cudaEventDestroy(void *event) { return event ? SUCCESS : INVALID; }
int cudaStreamBeginCapture(void *on, int mode) {
    if (on != &stream || mode != 1) return INVALID;
    capturing = 1; return SUCCESS;
}
int cudaStreamEndCapture(void *on, void **made) {
    if (on != &stream || !capturing) return INVALID;
    capturing = 0; *made = &graph; return SUCCESS;
}
int cudaGraphInstantiate(void **made, void *from, unsigned long long flags) {
    if (from != &graph || flags != 0) return INVALID;
    *made = &executable; return SUCCESS;
}
int cudaGraphLaunch(void *what, void *on) { return what == &executable && on == &stream ? SUCCESS : INVALID; }
int cudaGraphDestroy(void *what) { return what == &graph ? SUCCESS : INVALID; }
int cudaGraphExecDestroy(void *what) { return what == &executable ? SUCCESS : INVALID; }
