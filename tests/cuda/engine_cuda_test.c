/* The whole engine on CUDA: greedy ids beside the CPU engine's, and row independence bit for bit:
 * alone, in batches, orders, chunks, with and without shared prefixes, evicted, parked. Needs a
 * GPU; a plain program, so it runs where there is only the driver. usage: engine_cuda_test
 * MODEL_DIR... (vocabulary of at least 300) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/engine.h"
#include "engine/log.h"
#include "engine/model.h"

enum { N = 48, LEN = 1344, OUT = 200, TOP = 4 };
static struct model *model;
static int passed, failed;

struct job {
    int32_t prompt[LEN];
    int32_t ids[OUT], top_ids[OUT * TOP], prompt_top_ids[LEN];
    float logprobs[OUT], top_logprobs[OUT * TOP], prompt_logprobs[LEN], prompt_top_logprobs[LEN];
    struct generated out;
    struct request r;
    struct finished end;
};
static struct job alone[N], other[N];

struct how {
    const char *name;
    int32_t slots, step_tokens, chunk;
    int32_t spare_pages; /* beyond one sequence of the greatest length; 0: plenty */
    int32_t stride;      /* order: job k * stride % N */
    int32_t park_every;  /* tokens; 0: never */
    bool no_sharing;
    bool greedy; /* all jobs plain greedy with the two best logprobs */
    enum engine_kind kind;
    int32_t share_from; /* rows x splits from which prefixes are read together; 0: the default */
};

static void verdict(bool ok, const char *name, const char *detail)
{
    printf("%s %-44s %s\n", ok ? "ok  " : "FAIL", name, detail);
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

static uint32_t word(uint64_t a, uint64_t b)
{
    const uint64_t key[] = {a, b};
    return (uint32_t)(hash_bytes(key, sizeof key, 5) >> 20);
}

static const int32_t bias_ids[] = {3, 70, 71};
static const float bias[] = {2.5f, -100.0f, 1.25f};

static void vary_sampling(struct sampling *s, int32_t i)
{
    struct sample_params *p = &s->params;
    s->max_tokens = i % 9 == 4 ? OUT : 64 + i % 5 * 4;
    s->ignore_eos = i % 7 != 0;
    s->min_tokens = i % 7 == 0 ? 40 : 0;
    p->n_top = i % 3 == 0 ? TOP : 0;
    p->choice = (uint32_t)i % 2;
    if (i % 5 > 0) {
        p->temperature = 0.25f + 0.25f * (float)(i % 5);
        p->top_p = i % 5 == 1 ? 0.9f : 1.0f;
        p->top_k = i % 5 == 2 ? 20 : 0;
        p->min_p = i % 5 == 3 ? 0.05f : 0.0f;
    }
    if (i % 4 == 1) {
        p->repetition_penalty = 1.2f;
        p->frequency_penalty = 0.3f;
        p->presence_penalty = -0.2f;
    }
    if (i % 4 == 2) {
        p->bias_ids = bias_ids;
        p->bias = bias;
        p->n_bias = 3;
    }
    s->prompt_logprobs = i % 8 == 3 ? 1 : -1;
    s->max_thinking_tokens = i % 6 == 5 ? 9 + i : -1; /* their prompts end in a think marker */
    s->loop_tokens = i % 10 == 9 ? 64 : 0;
}

/* Prompts of 1 .. 1,000 ids of their own, and groups that share 96, 200, 290 or 1,000 ids. */
static void make_job(struct job *j, int32_t i, bool greedy)
{
    static const int32_t own[] = {1, 5, 63, 64, 65, 100, 120, 127, 128, 129, 480, 990, 17};
    static const int32_t prefixes[] = {0, 96, 200, 290, 1000, 96, 200, 0};
    memset(j, 0, sizeof *j);
    int32_t prefix = i < 13 ? 0 : prefixes[i % 8];
    int32_t n = i < 13 ? own[i] : prefix + 1 + (int32_t)(word(3, (uint64_t)i) % 40);
    for (int32_t k = 0; k < n; k++)
        j->prompt[k] =
            7 +
            (int32_t)(word(k < prefix ? (uint64_t)prefix << 32 : (uint64_t)i, (uint64_t)k) % 240);
    j->out = (struct generated){.cap = OUT,
                                .ids = j->ids,
                                .logprobs = j->logprobs,
                                .top_ids = j->top_ids,
                                .top_logprobs = j->top_logprobs,
                                .prompt_logprobs = j->prompt_logprobs,
                                .prompt_top_ids = j->prompt_top_ids,
                                .prompt_top_logprobs = j->prompt_top_logprobs};
    j->r = (struct request){.tag = (uint64_t)i, .prompt = j->prompt, .n_prompt = n, .out = &j->out};
    sampling_init(&j->r.sampling);
    j->r.sampling.params.rng_key = word(77, (uint64_t)i);
    if (greedy) {
        j->r.sampling.max_tokens = 40;
        j->r.sampling.ignore_eos = true;
        j->r.sampling.params.n_top = 2;
    } else {
        vary_sampling(&j->r.sampling, i);
        if (i % 6 == 5)
            j->prompt[n - 1] = 5;
    }
}

static struct engine *engine_for(const struct how *h)
{
    const struct model_config *c = model_config(model);
    const int64_t page = (int64_t)c->n_layers * c->n_kv_heads * 2 * KV_PAGE_TOKENS * c->head_dim *
                         (int64_t)dtype_size(c->dtype);
    struct engine *e = NULL;
    struct err err = {0};
    struct engine_opts o = {.kind = h->kind,
                            .model = model,
                            .slots = h->slots,
                            .queue_cap = N,
                            .step_tokens = h->step_tokens,
                            .chunk_tokens = h->chunk,
                            .max_model_len = LEN,
                            .isa = -1,
                            .no_prefix_sharing = h->no_sharing};
    o.kv_bytes = page * (LEN / KV_PAGE_TOKENS + (h->spare_pages ? h->spare_pages : 900));
    o.rules = (struct sequence_rules){.eos_ids = c->eos_ids,
                                      .n_eos_ids = c->n_eos_ids,
                                      .think_open_id = 5,
                                      .think_close_id = 6,
                                      .think_close = {6, 9, 10},
                                      .n_think_close = 3};
    must(engine_open(&e, &o, &err), &err);
    return e;
}

static void park_some(struct engine *e, const struct how *h, struct job *jobs, int32_t *last_n)
{
    struct err err = {0};
    for (int32_t i = 0; h->park_every > 0 && i < N; i++) {
        struct job *j = &jobs[i];
        if (j->out.n == last_n[i] || j->out.n % h->park_every != 0 || !engine_park(e, j->r.tag))
            continue;
        last_n[i] = j->out.n;
        must(engine_submit(e, &j->r, &err), &err);
    }
}

static struct engine_stats run(const struct how *h, struct job *jobs)
{
    backend_cuda_share_from(h->share_from);
    struct engine *e = engine_for(h);
    struct engine_stats stats;
    struct finished f[N];
    struct err err = {0};
    int32_t last_n[N] = {0};
    for (int32_t i = 0; i < N; i++)
        make_job(&jobs[i], i, h->greedy);
    for (int32_t k = 0; k < N; k++) {
        const int rc = engine_submit(e, &jobs[k * h->stride % N].r, &err);
        must(rc == ENGINE_FULL ? -1 : rc, &err);
    }
    while (!engine_idle(e)) {
        const int n = engine_step(e, f, N, &err);
        must(n, &err);
        for (int k = 0; k < n; k++)
            jobs[f[k].tag].end = f[k];
        park_some(e, h, jobs, last_n);
    }
    engine_stats(e, &stats);
    engine_close(e);
    if (stats.padding_rows <= 0 || (stats.rows + stats.padding_rows) % 16 != 0)
        must(err_set(&err, E_FATAL, "%lld rows and %lld of padding are no buckets",
                     (long long)stats.rows, (long long)stats.padding_rows),
             &err);
    return stats;
}

static bool same(const struct job *a, const struct job *b)
{
    const size_t n = (size_t)a->out.n, p = (size_t)a->r.n_prompt;
    return a->out.n == b->out.n && a->end.end.reason == b->end.end.reason &&
           memcmp(a->ids, b->ids, n * 4) == 0 && memcmp(a->logprobs, b->logprobs, n * 4) == 0 &&
           memcmp(a->top_ids, b->top_ids, sizeof a->top_ids) == 0 &&
           memcmp(a->top_logprobs, b->top_logprobs, sizeof a->top_logprobs) == 0 &&
           memcmp(a->prompt_logprobs, b->prompt_logprobs, p * 4) == 0 &&
           memcmp(a->prompt_top_ids, b->prompt_top_ids, p * 4) == 0 &&
           memcmp(a->prompt_top_logprobs, b->prompt_top_logprobs, p * 4) == 0;
}

static void expect_same(const struct how *h, const struct engine_stats *stats)
{
    char detail[160];
    int differ = 0, first = -1, at = 0;
    for (int32_t i = 0; i < N; i++)
        if (!same(&alone[i], &other[i])) {
            first = first < 0 ? i : first;
            differ++;
        }
    if (first >= 0) {
        const struct job *a = &alone[first], *b = &other[first];
        while (at < a->out.n && a->ids[at] == b->ids[at] && a->logprobs[at] == b->logprobs[at])
            at++;
    }
    snprintf(detail, sizeof detail,
             "%d of %d differ (job %d at token %d); %lld evicted, %lld rows taken over", differ, N,
             first, at, (long long)stats->evictions, (long long)stats->cached_rows);
    verdict(differ == 0 && (h->spare_pages == 0 || stats->evictions > 0) &&
                h->no_sharing == (stats->cached_rows == 0),
            h->name, detail);
}

/* Greedy ids equal the CPU engine's up to the first place where the CPU's two best logits are close
 * (0.25); behind it the texts differ and say nothing. */
static void beside_cpu(void)
{
    struct how h = {"cpu", 16, 512, 512, 0, 1, 0, false, true, ENGINE_CPU, 0};
    int compared = 0, wrong = 0, close_calls = 0;
    double gap = 0;
    char detail[160];
    run(&h, alone);
    h.kind = ENGINE_CUDA;
    run(&h, other);
    for (int32_t i = 0; i < N; i++) {
        const struct job *c = &alone[i], *g = &other[i];
        for (int32_t t = 0; t < c->out.n && t < g->out.n; t++) {
            if (c->ids[t] != g->ids[t]) {
                const bool close = c->top_logprobs[2 * t] - c->top_logprobs[2 * t + 1] <= 0.25f;
                close_calls += close, wrong += !close;
                break;
            }
            gap = fmax(gap, fabs((double)c->logprobs[t] - g->logprobs[t]));
            compared++;
        }
    }
    snprintf(detail, sizeof detail,
             "%d ids compared, %d wrong, %d close calls, logprobs within %.3g", compared, wrong,
             close_calls, gap);
    verdict(wrong == 0 && compared > N * 10 && gap < 0.25, "greedy ids are the CPU engine's",
            detail);
}

static const struct how grid[] = {
    {"alone again", 1, 512, 512, 0, 1, 0, true, false, ENGINE_CUDA, 0},
    {"two at once", 2, 256, 256, 0, 1, 0, false, false, ENGINE_CUDA, 0},
    {"seven at once, another order", 7, 256, 256, 0, 5, 0, false, false, ENGINE_CUDA, 0},
    {"48 at once", 48, 2816, 2816, 0, 1, 0, false, false, ENGINE_CUDA, 0},
    {"48 at once, nothing shared", 48, 2816, 2816, 0, 1, 0, true, false, ENGINE_CUDA, 0},
    {"48 at once, prefixes apart", 48, 2816, 2816, 0, 1, 0, false, false, ENGINE_CUDA, 1 << 30},
    {"48 at once, prefixes together", 48, 2816, 2816, 0, 5, 0, false, false, ENGINE_CUDA, 1},
    {"chunks of 60, prefixes together", 48, 120, 60, 0, 7, 0, false, false, ENGINE_CUDA, 1},
    {"few pages, prefixes together", 48, 512, 512, 6, 1, 0, false, false, ENGINE_CUDA, 1},
    {"parked, prefixes together", 48, 512, 512, 0, 1, 7, false, false, ENGINE_CUDA, 1},
    {"chunks of 1", 48, 64, 1, 0, 7, 0, false, false, ENGINE_CUDA, 0},
    {"chunks of 100", 16, 200, 100, 0, 11, 0, false, false, ENGINE_CUDA, 0},
    {"chunks of 7, nothing shared", 7, 64, 7, 0, 1, 0, true, false, ENGINE_CUDA, 0},
    {"few pages: evicted", 48, 512, 512, 6, 1, 0, false, false, ENGINE_CUDA, 0},
    {"few pages, nothing shared", 48, 512, 100, 3, 5, 0, true, false, ENGINE_CUDA, 0},
    {"parked at every 7th token", 48, 512, 512, 0, 1, 7, false, false, ENGINE_CUDA, 0},
    {"parked at every 7th, nothing shared", 9, 512, 64, 0, 1, 7, true, false, ENGINE_CUDA, 0},
    {"parked at every token", 12, 512, 64, 0, 1, 1, false, false, ENGINE_CUDA, 0},
};

int main(int argc, char **argv)
{
    log_setup(getenv("VERBOSE") ? LOG_DEBUG : LOG_WARN, LOG_LOGFMT, 1);
    for (int i = 1; i < argc; i++) {
        const struct how one = {"alone", 1, 512, 512, 0, 1, 0, true, false, ENGINE_CUDA, 0};
        struct err err = {0};
        char detail[160];
        int thought = 0, sampled = 0;
        printf("model %s\n", argv[i]);
        must(model_open(&model, argv[i], &err), &err);
        beside_cpu();
        run(&one, alone);
        for (int k = 0; k < N; k++) {
            sampled += alone[k].out.n > 20 && alone[k].r.sampling.params.temperature > 0;
            for (int32_t t = 0; k % 6 == 5 && t + 1 < alone[k].out.n; t++)
                thought += alone[k].ids[t] == 6 && alone[k].ids[t + 1] == 9;
        }
        snprintf(detail, sizeof detail, "%d sampled, %d thoughts cut", sampled, thought);
        verdict(sampled > 20 && thought >= 6, "the cases are met", detail);
        for (size_t g = 0; g < TR_COUNT(grid); g++) {
            const struct engine_stats stats = run(&grid[g], other);
            expect_same(&grid[g], &stats);
        }
        model_close(model);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
