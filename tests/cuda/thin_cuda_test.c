/* Products of few rows in gemm_thin_cuda: beside the CPU; the same bits for a row whatever the
 * number of rows and its place; behind a kernel that lets it start early, the bits of a run behind
 * an idle device. That the bits are cuBLASLt's is proven by the engine at every open (cuda_thin.c)
 * and held by engine_cuda_test and sameness. With "bench": times. Needs a Hopper GPU; a plain
 * program. Exit 0: all held. usage: thin_cuda_test [bench] */
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/base.h"
#include "kernels/kernels_cuda.h"

enum { ROWS = THIN_ROWS_MAX, COPIES = 28 };
static int passed, failed;

static void verdict(bool ok, const char *name, double got, double limit)
{
    printf("%s %-66s %.3g (limit %.3g)\n", ok ? "ok  " : "FAIL", name, got, limit);
    fflush(stdout);
    ok ? passed++ : failed++;
}
static void must(int e, const char *what)
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
    const uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Host and device copies of one product's operands. */
struct rig {
    int n, k;
    bool bias, residual;
    uint16_t *hx, *hw, *hb, *hr, *got, *other;
    bf16 *x, *w, *b, *r, *out;
};

static void random_pair(uint16_t **host, bf16 **device, size_t n, float size)
{
    *host = malloc(n * 2);
    for (size_t i = 0; i < n; i++)
        (*host)[i] = narrow(uniform() * size);
    must(cudaMalloc((void **)device, n * 2), "memory");
    must(cudaMemcpy(*device, *host, n * 2, cudaMemcpyHostToDevice), "copy");
}

static void rig_open(struct rig *g, int n, int k, bool bias, bool residual)
{
    *g = (struct rig){.n = n, .k = k, .bias = bias, .residual = residual};
    random_pair(&g->hx, &g->x, (size_t)ROWS * (size_t)k, 1);
    random_pair(&g->hw, &g->w, (size_t)n * (size_t)k, 0.1f);
    random_pair(&g->hb, &g->b, (size_t)n, 1);
    random_pair(&g->hr, &g->r, (size_t)ROWS * (size_t)n, 4);
    must(cudaMalloc((void **)&g->out, (size_t)ROWS * (size_t)n * 2), "memory");
    g->got = malloc((size_t)ROWS * (size_t)n * 2);
    g->other = malloc((size_t)ROWS * (size_t)n * 2);
}

static void rig_close(struct rig *g)
{
    void *host[] = {g->hx, g->hw, g->hb, g->hr, g->got, g->other};
    void *device[] = {g->x, g->w, g->b, g->r, g->out};
    for (size_t i = 0; i < TR_COUNT(host); i++)
        free(host[i]);
    for (size_t i = 0; i < TR_COUNT(device); i++)
        cudaFree(device[i]);
}

/* Rows [first, first + rows) of x, into `to`; what is not written stays NaN. */
static void run(struct rig *g, int first, int rows, uint16_t *to)
{
    const size_t line = (size_t)g->n * 2;
    const struct thin_product p = {g->bias ? g->b : NULL,
                                   g->residual ? (bf16 *)g->r + (size_t)first * (size_t)g->n : NULL,
                                   rows, g->n, g->k};
    must(cudaMemset(g->out, 0xff, ROWS * line), "poison");
    must(gemm_thin_cuda(g->out, g->x + (size_t)first * (size_t)g->k, g->w, &p, NULL), "gemm_thin");
    must(cudaMemcpy(to, g->out, ROWS * line, cudaMemcpyDeviceToHost), "result");
}

static double wanted(const struct rig *g, int row, int output)
{
    double sum = g->bias ? widen(g->hb[output]) : 0;
    for (int i = 0; i < g->k; i++)
        sum += (double)widen(g->hx[(int64_t)row * g->k + i]) *
               widen(g->hw[(int64_t)output * g->k + i]);
    if (g->residual)
        sum = widen(narrow((float)sum)) + (double)widen(g->hr[(int64_t)row * g->n + output]);
    return sum;
}

static void reference_case(struct rig *g, const char *name)
{
    static const int rows[] = {0, 1, 15, 16, 31, 40, 63};
    double gap = 0, size = 0;
    char line[96];
    run(g, 0, ROWS, g->got);
    for (size_t i = 0; i < TR_COUNT(rows); i++)
        for (int o = 0; o < g->n; o++) {
            const double want = wanted(g, rows[i], o);
            const double d = widen(g->got[(int64_t)rows[i] * g->n + o]) - want;
            gap += d * d, size += want * want;
        }
    gap = isfinite(gap) ? sqrt(gap / size) : INFINITY;
    snprintf(line, sizeof line, "%s: beside fp64", name);
    verdict(gap < 4e-3, line, gap, 4e-3);
}

static void same_case(struct rig *g, const char *name)
{
    static const int counts[] = {1, 2, 8, 15, 16, 17, 31, 32, 33, 48, 63, ROWS};
    const size_t line = (size_t)g->n * 2;
    int differ = 0, beyond = 0;
    char text[96];
    for (size_t c = 0; c < TR_COUNT(counts); c++)
        for (int first = 0; first + counts[c] <= ROWS; first += 7) {
            run(g, first, counts[c], g->other);
            differ += memcmp(g->got + (size_t)first * (size_t)g->n, g->other,
                             (size_t)counts[c] * line) != 0;
            for (size_t i = (size_t)counts[c] * (size_t)g->n; i < (size_t)ROWS * (size_t)g->n; i++)
                beyond += g->other[i] != 0xffff;
        }
    snprintf(text, sizeof text, "%s: rows at 12 step sizes and other places", name);
    verdict(differ == 0, text, differ, 0);
    snprintf(text, sizeof text, "%s: nothing written beyond the rows", name);
    verdict(beyond == 0, text, beyond, 0);
}

/* x is made by the kernel ahead, which lets the product start while it runs; 200 turns. */
static void early_case(struct rig *g, const char *name)
{
    const struct thin_product p = {g->bias ? g->b : NULL, g->residual ? g->out : NULL, 16, g->n,
                                   g->k};
    const size_t bytes = 16 * (size_t)g->n * 2;
    bf16 *made;
    int differ = 0;
    char text[96];
    must(cudaMalloc((void **)&made, ROWS * (size_t)g->k * 2), "memory");
    for (int turn = 0; turn < 200; turn++) {
        /* Turn 0 waits for each kernel. */
        const bool slow = turn == 0;
        must(cudaMemset(made, 0xff, ROWS * (size_t)g->k * 2), "poison");
        must(cudaMemcpy(g->out, g->r, bytes, cudaMemcpyDeviceToDevice), "residual");
        must(cudaDeviceSynchronize(), "wait");
        must(swiglu_cuda(made, g->x, 16, g->k, NULL), "swiglu"); /* 16 rows of twice the width */
        if (slow)
            must(cudaDeviceSynchronize(), "swiglu");
        must(gemm_thin_cuda(g->out, made, g->w, &p, NULL), "gemm_thin");
        must(cudaMemcpy(slow ? g->got : g->other, g->out, bytes, cudaMemcpyDeviceToHost), "result");
        differ += !slow && memcmp(g->got, g->other, bytes) != 0;
    }
    cudaFree(made);
    snprintf(text, sizeof text, "%s: started early behind swiglu, 199 turns", name);
    verdict(differ == 0, text, differ, 0);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}
/* Median of 20 runs over 28 weights in a row, us a product. */
static double timed(const struct rig *g, const bf16 *w, int rows)
{
    enum { RUNS = 20 };
    const struct thin_product p = {NULL, g->residual ? g->out : NULL, rows, g->n, g->k};
    cudaEvent_t from, to;
    float ms[RUNS];
    cudaEventCreate(&from), cudaEventCreate(&to);
    for (int i = -3; i < RUNS; i++) {
        cudaEventRecord(from, NULL);
        for (int k = 0; k < COPIES; k++)
            must(
                gemm_thin_cuda(g->out, g->x, w + (size_t)k * (size_t)g->n * (size_t)g->k, &p, NULL),
                "gemm_thin");
        cudaEventRecord(to, NULL);
        cudaEventSynchronize(to);
        cudaEventElapsedTime(&ms[TR_MAX(i, 0)], from, to);
    }
    cudaEventDestroy(from), cudaEventDestroy(to);
    qsort(ms, RUNS, sizeof ms[0], by_value);
    return ms[RUNS / 2] * 1e3 / COPIES;
}

static void bench(void)
{
    static const int shapes[][2] = {{2048, 1536}, {1536, 1536}, {1536, 8960}};
    for (size_t s = 0; s < TR_COUNT(shapes); s++) {
        struct rig g;
        bf16 *w;
        rig_open(&g, shapes[s][0], shapes[s][1], false, true);
        const size_t bytes = (size_t)g.n * (size_t)g.k * 2;
        must(cudaMalloc((void **)&w, bytes * COPIES), "memory");
        for (int i = 0; i < COPIES; i++)
            must(cudaMemcpy((char *)w + (size_t)i * bytes, g.w, bytes, cudaMemcpyDeviceToDevice),
                 "weights");
        for (int rows = 1; rows <= ROWS; rows *= rows == 1 ? 16 : 2) {
            const double us = timed(&g, w, rows);
            printf("n %5d k %5d rows %2d: %6.2f us, weights at %.2f TB/s\n", g.n, g.k, rows, us,
                   (double)bytes / us * 1e-6);
        }
        cudaFree(w);
        rig_close(&g);
    }
}

int main(int argc, char **argv)
{
    static const struct {
        int n, k;
        bool bias, residual;
        const char *name;
    } cases[] = {{2048, 1536, true, false, "n 2048 k 1536, bias"},
                 {1536, 1536, false, true, "n 1536 k 1536, residual"},
                 {1536, 8960, false, true, "n 1536 k 8960, residual"},
                 {896, 4864, false, true, "n 896 k 4864, residual"},
                 {1152, 896, true, false, "n 1152 k 896, bias"},
                 {48, 64, false, false, "n 48 k 64"},
                 {16, 320, false, false, "n 16 k 320"}};
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench();
        return 0;
    }
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct rig g;
        rig_open(&g, cases[i].n, cases[i].k, cases[i].bias, cases[i].residual);
        reference_case(&g, cases[i].name);
        same_case(&g, cases[i].name);
        early_case(&g, cases[i].name);
        rig_close(&g);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
