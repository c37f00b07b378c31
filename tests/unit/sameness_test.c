/* sameness: row independence through the whole engine. The ids and logprobs of a request are the
 * same bits alone and in any batch, order, chunk, thread count, vector unit, with and without
 * prefix sharing, after eviction, and parked and resumed at any token. Small random models of four
 * families; lengths cross 128, 512 and 1,024 keys; prefixes end inside pages and splits. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "engine/model.h"
#include "tests/unit/models_root.h"

enum { N = 33, LEN = 1280, OUT = 200, TOP = 4 };
static struct model *model;
static struct tokenizer *tokenizer;

struct job {
    int32_t prompt[LEN];
    int32_t ids[OUT], top_ids[OUT * TOP], prompt_top_ids[LEN];
    float logprobs[OUT], top_logprobs[OUT * TOP], prompt_logprobs[LEN], prompt_top_logprobs[LEN];
    struct generated out;
    struct request r;
    struct finished end;
};
static struct job alone[N], other[N];

static const struct str stops[] = {{"the", 3}, {"a", 1}, {"b", 1}, {"c", 1}, {"d", 1}, {"e", 1},
                                   {"f", 1},   {"g", 1}, {"h", 1}, {"i", 1}, {"j", 1}, {"k", 1}};
static const int32_t bias_ids[] = {3, 70, 71};
static const float bias[] = {2.5f, -100.0f, 1.25f};

static uint32_t word(uint64_t a, uint64_t b)
{
    const uint64_t key[] = {a, b};
    return (uint32_t)(hash_bytes(key, sizeof key, 5) >> 20);
}

/* Five ways of sampling, taken in turn. */
static void vary_sampling(struct sampling *s, int32_t i)
{
    sampling_init(s);
    struct sample_params *p = &s->params;
    s->max_tokens = i < 9 ? OUT : 64 + i % 5 * 4;
    s->ignore_eos = i % 7 != 0;
    s->min_tokens = i % 7 == 0 ? 40 : 0;
    p->n_top = i % 3 == 0 ? TOP : 0;
    p->rng_key = word(77, (uint64_t)i);
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
    if (i % 6 == 5) {
        s->stop_strings = stops;
        s->n_stop_strings = (int32_t)TR_COUNT(stops);
        s->min_tokens = 20;
    }
}

/* Prompts: some long enough to cross 512 and 1,024 keys while they are answered, four groups that
 * share a prefix of 96, 200, 290 or 1,000 ids, the rest on their own. */
static void make_job(struct job *j, int32_t i)
{
    static const int32_t own[] = {1, 5, 63, 64, 65, 100, 120, 127, 128, 129, 480, 990, 17};
    static const int32_t prefixes[] = {0, 96, 200, 290, 1000, 96, 200, 0};
    memset(j, 0, sizeof *j);
    int32_t prefix = i < 13 ? 0 : prefixes[i % 8];
    int32_t n = i < 13 ? own[i] : prefix + 1 + (int32_t)(word(3, (uint64_t)i) % 40);
    for (int32_t k = 0; k < n; k++)
        j->prompt[k] =
            (int32_t)(word(k < prefix ? (uint64_t)prefix << 32 : (uint64_t)i, (uint64_t)k) % 250);
    j->out = (struct generated){.cap = OUT,
                                .ids = j->ids,
                                .logprobs = j->logprobs,
                                .top_ids = j->top_ids,
                                .top_logprobs = j->top_logprobs,
                                .prompt_logprobs = j->prompt_logprobs,
                                .prompt_top_ids = j->prompt_top_ids,
                                .prompt_top_logprobs = j->prompt_top_logprobs};
    j->r = (struct request){.tag = (uint64_t)i, .prompt = j->prompt, .n_prompt = n, .out = &j->out};
    vary_sampling(&j->r.sampling, i);
}

struct how {
    const char *name;
    int32_t slots, step_tokens, chunk, threads, isa; /* isa -1: best */
    int32_t spare_pages; /* beyond one sequence of the greatest length; 0: plenty */
    int32_t first, n;    /* jobs */
    int32_t stride;      /* order: job k * stride % n */
    int32_t park_every;  /* tokens; 0: never */
    bool no_sharing;
    int32_t max_len; /* 0: LEN */
};

static struct engine *engine_for(const struct how *h)
{
    const struct model_config *c = model_config(model);
    int64_t page = (int64_t)c->n_layers * c->n_kv_heads * 2 * KV_PAGE_TOKENS * c->head_dim *
                   (int64_t)dtype_size(c->dtype);
    struct engine *e = NULL;
    struct err err = {0};
    int32_t max_len = h->max_len ? h->max_len : LEN;
    struct engine_opts o = {.kind = ENGINE_CPU,
                            .model = model,
                            .slots = h->slots,
                            .queue_cap = N,
                            .step_tokens = h->step_tokens,
                            .chunk_tokens = h->chunk,
                            .max_model_len = max_len,
                            .threads = h->threads,
                            .isa = h->isa,
                            .no_prefix_sharing = h->no_sharing};
    o.kv_bytes = page * (max_len / KV_PAGE_TOKENS + (h->spare_pages ? h->spare_pages : 400));
    o.rules = (struct sequence_rules){.tokenizer = tokenizer,
                                      .eos_ids = c->eos_ids,
                                      .n_eos_ids = c->n_eos_ids,
                                      .think_open_id = -1,
                                      .think_close_id = -1};
    if (engine_open(&e, &o, &err) != E_OK)
        fail_msg("%s: %s", h->name, err.msg);
    return e;
}

/* Takes a job out, and in again at once: nothing but prompt and output is known to the engine. */
static void park(struct engine *e, struct job *j)
{
    struct err err = {0};
    if (engine_park(e, j->r.tag))
        assert_int_equal(engine_submit(e, &j->r, &err), ENGINE_ACCEPTED);
}

static void run(const struct how *h, struct job *jobs, struct engine_stats *stats)
{
    struct engine *e = engine_for(h);
    struct finished f[N];
    struct err err = {0};
    int32_t last_n[N] = {0};
    for (int32_t i = 0; i < N; i++)
        make_job(&jobs[i], i);
    for (int32_t k = 0; k < h->n; k++) {
        int32_t i = h->first + k * h->stride % h->n;
        if (engine_submit(e, &jobs[i].r, &err) != ENGINE_ACCEPTED)
            fail_msg("%s: job %d: %s", h->name, i, err.msg);
    }
    for (int32_t done = 0; done < h->n;) {
        int n = engine_step(e, f, N, &err);
        assert_true(n >= 0);
        for (int i = 0; i < n; i++, done++)
            jobs[f[i].tag].end = f[i];
        for (int32_t i = 0; i < N; i++) {
            bool moved = jobs[i].out.n != last_n[i];
            last_n[i] = jobs[i].out.n;
            if (moved && h->park_every > 0 && last_n[i] % h->park_every == 0)
                park(e, &jobs[i]);
        }
    }
    assert_true(engine_idle(e));
    engine_stats(e, stats);
    assert_int_equal(stats->pages_used, 0);
    engine_close(e);
}

static void expect_same(const struct how *h, const char *family)
{
    for (int32_t i = h->first; i < h->first + h->n; i++) {
        const struct job *a = &alone[i], *b = &other[i];
        bool same =
            a->out.n == b->out.n && memcmp(a->ids, b->ids, sizeof a->ids) == 0 &&
            memcmp(a->logprobs, b->logprobs, sizeof a->logprobs) == 0 &&
            memcmp(a->top_ids, b->top_ids, sizeof a->top_ids) == 0 &&
            memcmp(a->top_logprobs, b->top_logprobs, sizeof a->top_logprobs) == 0 &&
            memcmp(a->prompt_logprobs, b->prompt_logprobs, sizeof a->prompt_logprobs) == 0 &&
            memcmp(a->prompt_top_ids, b->prompt_top_ids, sizeof a->prompt_top_ids) == 0 &&
            memcmp(a->prompt_top_logprobs, b->prompt_top_logprobs, sizeof a->prompt_top_logprobs) ==
                0 &&
            a->end.end.reason == b->end.end.reason &&
            a->end.end.stop_string == b->end.end.stop_string;
        if (same && a->end.end.stop_string >= 0)
            same = a->end.end.raw_bytes == b->end.end.raw_bytes;
        if (same)
            continue;
        int32_t at = 0;
        while (at < a->out.n && a->ids[at] == b->ids[at] && a->logprobs[at] == b->logprobs[at])
            at++;
        fail_msg("%s, %s: job %d (prompt of %d ids) differs from itself alone at token %d of %d",
                 family, h->name, i, a->r.n_prompt, at, a->out.n);
    }
}

#define ALL .first = 0, .n = N
static const struct how grid[] = {
    {"two at once", 2, 256, 256, 1, -1, 0, ALL, 1, 0, false, 0},
    {"seven at once", 7, 256, 256, 2, -1, 0, ALL, 1, 0, false, 0},
    {"33 at once, three threads", 33, 256, 256, 3, -1, 0, ALL, 1, 0, false, 0},
    {"33 at once, nothing shared", 33, 256, 256, 1, -1, 0, ALL, 1, 0, true, 0},
    {"another order", 33, 256, 256, 2, -1, 0, ALL, 32, 0, false, 0},
    {"a third order, chunks of 64", 7, 256, 64, 1, -1, 0, ALL, 14, 0, false, 0},
    {"chunks of 1", 33, 40, 1, 2, -1, 0, ALL, 1, 0, false, 0},
    {"chunks of 7, nothing shared", 7, 64, 7, 1, -1, 0, ALL, 1, 0, true, 0},
    {"chunks of 100", 16, 200, 100, 2, -1, 0, ALL, 1, 0, false, 0},
    {"the whole prompt in one chunk", 16, 1200, 1200, 2, -1, 0, ALL, 1, 0, false, 0},
    {"few pages: evicted", 33, 256, 256, 2, -1, 1, ALL, 1, 0, false, 0},
    {"fewest pages: evicted often", 10, 256, 256, 1, -1, 2, 0, 10, 1, 0, false, 384},
    {"fewest pages, nothing shared", 10, 256, 50, 1, -1, 4, 0, 10, 3, 0, true, 384},
    {"parked at every 7th token", 33, 256, 256, 2, -1, 0, ALL, 1, 7, false, 0},
    {"parked at every 7th, nothing shared", 9, 256, 64, 1, -1, 0, ALL, 1, 7, true, 0},
    {"one parked at every token", 3, 128, 128, 1, -1, 0, 7, 1, 1, 1, true, 0},
    {"a prefix parked at every token", 3, 128, 128, 1, -1, 0, 21, 2, 1, 1, false, 0},
    {"scalar", 33, 256, 100, 2, CPU_ISA_SCALAR, 0, 8, 6, 1, 0, false, 0},
    {"AVX2", 33, 256, 100, 2, CPU_ISA_AVX2, 0, ALL, 1, 0, false, 0},
    {"AVX-512", 33, 256, 100, 2, CPU_ISA_AVX512, 0, ALL, 1, 0, false, 0},
};

static void open_model(const char *preset)
{
    struct err err = {0};
    char path[PATH_MAX], command[2 * PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", root, preset);
    snprintf(command, sizeof command, "python3 tools/random_model.py %s --preset %s >/dev/null",
             path, preset);
    assert_int_equal(system(command), 0);
    if (model_open(&model, path, &err) != E_OK || tokenizer_open(&tokenizer, path, &err) != E_OK)
        fail_msg("%s", err.msg);
}

static void check_cases_met(const char *preset)
{
    int sampled_long = 0, stopped = 0, crossings[3] = {0};
    for (int32_t i = 0; i < N; i++) {
        int32_t n = alone[i].r.n_prompt, end = n + alone[i].out.n;
        sampled_long += alone[i].out.n >= 64 && alone[i].r.sampling.params.temperature > 0;
        stopped += alone[i].end.end.stop_string >= 0;
        crossings[0] += n < 128 && end > 128;
        crossings[1] += n < 512 && end > 512;
        crossings[2] += n < 1024 && end > 1024;
    }
    printf("%s: %d sampled, %d ended by a stop string\n", preset, sampled_long, stopped);
    assert_true(sampled_long >= 15 && stopped > 0);
    assert_true(crossings[0] > 0 && crossings[1] > 0 && crossings[2] > 0);
}

static void family_is_row_independent(const char *preset)
{
    struct engine_stats stats;
    const struct how one = {"alone", 1, 256, 256, 1, -1, 0, ALL, .stride = 1, .no_sharing = true};
    open_model(preset);
    run(&one, alone, &stats);
    check_cases_met(preset);
    for (size_t i = 0; i < TR_COUNT(grid); i++) {
        const struct how *h = &grid[i];
        if (h->isa > (int32_t)cpu_isa_best()) {
            printf("%s: not run: %s, which this CPU has not\n", preset, h->name);
            continue;
        }
        run(h, other, &stats);
        expect_same(h, preset);
        assert_true(h->spare_pages == 0 || stats.evictions > 0);
        assert_true(h->n < N || h->no_sharing == (stats.cached_rows == 0));
    }
    tokenizer_close(tokenizer);
    model_close(model);
}

static void qwen2_bf16(void **state)
{
    (void)state;
    family_is_row_independent("qwen2-odd-bf16");
}
static void qwen3_bf16(void **state)
{
    (void)state;
    family_is_row_independent("qwen3-head-dim-bf16");
}
static void llama_fp16(void **state)
{
    (void)state;
    family_is_row_independent("llama-biases-fp16");
}
static void mistral_with_window(void **state)
{
    (void)state;
    family_is_row_independent("mistral-window-fp32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qwen2_bf16),
        cmocka_unit_test(qwen3_bf16),
        cmocka_unit_test(llama_fp16),
        cmocka_unit_test(mistral_with_window),
    };
    return cmocka_run_group_tests_name("sameness", tests, models_root_make, models_root_remove);
}
