/* The CUDA sampler against the CPU's: the same token from the same logits (one rule, one generator;
 * a rounding of exp may move a draw now and then), the same token wherever the row stands in a
 * launch, unsound rows refused, and the draws' frequencies. Needs a GPU; a plain program. Exit 0:
 * all held. usage: sampler_cuda_test [small] */
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/log.h"
#include "kernels/kernels_cuda.h"

enum { ROWS = 96, IDS_MAX = 8, HISTORY = 40 };
static int passed, failed;
static void verdict(bool ok, const char *name, double got, double limit)
{
    printf("%s %-72s %.3g (limit %.3g)\n", ok ? "ok  " : "FAIL", name, got, limit);
    ok ? passed++ : failed++;
}

static uint64_t state = 88172645463325252u;
static float uniform(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (float)((double)(state >> 11) / 9007199254740992.0 * 2 - 1);
}

enum shape { FLAT, PEAKED, STEPS, EQUAL, LATE };
static const char *const shape_names[] = {"flat", "peaked", "steps", "equal", "late"};
struct wish {
    int v;
    enum shape shape;
    float spread, temperature, top_p, min_p;
    int top_k, n_top;
    bool changed; /* bans, biases and penalties */
};

/* One row of logits: noise; some ids far above it; few distinct values; one value; or noise whose
 * greatest values all stand at the end. */
static void row_fill(float *x, const struct wish *w)
{
    for (int i = 0; i < w->v; i++) {
        const float noise = w->spread * (uniform() + uniform() + uniform());
        x[i] = w->shape == EQUAL   ? 1.5f
               : w->shape == STEPS ? roundf(noise)
               : w->shape == LATE  ? noise + (i >= w->v - 700 ? 4 * w->spread : 0)
                                   : noise;
    }
    for (int k = 0; w->shape == PEAKED && k < 12; k++)
        x[(int)((uniform() + 1) / 2 * (float)(w->v - 1))] = 14.f + 3.f * uniform();
}

struct rig {
    float *logits, *scratch, *bias;
    int32_t *ids, *last;
    uint16_t *counts;
    struct sample_cuda *params;
    struct sample_token *tokens;
};

static void *take(size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        printf("FAIL no device memory\n");
        exit(1);
    }
    return p;
}
static void rig_open(struct rig *r, int rows, int v, int64_t stride)
{
    r->logits = take((size_t)(rows * stride) * 4);
    r->scratch = take((size_t)(rows * stride) * 4);
    r->bias = take(IDS_MAX * 4);
    r->ids = take(IDS_MAX * 4);
    r->last = take((size_t)rows * 4);
    r->counts = take((size_t)rows * (size_t)v * 2);
    r->params = take((size_t)rows * sizeof *r->params);
    r->tokens = take((size_t)rows * sizeof *r->tokens);
    cudaMemset(r->counts, 0, (size_t)rows * (size_t)v * 2);
    cudaMemset(r->tokens, 0, (size_t)rows * sizeof *r->tokens);
    cudaMemset(r->logits, 0xff, (size_t)(rows * stride) * 4); /* NaN past a row's end */
}
static void rig_close(struct rig *r)
{
    cudaFree(r->logits), cudaFree(r->scratch), cudaFree(r->bias), cudaFree(r->ids);
    cudaFree(r->last), cudaFree(r->counts), cudaFree(r->params), cudaFree(r->tokens);
}
static void launch(const struct rig *r, int rows, int v, int64_t stride, struct sample_token *out)
{
    sample_cuda(r->logits, r->scratch, stride, v, r->params, r->tokens, r->counts, r->last, rows,
                0);
    const cudaError_t e =
        cudaMemcpy(out, r->tokens, (size_t)rows * sizeof *out, cudaMemcpyDeviceToHost);
    if (e != cudaSuccess) {
        printf("FAIL %s\n", cudaGetErrorString(e));
        exit(1);
    }
}

/* What both samplers are asked; the CPU's view of it. */
struct ask {
    struct sample_params params;
    int32_t ids[IDS_MAX]; /* 2 banned, 3 biased */
    float bias[3];
    int32_t history[HISTORY]; /* the first half is the prompt */
};
static void ask_fill(struct ask *a, const struct wish *w, int row)
{
    static const float bias[3] = {3.f, -50.f, 1.25f};
    *a = (struct ask){.params = {.temperature = w->temperature,
                                 .top_p = w->top_p,
                                 .min_p = w->min_p,
                                 .top_k = w->top_k,
                                 .n_top = w->n_top,
                                 .choice = 1,
                                 .repetition_penalty = w->changed ? 1.3f : 1.f,
                                 .frequency_penalty = w->changed ? 0.4f : 0.f,
                                 .presence_penalty = w->changed ? -0.2f : 0.f,
                                 .rng_key = 0x9E3779B97F4A7C15u * (uint64_t)(row + 1)}};
    for (int i = 0; i < 5; i++)
        a->ids[i] = (w->v / 7 * i + 5) % w->v;
    memcpy(a->bias, bias, sizeof bias);
    for (int i = 0; i < HISTORY; i++)
        a->history[i] = (int32_t)((int64_t)(row + 3) * (i % 17 + 1) * 7919 % w->v);
}

static void row_upload(const struct rig *r, const struct wish *w, const struct ask *a, int at,
                       int row, const float *x, int64_t stride)
{
    struct sample_cuda p = {.temperature = w->temperature,
                            .top_p = w->top_p,
                            .min_p = w->min_p,
                            .repetition_penalty = a->params.repetition_penalty,
                            .frequency_penalty = a->params.frequency_penalty,
                            .presence_penalty = a->params.presence_penalty,
                            .top_k = w->top_k,
                            .n_output = HISTORY / 2,
                            .forced = -1,
                            .n_top = w->n_top,
                            .slot = at,
                            .counts_row = w->changed ? at : -1,
                            .n_banned = w->changed ? 2 : 0,
                            .n_bias = w->changed ? 3 : 0,
                            .ids = r->ids,
                            .bias = r->bias,
                            .rng_key = 0x9E3779B97F4A7C15u * (uint64_t)(row + 1),
                            .choice = 1};
    uint16_t *counts = calloc((size_t)w->v, 2);
    for (int i = 0; i < HISTORY / 2; i++)
        counts[a->history[i]] = 0x8000;
    for (int i = HISTORY / 2; i < HISTORY; i++)
        counts[a->history[i]]++;
    cudaMemcpy(r->logits + at * stride, x, (size_t)w->v * 4, cudaMemcpyHostToDevice);
    cudaMemcpy(r->params + at, &p, sizeof p, cudaMemcpyHostToDevice);
    cudaMemcpy(r->counts + (int64_t)at * w->v, counts, (size_t)w->v * 2, cudaMemcpyHostToDevice);
    cudaMemcpy(r->ids, a->ids, sizeof a->ids, cudaMemcpyHostToDevice);
    cudaMemcpy(r->bias, a->bias, sizeof a->bias, cudaMemcpyHostToDevice);
    free(counts);
}

static bool same_bytes(const struct sample_token *a, const struct sample_token *b, int n_top)
{
    return a->id == b->id && memcmp(&a->logprob, &b->logprob, 4) == 0 && a->n_top == b->n_top &&
           (n_top <= 0 || (memcmp(a->top_ids, b->top_ids, (size_t)n_top * 4) == 0 &&
                           memcmp(a->top_logprobs, b->top_logprobs, (size_t)n_top * 4) == 0));
}

/* slack: rows that may differ from the CPU's. */
static void sampler_case(struct wish w, int slack)
{
    const int64_t stride = (w.v + 3) / 4 * 4;
    float *host = malloc((size_t)ROWS * (size_t)w.v * 4), *copy = malloc((size_t)w.v * 4);
    struct sample_token got[ROWS], again[ROWS];
    struct ask ask;
    struct rig r;
    void *space = malloc(sample_scratch_bytes(w.v));
    rig_open(&r, ROWS, w.v, stride);
    for (int row = 0; row < ROWS; row++)
        row_fill(host + (int64_t)row * w.v, &w);
    for (int turn = 0; turn < 2; turn++) { /* the second launch in reversed order */
        for (int at = 0; at < ROWS; at++) {
            const int row = turn ? ROWS - 1 - at : at;
            ask_fill(&ask, &w, row);
            row_upload(&r, &w, &ask, at, row, host + (int64_t)row * w.v, stride);
        }
        cudaDeviceSynchronize(); /* small pageable copies return before the bytes have arrived */
        launch(&r, ROWS, w.v, stride, turn ? again : got);
    }
    int agree = 0, same = 0, tops = 0;
    double gap = 0;
    for (int row = 0; row < ROWS; row++) {
        struct sample_token want;
        ask_fill(&ask, &w, row);
        ask.params.bias_ids = ask.ids + 2, ask.params.bias = ask.bias;
        ask.params.n_bias = w.changed ? 3 : 0;
        const struct sample_row asked = {.params = &ask.params,
                                         .prompt = ask.history,
                                         .output = ask.history + HISTORY / 2,
                                         .n_prompt = HISTORY / 2,
                                         .n_output = HISTORY / 2,
                                         .banned = ask.ids,
                                         .n_banned = w.changed ? 2 : 0,
                                         .forced = -1};
        memcpy(copy, host + (int64_t)row * w.v, (size_t)w.v * 4);
        sample_cpu(copy, w.v, &asked, &want, space);
        agree += got[row].id == want.id;
        if (got[row].id == want.id)
            gap = fmax(gap, fabs((double)got[row].logprob - want.logprob));
        same += same_bytes(&got[row], &again[ROWS - 1 - row], w.n_top);
        tops +=
            w.n_top <= 0 || (got[row].n_top == want.n_top &&
                             memcmp(got[row].top_ids, want.top_ids, (size_t)want.n_top * 4) == 0);
    }
    char name[160];
    snprintf(name, sizeof name, "V%d %s %.3g T%.1f p%.3g k%d m%.2f top%d%s: as the CPU", w.v,
             shape_names[w.shape], w.spread, w.temperature, w.top_p, w.top_k, w.min_p, w.n_top,
             w.changed ? " changed" : "");
    verdict(agree >= ROWS - slack && tops == ROWS && gap < 1e-3, name, ROWS - agree, slack);
    if (tops != ROWS || gap >= 1e-3)
        printf("     best ids right in %d of %d rows, logprobs differ by %.3g\n", tops, ROWS, gap);
    verdict(same == ROWS, "  the same anywhere in a launch", ROWS - same, 0);
    rig_close(&r);
    free(host), free(copy), free(space);
}

/* NaN, +infinity or nothing finite anywhere: id -1, whatever is asked. */
static void unsound_case(int v)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    const int64_t stride = (v + 3) / 4 * 4;
    int right = 0, n = 0;
    struct rig r;
    rig_open(&r, 1, v, stride);
    float *x = malloc((size_t)v * 4);
    for (int b = 0; b < 3; b++)
        for (int place = 0; place < 3; place++)
            for (int how = 0; how < 5; how++) {
                const struct wish w = {v,
                                       FLAT,
                                       1.f,
                                       how == 0 ? 0.f : 1.f,
                                       how == 2 ? 0.9f : 1.f,
                                       0.f,
                                       how == 3 ? 20 : 0,
                                       how == 4 ? 3 : -1,
                                       false};
                struct ask ask;
                struct sample_token t;
                row_fill(x, &w);
                for (int i = 0; b == 2 && i < v; i++)
                    x[i] = -INFINITY;
                x[place == 0 ? 0 : place == 1 ? v / 2 : v - 1] = bad[b];
                ask_fill(&ask, &w, 0);
                row_upload(&r, &w, &ask, 0, 0, x, stride);
                cudaDeviceSynchronize();
                launch(&r, 1, v, stride, &t);
                right += t.id == -1 && t.n_top == 0;
                n++;
            }
    verdict(right == n, "rows with NaN, infinity or nothing finite are refused", n - right, 0);
    rig_close(&r);
    free(x);
}

/* 2^15 draws from one row against their probabilities, in double: Pearson's chi-square, bound at
 * 5 standard deviations. */
static void frequency_case(float temperature, float top_p, int top_k)
{
    enum { V = 400, N = 32768 };
    double p[V], sum = 0, chi = 0;
    int order[V], seen[V] = {0}, kept = 0, outside = 0;
    struct rig r;
    struct wish w = {V, FLAT, 1.5f, temperature, top_p, 0.f, top_k, -1, false};
    float x[V];
    struct sample_token *tokens = malloc(N * sizeof *tokens);
    rig_open(&r, N, V, V);
    row_fill(x, &w);
    for (int i = 0; i < V; i++) {
        int k = i;
        for (; k > 0 && x[order[k - 1]] < x[i]; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    for (int k = 0; k < V; k++)
        sum += p[k] = k < (top_k > 0 ? top_k : V)
                          ? exp(((double)x[order[k]] - x[order[0]]) / temperature)
                          : 0;
    double ahead = 0, kept_mass = 0;
    for (; kept < V && p[kept] > 0 && ahead < sum * top_p; kept++)
        ahead += p[kept], kept_mass = ahead;
    struct sample_cuda *params = calloc(N, sizeof *params);
    for (int i = 0; i < N; i++) {
        params[i] = (struct sample_cuda){.temperature = temperature,
                                         .top_p = top_p,
                                         .repetition_penalty = 1,
                                         .top_k = top_k,
                                         .n_output = i % 7,
                                         .forced = -1,
                                         .n_top = -1,
                                         .slot = i,
                                         .counts_row = -1,
                                         .rng_key = (uint64_t)i * 0xD1B54A32D192ED03u + 5};
        cudaMemcpyAsync(r.logits + (int64_t)i * V, x, sizeof x, cudaMemcpyHostToDevice, 0);
    }
    cudaMemcpy(r.params, params, N * sizeof *params, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
    launch(&r, N, V, V, tokens);
    for (int i = 0; i < N; i++)
        seen[tokens[i].id < 0 ? 0 : tokens[i].id]++;
    for (int k = 0; k < V; k++) {
        const double want = N * p[k] / kept_mass;
        if (k >= kept)
            outside += seen[order[k]];
        else
            chi += (seen[order[k]] - want) * (seen[order[k]] - want) / want;
    }
    char name[128];
    snprintf(name, sizeof name, "frequencies T%.1f p%.2f k%d: %d ids kept, %d outside", temperature,
             top_p, top_k, kept, outside);
    const double limit = kept - 1 + 5 * sqrt(2.0 * (kept - 1) + 1);
    verdict(chi < limit && outside == 0, name, chi, limit);
    rig_close(&r);
    free(params), free(tokens);
}

/* A history of more than 2^15 of one id: the count stays at its greatest, the prompt's bit stays.
 */
static void counts_case(void)
{
    enum { V = 8, MANY = 40000 };
    int32_t *ids = calloc(MANY, sizeof *ids), *device = take(MANY * sizeof *ids);
    uint16_t *counts = take(V * sizeof *counts), got[V] = {0};
    struct counts_cuda job = {.ids = device, .n_prompt = 2, .n_output = MANY - 2}, *jobs;
    jobs = take(sizeof *jobs);
    for (int i = 0; i < MANY; i++)
        ids[i] = i == 0 ? 3 : i == 1 ? 5 : i < 10 ? 6 : 3;
    cudaMemcpy(device, ids, MANY * sizeof *ids, cudaMemcpyHostToDevice);
    cudaMemcpy(jobs, &job, sizeof job, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
    counts_cuda(counts, V, jobs, 1, 0);
    cudaMemcpy(got, counts, sizeof got, cudaMemcpyDeviceToHost);
    verdict(got[3] == 0xffff && got[5] == 0x8000 && got[6] == 8 && got[0] == 0,
            "counts of a history: 0x7fff at most", got[3], 0xffff);
    cudaFree(device), cudaFree(counts), cudaFree(jobs);
    free(ids);
}

static void cases_of(int v)
{
    const struct wish wishes[] = {
        {v, FLAT, 2.f, 0.f, 1.f, 0.f, 0, 5, false},
        {v, FLAT, 2.f, 0.f, 1.f, 0.f, 0, -1, false},
        {v, FLAT, 2.f, 1.f, 1.f, 0.f, 0, -1, false},
        {v, FLAT, 0.8f, 0.6f, 0.95f, 0.f, 0, -1, false},
        {v, FLAT, 2.f, 0.6f, 0.95f, 0.f, 0, 0, false},
        {v, FLAT, 8.f, 0.6f, 0.95f, 0.f, 0, 20, false},
        {v, PEAKED, 2.f, 0.6f, 0.95f, 0.f, 0, -1, false},
        {v, PEAKED, 2.f, 1.f, 0.9f, 0.f, 0, 20, false},
        {v, FLAT, 1.f, 0.8f, 0.1f, 0.f, 0, -1, false},
        {v, FLAT, 1.f, 0.8f, 0.001f, 0.f, 0, -1, false},
        {v, FLAT, 4.f, 1.3f, 0.8f, 0.f, 20, -1, false},
        {v, PEAKED, 2.f, 0.6f, 0.95f, 0.f, 20, 3, false},
        {v, FLAT, 4.f, 1.f, 1.f, 0.05f, 50, -1, false},
        {v, FLAT, 4.f, 1.f, 0.9f, 0.02f, 0, -1, false},
        {v, FLAT, 1e-3f, 1.f, 0.9f, 0.f, 1000, -1, false},
        {v, FLAT, 3.f, 1.f, 0.9f, 0.f, 600, 2, false},
        {v, LATE, 2.f, 1.f, 0.9f, 0.f, 200, 20, false},
        {v, STEPS, 2.f, 1.f, 0.9f, 0.f, 40, 20, false},
        {v, EQUAL, 1.f, 1.f, 0.5f, 0.f, 0, 20, false},
        {v, EQUAL, 1.f, 1.f, 0.5f, 0.f, 30, 4, false},
        {v, FLAT, 2.f, 0.6f, 0.95f, 0.f, 0, 4, true},
        {v, PEAKED, 2.f, 0.7f, 0.9f, 0.02f, 40, -1, true},
        {v, FLAT, 2.f, 0.f, 1.f, 0.f, 0, 0, true},
        /* fewer finite values than top_k keeps: two are banned */
        {v, FLAT, 2.f, 1.f, 1.f, 0.f, v - 1, -1, true},
        {v, FLAT, 2.f, 1.f, 0.9f, 0.f, v - 1, 0, true},
    };
    for (size_t i = 0; i < TR_COUNT(wishes); i++)
        sampler_case(wishes[i], 2);
}

int main(int argc, char **argv)
{
    log_setup(LOG_WARN, LOG_LOGFMT, 1);
    printf("device %s\n", backend_cuda_device_name(0));
    const cudaError_t e = cudaFree(NULL); /* the first call that needs the device */
    if (e != cudaSuccess) {
        printf("FAIL %s\n", cudaGetErrorString(e));
        return 1;
    }
    counts_case();
    cases_of(1000);
    unsound_case(1003);
    if (argc > 1 && strcmp(argv[1], "small") == 0)
        goto done;
    cases_of(32003);
    cases_of(151936);
    unsound_case(151936);
    frequency_case(1.f, 1.f, 0);
    frequency_case(0.6f, 0.95f, 0);
    frequency_case(1.3f, 0.6f, 0);
    frequency_case(1.f, 0.9f, 50);
done:
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
