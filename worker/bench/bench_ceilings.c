/* bench_ceilings: what this machine can do at best, measured in the run that is compared with it.
 */
#include "worker/bench/bench.h"

#include <assert.h>

enum { STREAM_BYTES = 256 << 20, CHUNK_BYTES = 1 << 20, GEMM_ROWS = 256, GEMM_SIDE = 1024 };
static_assert(STREAM_BYTES % CHUNK_BYTES == 0, "whole chunks");

struct bench_stream {
    struct cpu *cpu;
    uint64_t *from;
    uint64_t *to;   /* copy target */
    uint64_t *sums; /* [chunks], so that no read can be left out */
};

static double now_seconds(void)
{
    return (double)clock_mono_ns(clock_system()) / 1e9;
}

int bench_stream_open(struct bench_stream **out, int threads, enum cpu_isa isa, struct err *err)
{
    struct bench_stream *s = mem_alloc(1, sizeof *s);
    *out = s;
    if (!s)
        return err_set(err, E_FATAL, "bench: no memory for %zu bytes", sizeof *s);
    *s = (struct bench_stream){.cpu = cpu_open(threads, isa),
                               .from = mem_alloc(STREAM_BYTES, 1),
                               .to = mem_alloc(STREAM_BYTES, 1),
                               .sums = mem_alloc(STREAM_BYTES / CHUNK_BYTES, sizeof *s->sums)};
    if (!s->cpu)
        return err_set(err, E_FATAL, "bench: cannot start %d threads with %s", threads,
                       cpu_isa_name(isa));
    if (!s->from || !s->to || !s->sums)
        return err_set(err, E_FATAL, "bench: no memory for two buffers of %d bytes", STREAM_BYTES);
    for (size_t i = 0; i < STREAM_BYTES / sizeof *s->from; i++)
        s->from[i] = i * 0x9E3779B97F4A7C15u;
    return E_OK;
}

void bench_stream_close(struct bench_stream *s)
{
    if (!s)
        return;
    mem_free(s->from);
    mem_free(s->to);
    mem_free(s->sums);
    cpu_close(s->cpu);
    mem_free(s);
}

/* Eight sums, so that the adds never wait for each other. */
static void read_chunk(void *ctx, int i)
{
    const struct bench_stream *s = ctx;
    const size_t n = CHUNK_BYTES / sizeof *s->from;
    const uint64_t *p = s->from + (size_t)i * n;
    uint64_t sum[8] = {0}, total = 0;
    for (size_t k = 0; k < n; k += 8)
        for (size_t j = 0; j < 8; j++)
            sum[j] += p[k + j];
    for (size_t j = 0; j < 8; j++)
        total += sum[j];
    s->sums[i] = total;
}

static void copy_chunk(void *ctx, int i)
{
    const struct bench_stream *s = ctx;
    const size_t n = CHUNK_BYTES / sizeof *s->from;
    memcpy(s->to + (size_t)i * n, s->from + (size_t)i * n, CHUNK_BYTES);
}

static double pass_rate(struct bench_stream *s, void (*task)(void *, int), double bytes)
{
    double start = now_seconds();
    cpu_run(s->cpu, STREAM_BYTES / CHUNK_BYTES, task, s);
    return bytes / (now_seconds() - start);
}

double bench_stream_read(struct bench_stream *s)
{
    return pass_rate(s, read_chunk, STREAM_BYTES);
}

/* Best pass in `seconds`: a neighbour on the machine only ever slows a pass down. */
static double best_rate(struct bench_stream *s, void (*task)(void *, int), double bytes,
                        double seconds)
{
    double best = 0, start = now_seconds();
    do
        best = TR_MAX(best, pass_rate(s, task, bytes));
    while (now_seconds() - start < seconds);
    return best;
}

static int measure_gemm(struct bench_ceilings *out, struct cpu *cpu, double seconds,
                        struct err *err)
{
    struct cpu_weight w = {.dtype = DTYPE_F32, .n = GEMM_SIDE, .k = GEMM_SIDE};
    float *x = mem_alloc((size_t)GEMM_ROWS * GEMM_SIDE, sizeof *x);
    float *y = mem_alloc((size_t)GEMM_ROWS * GEMM_SIDE, sizeof *y);
    float *dense = mem_alloc((size_t)GEMM_SIDE * GEMM_SIDE, sizeof *dense);
    double best = 0, start = now_seconds(), end;
    int rc = E_OK;
    w.data = mem_alloc(cpu_weight_bytes(w.n, w.k, w.dtype), 1);
    if (!x || !y || !dense || !w.data) {
        rc = err_set(err, E_FATAL, "bench: no memory for a GEMM of %d x %d", GEMM_SIDE, GEMM_SIDE);
        goto out;
    }
    for (size_t i = 0; i < (size_t)GEMM_SIDE * GEMM_SIDE; i++)
        dense[i] = (float)(hash_bytes(&i, sizeof i, 1) % 2001) / 1000.0f - 1.0f;
    for (size_t i = 0; i < (size_t)GEMM_ROWS * GEMM_SIDE; i++)
        x[i] = (float)(hash_bytes(&i, sizeof i, 2) % 2001) / 1000.0f - 1.0f;
    cpu_weight_pack(cpu, &w, 0, dense, w.n);
    do {
        double t = now_seconds();
        linear_cpu(cpu, y, x, &w, NULL, NULL, GEMM_ROWS, DTYPE_F32);
        end = now_seconds();
        best = TR_MAX(best, 2.0 * GEMM_ROWS * GEMM_SIDE * GEMM_SIDE / (end - t));
    } while (end - start < seconds);
    out->fp32_GFLOPs = best / 1e9;
out:
    mem_free(x);
    mem_free(y);
    mem_free(dense);
    mem_free(w.data);
    return rc;
}

int bench_ceilings(struct bench_ceilings *out, struct bench_stream *s, double seconds,
                   struct err *err)
{
    out->read_GBps = best_rate(s, read_chunk, STREAM_BYTES, seconds) / 1e9;
    out->copy_GBps = best_rate(s, copy_chunk, 2.0 * STREAM_BYTES, seconds) / 1e9;
    return measure_gemm(out, s->cpu, seconds, err);
}
