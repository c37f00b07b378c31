/* Time of the CUDA sampler on this card, beside one read of its logits at the copy's rate measured
 * in the same run. Flat logits are those of random weights, peaked ones those of a trained model.
 * Medians of 20. Not a test: prints a table. usage: sampler_cuda_bench [ROWS] */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "kernels/kernels_cuda.h"

enum { RUNS = 20, V = 151936, LINES = 16 };

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

struct timer {
    cudaEvent_t from, to;
    float ms[RUNS];
};
#define TIMED(t, call)                                                                             \
    for (int run_ = -3; run_ < RUNS; run_++) {                                                     \
        cudaEventRecord((t)->from, 0);                                                             \
        call;                                                                                      \
        cudaEventRecord((t)->to, 0);                                                               \
        cudaEventSynchronize((t)->to);                                                             \
        cudaEventElapsedTime(&(t)->ms[TR_MAX(run_, 0)], (t)->from, (t)->to);                       \
    }                                                                                              \
    qsort((t)->ms, RUNS, sizeof(t)->ms[0], by_value)

static double copy_rate(struct timer *t)
{
    void *a, *b;
    const size_t bytes = (size_t)4 << 30;
    cudaMalloc(&a, bytes);
    cudaMalloc(&b, bytes);
    cudaMemset(a, 0x35, bytes);
    TIMED(t, cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, 0));
    cudaFree(a);
    cudaFree(b);
    return 2.0 * (double)bytes / t->ms[RUNS / 2] * 1e-9; /* TB/s */
}

static float noise(float sd)
{
    float s = 0;
    for (int k = 0; k < 6; k++)
        s += (float)rand() / (float)RAND_MAX - 0.5f;
    return s * sd * 1.41421f; /* roughly normal */
}

static void logits_fill(float *logits, int rows, float sd, bool peaked)
{
    float *line = malloc((size_t)V * 4 * LINES);
    for (int i = 0; i < V * LINES; i++)
        line[i] = noise(sd);
    for (int r = 0; r < LINES && peaked; r++)
        for (int k = 0; k < 40; k++) /* the best at 20, then falling by a half to one nat */
            line[r * V + rand() % V] = 20.f - (float)k * (0.5f + 0.03f * (float)r);
    for (int r = 0; r < rows; r += LINES)
        cudaMemcpy(logits + (int64_t)r * V, line, (size_t)TR_MIN(LINES, rows - r) * V * 4,
                   cudaMemcpyHostToDevice);
    free(line);
}

struct wish {
    float temperature, top_p, min_p;
    int top_k, n_top;
};

static void sampler_row(float *logits, float *scratch, int rows, const char *shape,
                        const struct wish *w, double copy, struct timer *t)
{
    struct sample_cuda *params, *host = calloc((size_t)rows, sizeof *host);
    struct sample_token *tokens;
    int32_t *last;
    cudaMalloc((void **)&params, (size_t)rows * sizeof *params);
    cudaMalloc((void **)&tokens, (size_t)rows * sizeof *tokens);
    cudaMalloc((void **)&last, (size_t)rows * 4);
    for (int r = 0; r < rows; r++)
        host[r] = (struct sample_cuda){.temperature = w->temperature,
                                       .top_p = w->top_p,
                                       .min_p = w->min_p,
                                       .repetition_penalty = 1,
                                       .top_k = w->top_k,
                                       .n_output = 5,
                                       .forced = -1,
                                       .n_top = w->n_top,
                                       .slot = r,
                                       .counts_row = -1,
                                       .rng_key = (uint64_t)r * 77777};
    cudaMemcpy(params, host, (size_t)rows * sizeof *params, cudaMemcpyHostToDevice);
    TIMED(t, sample_cuda(logits, scratch, V, V, params, tokens, NULL, last, rows, 0));
    const double ms = t->ms[RUNS / 2], floor_ms = (double)rows * V * 4 / copy * 1e-9;
    printf(
        "%5d rows %-9s T %.1f top_p %.2f min_p %.2f top_k %2d top %2d  %8.1f us  %5.1f %% of one "
        "read\n",
        rows, shape, w->temperature, w->top_p, w->min_p, w->top_k, w->n_top, ms * 1e3,
        100 * floor_ms / ms);
    fflush(stdout);
    cudaFree(params), cudaFree(tokens), cudaFree(last);
    free(host);
}

int main(int argc, char **argv)
{
    static const struct wish wishes[] = {
        {0.f, 1.f, 0.f, 0, -1},     {0.f, 1.f, 0.f, 0, 0},     {1.f, 1.f, 0.f, 0, -1},
        {0.6f, 0.95f, 0.f, 0, -1},  {0.6f, 0.95f, 0.f, 0, 0},  {0.6f, 0.95f, 0.f, 0, 5},
        {0.6f, 0.95f, 0.f, 20, -1}, {0.6f, 1.f, 0.05f, 0, -1}, {0.6f, 0.5f, 0.f, 0, -1}};
    const int rows = argc > 1 ? atoi(argv[1]) : 1408;
    struct timer t;
    float *logits, *scratch;
    cudaEventCreate(&t.from);
    cudaEventCreate(&t.to);
    const double copy = copy_rate(&t);
    printf("%s: copy %.2f TB/s\n", backend_cuda_device_name(0), copy);
    cudaMalloc((void **)&logits, (size_t)rows * V * 4);
    cudaMalloc((void **)&scratch, (size_t)rows * V * 4);
    static const char *const names[] = {"flat 0.8", "flat 2.5", "peaked"};
    for (int shape = 0; shape < 3; shape++) {
        logits_fill(logits, rows, shape == 0 ? 0.8f : 2.5f, shape == 2);
        for (size_t i = 0; i < TR_COUNT(wishes); i++)
            sampler_row(logits, scratch, rows, names[shape], &wishes[i], copy, &t);
    }
    const cudaError_t e = cudaDeviceSynchronize();
    printf("%s\n", cudaGetErrorString(e));
    return e != cudaSuccess;
}
