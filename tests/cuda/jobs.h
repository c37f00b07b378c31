/* jobs: requests of every kind that the engine takes, and a run of many of them through an engine
 * opened in some way: what the programs that hold the whole engine on a GPU share. */
#ifndef TRANCHE_TESTS_CUDA_JOBS_H
#define TRANCHE_TESTS_CUDA_JOBS_H

#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/engine.h"
#include "engine/gemm_rows.h"
#include "engine/kv.h"
#include "engine/model.h"

enum { LEN = 1344, OUT = 200, TOP = 4, THINK_OPEN = 5, THINK_CLOSE = 6, THOUGHT_END = 9 };

struct job {
    int32_t prompt[LEN];
    int32_t ids[OUT], top_ids[OUT * TOP], prompt_top_ids[LEN];
    float logprobs[OUT], top_logprobs[OUT * TOP], prompt_logprobs[LEN], prompt_top_logprobs[LEN];
    struct generated out;
    struct request r;
    struct finished end;
    int32_t parked_at;
};

struct way { /* how a run goes about it */
    const char *name;
    int32_t slots;              /* 0: the engine's own number */
    int32_t step_tokens, chunk; /* 0: the engine's own */
    int32_t jobs, fillers;      /* fillers: short prompts, long answers, compared with none */
    int32_t pages;              /* of keys and values; 0: plenty */
    uint32_t order;             /* shuffled by this number; 0: fillers first, then in order */
    int32_t park_every;         /* tokens; 0: never */
    bool no_sharing, greedy;    /* greedy: all jobs plain, with the two best logprobs */
    int32_t share_from;         /* backend_cuda_share_from */
    int32_t deep_from;          /* backend_cuda_deep_from */
    enum engine_kind kind;
};
struct outcome {
    struct engine_stats stats;
    int32_t running_peak;
    int64_t padding_due; /* what the products' own buckets come to */
    double seconds;
};

static int passed, failed;

static inline void verdict(bool ok, const char *name, const char *detail)
{
    printf("%s %-52s %s\n", ok ? "ok  " : "FAIL", name, detail);
    fflush(stdout);
    ok ? passed++ : failed++;
}
static inline void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}

static inline uint32_t word(uint64_t a, uint64_t b)
{
    const uint64_t key[] = {a, b};
    return (uint32_t)(hash_bytes(key, sizeof key, 5) >> 20);
}

/* Five ways of sampling, with and without penalties, biases, logprobs, limits on thought. */
static inline void vary_sampling(struct sampling *s, int32_t i)
{
    static const int32_t bias_ids[] = {3, 70, 71};
    static const float bias[] = {2.5f, -100.0f, 1.25f};
    struct sample_params *p = &s->params;
    s->max_tokens = i % 9 == 4 && i < 200 ? OUT : 64 + i % 5 * 4;
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
    s->prompt_logprobs = i % 11 == 3 ? 1 : -1;
    s->max_thinking_tokens = i % 6 == 5 ? 9 + i % 60 : -1; /* their prompts end in a think marker */
    s->loop_tokens = i % 10 == 9 ? 64 : 0;
}

/* Ids of a prompt alone, behind those of a prefix that it shares. */
static inline int32_t make_prompt(int32_t *prompt, int32_t i, int32_t prefix, int32_t n)
{
    for (int32_t k = 0; k < n; k++)
        prompt[k] =
            7 +
            (int32_t)(word(k < prefix ? (uint64_t)prefix << 32 : (uint64_t)i, (uint64_t)k) % 240);
    return n;
}

static inline void make_filler(struct job *j, int32_t i)
{
    j->r.n_prompt = make_prompt(j->prompt, i, 0, 1 + i % 40);
    j->r.sampling.max_tokens = OUT;
    j->r.sampling.ignore_eos = true;
    j->r.sampling.params.temperature = i % 2 ? 0.8f : 0;
    j->r.sampling.params.n_top = -1;
}

/* Prompts of 1 .. 1,000 ids of their own, and five groups that share 96 .. 1,000 ids, which end
 * inside a page and inside a split of 128 keys; answers cross 128, 512 and 1,024 keys. */
static inline void make_job(struct job *j, int32_t i, const struct way *w)
{
    static const int32_t own[] = {1, 5, 63, 64, 65, 100, 120, 127, 128, 129, 480, 990, 17};
    static const int32_t prefixes[] = {0, 96, 200, 290, 1000, 470, 200, 0};
    const int32_t n_own = (int32_t)TR_COUNT(own);
    memset(j, 0, sizeof *j);
    j->out = (struct generated){.cap = OUT,
                                .ids = j->ids,
                                .logprobs = j->logprobs,
                                .top_ids = j->top_ids,
                                .top_logprobs = j->top_logprobs,
                                .prompt_logprobs = j->prompt_logprobs,
                                .prompt_top_ids = j->prompt_top_ids,
                                .prompt_top_logprobs = j->prompt_top_logprobs};
    j->r = (struct request){.tag = (uint64_t)i, .prompt = j->prompt, .out = &j->out};
    sampling_init(&j->r.sampling);
    j->r.sampling.params.rng_key = word(77, (uint64_t)i);
    if (i >= w->jobs) {
        make_filler(j, i);
        return;
    }
    const int32_t prefix = i < n_own ? 0 : prefixes[word(11, (uint64_t)i) % TR_COUNT(prefixes)];
    j->r.n_prompt =
        make_prompt(j->prompt, i, prefix,
                    i < n_own ? own[i] : prefix + 1 + (int32_t)(word(3, (uint64_t)i) % 40));
    if (w->greedy) {
        j->r.sampling.max_tokens = 40;
        j->r.sampling.ignore_eos = true;
        j->r.sampling.params.n_top = 2;
    } else {
        vary_sampling(&j->r.sampling, i);
        if (i % 6 == 5)
            j->prompt[j->r.n_prompt - 1] = THINK_OPEN;
    }
}

static inline struct engine *engine_for(const struct model *model, const struct way *w)
{
    const struct model_config *c = model_config(model);
    const int64_t page = (int64_t)c->n_layers * c->n_kv_heads * 2 * KV_PAGE_TOKENS * c->head_dim *
                         (int64_t)dtype_size(c->dtype);
    const int32_t total = w->jobs + w->fillers;
    struct engine *e = NULL;
    struct err err = {0};
    struct engine_opts o = {.kind = w->kind,
                            .model = model,
                            .slots = w->slots,
                            .queue_cap = total,
                            .step_tokens = w->step_tokens,
                            .chunk_tokens = w->chunk,
                            .max_model_len = LEN,
                            .isa = -1,
                            .no_prefix_sharing = w->no_sharing,
                            .cache_dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp"};
    o.kv_bytes = page * (w->pages ? w->pages : 22 * (w->slots ? w->slots : total));
    o.rules = (struct sequence_rules){.eos_ids = c->eos_ids,
                                      .n_eos_ids = c->n_eos_ids,
                                      .think_open_id = THINK_OPEN,
                                      .think_close_id = THINK_CLOSE,
                                      .think_close = {THINK_CLOSE, THOUGHT_END, 10},
                                      .n_think_close = 3};
    must(engine_open(&e, &o, &err), &err);
    return e;
}

static inline void submit_all(struct engine *e, const struct way *w, struct job *jobs)
{
    const int32_t n = w->jobs + w->fillers;
    int32_t *order = mem_alloc((size_t)n, sizeof *order);
    struct err err = {0};
    for (int32_t k = 0; k < n; k++)
        order[k] = (k + w->jobs) % n;
    for (int32_t k = n - 1; k > 0 && w->order; k--) {
        const int32_t other = (int32_t)(word(w->order, (uint64_t)k) % (uint32_t)(k + 1));
        const int32_t kept = order[k];
        order[k] = order[other];
        order[other] = kept;
    }
    for (int32_t k = 0; k < n; k++) {
        const int rc = engine_submit(e, &jobs[order[k]].r, &err);
        must(rc == ENGINE_FULL ? err_set(&err, E_FATAL, "no room for job %d", k) : rc, &err);
    }
    mem_free(order);
}

/* Takes jobs out, and in again at once: nothing but prompt and output is known to the engine. */
static inline void park_some(struct engine *e, const struct way *w, struct job *jobs)
{
    struct err err = {0};
    for (int32_t i = 0; w->park_every > 0 && i < w->jobs + w->fillers; i++) {
        struct job *j = &jobs[i];
        if (j->out.n == j->parked_at || j->out.n % w->park_every != 0 || !engine_park(e, j->r.tag))
            continue;
        j->parked_at = j->out.n;
        must(engine_submit(e, &j->r, &err), &err);
    }
}

/* Runs jobs [w->jobs + w->fillers] to their ends. */
static inline struct outcome run(const struct model *model, const struct way *w, struct job *jobs)
{
    const int64_t start_ns = clock_mono_ns(clock_system());
    struct outcome o = {0};
    struct finished f[256];
    struct err err = {0};
    backend_cuda_share_from(w->share_from);
    backend_cuda_deep_from(w->deep_from);
    struct engine *e = engine_for(model, w);
    for (int32_t i = 0; i < w->jobs + w->fillers; i++)
        make_job(&jobs[i], i, w);
    submit_all(e, w, jobs);
    while (!engine_idle(e)) {
        const int64_t rows = o.stats.rows;
        const int n = engine_step(e, f, (int)TR_COUNT(f), &err);
        must(n, &err);
        for (int k = 0; k < n; k++)
            jobs[f[k].tag].end = f[k];
        engine_stats(e, &o.stats);
        o.running_peak = TR_MAX(o.running_peak, o.stats.running);
        if (o.stats.rows > rows)
            o.padding_due += cuda_gemm_rows(o.stats.rows - rows) - (o.stats.rows - rows);
        park_some(e, w, jobs);
    }
    engine_stats(e, &o.stats);
    engine_close(e);
    o.seconds = (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9;
    return o;
}

#endif
