/* Times of the CUDA ops on this card as shares of ceilings measured in the same run: copy (bytes
 * read + written) and an 8192^3 bf16 product. Random data; medians of 20. Not a test: prints a
 * table. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/backend_cuda.h"
#include "kernels/kernels_cuda.h"

enum { RUNS = 20 };
static uint16_t noise[1 << 20];

static void fill(void *device, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += sizeof noise)
        cudaMemcpy((char *)device + at, noise, TR_MIN(sizeof noise, bytes - at),
                   cudaMemcpyHostToDevice);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

struct timer {
    cudaEvent_t from, to;
    float ms[RUNS];
    int n;
};
static void timer_open(struct timer *t)
{
    cudaEventCreate(&t->from);
    cudaEventCreate(&t->to);
    t->n = 0;
}
static double timer_median(struct timer *t)
{
    qsort(t->ms, (size_t)t->n, sizeof t->ms[0], by_value);
    return t->ms[t->n / 2];
}
#define TIMED(t, stream, call)                                                                     \
    for (int run_ = -3; run_ < RUNS; run_++) {                                                     \
        cudaEventRecord((t)->from, stream);                                                        \
        call;                                                                                      \
        cudaEventRecord((t)->to, stream);                                                          \
        cudaEventSynchronize((t)->to);                                                             \
        if (run_ >= 0)                                                                             \
            cudaEventElapsedTime(&(t)->ms[(t)->n++], (t)->from, (t)->to);                          \
    }

static double copy_rate(void)
{
    void *a, *b;
    const size_t bytes = (size_t)4 << 30;
    cudaMalloc(&a, bytes);
    cudaMalloc(&b, bytes);
    fill(a, (size_t)64 << 20);
    struct timer t;
    timer_open(&t);
    TIMED(&t, 0, cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, 0));
    cudaFree(a);
    cudaFree(b);
    return 2.0 * (double)bytes / timer_median(&t) * 1e-9; /* TB/s */
}

/* Attention of `slots` sequences at context `ctx`, their last `chunk` tokens, the first `shared`
 * pages in common; R1-Distill-Qwen-1.5B's heads. */
static void attention_row(int slots, int ctx, int chunk, int shared, double copy)
{
    struct err err = {0};
    struct backend *b;
    const int pages = (ctx + 63) / 64, rows = slots * chunk;
    struct backend_opts o = {.rows_cap = rows,
                             .logits_cap = 16,
                             .n_layers = 1,
                             .slots = slots,
                             .n_pages = slots * pages,
                             .pages_per_slot = pages,
                             .n_heads = 12,
                             .n_kv_heads = 2,
                             .head_dim = 128,
                             .vocab_size = 1000,
                             .dtype = DTYPE_BF16};
    if (backend_cuda_open(&b, &o, 0, &err) < 0) {
        printf("%s\n", err.msg);
        exit(1);
    }
    struct buffer qkv, out;
    if (b->ops->buffer_open(b, &qkv, rows, 2048, &err) < 0 ||
        b->ops->buffer_open(b, &out, rows, 1536, &err) < 0)
        exit(1);
    fill(qkv.data, (size_t)rows * 2048 * 2);
    const size_t kv_bytes = (size_t)o.n_pages * 2 * 2 * 64 * 128 * 2;
    int32_t *table = malloc((size_t)o.n_pages * 4), *position = malloc((size_t)rows * 4);
    int32_t *slot = malloc((size_t)rows * 4), *tokens = calloc((size_t)rows, 4);
    for (int i = 0; i < o.n_pages; i++)
        table[i] = (int)((int64_t)(i % pages < shared ? i % pages : i) * 7919 % o.n_pages);
    for (int i = 0; i < rows; i++)
        slot[i] = i / chunk, position[i] = ctx - chunk + i % chunk;
    struct step step = {.rows = {rows, position, slot, table, pages}, .tokens = tokens};
    if (b->ops->step_begin(b, &step, &err) < 0)
        exit(1);
    struct attention_shape shape = {12, 2, 128, 0};
    cudaStream_t stream = backend_cuda_stream(b);
    fill(backend_cuda_kv(b), kv_bytes);
    struct timer t;
    timer_open(&t);
    TIMED(&t, stream, b->ops->attention(b, &out, &qkv, 0, &shape));
    const double ms = timer_median(&t);
    if (chunk == 1 && shared > 0) {
        printf("decode  %5d slots ctx %6d, %d in common  %8.1f us\n", slots, ctx, shared * 64,
               ms * 1e3);
    } else if (chunk == 1) {
        const double rate = (double)slots * ctx * 1024.0 / ms * 1e-9;
        printf("decode  %5d slots ctx %6d  %8.1f us  %6.2f TB/s of keys and values  %5.1f %% of "
               "copy\n",
               slots, ctx, ms * 1e3, rate, 100 * rate / copy);
    } else {
        double pairs = 0;
        for (int i = 0; i < chunk; i++)
            pairs += ctx - chunk + i + 1;
        const double flop = 4.0 * 12 * 128 * pairs * slots;
        printf("prefill %5d x %5d at ctx %6d  %8.1f us  %6.1f TFLOP/s\n", slots, chunk, ctx,
               ms * 1e3, flop / ms * 1e-9);
    }
    fflush(stdout);
    cudaError_t e = cudaDeviceSynchronize();
    if (e != cudaSuccess)
        printf("error: %s\n", cudaGetErrorString(e));
    b->ops->close(b);
    free(table), free(position), free(slot), free(tokens);
}

static void elementwise_rows(double copy)
{
    const int t = 2816, d = 1536, f = 8960;
    bf16 *x, *y;
    float *w;
    cudaMalloc((void **)&x, (size_t)t * 2 * (size_t)f * 2);
    cudaMalloc((void **)&y, (size_t)t * (size_t)f * 2);
    cudaMalloc((void **)&w, (size_t)d * 4);
    fill(x, (size_t)t * 2 * (size_t)f * 2);
    cudaMemset(w, 0, (size_t)d * 4);
    struct timer a, b;
    timer_open(&a);
    TIMED(&a, 0, rmsnorm_cuda(y, x, w, 1e-6f, t, d, NULL, 0));
    timer_open(&b);
    TIMED(&b, 0, swiglu_cuda(y, x, t, f, 0));
    const double na = timer_median(&a), nb = timer_median(&b);
    printf("rmsnorm %d x %d  %.1f us  %.1f %% of copy;  swiglu %d x %d  %.1f us  %.1f %%\n", t, d,
           na * 1e3, 100 * (t * d * 4.0 / na * 1e-9) / copy, t, f, nb * 1e3,
           100 * (t * f * 6.0 / nb * 1e-9) / copy);
    cudaFree(x), cudaFree(y), cudaFree(w);
}

/* 2,816 rows of R1-Distill-Qwen-1.5B's 12 + 2 + 2 heads, each its own token of its own page. */
static void rope_row(double copy)
{
    enum { T = 2816, HEADS = 16, DH = 128 };
    bf16 *qkv, *kv;
    float *cos_sin;
    int32_t *ints, host[T];
    cudaMalloc((void **)&qkv, (size_t)T * HEADS * DH * 2);
    cudaMalloc((void **)&kv, (size_t)T * 4 * 64 * DH * 2);
    cudaMalloc((void **)&cos_sin, (size_t)T * DH * 4);
    cudaMalloc((void **)&ints, sizeof host);
    fill(qkv, (size_t)T * HEADS * DH * 2);
    cudaMemset(cos_sin, 0, (size_t)T * DH * 4);
    for (int i = 0; i < T; i++)
        host[i] = i;
    cudaMemcpy(ints, host, sizeof host, cudaMemcpyHostToDevice);
    const struct rope_cuda a = {.qkv = qkv,
                                .kv = kv,
                                .cos_sin = cos_sin,
                                .position = ints,
                                .slot = ints,
                                .block_table = ints,
                                .block_table_stride = 0,
                                .t = T,
                                .n_heads = 12,
                                .n_kv_heads = 2,
                                .eps = 1e-6f};
    struct timer t;
    timer_open(&t);
    TIMED(&t, 0, rope_kv_cuda(&a, DH, 0));
    const double ms = timer_median(&t);
    printf("rope %d rows  %.1f us  %.1f %% of copy\n", T, ms * 1e3,
           100 * (T * HEADS * DH * 4.0 / ms * 1e-9) / copy);
    cudaFree(qkv), cudaFree(kv), cudaFree(cos_sin), cudaFree(ints);
}

/* usage: kernels_cuda_bench [portable] [attention | elementwise | one SLOTS CTX CHUNK SHARED_PAGES]
 */
int main(int argc, char **argv)
{
    for (size_t i = 0; i < TR_COUNT(noise); i++)
        noise[i] = (uint16_t)((rand() & 0x80ff) | 0x3e00 | (rand() & 0x100)); /* +-0.125 .. 1 */
    if (argc > 1 && strcmp(argv[1], "portable") == 0) { /* the kernels of other cards */
        backend_cuda_portable(true);
        argc--, argv++;
    }
    const double copy = copy_rate();
    printf("%s: copy %.2f TB/s\n", backend_cuda_device_name(0), copy);
    static const int rows[][4] = {
        {1408, 192, 1, 0},   {1877, 1024, 1, 0},  {1100, 1450, 1, 0},  {64, 8192, 1, 0},
        {8, 32768, 1, 0},    {1, 32768, 1, 0},    {16, 1446, 1, 0},    {1099, 1132, 1, 0},
        {1099, 1132, 1, 15}, {2198, 1132, 1, 15}, {32, 1132, 1, 15},   {32, 8192, 1, 120},
        {11, 128, 128, 0},   {22, 128, 128, 0},   {5, 512, 512, 0},    {1, 4096, 1024, 0},
        {17, 1100, 100, 0},  {17, 1100, 100, 15}, {34, 1100, 100, 15}, {32, 4096, 512, 0},
    };
    if (argc == 6) {
        attention_row(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), copy);
        return 0;
    }
    const bool attention = argc < 2 || strcmp(argv[1], "elementwise") != 0;
    for (size_t i = 0; attention && i < TR_COUNT(rows); i++)
        attention_row(rows[i][0], rows[i][1], rows[i][2], rows[i][3], copy);
    if (argc > 1 && strcmp(argv[1], "attention") == 0)
        return 0;
    elementwise_rows(copy);
    rope_row(copy);
    return 0;
}
