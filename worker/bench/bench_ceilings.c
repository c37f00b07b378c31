/* bench_ceilings: what this machine can do at best, measured in the run that is compared with it.
 */
#include "worker/bench/bench.h"

#include <assert.h>

enum { STREAM_BYTES = 256 << 20, CHUNK_BYTES = 1 << 20, GEMM_ROWS = 256, GEMM_SIDE = 1024 };
static_assert(STREAM_BYTES % CHUNK_BYTES == 0, "whole chunks");

struct stream {
    const uint64_t *from;
    uint64_t *to;   /* copy target */
    uint64_t *sums; /* [chunks], so that no read can be left out */
};

static double now_seconds(void)
{
    return (double)clock_mono_ns(clock_system()) / 1e9;
}

/* Eight sums, so that the adds never wait for each other. */
static void read_chunk(void *ctx, int i)
{
    const struct stream *s = ctx;
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
    const struct stream *s = ctx;
    const size_t n = CHUNK_BYTES / sizeof *s->from;
    memcpy(s->to + (size_t)i * n, s->from + (size_t)i * n, CHUNK_BYTES);
}

/* Best pass in `seconds`: a neighbour on the machine only ever slows a pass down. */
static double best_rate(struct cpu *cpu, void (*task)(void *, int), struct stream *s, double bytes,
                        double seconds)
{
    double best = 0, start = now_seconds(), end;
    do {
        double t = now_seconds();
        cpu_run(cpu, STREAM_BYTES / CHUNK_BYTES, task, s);
        end = now_seconds();
        best = TR_MAX(best, bytes / (end - t));
    } while (end - start < seconds);
    return best;
}

static int measure_stream(struct bench_ceilings *out, struct cpu *cpu, double seconds,
                          struct err *err)
{
    struct stream s = {0};
    int rc = E_OK;
    uint64_t *from = mem_alloc(STREAM_BYTES, 1);
    s.from = from;
    s.to = mem_alloc(STREAM_BYTES, 1);
    s.sums = mem_alloc(STREAM_BYTES / CHUNK_BYTES, sizeof *s.sums);
    if (!from || !s.to || !s.sums) {
        rc = err_set(err, E_FATAL, "bench: no memory for two buffers of %d bytes", STREAM_BYTES);
        goto out;
    }
    for (size_t i = 0; i < STREAM_BYTES / sizeof *from; i++)
        from[i] = i * 0x9E3779B97F4A7C15u;
    out->read_GBps = best_rate(cpu, read_chunk, &s, STREAM_BYTES, seconds) / 1e9;
    out->copy_GBps = best_rate(cpu, copy_chunk, &s, 2.0 * STREAM_BYTES, seconds) / 1e9;
out:
    mem_free(from);
    mem_free(s.to);
    mem_free(s.sums);
    return rc;
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

int bench_ceilings(struct bench_ceilings *out, int threads, enum cpu_isa isa, double seconds,
                   struct err *err)
{
    struct cpu *cpu = cpu_open(threads, isa);
    if (!cpu)
        return err_set(err, E_FATAL, "bench: cannot start %d threads with %s", threads,
                       cpu_isa_name(isa));
    int rc = measure_stream(out, cpu, seconds, err);
    if (rc == E_OK)
        rc = measure_gemm(out, cpu, seconds, err);
    cpu_close(cpu);
    return rc;
}
