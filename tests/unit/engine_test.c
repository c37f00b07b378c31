/* engine: the step loop over a net that is a pure function of the tokens it finds in the pages:
 * whatever the slots, budget, chunks, pages, sharing, parking and lag, every request gets what the
 * function gives it alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "tests/unit/engine_net_fake.h"

/* ---- every allocation of the process is counted (not under sanitizers, which have their own) */
static int64_t allocations;
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t n)
{
    allocations++;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    allocations++;
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    allocations++;
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t align, size_t n)
{
    allocations++;
    return __libc_memalign(align, n);
}
int posix_memalign(void **p, size_t align, size_t n)
{
    allocations++;
    *p = __libc_memalign(align, n);
    return *p ? 0 : 12;
}
#define COUNTS_ALLOCATIONS 1
#else
#define COUNTS_ALLOCATIONS 0
#endif

/* ---- requests, and what each must give ---- */
static const struct str stops[] = {{"bcd", 3}, {"zz", 2}};
static const int32_t stop_ids[] = {11};

static void job_random(struct job *j, uint64_t tag, int32_t longest)
{
    static const int32_t cuts[] = {0, 3, 20, 40, 64, 100, 128, 150, 200};
    job_init(j, tag);
    struct sampling *s = &j->r.sampling;
    int32_t kind = below(3), cut = cuts[below((int32_t)TR_COUNT(cuts))];
    int32_t n = cut + 1 + below(60);
    j->r.n_prompt = TR_MIN(n, longest - 40);
    if (below(4) == 0)
        j->r.n_prompt = TR_MIN(TR_MAX(cut, 1), longest - 40);
    for (int32_t i = 0; i < j->r.n_prompt; i++)
        j->prompt[i] = i < cut ? (kind * 17 + i) % 50 + 3 : 1 + below(VOCAB - 1);
    s->max_tokens = 1 + below(below(2) ? 20 : 300);
    s->min_tokens = below(3) == 0 ? below(s->max_tokens) : 0;
    s->ignore_eos = below(2) == 0;
    s->params.choice = (uint32_t)below(2);
    s->max_thinking_tokens = below(3) - 1 + below(2) * 4;
    s->prompt_logprobs = below(5) == 0 ? below(TOP + 1) : -1;
    s->stop_strings = stops;
    s->n_stop_strings = s->ignore_eos ? 0 : below(3);
    s->stop_ids = stop_ids;
    s->n_stop_ids = !s->ignore_eos && below(2);
    s->loop_tokens = below(2) * 8;
}

/* The request alone, without an engine. */
static void reference(const struct job *from, int32_t max_len, struct job *to)
{
    memcpy(to, from, sizeof *to);
    int32_t ids[2 * LEN], banned[BANNED_MAX], n = from->r.n_prompt;
    struct sampling s = from->r.sampling;
    struct sequence_state st;
    s.max_tokens = TR_MIN(s.max_tokens, max_len - n);
    memcpy(ids, from->prompt, (size_t)n * sizeof *ids);
    for (int32_t p = 1; p < n && s.prompt_logprobs >= 0; p++) {
        struct sample_token t;
        draw_prompt(ids, p, ids[p], &t);
        to->prompt_logprobs[p] = t.logprob;
        for (int32_t k = 0; k < s.prompt_logprobs; k++) {
            to->prompt_top_ids[p * s.prompt_logprobs + k] = t.top_ids[k];
            to->prompt_top_logprobs[p * s.prompt_logprobs + k] = t.top_logprobs[k];
        }
    }
    sequence_begin(&st, &rules, from->prompt, n);
    to->out.n = 0;
    to->end.end.reason = FINISH_NONE;
    for (int32_t i = 0; to->end.end.reason == FINISH_NONE; i++) {
        struct sample_token t;
        struct sample_row row = {.params = &s.params, .n_output = i, .banned = banned};
        row.n_banned = sequence_banned(&rules, &s, i, banned, BANNED_MAX);
        row.forced = sequence_forced(&st, &rules, &s);
        draw(ids, n + i, &row, &t);
        if (t.id < 0) {
            to->end.end.reason = FINISH_FAILED;
            return;
        }
        to->ids[i] = ids[n + i] = t.id;
        to->logprobs[i] = t.logprob;
        memcpy(to->top_ids + i * TOP, t.top_ids, TOP * sizeof(int32_t));
        memcpy(to->top_logprobs + i * TOP, t.top_logprobs, TOP * sizeof(float));
        to->out.n = i + 1;
        to->end.end = sequence_advance(&st, &rules, &s, to->ids, i);
    }
}

static void expect_reference(const struct job *j, int32_t max_len)
{
    static struct job want;
    struct job *clean = calloc(1, sizeof *clean);
    job_init(clean, j->r.tag);
    clean->r = j->r;
    memcpy(clean->prompt, j->prompt, sizeof j->prompt);
    reference(clean, max_len, &want);
    free(clean);
    assert_int_equal(j->times, 1);
    assert_int_equal(j->end.end.reason, want.end.end.reason);
    assert_int_equal(j->out.n, want.out.n);
    assert_memory_equal(j->ids, want.ids, sizeof j->ids);
    assert_memory_equal(j->logprobs, want.logprobs, sizeof j->logprobs);
    assert_memory_equal(j->top_ids, want.top_ids, sizeof j->top_ids);
    assert_memory_equal(j->top_logprobs, want.top_logprobs, sizeof j->top_logprobs);
    assert_memory_equal(j->prompt_logprobs, want.prompt_logprobs, sizeof j->prompt_logprobs);
    assert_memory_equal(j->prompt_top_ids, want.prompt_top_ids, sizeof j->prompt_top_ids);
    if (want.end.end.reason == FINISH_FAILED) {
        assert_string_equal(j->end.err.type, "bad_logits");
        return;
    }
    assert_int_equal(j->end.end.stop_id, want.end.end.stop_id);
    assert_int_equal(j->end.end.stop_string, want.end.end.stop_string);
    assert_int_equal(j->end.end.raw_bytes, want.end.end.raw_bytes);
}

static struct engine_opts random_opts(int32_t *n_pages)
{
    struct engine_opts o = {0};
    o.max_model_len = 200 + below(LEN - 200);
    o.slots = 1 + below(SLOTS);
    o.queue_cap = 1 + below(20);
    o.step_tokens = 1 + below(below(2) ? 300 : 20);
    o.chunk_tokens = 1 + below(o.step_tokens);
    o.no_prefix_sharing = below(4) == 0;
    *n_pages = kv_pages_of(o.max_model_len) + below(below(2) ? 60 : 8);
    return o;
}

/* One engine with random options under random requests, some parked and resumed, some cancelled. */
static void random_run(int lag, struct engine_stats *total)
{
    enum { N = 60 };
    static struct job jobs[N];
    struct rig g;
    struct err err = {0};
    int32_t n_pages, sent = 0, done = 0, parked[N], n_parked = 0, parks = 0;
    struct engine_opts o = random_opts(&n_pages);
    rig_open(&g, o, n_pages, lag);
    for (uint64_t i = 0; i < N; i++)
        job_random(&jobs[i], i, o.max_model_len);
    int64_t before = allocations;
    while (done < N) {
        while (sent < N && below(8) != 0) {
            if (engine_submit(g.e, &jobs[sent].r, &err) != ENGINE_ACCEPTED)
                break;
            sent++;
        }
        while (n_parked > 0 && below(3) == 0) {
            if (engine_submit(g.e, &jobs[parked[n_parked - 1]].r, &err) != ENGINE_ACCEPTED)
                break;
            n_parked--;
        }
        assert_string_equal(err.msg, "");
        done += collect(&g, jobs);
        int32_t i = below(N);
        if (i % 4 == 0 && parks < 100 && engine_park(g.e, (uint64_t)i)) {
            parked[n_parked++] = i;
            parks++; /* bounded: each one costs its prefill again */
        } else if (i % 29 == 1)
            engine_cancel(g.e, (uint64_t)i);
    }
    if (COUNTS_ALLOCATIONS)
        assert_int_equal(allocations, before); /* nothing is taken after open */
    assert_true(engine_idle(g.e));
    struct engine_stats st;
    engine_stats(g.e, &st);
    assert_int_equal(st.pages_used, 0);
    assert_int_equal(st.prefill_rows + st.decode_rows, st.rows);
    assert_int_equal(st.padding_rows, 0); /* the fake net has no buckets */
    total->evictions += st.evictions;
    total->cached_rows += st.cached_rows;
    for (int32_t i = 0; i < N; i++) {
        if (jobs[i].end.end.reason != FINISH_CANCELLED)
            expect_reference(&jobs[i], o.max_model_len);
        total->steps += jobs[i].end.end.reason == FINISH_STOP;
        total->rows += jobs[i].end.end.reason == FINISH_FAILED;
        total->sampled += jobs[i].end.end.reason == FINISH_LOOP;
    }
    engine_close(g.e);
}

static void every_request_gets_what_it_gets_alone(void **state)
{
    (void)state;
    for (int32_t i = 0; i < 26; i++)
        tokens_text[i + 10] =
            &"a\0b\0c\0d\0e\0f\0g\0h\0i\0j\0k\0l\0m\0n\0o\0p\0q\0r\0s\0t\0u\0v\0w\0"
             "x\0y\0z"[2 * i];
    for (int32_t i = 0; i < 10; i++)
        tokens_text[i + 36] = i % 2 ? "bc" : "d";
    for (int lag = 0; lag < 2; lag++) {
        struct engine_stats total = {0};
        for (uint64_t seed = 0; seed < 150; seed++) {
            rng = seed * 99 + 1;
            random_run(lag, &total);
        }
        /* The cases were met. */
        assert_true(total.evictions > 100 && total.cached_rows > 10000);
        assert_true(total.steps > 100 && total.rows > 10 && total.sampled > 10);
    }
}

static void device_time_adds_up(void **state)
{
    (void)state;
    enum { N = 40 };
    static struct job jobs[N];
    for (int lag = 0; lag < 2; lag++) {
        struct rig g;
        struct engine_stats st;
        rig_open(&g,
                 (struct engine_opts){.max_model_len = 300,
                                      .slots = 7,
                                      .queue_cap = 3,
                                      .step_tokens = 64,
                                      .chunk_tokens = 64},
                 40, lag);
        for (uint64_t i = 0; i < N; i++)
            job_random(&jobs[i], i, 300);
        run_all(&g, jobs, N);
        engine_stats(g.e, &st);
        int64_t sum = 0;
        for (int i = 0; i < N; i++)
            sum += jobs[i].end.device_ns;
        assert_int_equal(sum, st.device_ns);
        assert_int_equal(st.device_ns, g.net->now);
        engine_close(g.e);
    }
}

static void a_shared_prefix_is_computed_once(void **state)
{
    (void)state;
    enum { N = 20, PREFIX = 150 };
    static struct job jobs[N];
    struct rig g;
    struct engine_stats st;
    rig_open(&g,
             (struct engine_opts){.max_model_len = 300,
                                  .slots = N,
                                  .queue_cap = N,
                                  .step_tokens = 64,
                                  .chunk_tokens = 64},
             200, 0);
    for (uint64_t i = 0; i < N; i++) {
        job_init(&jobs[i], i);
        jobs[i].r.n_prompt = PREFIX + 5;
        jobs[i].r.sampling.max_tokens = 2;
        jobs[i].r.sampling.ignore_eos = true;
        for (int32_t k = 0; k < PREFIX + 5; k++)
            jobs[i].prompt[k] = 5 + (k < PREFIX ? k % 50 : ((int32_t)i + k) % 50);
    }
    run_all(&g, jobs, N);
    engine_stats(g.e, &st);
    assert_int_equal(st.prefill_rows, PREFIX + 5 * N);
    assert_int_equal(st.cached_rows, PREFIX * (N - 1));
    assert_int_equal(jobs[0].end.n_cached, 0);
    assert_int_equal(jobs[N - 1].end.n_cached, PREFIX);
    assert_true(st.pages_peak <= 2 + N);
    /* Those that want prompt_logprobs compute all of it. */
    for (uint64_t i = 0; i < 2; i++) {
        jobs[i].out.n = jobs[i].times = 0;
        jobs[i].r.sampling.prompt_logprobs = 0;
    }
    run_all(&g, jobs, 2);
    engine_stats(g.e, &st);
    assert_int_equal(st.prefill_rows, PREFIX + 5 * N + 2 * (PREFIX + 5));
    engine_close(g.e);
}

static void a_cancelled_owner_is_taken_over(void **state)
{
    (void)state;
    static struct job jobs[3];
    struct rig g;
    struct err err = {0};
    struct engine_stats st;
    rig_open(&g,
             (struct engine_opts){.max_model_len = 300,
                                  .slots = 3,
                                  .queue_cap = 3,
                                  .step_tokens = 10,
                                  .chunk_tokens = 10},
             20, 0);
    for (uint64_t i = 0; i < 3; i++) {
        job_init(&jobs[i], i);
        jobs[i].r.n_prompt = 200;
        jobs[i].r.sampling.max_tokens = 1;
        for (int32_t k = 0; k < 200; k++)
            jobs[i].prompt[k] = 5 + k % 50;
        assert_int_equal(engine_submit(g.e, &jobs[i].r, &err), ENGINE_ACCEPTED);
    }
    for (int i = 0; i < 7; i++)
        assert_int_equal(collect(&g, jobs), 0);
    engine_stats(g.e, &st);
    assert_int_equal(st.running, 1); /* the others wait for it */
    assert_true(engine_cancel(g.e, 0));
    for (int i = 0; !engine_idle(g.e); i++) {
        assert_true(i < 100);
        collect(&g, jobs);
    }
    engine_stats(g.e, &st);
    /* The page that would end the prompt has 8 ids: too few to be shared. */
    assert_int_equal(st.prefill_rows, 200 + 8);
    expect_reference(&jobs[1], 300);
    expect_reference(&jobs[2], 300);
    engine_close(g.e);
}

static void refusals_name_both_values(void **state)
{
    (void)state;
    static struct job j;
    struct rig g;
    struct err err = {0};
    rig_open(
        &g,
        (struct engine_opts){
            .max_model_len = 100, .slots = 1, .queue_cap = 1, .step_tokens = 8, .chunk_tokens = 8},
        2, 0);
    job_init(&j, 1);
    j.r.n_prompt = 100;
    assert_int_equal(engine_submit(g.e, &j.r, &err), E_JOB);
    assert_string_equal(err.type, "prompt_too_long");
    assert_non_null(strstr(err.msg, "100"));
    j.r.n_prompt = 99;
    j.prompt[98] = VOCAB;
    err = (struct err){0};
    assert_int_equal(engine_submit(g.e, &j.r, &err), E_JOB);
    assert_string_equal(err.type, "bad_params");
    j.prompt[98] = 5;
    err = (struct err){0};
    assert_int_equal(engine_submit(g.e, &j.r, &err), ENGINE_ACCEPTED);
    assert_int_equal(engine_submit(g.e, &j.r, &err), E_JOB); /* the tag is there already */
    err = (struct err){0};
    j.r.tag = 2;
    assert_int_equal(engine_submit(g.e, &j.r, &err), ENGINE_ACCEPTED);
    j.r.tag = 3;
    assert_int_equal(engine_submit(g.e, &j.r, &err), ENGINE_FULL);
    struct finished f;
    for (int i = 0; i < 13; i++)
        assert_int_equal(engine_step(g.e, &f, 1, &err), i == 12);
    assert_int_equal(f.end.reason, FINISH_LENGTH); /* cut to the one id that has room */
    assert_int_equal(engine_submit(g.e, &j.r, &err), ENGINE_ACCEPTED);
    struct memory_line lines[8];
    assert_int_equal(engine_memory(g.e, lines, 8), 2);
    assert_true(lines[1].bytes > 0);
    engine_close(g.e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_request_gets_what_it_gets_alone),
        cmocka_unit_test(device_time_adds_up),
        cmocka_unit_test(a_shared_prefix_is_computed_once),
        cmocka_unit_test(a_cancelled_owner_is_taken_over),
        cmocka_unit_test(refusals_name_both_values),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
