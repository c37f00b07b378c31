/* engine: what a net's rows may give: tokens, rows that are no numbers, fewer best than asked for.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "tests/unit/engine_net_fake.h"

/* One request with prompt_logprobs under a net whose rows of `kind` all give `token`. */
static void run_instead(struct job *j, int lag, enum step_logit_kind kind,
                        const struct sample_token *token)
{
    struct rig g;
    rig_open(&g,
             (struct engine_opts){.max_model_len = 100,
                                  .slots = 1,
                                  .queue_cap = 1,
                                  .step_tokens = 16,
                                  .chunk_tokens = 16},
             4, lag);
    job_init(j, 0);
    j->r.n_prompt = 40;
    j->r.sampling.max_tokens = 4;
    j->r.sampling.prompt_logprobs = TOP;
    for (int32_t k = 0; k < 40; k++)
        j->prompt[k] = 5 + k;
    for (int32_t k = 0; k < 40 * TOP; k++)
        j->prompt_top_ids[k] = 7;
    g.net->instead[kind] = token;
    run_all(&g, j, 1);
    engine_close(g.e);
}

/* The CPU's sampler gives NaN with such a row, the GPU's gives 0: the id alone tells. */
static void unsound_prompt_logits_fail_the_request(void **state)
{
    (void)state;
    static struct job j;
    for (int lag = 0; lag < 2; lag++) {
        run_instead(&j, lag, STEP_PROMPT_LOGPROB, &(struct sample_token){.id = -1});
        assert_int_equal(j.end.end.reason, FINISH_FAILED);
        assert_string_equal(j.end.err.type, "bad_logits");
        assert_non_null(strstr(j.end.err.msg, "prompt token 1 "));
    }
}

/* A sampler that lost its row must not have the id taken as a token: texts and embeddings end. */
static void an_id_beyond_the_vocabulary_fails_the_request(void **state)
{
    (void)state;
    static const int32_t beyond[] = {VOCAB, INT32_MAX};
    static struct job j;
    for (int i = 0; i < 4; i++) {
        run_instead(&j, i % 2, STEP_SAMPLE, &(struct sample_token){.id = beyond[i / 2]});
        assert_int_equal(j.end.end.reason, FINISH_FAILED);
        assert_string_equal(j.end.err.type, "bad_logits");
        assert_int_equal(j.out.n, 0);
    }
    run_instead(&j, 0, STEP_SAMPLE, &(struct sample_token){.id = VOCAB - 1});
    assert_int_equal(j.out.n, 4);
}

static void missing_best_entries_are_told(void **state)
{
    (void)state;
    static struct job j;
    const struct sample_token one = {
        .id = 9, .logprob = -1, .n_top = 1, .top_ids = {9, 55, 56}, .top_logprobs = {-1}};
    run_instead(&j, 0, STEP_PROMPT_LOGPROB, &one);
    assert_int_not_equal(j.end.end.reason, FINISH_FAILED);
    for (int32_t p = 1; p < 40; p++) {
        assert_int_equal(j.prompt_top_ids[p * TOP], 9);
        assert_int_equal(j.prompt_top_ids[p * TOP + 1], -1);
        assert_int_equal(j.prompt_top_ids[p * TOP + 2], -1);
        assert_true(j.prompt_top_logprobs[p * TOP + 2] == -INFINITY);
    }
    run_instead(&j, 0, STEP_SAMPLE, &one);
    assert_int_equal(j.out.n, 4);
    for (int32_t i = 0; i < 4; i++) {
        assert_int_equal(j.top_ids[i * TOP], 9);
        assert_int_equal(j.top_ids[i * TOP + 1], -1);
        assert_int_equal(j.top_ids[i * TOP + 2], -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unsound_prompt_logits_fail_the_request),
        cmocka_unit_test(an_id_beyond_the_vocabulary_fails_the_request),
        cmocka_unit_test(missing_best_entries_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
