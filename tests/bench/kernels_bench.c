/* kernels_bench: the CPU kernels against ceilings measured in the same run: the memory's read-only
 * stream and OpenBLAS's sgemm (loaded when present; only a yardstick). Weights have the shapes of a
 * 0.5B model (hidden 896, inner 4864, 24 layers, vocabulary 151,936).
 * Usage: kernels_bench [threads] [layers] [cpu]. With `cpu` and one thread, time is the processor
 * time used. Figures and ratios are medians; each run is paired with one of its ceiling. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base.h"
#include "kernels/kernels.h"

enum { D = 896, F = 4864, H = 14, G = 2, DH = 64, V = 151936, QKV = (H + 2 * G) * DH };
enum { T_MAX = 512, SHAPES = 5 };

static const struct shape {
    const char *name;
    int64_t n, k;
} shapes[SHAPES] = {
    {"qkv", QKV, D}, {"o", D, D}, {"gate_up", 2 * F, D}, {"down", D, F}, {"head", V, D}};

typedef void (*sgemm_fn)(int order, int ta, int tb, int m, int n, int k, float alpha,
                         const float *a, int lda, const float *b, int ldb, float beta, float *c,
                         int ldc);

struct bench {
    struct cpu *cpu;
    int threads, layers;
    struct cpu_weight *weights[2]; /* [bf16, fp32][layers * 4 + 1] */
    float *x, *out, *norm;
    size_t stream_ahead; /* of the faster stream reader */
    sgemm_fn sgemm;      /* NULL where it is not installed */
    float *plain;        /* a matrix for it */
};

static clockid_t clock_used = CLOCK_MONOTONIC;
static double now(void)
{
    struct timespec ts;
    clock_gettime(clock_used, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}
static double best(double a, double b)
{
    return a < b ? a : b;
}
static void *take(size_t bytes)
{
    void *p = mem_alloc(bytes, 1);
    if (!p) {
        fprintf(stderr, "kernels_bench: cannot take %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}
static void line(const char *what, double value, const char *unit, double ratio, const char *of)
{
    if (ratio > 0)
        printf("%-44s %10.2f %-9s %6.1f %% of %s\n", what, value, unit, 100 * ratio, of);
    else
        printf("%-44s %10.2f %s\n", what, value, unit);
    fflush(stdout);
}

/* ---- ceilings ---- */
/* Two readers, one leaving it to the hardware to fetch ahead, one asking 4 KB ahead as the products
 * do: which is faster depends on the machine, and a ceiling has to be the better of them. */
enum { STREAM_TASKS = 64, STREAM_PIECES = 18, STREAM_AHEAD = 4096 };
struct stream {
    const uint64_t *data;
    size_t words;
    size_t ahead; /* bytes */
    uint64_t sum[STREAM_TASKS * 8];
};
#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
static void
stream_read(void *ctx, int i)
{
    struct stream *s = ctx;
    size_t each = s->words / STREAM_TASKS;
    const uint64_t *p = s->data + (size_t)i * each;
    uint64_t a[32] = {0};
    for (size_t j = 0; j + 32 <= each; j += 32) {
        for (size_t line = 0; s->ahead && line < 256; line += 64)
            __builtin_prefetch((const char *)(p + j) + s->ahead + line);
        for (int lane = 0; lane < 32; lane++)
            a[lane] += p[j + (size_t)lane];
    }
    for (int lane = 1; lane < 32; lane++)
        a[0] += a[lane];
    s->sum[8 * i] = a[0];
}

/* Rate in GB/s of reading piece `piece` of the fp32 head's own memory: some 30 MB, about what a
 * layer weighs, last read long enough ago to be in no cache. */
static double stream_rate(struct bench *b, int piece)
{
    static struct stream stream;
    const struct cpu_weight *w = &b->weights[1][b->layers * 4];
    const size_t words = cpu_weight_bytes(w->n, w->k, w->dtype) / 8 / STREAM_PIECES;
    stream.data = (const uint64_t *)w->data + (size_t)(piece % STREAM_PIECES) * words;
    stream.words = words;
    stream.ahead = b->stream_ahead;
    double start = now();
    cpu_run(b->cpu, STREAM_TASKS, stream_read, &stream);
    return (double)words * 8e-9 / (now() - start);
}

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, rising);
    return values[n / 2];
}

/* The faster reader, by the median of pairs, is the ceiling from here on. */
static void stream_choose(struct bench *b)
{
    double ratios[4 * STREAM_PIECES], rates[4 * STREAM_PIECES];
    for (int i = 0; i < 4 * STREAM_PIECES; i++) {
        b->stream_ahead = 0;
        rates[i] = stream_rate(b, 2 * i);
        b->stream_ahead = STREAM_AHEAD;
        ratios[i] = stream_rate(b, 2 * i + 1) / rates[i];
    }
    double gain = median(ratios, 4 * STREAM_PIECES);
    b->stream_ahead = gain > 1 ? STREAM_AHEAD : 0;
    line("ceiling: stream read, median", median(rates, 4 * STREAM_PIECES) * (gain > 1 ? gain : 1),
         "GB/s", 0, NULL);
}

static void sgemm_open(struct bench *b)
{
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    void *symbol = lib ? dlsym(lib, "cblas_sgemm") : NULL;
    void *set_threads = lib ? dlsym(lib, "openblas_set_num_threads") : NULL;
    if (!symbol || !set_threads) {
        printf("OpenBLAS is not installed: no yardstick for prefill\n");
        return;
    }
    void (*set)(int);
    memcpy(&b->sgemm, &symbol, sizeof b->sgemm);
    memcpy(&set, &set_threads, sizeof set);
    set(b->threads);
    b->plain = take((size_t)(2 * F) * D * 4);
    for (size_t i = 0; i < (size_t)(2 * F) * D; i++)
        b->plain[i] = (float)(i % 613) * 0.001f - 0.3f;
}
static double sgemm_time(struct bench *b, int t, const struct shape *s)
{
    double start = now();
    if (b->sgemm)
        b->sgemm(101, 111, 112, t, (int)s->n, (int)s->k, 1, b->x, (int)s->k, b->plain, (int)s->k, 0,
                 b->out, (int)s->n);
    return now() - start;
}

/* ---- the model's matrices ---- */
static void weights_open(struct bench *b, int set, enum dtype dtype)
{
    const int count = b->layers * 4 + 1;
    const size_t size = dtype_size(dtype);
    char *src = take((size_t)V * D * size);
    for (size_t i = 0; i < (size_t)V * D; i++) {
        float f = (float)((i * 2654435761u >> 7) % 2048) * 0x1p-15f - 0x1p-5f;
        uint32_t bits;
        memcpy(&bits, &f, 4);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(src + i * size, dtype == DTYPE_F32 ? (void *)&f : &half, size);
    }
    b->weights[set] = take((size_t)count * sizeof *b->weights[set]);
    double took = 0, bytes = 0;
    for (int i = 0; i < count; i++) {
        const struct shape *s = &shapes[i == count - 1 ? 4 : i % 4];
        struct cpu_weight *w = &b->weights[set][i];
        *w = (struct cpu_weight){.dtype = dtype, .n = s->n, .k = s->k};
        w->data = take(cpu_weight_bytes(s->n, s->k, dtype));
        bytes += (double)cpu_weight_bytes(s->n, s->k, dtype);
        double start = now();
        cpu_weight_pack(b->cpu, w, 0, src, s->n);
        took += now() - start;
    }
    line(set ? "pack fp32 weights" : "pack bf16 weights", bytes * 1e-9 / took, "GB/s", 0, NULL);
    mem_free(src);
}

/* One layer's products, or (from part `layers` on) a piece of the head; returns bytes of weights.
 */
enum { HEAD_PARTS = 9 };
static double part_run(struct bench *b, int set, int64_t t, int part)
{
    const struct cpu_weight *w = b->weights[set], *head = w + b->layers * 4;
    const enum dtype round = set ? DTYPE_F32 : DTYPE_BF16;
    const int64_t panels = V / 64, h = part - b->layers;
    double bytes = 0;
    for (int j = 0; h < 0 && j < 4; j++) {
        const struct cpu_weight *one = &w[4 * part + j];
        linear_cpu(b->cpu, b->out, b->x, one, NULL, NULL, t, round);
        bytes += (double)cpu_weight_bytes(one->n, one->k, one->dtype);
    }
    if (h < 0)
        return bytes;
    int64_t from = panels * h / HEAD_PARTS, to = panels * (h + 1) / HEAD_PARTS;
    size_t skip = (size_t)from * 64 * D * dtype_size(head->dtype);
    struct cpu_weight some = {(char *)head->data + skip, head->dtype, (to - from) * 64, D};
    linear_cpu(b->cpu, b->out, b->x, &some, NULL, NULL, t, DTYPE_F32);
    return (double)cpu_weight_bytes(some.n, some.k, some.dtype);
}
static double weight_bytes(const struct bench *b, int set)
{
    double bytes = 0;
    for (int i = 0; i <= b->layers * 4; i++) {
        const struct cpu_weight *w = &b->weights[set][i];
        bytes += (double)cpu_weight_bytes(w->n, w->k, w->dtype);
    }
    return bytes;
}

/* On a shared machine the memory's own speed changes by half within seconds. So every part is
 * timed next to a stream read, and the figure is the median of the pairs' ratios: bests of two
 * things taken at different moments can say anything. */
static void bench_decode(struct bench *b)
{
    static const int rows[] = {1, 2, 4, 8, 16, 32};
    static double rates[4096], ratios[4096];
    const int parts = b->layers + HEAD_PARTS;
    for (size_t i = 0; i < TR_COUNT(rows); i++)
        for (int set = 0; set < 2; set++) {
            int n = parts * (rows[i] > 4 ? 3 : 8);
            for (int j = 0; j < n; j++) {
                double start = now(), bytes = part_run(b, set, rows[i], j % parts);
                rates[j] = bytes * 1e-9 / (now() - start);
                ratios[j] = rates[j] / stream_rate(b, j);
            }
            char what[64];
            double gbs = median(rates, n), step = weight_bytes(b, set) * 1e-9 / gbs;
            snprintf(what, sizeof what, "decode linears T=%d %s: %.1f rows/s", rows[i],
                     set ? "fp32" : "bf16", rows[i] / step);
            line(what, gbs, "GB/s", median(ratios, n), "stream read");
        }
}

static void bench_prefill(struct bench *b, int t)
{
    enum { RUNS = 25 };
    for (int set = 0; set < 2; set++) {
        double ours = 0, theirs = 0, flops = 0;
        char what[64];
        for (int i = 0; i < SHAPES - 1; i++) {
            const struct shape *s = &shapes[i];
            const double work = 2e-9 * t * (double)(s->n * s->k);
            double times[RUNS], ratios[RUNS];
            for (int run = 0; run < RUNS; run++) {
                double yardstick = sgemm_time(b, t, s), start = now();
                linear_cpu(b->cpu, b->out, b->x, &b->weights[set][i], NULL, NULL, t,
                           set ? DTYPE_F32 : DTYPE_BF16);
                times[run] = now() - start;
                ratios[run] = yardstick / times[run];
            }
            double least = median(times, RUNS), ratio = b->sgemm ? median(ratios, RUNS) : 0;
            ours += least;
            theirs += least * ratio;
            flops += work;
            snprintf(what, sizeof what, "prefill T=%d %s %s", t, s->name, set ? "fp32" : "bf16");
            line(what, work / least, "GFLOP/s", ratio, "sgemm");
        }
        snprintf(what, sizeof what, "prefill T=%d layer %s", t, set ? "fp32" : "bf16");
        line(what, flops / ours, "GFLOP/s", theirs / ours, "sgemm");
    }
}

/* ---- a whole step, small ops included ---- */
struct cache {
    struct kv_layer kv;
    struct kv_rows rows;
    float *cos_sin;
};
static void cache_open(struct cache *c, int context, int rows, bool one_sequence)
{
    int pages_each = (context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int slots = one_sequence ? 1 : rows, pages = slots * pages_each;
    size_t bytes = (size_t)pages * G * 2 * KV_PAGE_TOKENS * DH * 2;
    *c = (struct cache){.kv = {take(bytes), DTYPE_BF16, G, DH}};
    int32_t *position = take((size_t)rows * 4), *slot = take((size_t)rows * 4);
    int32_t *table = take((size_t)pages * 4);
    for (int i = 0; i < rows; i++) {
        position[i] = one_sequence ? context - rows + i : context - 1;
        slot[i] = one_sequence ? 0 : i;
    }
    for (int i = 0; i < pages; i++)
        table[i] = i;
    c->rows = (struct kv_rows){rows, position, slot, table, pages_each};
    c->cos_sin = take((size_t)context * DH * 4);
    for (int i = 0; i < context * DH; i++)
        c->cos_sin[i] = 0.7f;
}
static void cache_close(struct cache *c)
{
    mem_free(c->kv.base);
    mem_free((void *)(uintptr_t)c->rows.position);
    mem_free((void *)(uintptr_t)c->rows.slot);
    mem_free((void *)(uintptr_t)c->rows.block_table);
    mem_free(c->cos_sin);
}

static double step_time(struct bench *b, const struct cache *c, int64_t t)
{
    static float inner[T_MAX * F];
    const struct cpu_weight *w = b->weights[0];
    const struct rope_args args = {c->cos_sin, NULL, NULL, 1e-6f, H, DTYPE_BF16};
    double start = now();
    for (int i = 0; i < b->layers; i++, w += 4) {
        rmsnorm_cpu(b->cpu, b->x, b->x, b->norm, 1e-6f, t, D, DTYPE_BF16);
        linear_cpu(b->cpu, b->out, b->x, &w[0], b->norm, NULL, t, DTYPE_BF16);
        rope_kv_cpu(b->cpu, b->out, &c->kv, &c->rows, &args);
        attention_cpu(b->cpu, inner, b->out, &c->kv, &c->rows, H, 0, DTYPE_BF16);
        linear_cpu(b->cpu, b->x, inner, &w[1], NULL, b->x, t, DTYPE_BF16);
        rmsnorm_cpu(b->cpu, b->x, b->x, b->norm, 1e-6f, t, D, DTYPE_BF16);
        linear_cpu(b->cpu, b->out, b->x, &w[2], NULL, NULL, t, DTYPE_BF16);
        swiglu_cpu(b->cpu, inner, b->out, t, F, DTYPE_BF16);
        linear_cpu(b->cpu, b->x, inner, &w[3], NULL, b->x, t, DTYPE_BF16);
    }
    rmsnorm_cpu(b->cpu, b->x, b->x, b->norm, 1e-6f, t, D, DTYPE_BF16);
    linear_cpu(b->cpu, b->out, b->x, w, NULL, NULL, t, DTYPE_F32);
    return now() - start;
}

static void bench_step(struct bench *b)
{
    static const int rows[] = {1, 16};
    for (size_t i = 0; i < TR_COUNT(rows); i++) {
        struct cache c;
        cache_open(&c, 300, rows[i], false);
        enum { RUNS = 25 };
        double times[RUNS], ratios[RUNS], sum;
        for (int run = 0; run < RUNS; run++) {
            sum = 0;
            for (int piece = 0; piece < STREAM_PIECES; piece++)
                sum += stream_rate(b, piece) / STREAM_PIECES;
            times[run] = step_time(b, &c, rows[i]);
            ratios[run] = weight_bytes(b, 0) * 1e-9 / times[run] / sum;
        }
        char what[64];
        double step = median(times, RUNS);
        snprintf(what, sizeof what, "whole step T=%d, 300 keys: %.1f tok/s", rows[i],
                 rows[i] / step);
        line(what, weight_bytes(b, 0) * 1e-9 / step, "GB/s", median(ratios, RUNS), "stream read");
        cache_close(&c);
    }
}

static void bench_attention(struct bench *b, int context, int rows, bool one_sequence)
{
    struct cache c;
    cache_open(&c, context, rows, one_sequence);
    enum { RUNS = 15, YARDSTICK_ROWS = 128 };
    double times[RUNS], ratios[RUNS], keys = 0;
    for (int i = 0; i < rows; i++)
        keys += c.rows.position[i] + 1;
    const double work = keys * H * DH * 4;
    const double yardstick = 2.0 * YARDSTICK_ROWS * (double)(shapes[2].n * shapes[2].k);
    for (int run = 0; run < RUNS; run++) {
        double rate = yardstick / sgemm_time(b, YARDSTICK_ROWS, &shapes[2]), start = now();
        attention_cpu(b->cpu, b->x, b->out, &c.kv, &c.rows, H, 0, DTYPE_BF16);
        times[run] = now() - start;
        ratios[run] = work / times[run] / rate;
    }
    char what[64];
    const double middle = median(times, RUNS);
    snprintf(what, sizeof what, "attention %s T=%d, %d keys: %.0f us",
             one_sequence ? "prefill" : "decode", rows, context, middle * 1e6);
    line(what, work * 1e-9 / middle, "GFLOP/s", b->sgemm ? median(ratios, RUNS) : 0, "sgemm");
    cache_close(&c);
}

/* ---- small things ---- */
static void nothing(void *ctx, int i)
{
    (void)ctx;
    (void)i;
}
static void bench_small(struct bench *b)
{
    double least = 1e9;
    for (int run = 0; run < 5; run++) {
        double start = now();
        for (int i = 0; i < 10000; i++)
            cpu_run(b->cpu, b->threads, nothing, NULL);
        least = best(least, (now() - start) / 10000);
    }
    line("pool: one empty call", least * 1e9, "ns", 0, NULL);
}

int main(int argc, char **argv)
{
    struct bench b = {.threads = argc > 1 ? atoi(argv[1]) : 2,
                      .layers = argc > 2 ? atoi(argv[2]) : 24};
    if (b.threads < 1 || b.layers < 1 || b.layers > 200 ||
        !(b.cpu = cpu_open(b.threads, cpu_isa_best()))) {
        fprintf(stderr, "usage: kernels_bench [threads >= 1] [layers >= 1]\n");
        return 64;
    }
    if (argc > 3 && strcmp(argv[3], "cpu") == 0 && b.threads == 1)
        clock_used = CLOCK_THREAD_CPUTIME_ID;
    double load = -1;
    getloadavg(&load, 1);
    /* Above the number of processors, ratios to OpenBLAS flatter us: its threads wait for each
     * other, ours take what is left. */
    printf("%s, %d threads, %d layers, load average %.1f\n", cpu_isa_name(cpu_isa_best()),
           b.threads, b.layers, load);
    b.x = take((size_t)T_MAX * F * 4);
    b.out = take((size_t)T_MAX * 2 * F * 4); /* more than 32 rows of logits */
    _Static_assert((size_t)T_MAX * 2 * F >= (size_t)32 * V, "out holds both");
    b.norm = take((size_t)2 * F * 4);
    for (int i = 0; i < T_MAX * F; i++)
        b.x[i] = (float)(i % 257) * 0.01f - 1.28f;
    for (int i = 0; i < 2 * F; i++)
        b.norm[i] = 1.0f;
    bench_small(&b);
    weights_open(&b, 0, DTYPE_BF16);
    weights_open(&b, 1, DTYPE_F32);
    stream_choose(&b);
    bench_decode(&b);
    bench_step(&b);
    sgemm_open(&b);
    bench_prefill(&b, 256);
    bench_prefill(&b, 512);
    bench_attention(&b, 512, 512, true);
    bench_attention(&b, 4096, 256, true);
    bench_attention(&b, 1024, 16, false);
    bench_attention(&b, 4096, 1, false);
    for (int set = 0; set < 2; set++) {
        for (int i = 0; i <= b.layers * 4; i++)
            mem_free(b.weights[set][i].data);
        mem_free(b.weights[set]);
    }
    mem_free(b.plain);
    mem_free(b.x);
    mem_free(b.out);
    mem_free(b.norm);
    cpu_close(b.cpu);
    return 0;
}
