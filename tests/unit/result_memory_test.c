/* result: wherever memory is refused while a row is made, there is no row, or the whole of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/refused_memory.h"
#include "tests/unit/result_job.h"

/* Long enough that each text of a row has memory of its own. */
enum { LONG = 1800 };

static void same_text(const char *what, struct str got, struct str want)
{
    if ((got.ptr == NULL) != (want.ptr == NULL) || !str_eq(got, want))
        fail_msg("refused at %d: %s: %zu bytes at %p, want %zu at %p", refuse_from, what, got.len,
                 (const void *)got.ptr, want.len, (const void *)want.ptr);
}

static void same_row(const struct result *got, const struct result *want)
{
    same_text("answer", got->answer, want->answer);
    same_text("reasoning", got->reasoning, want->reasoning);
    same_text("logprobs", got->logprobs, want->logprobs);
    same_text("prompt_logprobs", got->prompt_logprobs, want->prompt_logprobs);
    same_text("choices", got->choices, want->choices);
    same_text("error_code", got->error_code, want->error_code);
    same_text("error_detail", got->error_detail, want->error_detail);
    same_text("raw", got->raw, want->raw);
    same_text("request", got->request, want->request);
    same_text("source", got->source, want->source);
    assert_int_equal(got->status, want->status);
    assert_int_equal(got->correct, want->correct);
    assert_int_equal(got->sanitized, want->sanitized);
    assert_memory_equal(got->output_sha256, want->output_sha256, 32);
}

/* A choice with reasoning and an answer, in each a byte that is no UTF-8. */
static void say_much(struct job *job, int32_t choice)
{
    static char text[2 * LONG + 64];
    snprintf(text, sizeof text, "%0*d</think>%0*d", LONG, choice, LONG, choice);
    say(job, choice, text);
    struct generated *g = &job->choices[choice].out;
    g->ids[0] = g->ids[g->n - 1] = id_of_byte(0xFF);
}

static bool make_row(struct job *job, struct result_scratch *s)
{
    if (job->err.code)
        return result_refuse(job, &result_ctx, RESULT_INVALID, "bad_value", job->err.msg, 5);
    return result_render(job, &result_ctx, s);
}

/* Refuses the n-th request for memory (all from it on) for every n. */
static void refuse_each(struct job *job, bool all_behind)
{
    int refused = 0;
    assert_true(make_row(job, &scratch));
    const struct result want = *job->result;
    for (int at = 0;; at++) {
        struct result_scratch fresh = {0};
        size_t before = job->bytes;
        refuse(0, SIZE_MAX, at, all_behind ? INT32_MAX : 1);
        bool made = make_row(job, &fresh);
        bool met = atomic_load(&refuse_seen) > at;
        refuse(SIZE_MAX, 0, at, 0);
        result_scratch_close(&fresh);
        if (made) {
            same_row(job->result, &want);
        } else {
            assert_null(job->result);
            assert_int_equal(job->bytes, before); /* it may try for hours */
        }
        refused += !made;
        if (!met)
            break;
    }
    assert_true(refused >= 3);
    job_close(job);
}

static struct job *spoken(const char *line)
{
    struct job *job = begin(&tiny, line);
    for (int32_t i = 0; i < job->n_choices; i++)
        say_much(job, i);
    return job;
}

static void a_chat_s_row_is_whole(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++)
        refuse_each(spoken(CHAT ",\"expected\":\"2\",\"metadata\":{\"a\":1},\"n\":2,"
                                "\"max_tokens\":3900,\"logprobs\":true,\"top_logprobs\":1,"
                                "\"prompt_logprobs\":1}"),
                    all);
}

static void a_completion_s_row_is_whole(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++)
        refuse_each(spoken("{\"id\":\"a\",\"prompt\":\"x\",\"max_tokens\":3900,\"logprobs\":2}"),
                    all);
}

static void a_row_without_output_is_whole(void **state)
{
    (void)state;
    static char line[2 * LONG];
    snprintf(line, sizeof line, "{\"id\":\"a\",\"prompt\":\"%0*d\",\"max_tokens\":9}", LONG, 1);
    for (int all = 0; all < 2; all++) {
        struct job *job = begin(&tiny, line);
        job->choices[0].finished.end.reason = FINISH_FAILED;
        err_typed(&job->choices[0].finished.err, E_JOB, "bad_logits", "row 3: NaN");
        refuse_each(job, all);
        job = begin(&tiny, line);
        job_fail(job, "bad_value", "near \xff");
        refuse_each(job, all);
    }
}

static size_t most_kept(const struct result_scratch *s)
{
    const struct text *texts[] = {&s->raw, &s->text, &s->json, &s->logprobs, &s->repaired};
    size_t most = 0;
    for (size_t i = 0; i < TR_COUNT(texts); i++)
        most = TR_MAX(most, texts[i]->cap);
    return most;
}

/* What one thread keeps for its next row the others do not find, for theirs of now. */
static void a_large_row_s_scratch_is_given_back(void **state)
{
    (void)state;
    enum { REQUEST = 6 << 20 }; /* three bytes of room for each: as U+FFFD */
    struct result_scratch s = {0};
    struct job *job = spoken("{\"id\":\"a\",\"prompt\":\"x\",\"max_tokens\":3900}");
    char *request = mem_alloc(REQUEST, 1);
    assert_non_null(request);
    memset(request, 'x', REQUEST);
    assert_true(result_render(job, &result_ctx, &s));
    const char *kept = s.text.ptr;
    assert_non_null(kept);
    assert_true(result_render(job, &result_ctx, &s));
    assert_ptr_equal(s.text.ptr, kept); /* an ordinary row's serves the next one */
    job->request = (struct str){request, REQUEST};
    assert_true(result_render(job, &result_ctx, &s));
    assert_int_equal(job->result->request.len, REQUEST);
    assert_in_range(most_kept(&s), 1, RESULT_SCRATCH_MAX);
    job_drop_result(job);
    refuse(REQUEST, REQUEST + (2 << 20), 0, 1); /* the row's own copy, in huge pages */
    assert_false(result_render(job, &result_ctx, &s));
    assert_true(atomic_load(&refuse_seen) == 1);
    refuse(SIZE_MAX, 0, 0, 0);
    assert_in_range(most_kept(&s), 1, RESULT_SCRATCH_MAX);
    result_scratch_close(&s);
    mem_free(request);
    job_close(job);
}

/* None at all is had. What the job is known by, and what it came to, is there all the same. */
static void a_bare_row_takes_no_memory(void **state)
{
    (void)state;
    static const struct {
        enum finish_reason reason;
        int code;
        enum result_status status;
        const char *error_code;
    } cases[] = {{FINISH_STOP, E_OK, RESULT_FAILED, "no_memory"},
                 {FINISH_FAILED, E_OK, RESULT_FAILED, "bad_logits"},
                 {FINISH_FAILED, E_JOB, RESULT_INVALID, "bad_logits"},
                 {FINISH_CANCELLED, E_OK, RESULT_CANCELLED, "cancelled"}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct job *job = spoken("{\"id\":\"a\",\"prompt\":\"x\",\"max_tokens\":3900}");
        job->choices[0].finished.end.reason = cases[i].reason;
        job->err.code = cases[i].code;
        err_typed(&job->choices[0].finished.err, E_JOB, "bad_logits", "near \xff");
        refuse(0, SIZE_MAX, 0, INT32_MAX);
        assert_false(result_render(job, &result_ctx, &(struct result_scratch){0}));
        result_render_bare(job, &result_ctx);
        refuse(SIZE_MAX, 0, 0, 0);
        const struct result *r = job->result;
        assert_int_equal(r->status, cases[i].status);
        same_text("error_code", r->error_code, str_of(cases[i].error_code));
        same_text("custom_id", r->key.custom_id, STR("a"));
        assert_memory_equal(r->request_sha256, job->sha256, 32);
        assert_int_equal(r->completion_tokens, job->choices[0].out.n);
        assert_null(r->answer.ptr);
        assert_null(r->choices.ptr);
        assert_null(r->request.ptr);
        job_close(job);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_s_row_is_whole),
        cmocka_unit_test(a_completion_s_row_is_whole),
        cmocka_unit_test(a_row_without_output_is_whole),
        cmocka_unit_test(a_large_row_s_scratch_is_given_back),
        cmocka_unit_test(a_bare_row_takes_no_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
