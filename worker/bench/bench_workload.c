/* bench_workload: see bench_workload.h. */
#include "worker/bench/bench_workload.h"

#include <stdio.h>

#include "worker/job/output_sum.h"
#include "worker/job/text.h"

enum { FINISHED_BATCH = 512, LOGNORMAL_MEAN = 1024, LOGNORMAL_CAP = 8192 };

static const struct workload workloads[] = {{"W1", 0, 128, 128, 15000, false},
                                            {"W2", 0, 512, 0, 5000, false},
                                            {"W3", 1000, 100, 64, 25000, false}};

const struct workload *workload_find(const char *name)
{
    for (size_t i = 0; i < TR_COUNT(workloads); i++)
        if (strcmp(workloads[i].name, name) == 0)
            return &workloads[i];
    return NULL;
}

struct bench_job {
    struct request request;
    struct generated out;
};
struct bench_jobs {
    const struct workload *w;
    struct bench_job *jobs;
    int32_t *ids; /* of all: prompts, then room for outputs */
};

static int32_t length_of(const struct workload *w, int32_t i)
{
    return w->out > 0 ? w->out
                      : lognormal_length((uint32_t)i + 1, LOGNORMAL_MEAN, 0.8, LOGNORMAL_CAP);
}

static void job_fill(struct bench_job *j, const struct workload *w, int32_t i, int32_t *ids,
                     int64_t vocab)
{
    const int32_t n = w->shared + w->own, out = length_of(w, i);
    for (int32_t k = 0; k < n; k++) {
        const uint64_t key = k < w->shared ? 1 : (uint64_t)i + 2;
        ids[k] = (int32_t)(hash_bytes(&k, sizeof k, key) % (uint64_t)vocab);
    }
    j->out = (struct generated){.cap = out, .ids = ids + n};
    j->request = (struct request){.tag = (uint64_t)i, .prompt = ids, .n_prompt = n, .out = &j->out};
    struct sampling *s = &j->request.sampling;
    sampling_init(s);
    s->max_tokens = out;
    s->ignore_eos = true;
    s->params.n_top = -1;
    s->params.temperature = w->greedy ? 0 : 0.6f;
    s->params.top_p = w->greedy ? 1 : 0.95f;
    s->params.rng_key = (uint64_t)i * 0x9E3779B97F4A7C15u;
}

static int jobs_open(struct bench_jobs *b, const struct workload *w, int64_t vocab, struct err *err)
{
    const size_t n = (size_t)w->requests, prompt = (size_t)(w->shared + w->own);
    size_t ids = 0;
    for (int32_t i = 0; i < w->requests; i++)
        ids += prompt + (size_t)length_of(w, i);
    b->w = w;
    b->jobs = mem_alloc(n, sizeof *b->jobs);
    b->ids = mem_alloc(ids, sizeof *b->ids);
    if (!b->jobs || !b->ids)
        return err_set(err, E_FATAL, "bench: no memory for %zu requests of %zu ids", n, ids);
    int32_t *at = b->ids;
    for (int32_t i = 0; i < w->requests; i++) {
        job_fill(&b->jobs[i], w, i, at, vocab);
        at += prompt + (size_t)b->jobs[i].out.cap;
    }
    return E_OK;
}

static struct moment moment_now(const struct bench_jobs *b, const struct roofline *r,
                                const struct engine_stats *s)
{
    struct moment m = {.at = (double)clock_mono_ns(clock_system()) * 1e-9,
                       .busy = (double)s->busy_ns * 1e-9,
                       .idle = (double)s->idle_ns * 1e-9};
    for (int32_t i = 0; i < b->w->requests; i++) {
        m.tokens += b->jobs[i].out.n;
        m.work += roofline_seconds(r, b->w->shared, b->w->own, b->jobs[i].out.n);
    }
    return m;
}

static int take_finished(const struct bench_jobs *b, const struct finished *f, int n,
                         struct err *err)
{
    for (int i = 0; i < n; i++) {
        const struct bench_job *j = &b->jobs[f[i].tag];
        if (f[i].end.reason != FINISH_LENGTH || j->out.n != j->out.cap)
            return err_set(err, E_FATAL, "bench: request %lld ended after %d tokens of %d: %s",
                           (long long)f[i].tag, j->out.n, j->out.cap, f[i].err.msg);
    }
    return E_OK;
}

/* Submits what the engine takes. */
static int submit(struct engine *e, const struct bench_jobs *b, int32_t *at, struct err *err)
{
    for (; *at < b->w->requests; ++*at) {
        struct err why = {0};
        int rc = engine_submit(e, &b->jobs[*at].request, &why);
        if (rc == ENGINE_FULL)
            return E_OK;
        if (rc < 0)
            return err_set(err, E_USAGE, "bench: %s: %s", b->w->name, why.msg);
    }
    return E_OK;
}

static int run(struct workload_run *out, struct engine *e, const struct bench_jobs *b,
               const struct roofline *r, struct err *err)
{
    struct finished f[FINISHED_BATCH];
    struct engine_stats s;
    struct run_moments *m = &out->moments;
    int32_t at = 0;
    int rc = E_OK;
    engine_stats(e, &out->before);
    s = out->before;
    m->start = moment_now(b, r, &s);
    while (rc == E_OK && (at < b->w->requests || !engine_idle(e))) {
        const int64_t rows = s.rows;
        rc = submit(e, b, &at, err);
        if (rc != E_OK)
            break;
        int n = engine_step(e, f, FINISHED_BATCH, err);
        rc = n < 0 ? n : take_finished(b, f, n, err);
        engine_stats(e, &s);
        if (m->full.at == 0 && s.rows - rows == s.step_tokens)
            m->full = moment_now(b, r, &s);
        if (m->refilled.at == 0 && m->full.at > 0 && at == b->w->requests && s.waiting == 0)
            m->refilled = moment_now(b, r, &s);
    }
    engine_stats(e, &out->after);
    m->end = moment_now(b, r, &out->after);
    return rc;
}

static void sum_outputs(struct workload_run *out, const struct bench_jobs *b)
{
    uint8_t sum[32] = {0}, one[32];
    for (int32_t i = 0; i < b->w->requests; i++) {
        const struct generated *g = &b->jobs[i].out;
        const struct str ids = {(const char *)g->ids, (size_t)g->n * sizeof *g->ids};
        sha256_of(ids, one);
        /* The request's number takes part, so that two swapped outputs show. */
        for (int k = 0; k < 4; k++)
            one[k] ^= (uint8_t)((uint32_t)i >> 8 * k);
        sha256_of((struct str){(const char *)one, sizeof one}, one);
        output_sum_add(sum, one);
        out->tokens += g->n;
    }
    sha256_hex(sum, out->outputs_sha256);
}

int workload_run(struct workload_run *out, struct engine *e, const struct workload *w,
                 const struct roofline *r, int64_t vocab, struct err *err)
{
    struct bench_jobs b = {0};
    *out = (struct workload_run){0};
    int rc = jobs_open(&b, w, vocab, err);
    if (rc == E_OK)
        rc = run(out, e, &b, r, err);
    if (rc == E_OK) {
        sum_outputs(out, &b);
        run_shares(&out->shares, &out->moments);
    }
    mem_free(b.jobs);
    mem_free(b.ids);
    return rc;
}
