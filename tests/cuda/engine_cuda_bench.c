/* The engine on a GPU, end to end: W1 (128 in, 128 out), W2 (512 in, lognormal out, mean 1024,
 * sigma 0.8, cap 8192), W3 (1000 shared + 100 in, 64 out), as shares of the sequential bf16
 * roofline with ceilings measured in the same run; and the time of each op in a step of each
 * workload's steady state. Random weights, ignore_eos. A plain program. usage: engine_cuda_bench
 * MODEL_DIR WORKLOADS [SHARE] : WORKLOADS a set of letters out of 1, 2, 3 (the run) and a, b, c
 * (one step of W1, W2, W3 by op); SHARE scales the number of requests */
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/engine.h"
#include "engine/log.h"
#include "engine/model.h"

static struct model *model;
static double copy_bytes_s, gemm_flop_s; /* the ceilings */

static void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}
static double now_s(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}
static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* ---- ceilings ---- */
struct square { /* 8192^3 bf16, random data */
    cublasLtHandle_t blas;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulHeuristicResult_t found;
    void *a, *b, *c, *space;
};
enum { EDGE = 8192, SPACE = 32 << 20 };

static void noise_fill(void *device, size_t bytes)
{
    static uint16_t noise[1 << 20];
    for (size_t i = 0; i < TR_COUNT(noise); i++)
        noise[i] = (uint16_t)((rand() & 0x80ff) | 0x3e00 | (rand() & 0x100));
    for (size_t at = 0; at < bytes; at += sizeof noise)
        cudaMemcpy((char *)device + at, noise, TR_MIN(sizeof noise, bytes - at),
                   cudaMemcpyHostToDevice);
}

static void square_open(struct square *s)
{
    const cublasOperation_t t = CUBLAS_OP_T;
    const size_t bytes = (size_t)EDGE * EDGE * 2, space = SPACE;
    cublasLtMatmulPreference_t pref;
    int n = 0;
    cublasLtCreate(&s->blas);
    cublasLtMatmulDescCreate(&s->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(s->desc, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    cublasLtMatrixLayoutCreate(&s->layout, CUDA_R_16BF, EDGE, EDGE, EDGE);
    cublasLtMatmulPreferenceCreate(&pref);
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space,
                                         sizeof space);
    cublasLtMatmulAlgoGetHeuristic(s->blas, s->desc, s->layout, s->layout, s->layout, s->layout,
                                   pref, 1, &s->found, &n);
    cublasLtMatmulPreferenceDestroy(pref);
    cudaMalloc(&s->a, bytes), cudaMalloc(&s->b, bytes), cudaMalloc(&s->c, bytes);
    cudaMalloc(&s->space, space);
    noise_fill(s->a, bytes), noise_fill(s->b, bytes);
}

static void square_run(struct square *s)
{
    const float one = 1, zero = 0;
    cublasLtMatmul(s->blas, s->desc, &one, s->a, s->layout, s->b, s->layout, &zero, s->c, s->layout,
                   s->c, s->layout, &s->found.algo, s->space, SPACE, 0);
}

static void ceilings(void)
{
    enum { RUNS = 15 };
    struct square s;
    cudaEvent_t from, to;
    void *a, *b;
    float copy_ms[RUNS], gemm_ms[RUNS];
    const size_t bytes = (size_t)4 << 30;
    cudaEventCreate(&from), cudaEventCreate(&to);
    square_open(&s);
    cudaMalloc(&a, bytes), cudaMalloc(&b, bytes);
    noise_fill(a, bytes / 8);
    for (int i = -3; i < RUNS; i++) {
        const int k = TR_MAX(i, 0);
        cudaEventRecord(from, 0);
        cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, 0);
        cudaEventRecord(to, 0), cudaEventSynchronize(to);
        cudaEventElapsedTime(&copy_ms[k], from, to);
        cudaEventRecord(from, 0);
        square_run(&s);
        cudaEventRecord(to, 0), cudaEventSynchronize(to);
        cudaEventElapsedTime(&gemm_ms[k], from, to);
    }
    qsort(copy_ms, RUNS, sizeof copy_ms[0], by_value);
    qsort(gemm_ms, RUNS, sizeof gemm_ms[0], by_value);
    copy_bytes_s = 2.0 * (double)bytes / copy_ms[RUNS / 2] * 1e3;
    gemm_flop_s = 2.0 * EDGE * EDGE * EDGE / gemm_ms[RUNS / 2] * 1e3;
    printf("%s: copy %.3f TB/s, 8192^3 bf16 %.0f TFLOP/s\n", backend_cuda_device_name(0),
           copy_bytes_s * 1e-12, gemm_flop_s * 1e-12);
    cudaFree(a), cudaFree(b), cudaFree(s.a), cudaFree(s.b), cudaFree(s.c), cudaFree(s.space);
    cublasLtMatmulDescDestroy(s.desc), cublasLtMatrixLayoutDestroy(s.layout);
    cublasLtDestroy(s.blas);
    cudaEventDestroy(from), cudaEventDestroy(to);
}

/* ---- the roofline ---- */
struct workload {
    const char *name;
    int32_t shared, own, requests, out; /* out 0: lognormal */
};

/* Seconds of the sequential roofline for one request with g of its tokens done: products at the
 * square's rate, attention on tensor cores at 450 TFLOP/s, keys, logits (bf16, written and read)
 * and weights (shared by 2,048 rows) at the copy's rate. A shared prefix is read once by 2,048
 * rows. */
static double roofline_s(const struct workload *w, double g)
{
    const struct model_config *c = model_config(model);
    const double d = c->hidden, hd = (double)c->n_heads * c->head_dim,
                 kvd = (double)c->n_kv_heads * c->head_dim, layers = c->n_layers;
    const double body = layers * (d * hd * 2 + d * kvd * 2 + 3 * d * c->inner);
    const double head = d * (double)c->vocab_size, kv = 4 * kvd * layers, pair = 4 * hd * layers;
    const double p = w->own, s = w->shared, b = 2048;
    if (g < 1)
        return 0;
    const double flop = 2 * body * (p + g - 1) + 2 * head * g;
    const double attention = pair * (s * p + p * p / 2 + s * (g - 1));
    const double keys = kv * ((g - 1) * p + (g - 1) * g / 2) + kv * s * (g - 1) / b;
    const double other = 4 * (double)c->vocab_size * g + 2 * (body + head) * g / b;
    return flop / gemm_flop_s + attention / 450e12 + (keys + other) / copy_bytes_s;
}

/* ---- a run ---- */
struct job {
    int32_t *prompt, *ids;
    struct generated out;
    struct request r;
};

static int32_t lognormal(uint32_t i)
{
    const double u = ((double)(i * 2654435761u >> 8) + 0.5) / 16777216.0;
    const double v = ((double)(i * 2246822519u >> 8) + 0.5) / 16777216.0;
    const double z = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
    return (int32_t)fmin(8192, fmax(1, exp(log(1024.0) - 0.32 + 0.8 * z)));
}

static struct job *jobs_make(const struct workload *w)
{
    struct job *jobs = calloc((size_t)w->requests, sizeof *jobs);
    const int64_t vocab = model_config(model)->vocab_size;
    for (int32_t i = 0; i < w->requests; i++) {
        struct job *j = &jobs[i];
        const int32_t n = w->shared + w->own,
                      out = w->out > 0 ? w->out : lognormal((uint32_t)i + 1);
        j->prompt = malloc((size_t)n * 4);
        j->ids = malloc((size_t)out * 4);
        for (int32_t k = 0; k < n; k++)
            j->prompt[k] =
                (int32_t)(hash_bytes(&k, 4, k < w->shared ? 1 : (uint64_t)i + 2) % (uint64_t)vocab);
        j->out = (struct generated){.cap = out, .ids = j->ids};
        j->r = (struct request){
            .tag = (uint64_t)i, .prompt = j->prompt, .n_prompt = n, .out = &j->out};
        sampling_init(&j->r.sampling);
        j->r.sampling.max_tokens = out;
        j->r.sampling.ignore_eos = true;
        j->r.sampling.params.n_top = -1;
        j->r.sampling.params.temperature = 0.6f;
        j->r.sampling.params.top_p = 0.95f;
        j->r.sampling.params.rng_key = (uint64_t)i * 0x9E3779B97F4A7C15u;
    }
    return jobs;
}

static double work_s(const struct workload *w, const struct job *jobs, int64_t *tokens)
{
    double s = 0;
    *tokens = 0;
    for (int32_t i = 0; i < w->requests; i++) {
        s += roofline_s(w, jobs[i].out.n);
        *tokens += jobs[i].out.n;
    }
    return s;
}

static void workload_run(struct workload w, double scale)
{
    struct engine *e = NULL;
    struct err err = {0};
    struct finished f[512];
    w.requests = (int32_t)(w.requests * scale);
    struct job *jobs = jobs_make(&w);
    struct engine_opts o = {.kind = ENGINE_CUDA, .model = model, .max_model_len = 8832};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    const double opening = now_s();
    must(engine_open(&e, &o, &err), &err);
    struct engine_stats st;
    engine_stats(e, &st);
    printf("%s: engine open in %.2f s, %d slots, %d pages\n", w.name, now_s() - opening, st.slots,
           st.pages);
    const double start = now_s();
    double from_s = 0, to_s = 0, from_work = 0, to_work = 0;
    int64_t from_tokens = 0, to_tokens = 0, tokens, from_steps = 0, to_steps = 0, rows = 0,
            full = 0;
    for (int32_t at = 0; at < w.requests || !engine_idle(e);) {
        while (at < w.requests && engine_submit(e, &jobs[at].r, &err) == ENGINE_ACCEPTED)
            at++;
        engine_stats(e, &st);
        full += st.rows - rows == 2816;
        rows = st.rows;
        if (from_s == 0 && full > 70) {
            from_s = now_s(), from_steps = st.steps;
            from_work = work_s(&w, jobs, &from_tokens);
        }
        if (to_s == 0 && from_s > 0 && at == w.requests && st.waiting == 0) {
            to_s = now_s(), to_steps = st.steps;
            to_work = work_s(&w, jobs, &to_tokens);
            if (w.out == 0)
                break; /* a drain as long as the longest answer says little */
        }
        must(engine_step(e, f, 512, &err), &err);
    }
    const double whole = now_s() - start, ideal = work_s(&w, jobs, &tokens);
    printf("%s: %d requests, %lld tokens in %.2f s: %.1f k tok/s, %.1f %% of R_seq whole\n", w.name,
           w.requests, (long long)tokens, whole, (double)tokens / whole * 1e-3,
           100 * ideal / whole);
    if (to_s > from_s)
        printf("%s: steady %.2f s, %lld steps of %.2f ms: %.1f k tok/s, share_r_seq %.1f %%\n",
               w.name, to_s - from_s, (long long)(to_steps - from_steps),
               1e3 * (to_s - from_s) / (double)TR_MAX(1, to_steps - from_steps),
               (double)(to_tokens - from_tokens) / (to_s - from_s) * 1e-3,
               100 * (to_work - from_work) / (to_s - from_s));
    fflush(stdout);
    engine_stats(e, &st);
    printf("%s: steps %lld, rows %lld, evictions %lld, cached rows %lld\n", w.name,
           (long long)st.steps, (long long)st.rows, (long long)st.evictions,
           (long long)st.cached_rows);
    engine_close(e);
    for (int32_t i = 0; i < w.requests; i++)
        free(jobs[i].prompt), free(jobs[i].ids);
    free(jobs);
}

/* ---- one step by op ---- */
enum { MARKS = 1024 };
static const struct backend_ops *real_ops;
static struct {
    cudaEvent_t at[MARKS];
    const char *what[MARKS];
    int n;
    cudaStream_t stream;
} marks;

static void mark(const char *what)
{
    if (marks.n < MARKS) {
        marks.what[marks.n] = what;
        cudaEventRecord(marks.at[marks.n++], marks.stream);
    }
}
static int timed_begin(struct backend *b, const struct step *s, struct err *err)
{
    marks.n = 0;
    mark("upload");
    return real_ops->step_begin(b, s, err);
}
static void timed_embed(struct backend *b, struct buffer *out, const struct weight *table)
{
    mark("embed");
    real_ops->embed(b, out, table);
}
static void timed_rmsnorm(struct backend *b, struct buffer *out, const struct buffer *x,
                          const float *w, float eps)
{
    mark("rmsnorm");
    real_ops->rmsnorm(b, out, x, w, eps);
}
static void timed_linear(struct backend *b, struct buffer *out, const struct buffer *x,
                         const struct weight *w, const float *bias, const struct buffer *residual)
{
    mark(residual ? x->cols > out->cols ? "gemm down" : "gemm o"
         : bias   ? "gemm qkv"
                  : "gemm gate_up");
    real_ops->linear(b, out, x, w, bias, residual);
}
static void timed_rope(struct backend *b, struct buffer *qkv, int32_t layer,
                       const struct rope_args *a)
{
    mark("rope");
    real_ops->rope_kv(b, qkv, layer, a);
}
static void timed_attention(struct backend *b, struct buffer *out, const struct buffer *qkv,
                            int32_t layer, const struct attention_shape *s)
{
    mark("attention");
    real_ops->attention(b, out, qkv, layer, s);
}
static void timed_swiglu(struct backend *b, struct buffer *out, const struct buffer *gate_up)
{
    mark("swiglu");
    real_ops->swiglu(b, out, gate_up);
}
static void timed_head(struct backend *b, const struct buffer *x, struct buffer *scratch,
                       const float *norm, float eps, const struct weight *head)
{
    mark("head + sampler");
    real_ops->head(b, x, scratch, norm, eps, head);
}
static int timed_end(struct backend *b, struct sample_token *tokens, struct err *err)
{
    mark("end");
    return real_ops->step_end(b, tokens, err);
}

struct composition {
    const char *name;
    int decodes, context;               /* rows, keys of each */
    int prompts, prompt, prompt_before; /* prefills: sequences, rows, keys before them */
    int shared_pages;
};

static void print_marks(const struct composition *c, int turns, const double *host_ms)
{
    static const char *const names[] = {"upload", "embed",     "rmsnorm",       "gemm qkv",
                                        "rope",   "attention", "gemm o",        "gemm gate_up",
                                        "swiglu", "gemm down", "head + sampler"};
    double sum[TR_COUNT(names)] = {0}, total = 0;
    for (int i = 0; i + 1 < marks.n; i++) {
        float ms = 0;
        cudaEventElapsedTime(&ms, marks.at[i], marks.at[i + 1]);
        for (size_t k = 0; k < TR_COUNT(names); k++)
            sum[k] += strcmp(names[k], marks.what[i]) == 0 ? ms : 0;
        total += ms;
    }
    printf("%s step: %.2f ms on the device, host %.2f ms a step\n", c->name, total,
           *host_ms / turns);
    for (size_t k = 0; k < TR_COUNT(names); k++)
        printf("  %-16s %8.3f ms  %5.1f %%\n", names[k], sum[k], 100 * sum[k] / total);
}

static void composition_step(struct backend *b, struct network *net, const struct composition *c,
                             const struct backend_opts *o)
{
    const int rows = c->decodes + c->prompts * c->prompt, slots = c->decodes + c->prompts;
    const int stride = o->pages_per_slot;
    int32_t *ids = calloc((size_t)rows * 3, 4), *position = ids + rows, *slot = position + rows;
    int32_t *table = calloc((size_t)o->slots * (size_t)stride, 4), next = c->shared_pages;
    struct step_logit *logits = calloc((size_t)slots, sizeof *logits);
    struct sample_token *tokens = calloc((size_t)rows, sizeof *tokens);
    const struct sample_params sampling = {
        .temperature = 0.6f, .top_p = 0.95f, .repetition_penalty = 1, .n_top = -1};
    struct err err = {0};
    double host_ms = 0;
    int at = 0;
    for (int s = 0; s < slots; s++) {
        const int n = s < c->decodes ? 1 : c->prompt;
        const int before = s < c->decodes ? c->context - 1 : c->prompt_before;
        for (int k = 0; k < n; k++, at++)
            ids[at] = (at * 7919 + 13) % 150000, position[at] = before + k, slot[at] = s;
        for (int p = 0; p * 64 < before + n; p++)
            table[s * stride + p] = p < c->shared_pages ? p : next++;
        logits[s] = (struct step_logit){
            .row = at - 1, .slot = s, .sample = {.params = &sampling, .n_output = 5, .forced = -1}};
    }
    if (next > o->n_pages) {
        printf("%s: wants %d pages of %d\n", c->name, next, o->n_pages);
        exit(1);
    }
    const struct step step = {.rows = {rows, position, slot, table, stride},
                              .tokens = ids,
                              .logits = logits,
                              .n_logits = slots};
    enum { TURNS = 4 };
    for (int turn = 0; turn < TURNS; turn++) {
        cudaStreamSynchronize(marks.stream);
        const double before = now_s();
        must(network_forward(net, &step, tokens, &err), &err);
        host_ms += (now_s() - before) * 1e3;
    }
    must(backend_cuda_drain(b, tokens, &err), &err);
    cudaDeviceSynchronize();
    print_marks(c, TURNS, &host_ms);
    fflush(stdout);
    free(ids), free(table), free(logits), free(tokens);
}

static void compositions(const char *which)
{
    static const struct composition all[] = {{"W1", 1408, 192, 11, 128, 0, 0},
                                             {"W2", 1408, 1100, 2, 512, 0, 0},
                                             {"W3", 1099, 1132, 17, 100, 1000, 15}};
    const struct model_config *c = model_config(model);
    const struct backend_opts o = {.threads = 1,
                                   .rows_cap = 2816,
                                   .logits_cap = 1408,
                                   .n_layers = c->n_layers,
                                   .n_pages = 30000,
                                   .slots = 1500,
                                   .pages_per_slot = 32,
                                   .n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .vocab_size = c->vocab_size,
                                   .dtype = c->dtype};
    struct err err = {0};
    struct backend *b;
    struct network *net = NULL;
    must(backend_cuda_open(&b, &o, 0, &err), &err);
    must(network_open(&net, model, b, o.rows_cap, 4096, &err), &err);
    struct backend_ops timed = *b->ops;
    real_ops = b->ops;
    timed.step_begin = timed_begin, timed.embed = timed_embed, timed.rmsnorm = timed_rmsnorm;
    timed.linear = timed_linear, timed.rope_kv = timed_rope, timed.attention = timed_attention;
    timed.swiglu = timed_swiglu, timed.head = timed_head, timed.step_end = timed_end;
    for (int i = 0; i < MARKS; i++)
        cudaEventCreate(&marks.at[i]);
    marks.stream = backend_cuda_stream(b);
    b->ops = &timed;
    for (int i = 0; i < 3; i++)
        if (strchr(which, 'a' + i))
            composition_step(b, net, &all[i], &o);
    network_close(net);
    real_ops->close(b);
}

int main(int argc, char **argv)
{
    static const struct workload all[] = {
        {"W1", 0, 128, 6000, 128}, {"W2", 0, 512, 2400, 0}, {"W3", 1000, 100, 8000, 64}};
    struct err err = {0};
    if (argc < 3) {
        fprintf(stderr, "usage: engine_cuda_bench MODEL_DIR 123abc [SHARE]\n");
        return 2;
    }
    log_setup(LOG_INFO, LOG_LOGFMT, 1);
    must(model_open(&model, argv[1], &err), &err);
    ceilings();
    if (strpbrk(argv[2], "abc"))
        compositions(argv[2]);
    for (int i = 0; i < 3; i++)
        if (strchr(argv[2], '1' + i))
            workload_run(all[i], argc > 3 ? atof(argv[3]) : 1);
    model_close(model);
    return 0;
}
