/* A CUDA driver with one GPU that runs no kernel: its memory is the host's, and its events are marks of the host's clock.

   So the engine runs on Numba's real arrays, streams, events and launches, and through the compiler, where there is no
   GPU. Built and asked by test_idle_driver.py. What a capture forbids is answered as the driver does. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void *handle;
typedef uint64_t pointer;
enum {
    SUCCESS = 0, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907
};
enum { RELAXED = 2 };

typedef struct { double at; int captured; } event;

static handle primary = (handle)0x1000;
static uintptr_t handles = 0x2000;
static int capturing;           /* whether some stream is */
static handle captured;         /* which */
static int captured_mode;       /* of that capture */
static __thread int mode;       /* of the calling thread */
static __thread handle contexts[64];
static __thread int depth;

long idle_launches, idle_allocations, idle_waits; /* what the tests read */
uint64_t idle_arguments[128];                     /* of the last launch, as many as they ask for */
long idle_pending, idle_asked;                    /* what they write: no event is reached until it is waited for */

static int make(handle *made) { *made = (handle)(handles += 16); return SUCCESS; }

/* the device */
int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "idle", size); return SUCCESS; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 1, 16); return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 10: *value = 32; break;      /* warp size */
        case 16: *value = 132; break;     /* multiprocessors */
        case 38: *value = 1 << 16; break; /* bytes of the second-level cache */
        case 75: *value = 9; break;       /* compute capability */
        case 76: *value = 0; break;
        default: *value = 1024;
    }
    return SUCCESS;
}

/* contexts */
int cuDevicePrimaryCtxRetain(handle *context, int device) { *context = primary; return SUCCESS; }
int cuCtxGetCurrent(handle *context) { *context = depth ? contexts[depth - 1] : NULL; return SUCCESS; }
int cuCtxSetCurrent(handle context) { depth += !depth; contexts[depth - 1] = context; return SUCCESS; }
int cuCtxPushCurrent_v2(handle context) { contexts[depth++] = context; return SUCCESS; }
int cuCtxPopCurrent_v2(handle *context) { *context = depth ? contexts[--depth] : NULL; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = 0; return depth ? SUCCESS : INVALID_CONTEXT; }
int cuCtxSynchronize(void) { idle_waits++; return !depth ? INVALID_CONTEXT : capturing ? CAPTURE_UNSUPPORTED : SUCCESS; }

/* memory */
static int unsafe(void) { return capturing && captured_mode != RELAXED && mode != RELAXED ? CAPTURE_UNSUPPORTED : SUCCESS; }
/* what goes by the default stream waits for the others, of which one is captured */
static int by_default(handle stream) { return capturing && !stream ? CAPTURE_IMPLICIT : SUCCESS; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = *total = (size_t)1 << 28; return SUCCESS; }
int cuMemAlloc_v2(pointer *memory, size_t size) {
    idle_allocations++;
    if (unsafe()) return unsafe();
    *memory = (pointer)(uintptr_t)aligned_alloc(512, (size + 511) / 512 * 512);
    return depth ? SUCCESS : INVALID_CONTEXT;
}
int cuMemFree_v2(pointer memory) { free((void *)memory); return SUCCESS; }
static int copy(void *target, const void *source, size_t size, handle stream) {
    if (by_default(stream)) return by_default(stream);
    memcpy(target, source, size);
    return SUCCESS;
}
int cuMemcpyHtoD_v2(pointer t, void *s, size_t size) { return copy((void *)t, s, size, NULL); }
int cuMemcpyDtoH_v2(void *t, pointer s, size_t size) { return copy(t, (void *)s, size, NULL); }
int cuMemcpyDtoD_v2(pointer t, pointer s, size_t size) { return copy((void *)t, (void *)s, size, NULL); }
int cuMemcpyHtoDAsync_v2(pointer t, void *s, size_t size, handle stream) { return copy((void *)t, s, size, stream); }
int cuMemcpyDtoHAsync_v2(void *t, pointer s, size_t size, handle stream) { return copy(t, (void *)s, size, stream); }
int cuMemcpyDtoDAsync_v2(pointer t, pointer s, size_t size, handle stream) {
    return copy((void *)t, (void *)s, size, stream);
}
int cuMemsetD8Async(pointer memory, unsigned char value, size_t size, handle stream) {
    memset((void *)memory, value, size);
    return SUCCESS;
}
int cuPointerGetAttribute(int *value, int attribute, pointer memory) { *value = 0; return SUCCESS; }

/* streams, events, graphs */
int cuStreamCreate(handle *stream, unsigned flags) { return make(stream); }
int cuStreamGetCtx(handle stream, handle *context) { *context = primary; return SUCCESS; }
int cuStreamSynchronize(handle stream) {
    idle_waits++;
    return !capturing ? SUCCESS : stream == captured ? CAPTURE_UNSUPPORTED : stream ? unsafe() : CAPTURE_IMPLICIT;
}
int cuStreamWaitEvent(handle stream, event *e, unsigned flags) {
    return e->captured == capturing ? SUCCESS : capturing ? CAPTURE_ISOLATION : CAPTURED_EVENT;
}
int cuStreamBeginCapture_v2(handle stream, int chosen) {
    capturing = 1;
    captured = stream;
    captured_mode = chosen;
    return SUCCESS;
}
int cuStreamEndCapture(handle stream, handle *graph) { capturing = 0; return make(graph); }
int cuStreamIsCapturing(handle stream, int *status) { *status = capturing; return SUCCESS; }
int cuThreadExchangeStreamCaptureMode(int *exchanged) {
    int before = mode;
    mode = *exchanged;
    *exchanged = before;
    return SUCCESS;
}
static int forbidden(event *e) { /* to ask for it */
    return e->captured ? CAPTURED_EVENT : unsafe();
}
int cuEventQuery(event *e) { return forbidden(e) ? forbidden(e) : idle_pending ? NOT_READY : SUCCESS; }
int cuEventSynchronize(event *e) {
    idle_waits++;
    if (!forbidden(e)) idle_pending = 0;
    return forbidden(e);
}
int cuGraphInstantiateWithFlags(handle *executable, handle graph, uint64_t flags) { return make(executable); }
int cuEventCreate(event **e, unsigned flags) { *e = calloc(1, sizeof(event)); return SUCCESS; }
int cuEventDestroy_v2(event *e) { free(e); return SUCCESS; }
int cuEventRecord(event *e, handle stream) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    e->at = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    e->captured = capturing;
    return SUCCESS;
}
int cuEventElapsedTime_v2(float *milliseconds, event *begin, event *end) {
    *milliseconds = end->at - begin->at;
    return SUCCESS;
}

/* code */
int cuLibraryLoadData(handle *library, void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    return unsafe() ? unsafe() : make(library);
}
int cuLibraryGetKernel(handle *kernel, handle library, const char *name) { return make(kernel); }
int cuKernelGetFunction(handle *function, handle kernel) { return make(function); }
int cuKernelGetAttribute(int *value, int attribute, handle kernel, int device) { *value = 32; return SUCCESS; }
int cuFuncGetAttribute(int *value, int attribute, handle function) { *value = 32; return SUCCESS; }
int cuLibraryGetGlobal(pointer *memory, size_t *size, handle library, const char *name) { return NOT_FOUND; }
int cuLaunchKernelEx(void *configuration, handle function, void **arguments, void **extra) {
    idle_launches++;
    for (int i = 0; i < idle_asked; i++) idle_arguments[i] = *(uint64_t *)arguments[i];
    return depth ? SUCCESS : INVALID_CONTEXT;
}
int cuLaunchKernel(handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, handle stream, void **arguments, void **extra) {
    return cuLaunchKernelEx(NULL, function, arguments, extra);
}

/* the rest, which succeeds and tells nothing */
int cuGetErrorName(int error, const char **name) { *name = "error of the idle driver"; return SUCCESS; }
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
static int nothing(void) { return SUCCESS; }

int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    static const char *suffixes[] = {"_v2", "WithFlags", ""};
    static void *self;
    Dl_info own;
    char full[256];
    if (!self && dladdr((void *)cuGetProcAddress_v2, &own)) self = dlopen(own.dli_fname, RTLD_NOW);
    if (status) *status = 0;
    *found = NULL;
    for (int i = 0; i < 3 && !*found; i++) {
        snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
        *found = dlsym(self, full);
    }
    if (!*found) *found = (void *)nothing;
    return SUCCESS;
}
