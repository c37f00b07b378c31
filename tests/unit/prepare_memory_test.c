/* prepare: wherever memory is refused while a job is prepared, it is told, and another try gives
 * the whole job: not another key, hash, prompt or parameter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/refused_memory.h"
#include "worker/job/prepare.h"

/* Longer than a chunk of a job's memory, so that each part is asked for on its own. */
#define LONG "%02100d"
static const char *const forms[] = {
    "{\"custom_id\":\"line\",\"batch_id\":\"bb\",\"run\":\"rr\",\"method\":\"POST\","
    "\"url\":\"/v1/chat/completions\",\"metadata\":{\"m\":\"" LONG "\"},\"expected\":\"" LONG
    "\",\"body\":{\"model\":\"" LONG "\",\"messages\":[{\"role\":\"user\",\"content\":\"" LONG
    "\"}],\"stop\":[\"a\",\"b\"],\"stop_token_ids\":[1,2],\"logit_bias\":{\"5\":1}}}",
    "{\"id\":\"short\",\"prompt\":[\"" LONG "\",\"" LONG "\"],\"expected\":5,\"n\":2}",
    "{\"id\":\"ids\",\"prompt\":[[1,2,3],[4]],\"stop\":\"x\"}"};
static struct loaded_model tiny;
static struct prepare_context context;

static int set_up(void **state)
{
    (void)state;
    struct err err = {0};
    struct model_opts opts = {.dir = "examples/tiny-model", .engine = {.kind = ENGINE_SIM}};
    if (loaded_model_open(&tiny, &opts, &err) < 0)
        fail_msg("%s", err.msg);
    context = (struct prepare_context){
        .model = &tiny,
        .params = {.default_max_tokens = 64, .vocab_size = 500, .max_model_len = 4096},
        .defaults = {STR("main"), STR("b")}};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    loaded_model_close(&tiny);
    return 0;
}

static struct job *given(const char *line)
{
    struct job *job = job_open(strlen(line));
    memcpy((char *)(uintptr_t)job->message.ptr, line, strlen(line));
    job->origin = job_str(job, STR("b:1"));
    job->place = job_str(job, STR("\"line\":1"));
    return job;
}

static void same(struct str got, struct str want)
{
    if ((got.ptr == NULL) != (want.ptr == NULL) || !str_eq(got, want))
        fail_msg("refused at %d: got " STR_FMT ", want " STR_FMT, refuse_from, STR_ARG(got),
                 STR_ARG(want));
}

static void same_job(const struct job *got, const struct job *want)
{
    const struct sampling *s = &got->params.sampling, *other = &want->params.sampling;
    same(got->run, want->run);
    same(got->batch_id, want->batch_id);
    same(got->custom_id, want->custom_id);
    same(got->request, want->request);
    same(got->model, want->model);
    same(got->metadata, want->metadata);
    same(got->expected, want->expected);
    same(got->params_json, want->params_json);
    assert_memory_equal(got->sha256, want->sha256, 32);
    assert_int_equal(got->key_hash, want->key_hash);
    assert_int_equal(got->n_prompts, want->n_prompts);
    for (int32_t i = 0; i < got->n_prompts; i++) {
        assert_int_equal(got->prompts[i].n, want->prompts[i].n);
        assert_memory_equal(got->prompts[i].ids, want->prompts[i].ids,
                            (size_t)got->prompts[i].n * 4);
    }
    assert_int_equal(s->n_stop_strings, other->n_stop_strings);
    for (int32_t i = 0; i < s->n_stop_strings; i++)
        same(s->stop_strings[i], other->stop_strings[i]);
    assert_int_equal(s->n_stop_ids, other->n_stop_ids);
    assert_int_equal(s->params.n_bias, other->params.n_bias);
}

/* One try with n requests refused behind `at`, then others as the pool and the worker make them.
 * False: nothing was refused. */
static bool try_with(const struct job *want, const char *line, int at, int n)
{
    struct err err = {0};
    struct prepare_scratch scratch;
    assert_int_equal(prepare_scratch_open(&scratch, &tiny, &err), E_OK);
    struct job *job = given(line);
    refuse(0, SIZE_MAX, at, n);
    prepare_job(job, &context, &scratch);
    bool met = atomic_load(&refuse_seen) > at;
    bool told = job->unread || job->err.code == E_RETRY;
    refuse(SIZE_MAX, 0, at, 0);
    if (met != told)
        fail_msg("refused at %d: told %d, %s", at, told, job->err.msg);
    if (job->unread)
        prepare_job(job, &context, &scratch);
    else if (told)
        prepare_again(job, &context, &scratch);
    assert_int_equal(job->err.code, 0);
    same_job(job, want);
    job_close(job);
    prepare_scratch_close(&scratch);
    return met;
}

static void a_job_is_whole_or_told(void **state)
{
    (void)state;
    static char line[16384];
    for (size_t i = 0; i < TR_COUNT(forms); i++) {
        struct err err = {0};
        struct prepare_scratch scratch;
        snprintf(line, sizeof line, forms[i], 1, 2, 3, 4);
        assert_int_equal(prepare_scratch_open(&scratch, &tiny, &err), E_OK);
        struct job *want = given(line);
        prepare_job(want, &context, &scratch);
        if (want->err.code)
            fail_msg("%s", want->err.msg);
        prepare_scratch_close(&scratch);
        int tries = 0;
        for (int at = 0; try_with(want, line, at, 1) && try_with(want, line, at, INT32_MAX); at++)
            tries++;
        assert_true(tries >= 1);
        job_close(want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_job_is_whole_or_told)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
