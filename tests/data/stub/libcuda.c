/* A CUDA driver without a GPU: memory is the host's, copies are done at once, and kernels by name.
 *
 * Compiled by tests/helpers/stub_driver.py and loaded by the real cuda-python in place of libcuda.so.1, so that every
 * call of a frame passes the real binary interface with its arguments. From the environment, all of it optional:
 *   VSR_STUB_LOG      file for each call; one process writes it
 *   VSR_STUB_NAME     of the GPU
 *   VSR_STUB_MODULES  folder that says what compiled kernels compute: a file for each, named by its hash, which holds its
 *                     target, fp32 or fp16, and top_k or all (`keep_kernels` of
 *                     tests/helpers/fake_library.py); what is not there is no machine code
 *   VSR_STUB_FAULT    "leak": memory that is given back stays taken; "cubin": no machine code is taken;
 *                     "hang": work that is not a copy never ends, and its process hears of no signal but SIGKILL
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
enum { OK = 0, INVALID = 1, NOT_FOUND = 500 };

static FILE *out(void) {
    static FILE *file;
    if (!file && getenv("VSR_STUB_LOG")) file = fopen(getenv("VSR_STUB_LOG"), "w");
    return file;
}
#define SAY(...) (out() ? (fprintf(out(), __VA_ARGS__), fputc('\n', out()), fflush(out())) : 0)
static int fault(const char *name) { return getenv("VSR_STUB_FAULT") && !strcmp(getenv("VSR_STUB_FAULT"), name); }

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
    enum { COPY, BOX, LAUNCH, CALL } kind;
    void *to;
    const void *from;
    size_t bytes;
    Box box;
    struct Function *function;
    u64 values[13];
    void (*call)(u64);
    struct Work *next;
} Work;
static _Thread_local void *capturing; /* the stream; each thread captures its own */
static _Thread_local Work *captured;
static void launch(const struct Function *function, const u64 *values);

static void copy_box(const Box *box) {
    const Side *a = &box->from, *b = &box->to;
    for (size_t z = 0; z < box->depth; z++)
        for (size_t y = 0; y < box->height; y++)
            memcpy((char *)b->device + ((b->z + z) * b->height + b->y + y) * b->pitch + b->x,
                   (char *)a->device + ((a->z + z) * a->height + a->y + y) * a->pitch + a->x, box->width);
}

static void perform(const Work *work) {
    while ((work->kind == CALL || work->kind == LAUNCH) && fault("hang")) pause();
    if (work->kind == COPY) memcpy(work->to, work->from, work->bytes);
    if (work->kind == BOX) copy_box(&work->box);
    if (work->kind == LAUNCH) launch(work->function, work->values);
    if (work->kind == CALL) work->call(work->values[0]);
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

/* Not CUDA's: whoever stands in for a library of engines puts its work on a stream with it. */
int stub_call(void *stream, void (*call)(u64), u64 number) {
    return enqueue((Work){.kind = CALL, .call = call, .values = {number}}, stream);
}

static void *made(void) { static u64 next = 0x1000; return (void *)(next += 16); }

static int cuInit(unsigned flags) { SAY("cuInit %u", flags); return OK; }
static int cuDriverGetVersion(int *v) { *v = 13000; return OK; }
static int cuDeviceGetCount(int *n) { *n = 1; return OK; }
static int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
static int cuDeviceGetName(char *name, int n, int d) { (void)d; snprintf(name, n, "%s", getenv("VSR_STUB_NAME") ? getenv("VSR_STUB_NAME") : "Stub"); return OK; }
static int cuDeviceGetAttribute(int *v, int kind, int d) { (void)d; *v = kind == 75 ? 8 : kind == 76 ? 9 : 0; return OK; }
static const size_t TOTAL = (size_t)24 << 30;
static _Atomic size_t taken;
static int cuDeviceTotalMem(size_t *n, int d) { (void)d; *n = TOTAL; return OK; }
static int cuCtxGetCurrent(void **context) { *context = NULL; return OK; }
static int cuCtxGetDevice(int *device) { *device = 0; return OK; }
static int cuDevicePrimaryCtxRetain(void **context, int d) { (void)d; *context = (void *)0xC0; SAY("cuDevicePrimaryCtxRetain"); return OK; }
static int cuDevicePrimaryCtxRelease(int d) { (void)d; SAY("cuDevicePrimaryCtxRelease"); return OK; }
static int cuCtxPushCurrent(void *context) { return context == (void *)0xC0 ? OK : INVALID; }
static int cuCtxPopCurrent(void **context) { *context = (void *)0xC0; return OK; }
static int cuMemGetInfo(size_t *left, size_t *total) { *total = TOTAL; *left = TOTAL - taken; return OK; }
static int cuMemAlloc(u64 *p, size_t n) { /* 512 bytes before it hold its size */
    size_t whole = 512 + (n + 511) / 512 * 512;
    char *at = n && taken + whole <= TOTAL ? aligned_alloc(512, whole) : NULL;
    SAY("cuMemAlloc %zu", n);
    if (!at) return n ? 2 /* OUT_OF_MEMORY */ : INVALID;
    taken += *(size_t *)at = whole;
    memset(at + 512, 0xA5, n);
    *p = (u64)at + 512;
    return OK;
}
static int cuMemFree(u64 p) {
    char *at = (char *)p - 512;
    if (!fault("leak")) taken -= *(size_t *)at;
    free(at);
    SAY("cuMemFree");
    return OK;
}
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
typedef struct { unsigned flags; double at; } Event; /* milliseconds; work is done at once, so now is when it is done */
static int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(Event)); ((Event *)*event)->flags = flags; SAY("cuEventCreate %u", flags); return OK; }
static int cuEventDestroy(void *event) { SAY("cuEventDestroy"); free(event); return event ? OK : INVALID; }
static int cuEventRecord(void *event, void *stream) {
    struct timespec now;
    SAY("cuEventRecord");
    if (!event || !stream) return INVALID;
    timespec_get(&now, TIME_UTC);
    ((Event *)event)->at = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    return OK;
}
static int cuEventSynchronize(void *event) { return event && !capturing ? OK : INVALID; }
static int cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    if (!from->at || !to->at || (from->flags | to->flags) & 2 /* without timing */) return 400 /* INVALID_HANDLE */;
    *milliseconds = (float)(to->at - from->at);
    return OK;
}
static int cuEventQuery(void *event) { return event && !capturing ? OK : INVALID; }

enum { BLEND = 1, MIX_U8, MIX_F32, ATTENTION };
static const char *const NAMES[] = {"", "blend_tiles", "mix_u8", "mix_f32", "gated_topk_attention"};
static const char *const KINDS[] = {"", "ppppppiiiiiii", "pipipipii", "pipipipii", "pppppiiip"};
typedef struct Function { int kind; char target[16], type[8], scores[8]; } Function;

/* FNV-1a of a whole image: text up to its zero, or an ELF file up to the end of its table of sections. */
static u64 hash_of(const unsigned char *image) {
    size_t size = strlen((const char *)image);
    if (!memcmp(image, "\177ELF", 4)) {
        u64 table;
        uint16_t entry, count;
        memcpy(&table, image + 40, 8), memcpy(&entry, image + 58, 2), memcpy(&count, image + 60, 2);
        size = table + (size_t)entry * count;
    }
    u64 hash = 14695981039346656037u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ image[i]) * 1099511628211u;
    return hash;
}

static int cuModuleLoadData(void **module, const void *image) {
    Function known = {.target = "sm_89", .type = "fp32", .scores = "all"};
    int machine_code = !memcmp(image, "\177ELF", 4);
    *module = NULL;
    SAY("cuModuleLoadData %.12s", (const char *)image);
    if (!strncmp(image, "no machine", 10) || (machine_code && fault("cubin"))) return 200; /* INVALID_IMAGE */
    if (getenv("VSR_STUB_MODULES")) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%016llx", getenv("VSR_STUB_MODULES"), (unsigned long long)hash_of(image));
        FILE *file = fopen(path, "r");
        int found = file ? fscanf(file, "%15s %7s %7s", known.target, known.type, known.scores) : 0;
        if (file) fclose(file);
        if (found != 3 && machine_code) return 200;
        if (machine_code && strcmp(known.target, "sm_89")) return 209; /* NO_BINARY_FOR_GPU */
    }
    *module = calloc(1, sizeof known);
    *(Function *)*module = known;
    return OK;
}
static int cuModuleUnload(void *module) { SAY("cuModuleUnload"); free(module); return module ? OK : INVALID; }
static int cuModuleGetFunction(void **f, void *module, const char *name) {
    SAY("cuModuleGetFunction %s", name);
    *f = NULL;
    for (int i = BLEND; i <= ATTENTION; i++)
        if (module && !strcmp(name, NAMES[i])) {
            Function *made = *f = malloc(sizeof *made); /* never freed */
            *made = *(Function *)module;
            made->kind = i;
        }
    return *f ? OK : NOT_FOUND;
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
static void mix(int kind, const u64 *p) {
    const uint8_t *a = (uint8_t *)p[2], *b = (uint8_t *)p[4], *c = (uint8_t *)p[6];
    uint32_t count = p[1], na = p[3], nb = p[5], nc = p[7];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t total = (a[(7 * i + 3) % na] + b[(5 * i + 1) % nb] + c[(3 * i + 2) % nc] + i) & 255;
        if (kind == MIX_U8) ((uint8_t *)p[0])[i] = total;
        else ((float *)p[0])[i] = total;
    }
}

/* gated_topk_attention: kernels/gated_topk/reference.py, in double precision; bit 15 of a half is its sign. */
static double half(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double value = exponent ? (1 + fraction / 1024.0) : fraction / 512.0;
    for (int e = exponent; e < 15; e++) value /= 2;
    for (int e = exponent; e > 15; e--) value *= 2;
    return exponent == 31 ? (fraction ? 0.0 / 0.0 : (h >> 15 ? -1 : 1) / 0.0) : h >> 15 ? -value : value;
}
static uint16_t rounded(double value) { /* nearest, ties to even, by trying its two neighbours */
    uint16_t low = 0, high = 0x7C00, sign = value < 0 ? 0x8000 : 0;
    value = value < 0 ? -value : value;
    if (value != value) return 0x7E00;
    while (high - low > 1) {
        uint16_t middle = (low + high) / 2;
        if (half(middle) <= value) low = middle;
        else high = middle;
    }
    double below = value - half(low), above = (high == 0x7C00 ? 65536 : half(high)) - value;
    return sign | (above < below || (above == below && low & 1) ? high : low);
}
static int falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}
static void attention(const Function *f, const u64 *p, unsigned pictures) {
    int wide = !strcmp(f->type, "fp32"), cut = !strcmp(f->scores, "top_k"), heads = p[5];
    size_t n = p[6], k = p[7];
    const float *M = (float *)p[2], *P = (float *)p[3], *bias = (float *)p[4];
    double *keys = malloc(n * 5 * sizeof *keys), *scores = malloc(2 * n * sizeof *scores), *sorted = scores + n;
#define AT(array, at) (wide ? (double)((const float *)(array))[at] : half(((const uint16_t *)(array))[at]))
    for (size_t picture = 0; picture < pictures; picture++) {
        size_t base = picture * 4 * n;
        for (size_t i = 0; i < n; i++)
            for (int c = 0; c < 5; c++) keys[5 * i + c] = c < 4 ? AT(p[1], base + c * n + i) : 1;
        for (size_t i = 0; i < n; i++) {
            double z[5] = {AT(p[0], base + i), AT(p[0], base + n + i), AT(p[0], base + 2 * n + i), AT(p[0], base + 3 * n + i), 1};
            double y[4] = {z[0] + bias[0], z[1] + bias[1], z[2] + bias[2], z[3] + bias[3]};
            for (int head = 0; head < heads; head++, M += 25, P += 20) {
                double a[5] = {0}, sums[5] = {0}, least = 0;
                for (int c = 0; c < 25; c++) a[c % 5] += z[c / 5] * M[c];
                for (size_t j = 0; j < n; j++) {
                    scores[j] = 0;
                    for (int c = 0; c < 5; c++) scores[j] += a[c] * keys[5 * j + c];
                }
                if (cut) {
                    memcpy(sorted, scores, n * sizeof *scores);
                    qsort(sorted, n, sizeof *scores, falling);
                    least = sorted[k - 1];
                }
                for (size_t j = 0; j < n; j++)
                    if (scores[j] > 0 && scores[j] >= least)
                        for (int c = 0; c < 5; c++) sums[c] += scores[j] * keys[5 * j + c];
                for (int c = 0; c < 20; c++) y[c / 5] += P[c] * sums[c % 5];
            }
            M -= 25 * heads, P -= 20 * heads;
            for (int c = 0; c < 4; c++) {
                if (wide) ((float *)p[8])[base + c * n + i] = (float)y[c];
                else ((uint16_t *)p[8])[base + c * n + i] = rounded(y[c]);
            }
        }
    }
    free(keys), free(scores);
}

static void launch(const Function *function, const u64 *values) {
    if (function->kind == BLEND) blend(values);
    else if (function->kind == ATTENTION) attention(function, values, (unsigned)values[12]);
    else mix(function->kind, values);
}

static int cuLaunchKernel(Function *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **p, void **extra) {
    if (!f || extra) return INVALID;
    Work work = {.kind = LAUNCH, .function = f};
    for (int i = 0; KINDS[f->kind][i]; i++)
        work.values[i] = KINDS[f->kind][i] == 'p' ? *(u64 *)p[i] : *(uint32_t *)p[i];
    if (f->kind == ATTENTION) work.values[12] = y; /* pictures */
    if (f->kind == BLEND) {
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
    HAS(cuEventDestroy), HAS(cuEventRecord), HAS(cuEventQuery), HAS(cuEventSynchronize), HAS(cuEventElapsedTime), HAS(cuModuleLoadData), HAS(cuModuleUnload),
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
