/* The product with SwiGLU in its epilogue: beside the CPU, and bit for bit beside cuBLASLt's
 * product and swiglu_cuda; each row the same at every step size and at another place. With "bench":
 * times. Needs a Hopper GPU; a plain program. Exit 0: all held. usage: gemm_cuda_test [small |
 * fused | bench] (fused: that kernel alone, for compute-sanitizer) */
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/log.h"
#include "kernels/kernels_cuda.h"

enum { ROWS = 2816, SMS = 132 };
static int passed, failed;
static void verdict(bool ok, const char *name, double got, double limit)
{
    printf("%s %-66s %.3g (limit %.3g)\n", ok ? "ok  " : "FAIL", name, got, limit);
    fflush(stdout);
    ok ? passed++ : failed++;
}
static void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}
static void must_cuda(int e, const char *what)
{
    if (e != cudaSuccess) {
        printf("FAIL %s: %s\n", what, cudaGetErrorString((cudaError_t)e));
        exit(1);
    }
}

static uint64_t state = 88172645463325252u;
static float uniform(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (float)((double)(state >> 11) / 9007199254740992.0 * 2 - 1);
}
static uint16_t narrow(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static float widen(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

struct rig {
    struct backend *b;
    struct buffer x, gate_up, act, fused;
    struct weight *w;
    uint16_t *hx, *hw, *out, *other;
    int k, f;
    void *w_data;
};

static void rig_open(struct rig *r, int k, int f)
{
    struct err err = {0};
    *r = (struct rig){.k = k, .f = f};
    const struct backend_opts o = {.rows_cap = ROWS,
                                   .logits_cap = 16,
                                   .n_layers = 1,
                                   .slots = 64,
                                   .n_pages = 64,
                                   .pages_per_slot = 64,
                                   .n_heads = 4,
                                   .n_kv_heads = 2,
                                   .head_dim = 64,
                                   .vocab_size = 1000,
                                   .dtype = DTYPE_BF16};
    must(backend_cuda_open(&r->b, &o, 0, &err), &err);
    must(r->b->ops->buffer_open(r->b, &r->x, ROWS, k, &err), &err);
    must(r->b->ops->buffer_open(r->b, &r->gate_up, ROWS, 2 * f, &err), &err);
    must(r->b->ops->buffer_open(r->b, &r->act, ROWS, f, &err), &err);
    must(r->b->ops->buffer_open(r->b, &r->fused, ROWS, f, &err), &err);
    must(r->b->ops->weight_open(r->b, &r->w, 2 * f, k, DTYPE_BF16, &err), &err);
    r->hx = malloc((size_t)ROWS * (size_t)k * 2);
    r->hw = malloc((size_t)2 * (size_t)f * (size_t)k * 2);
    r->out = malloc((size_t)ROWS * (size_t)f * 2);
    r->other = malloc((size_t)ROWS * (size_t)f * 2);
    for (int64_t i = 0; i < (int64_t)ROWS * k; i++)
        r->hx[i] = narrow(uniform());
    for (int64_t i = 0; i < (int64_t)2 * f * k; i++)
        r->hw[i] = narrow(uniform() * 0.1f);
    must(r->b->ops->weight_load(r->b, r->w, 0, r->hw, 2 * f, &err), &err);
    cudaMalloc(&r->w_data, (size_t)2 * (size_t)f * (size_t)k * 2);
    cudaMemcpy(r->w_data, r->hw, (size_t)2 * (size_t)f * (size_t)k * 2, cudaMemcpyHostToDevice);
    cudaMemcpy(r->x.data, r->hx, (size_t)ROWS * (size_t)k * 2, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
}
static void rig_close(struct rig *r)
{
    r->b->ops->close(r->b);
    cudaFree(r->w_data);
    free(r->hx), free(r->hw), free(r->out), free(r->other);
}

static void fused_run(struct rig *r, int rows)
{
    must_cuda(gemm_swiglu_cuda(r->fused.data, r->x.data, r->w_data, rows, r->f, r->k, SMS,
                               backend_cuda_stream(r->b)),
              "gemm_swiglu");
}
static void fused_to(struct rig *r, int rows, uint16_t *out)
{
    cudaMemset(r->fused.data, 0xff, (size_t)ROWS * (size_t)r->f * 2); /* NaN: all is written */
    cudaDeviceSynchronize();
    fused_run(r, rows);
    must_cuda(cudaDeviceSynchronize(), "gemm_swiglu");
    cudaMemcpy(out, r->fused.data, (size_t)rows * (size_t)r->f * 2, cudaMemcpyDeviceToHost);
}
/* A step of `rows` rows, so that the backend's ops take as many. */
static void step_open(struct rig *r, int rows)
{
    static int32_t zeros[ROWS], slots[ROWS], positions[ROWS], table[64 * 64];
    struct err err = {0};
    for (int i = 0; i < rows; i++)
        slots[i] = i / 64, positions[i] = i % 64;
    static struct step step; /* the backend keeps it until the step's end */
    step = (struct step){.rows = {rows, positions, slots, table, 64}, .tokens = zeros};
    must(r->b->ops->step_begin(r->b, &step, &err), &err);
}
static void step_close(struct rig *r)
{
    struct err err = {0};
    struct sample_token none[1];
    must(r->b->ops->step_end(r->b, none, &err), &err);
}
static void swiglu_run(struct rig *r, int rows)
{
    must_cuda(swiglu_cuda(r->act.data, r->gate_up.data, rows, r->f, backend_cuda_stream(r->b)),
              "swiglu");
}
static void parts_run(struct rig *r, int rows)
{
    r->b->ops->linear(r->b, &r->gate_up, &r->x, r->w, NULL, NULL);
    swiglu_run(r, rows);
}

static void cpu_case(struct rig *r, int rows)
{
    struct cpu *cpu = cpu_open(8, cpu_isa_best());
    struct cpu_weight cw = {.dtype = DTYPE_BF16, .n = 2 * r->f, .k = r->k};
    cw.data = mem_alloc(cpu_weight_bytes(2 * r->f, r->k, DTYPE_BF16), 1);
    cpu_weight_pack(cpu, &cw, 0, r->hw, 2 * r->f);
    float *x = malloc((size_t)rows * (size_t)r->k * 4),
          *gate_up = malloc((size_t)rows * (size_t)r->f * 8),
          *want = malloc((size_t)rows * (size_t)r->f * 4);
    for (int64_t i = 0; i < (int64_t)rows * r->k; i++)
        x[i] = widen(r->hx[i]);
    linear_cpu(cpu, gate_up, x, &cw, NULL, NULL, rows, DTYPE_BF16);
    swiglu_cpu(cpu, want, gate_up, rows, r->f, DTYPE_BF16);
    fused_to(r, rows, r->out);
    double gap = 0, size = 0;
    for (int64_t i = 0; i < (int64_t)rows * r->f; i++) {
        const double d = (double)widen(r->out[i]) - want[i];
        gap += d * d, size += (double)want[i] * want[i];
    }
    char name[96];
    snprintf(name, sizeof name, "K %d F %d, %d rows: CPU", r->k, r->f, rows);
    gap = isfinite(gap) ? sqrt(gap / size) : INFINITY;
    verdict(gap < 5e-3, name, gap, 5e-3);
    free(x), free(gate_up), free(want);
    mem_free(cw.data);
    cpu_close(cpu);
}

static void same_case(struct rig *r)
{
    static const int counts[] = {1, 2, 63, 64, 129, 256, 257, 700, 1408, ROWS};
    const size_t line = (size_t)r->f * 2;
    char name[96];
    fused_to(r, ROWS, r->out);
    int64_t differ = 0;
    step_open(r, ROWS);
    parts_run(r, ROWS);
    step_close(r);
    cudaDeviceSynchronize();
    cudaMemcpy(r->other, r->act.data, ROWS * line, cudaMemcpyDeviceToHost);
    for (int64_t i = 0; i < (int64_t)ROWS * r->f; i++)
        differ += r->out[i] != r->other[i];
    snprintf(name, sizeof name, "K %d F %d: the bits of cuBLASLt and swiglu_cuda", r->k, r->f);
    verdict(differ == 0, name, (double)differ, 0);
    differ = 0;
    for (size_t c = 0; c < TR_COUNT(counts); c++)
        for (int turn = 0; turn < 3; turn++) {
            fused_to(r, counts[c], r->other);
            differ += memcmp(r->out, r->other, (size_t)counts[c] * line) != 0;
        }
    snprintf(name, sizeof name, "K %d F %d: rows at 10 step sizes", r->k, r->f);
    verdict(differ == 0, name, (double)differ, 0);
    /* The same rows 37 places on. */
    enum { ON = 37 };
    cudaMemcpy((char *)r->x.data + (size_t)ON * (size_t)r->k * 2, r->hx,
               (size_t)(ROWS - ON) * (size_t)r->k * 2, cudaMemcpyHostToDevice);
    fused_to(r, ROWS, r->other);
    differ = memcmp(r->out, r->other + (size_t)ON * (size_t)r->f, (ROWS - ON) * line) != 0;
    snprintf(name, sizeof name, "K %d F %d: rows at other places", r->k, r->f);
    verdict(differ == 0, name, (double)differ, 0);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}
/* Median of 20 runs of 10 each, us a run. */
static double timed(struct rig *r, int rows, int what)
{
    enum { RUNS = 20, EACH = 10 };
    cudaEvent_t from, to;
    float ms[RUNS];
    cudaEventCreate(&from), cudaEventCreate(&to);
    cudaStream_t stream = backend_cuda_stream(r->b);
    for (int i = -3; i < RUNS; i++) {
        cudaEventRecord(from, stream);
        for (int k = 0; k < EACH; k++) {
            if (what == 0)
                fused_run(r, rows);
            if (what == 1 || what == 3)
                r->b->ops->linear(r->b, &r->gate_up, &r->x, r->w, NULL, NULL);
            if (what == 2 || what == 3)
                swiglu_run(r, rows);
        }
        cudaEventRecord(to, stream);
        cudaEventSynchronize(to);
        cudaEventElapsedTime(&ms[TR_MAX(i, 0)], from, to);
    }
    cudaEventDestroy(from), cudaEventDestroy(to);
    qsort(ms, RUNS, sizeof ms[0], by_value);
    return ms[RUNS / 2] * 1e3 / EACH;
}

static void bench(void)
{
    static const int counts[] = {16, 64, 128, 256, 512, 704, 1024, 1408, 2048, ROWS};
    struct rig r;
    rig_open(&r, 1536, 8960);
    printf("rows   product  TFLOP/s   swiglu   both    fused  TFLOP/s  (us)\n");
    for (size_t c = 0; c < TR_COUNT(counts); c++) {
        const int rows = counts[c];
        const double flop = 4.0 * rows * 1536 * 8960;
        step_open(&r, rows);
        r.b->ops->linear(r.b, &r.gate_up, &r.x, r.w, NULL, NULL); /* makes the plan */
        const double product = timed(&r, rows, 1), swiglu = timed(&r, rows, 2),
                     both = timed(&r, rows, 3), fused = timed(&r, rows, 0);
        step_close(&r);
        printf("%5d  %7.1f  %7.0f  %7.1f  %7.1f  %7.1f  %7.0f\n", rows, product,
               flop / product * 1e-6, swiglu, both, fused, flop / fused * 1e-6);
        fflush(stdout);
    }
    rig_close(&r);
}

int main(int argc, char **argv)
{
    static const int shapes[][2] = {{1536, 8960}, {896, 4864}, {512, 128}, {576, 640}};
    log_setup(LOG_WARN, LOG_LOGFMT, 1);
    printf("device %s\n", backend_cuda_device_name(0));
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench();
        return 0;
    }
    for (size_t i = argc > 1 ? 2 : 0; i < TR_COUNT(shapes); i++) {
        struct rig r;
        rig_open(&r, shapes[i][0], shapes[i][1]);
        cpu_case(&r, 130);
        if (argc > 1 && strcmp(argv[1], "fused") == 0)
            cpu_case(&r, 700);
        else
            same_case(&r);
        rig_close(&r);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
