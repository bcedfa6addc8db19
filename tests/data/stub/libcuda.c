/* A CUDA driver without a GPU: memory is the host's, copies are done at once, and kernels by name.
 *
 * Compiled by tests/runtime/test_stub_driver.py and loaded by the real cuda-python in place of libcuda.so.1, so that
 * every call of a frame passes the real binary interface with its arguments. Each call is logged to $VSR_STUB_LOG.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
enum { OK = 0, INVALID = 1, NOT_FOUND = 500 };

static FILE *out(void) {
    static FILE *file;
    if (!file) file = fopen(getenv("VSR_STUB_LOG"), "w");
    return file;
}
#define SAY(...) (fprintf(out(), __VA_ARGS__), fputc('\n', out()), fflush(out()))

/* What a captured graph holds: copies, boxes and launches, done again at each launch of the graph. */
typedef struct { /* CUDA_MEMCPY3D, one side of it */
    size_t x, y, z, lod;
    int kind;
    const void *host;
    u64 device;
    void *array, *reserved;
    size_t pitch, height;
} Side;
typedef struct { Side from, to; size_t width, height, depth; } Box;
typedef struct Work {
    enum { COPY, BOX, LAUNCH } kind;
    void *to;
    const void *from;
    size_t bytes;
    Box box;
    int function;
    u64 values[13];
    struct Work *next;
} Work;
static _Thread_local void *capturing; /* the stream; each thread captures its own */
static _Thread_local Work *captured;
static void launch(int function, const u64 *values);

static void copy_box(const Box *box) {
    const Side *a = &box->from, *b = &box->to;
    for (size_t z = 0; z < box->depth; z++)
        for (size_t y = 0; y < box->height; y++)
            memcpy((char *)b->device + ((b->z + z) * b->height + b->y + y) * b->pitch + b->x,
                   (char *)a->device + ((a->z + z) * a->height + a->y + y) * a->pitch + a->x, box->width);
}

static void perform(const Work *work) {
    if (work->kind == COPY) memcpy(work->to, work->from, work->bytes);
    if (work->kind == BOX) copy_box(&work->box);
    if (work->kind == LAUNCH) launch(work->function, work->values);
}

static int enqueue(Work work, void *stream) {
    if (!stream) return INVALID;
    if (stream != capturing) {
        perform(&work);
        return OK;
    }
    Work *kept = malloc(sizeof *kept), **end = &captured;
    *kept = work;
    kept->next = NULL;
    while (*end) end = &(*end)->next;
    *end = kept;
    return OK;
}

static int copy(void *to, const void *from, size_t n, void *stream) {
    return enqueue((Work){.kind = COPY, .to = to, .from = from, .bytes = n}, stream);
}

static void *made(void) { static u64 next = 0x1000; return (void *)(next += 16); }

static int cuInit(unsigned flags) { SAY("cuInit %u", flags); return OK; }
static int cuDriverGetVersion(int *v) { *v = 13000; return OK; }
static int cuDeviceGetCount(int *n) { *n = 1; return OK; }
static int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
static int cuDeviceGetName(char *name, int n, int d) { (void)d; snprintf(name, n, "Stub"); return OK; }
static int cuDeviceGetAttribute(int *v, int kind, int d) { (void)d; *v = kind == 75 ? 8 : kind == 76 ? 9 : 0; return OK; }
static int cuDeviceTotalMem(size_t *n, int d) { (void)d; *n = (size_t)24 << 30; return OK; }
static int cuCtxGetCurrent(void **context) { *context = NULL; return OK; }
static int cuCtxGetDevice(int *device) { *device = 0; return OK; }
static int cuDevicePrimaryCtxRetain(void **context, int d) { (void)d; *context = (void *)0xC0; SAY("cuDevicePrimaryCtxRetain"); return OK; }
static int cuDevicePrimaryCtxRelease(int d) { (void)d; SAY("cuDevicePrimaryCtxRelease"); return OK; }
static int cuCtxPushCurrent(void *context) { return context == (void *)0xC0 ? OK : INVALID; }
static int cuCtxPopCurrent(void **context) { *context = (void *)0xC0; return OK; }
static int cuMemGetInfo(size_t *left, size_t *total) { *left = *total = (size_t)20 << 30; return OK; }
static int cuMemAlloc(u64 *p, size_t n) { *p = (u64)aligned_alloc(512, (n + 511) / 512 * 512); memset((void *)*p, 0xA5, n); SAY("cuMemAlloc %zu", n); return OK; }
static int cuMemFree(u64 p) { free((void *)p); SAY("cuMemFree"); return OK; }
static int cuMemHostAlloc(void **p, size_t n, unsigned flags) { (void)flags; *p = malloc(n); SAY("cuMemHostAlloc %zu", n); return OK; }
static int cuMemFreeHost(void *p) { free(p); SAY("cuMemFreeHost"); return OK; }
static int cuMemcpyHtoDAsync(u64 to, const void *from, size_t n, void *stream) { SAY("cuMemcpyHtoDAsync %zu", n); return copy((void *)to, from, n, stream); }
static int cuMemcpyDtoHAsync(void *to, u64 from, size_t n, void *stream) { SAY("cuMemcpyDtoHAsync %zu", n); return copy(to, (void *)from, n, stream); }
static int cuMemcpyDtoDAsync(u64 to, u64 from, size_t n, void *stream) { SAY("cuMemcpyDtoDAsync %zu", n); return copy((void *)to, (void *)from, n, stream); }

static int cuMemcpy3DAsync(const Box *box, void *stream) {
    if (box->from.kind != 2 || box->to.kind != 2) return INVALID;
    SAY("cuMemcpy3DAsync %zu %zu %zu", box->width, box->height, box->depth);
    return enqueue((Work){.kind = BOX, .box = *box}, stream);
}

static int cuStreamCreate(void **stream, unsigned flags) { *stream = made(); SAY("cuStreamCreate %u", flags); return OK; }
static int cuStreamDestroy(void *stream) { SAY("cuStreamDestroy"); return stream ? OK : INVALID; }
static int cuStreamSynchronize(void *stream) { return stream && !capturing ? OK : INVALID; }
static int cuStreamQuery(void *stream) { return stream && stream != capturing ? OK : INVALID; }
static int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { SAY("cuStreamWaitEvent"); return stream && event && !flags ? OK : INVALID; }
static int cuEventCreate(void **event, unsigned flags) { *event = made(); SAY("cuEventCreate %u", flags); return OK; }
static int cuEventDestroy(void *event) { SAY("cuEventDestroy"); return event ? OK : INVALID; }
static int cuEventRecord(void *event, void *stream) { SAY("cuEventRecord"); return event && stream ? OK : INVALID; }
static int cuEventQuery(void *event) { return event && !capturing ? OK : INVALID; }
static int cuModuleLoadData(void **module, const void *image) { *module = made(); SAY("cuModuleLoadData %.12s", (const char *)image); return strncmp(image, "no machine", 10) ? OK : 200 /* INVALID_IMAGE */; }
static int cuModuleUnload(void *module) { SAY("cuModuleUnload"); return module ? OK : INVALID; }
enum { BLEND = 1, MIX_U8, MIX_F32 };
static int cuModuleGetFunction(void **f, void *module, const char *name) {
    static const char *const names[] = {"", "blend_tiles", "mix_u8", "mix_f32"};
    SAY("cuModuleGetFunction %s", name);
    *f = NULL;
    for (size_t i = BLEND; i <= MIX_F32; i++)
        if (!strcmp(name, names[i])) *f = (void *)i;
    return *f && module ? OK : NOT_FOUND;
}
static int cuFuncSetAttribute(void *f, int kind, int value) { SAY("cuFuncSetAttribute %d %d", kind, value); return f ? OK : INVALID; }

/* blend_tiles: kernels/blend.py */
static void blend(const u64 *p) {
    const float *tiles = (float *)p[0], *down = (float *)p[3], *across = (float *)p[4];
    const int *tops = (int *)p[1], *lefts = (int *)p[2];
    float *picture = (float *)p[5];
    int rows = p[6], columns = p[7], channels = p[8], th = p[9], tw = p[10], height = p[11], width = p[12];
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < height; i++)
            for (int j = 0; j < width; j++) {
                float sum = 0, weight = 0;
                for (int t = 0; t < rows * columns; t++) {
                    int u = i - tops[t / columns], v = j - lefts[t % columns];
                    if (u < 0 || v < 0 || u >= th || v >= tw) continue;
                    float w = down[u] * across[v];
                    float value = tiles[(((size_t)t * channels + c) * th + u) * tw + v] * w;
                    sum += value;
                    weight += w;
                }
                picture[((size_t)c * height + i) * width + j] = sum / weight;
            }
}

/* mix_u8, mix_f32: mix.ptx */
static void mix(int function, const u64 *p) {
    const uint8_t *a = (uint8_t *)p[2], *b = (uint8_t *)p[4], *c = (uint8_t *)p[6];
    uint32_t count = p[1], na = p[3], nb = p[5], nc = p[7];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t total = (a[(7 * i + 3) % na] + b[(5 * i + 1) % nb] + c[(3 * i + 2) % nc] + i) & 255;
        if (function == MIX_U8) ((uint8_t *)p[0])[i] = total;
        else ((float *)p[0])[i] = total;
    }
}

static void launch(int function, const u64 *values) {
    if (function == BLEND) blend(values);
    else mix(function, values);
}

static int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **p, void **extra) {
    static const char *const kinds[] = {"", "ppppppiiiiiii", "pipipipii", "pipipipii"};
    int function = (int)(u64)f;
    Work work = {.kind = LAUNCH, .function = function};
    if (function < BLEND || function > MIX_F32 || extra) return INVALID;
    for (int i = 0; kinds[function][i]; i++)
        work.values[i] = kinds[function][i] == 'p' ? *(u64 *)p[i] : *(uint32_t *)p[i];
    if (function == BLEND) {
        const u64 *n = work.values + 6;
        SAY("cuLaunchKernel %u %u %u %u %u %u %u: %d %d %d %d %d %d %d", x, y, z, bx, by, bz, shared, (int)n[0],
            (int)n[1], (int)n[2], (int)n[3], (int)n[4], (int)n[5], (int)n[6]);
    }
    return enqueue(work, stream);
}

static int cuStreamBeginCapture(void *stream, int mode) { SAY("cuStreamBeginCapture %d", mode); capturing = stream; captured = NULL; return stream ? OK : INVALID; }
static int cuStreamEndCapture(void *stream, void **graph) { SAY("cuStreamEndCapture"); if (stream != capturing) return INVALID; *graph = captured; capturing = captured = NULL; return OK; }
static int cuGraphInstantiateWithFlags(void **exec, void *graph, u64 flags) { *exec = graph; SAY("cuGraphInstantiate"); return graph && !flags ? OK : INVALID; } /* never freed */
static int cuGraphDestroy(void *graph) { SAY("cuGraphDestroy"); return graph ? OK : INVALID; }
static int cuGraphExecDestroy(void *exec) { SAY("cuGraphExecDestroy"); return exec ? OK : INVALID; }
static int cuGraphLaunch(void *exec, void *stream) {
    SAY("cuGraphLaunch");
    if (!exec || !stream) return INVALID;
    for (const Work *work = exec; work; work = work->next) perform(work);
    return OK;
}

#define HAS(name) {#name, (void *)name}
static const struct { const char *name; void *at; } TABLE[] = {
    HAS(cuInit), HAS(cuDriverGetVersion), HAS(cuDeviceGetCount), HAS(cuDeviceGet), HAS(cuDeviceGetName),
    HAS(cuDeviceGetAttribute), HAS(cuDeviceTotalMem), HAS(cuCtxGetCurrent), HAS(cuCtxGetDevice),
    HAS(cuDevicePrimaryCtxRetain), HAS(cuDevicePrimaryCtxRelease), HAS(cuCtxPushCurrent), HAS(cuCtxPopCurrent),
    HAS(cuMemGetInfo), HAS(cuMemAlloc), HAS(cuMemFree), HAS(cuMemHostAlloc), HAS(cuMemFreeHost),
    HAS(cuMemcpyHtoDAsync), HAS(cuMemcpyDtoHAsync), HAS(cuMemcpyDtoDAsync), HAS(cuMemcpy3DAsync), HAS(cuStreamCreate),
    HAS(cuStreamDestroy), HAS(cuStreamSynchronize), HAS(cuStreamQuery), HAS(cuStreamWaitEvent), HAS(cuEventCreate),
    HAS(cuEventDestroy), HAS(cuEventRecord), HAS(cuEventQuery), HAS(cuModuleLoadData), HAS(cuModuleUnload),
    HAS(cuModuleGetFunction), HAS(cuFuncSetAttribute), HAS(cuLaunchKernel), HAS(cuStreamBeginCapture),
    HAS(cuStreamEndCapture), HAS(cuGraphInstantiateWithFlags), HAS(cuGraphDestroy), HAS(cuGraphExecDestroy), HAS(cuGraphLaunch),
};

int cuGetProcAddress_v2(const char *symbol, void **function, int version, u64 flags, int *status) {
    (void)version, (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (!strcmp(symbol, TABLE[i].name)) *function = TABLE[i].at;
    if (!strcmp(symbol, "cuGetProcAddress")) *function = (void *)cuGetProcAddress_v2;
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
