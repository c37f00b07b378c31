/* result: ids -> text, reasoning and answer, choices, logprobs, sanitising, `correct`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/tokenizer_impl.h"
#include "tests/unit/result_job.h"

static const struct result *finish(struct job *job)
{
    assert_true(result_render(job, &result_ctx, &scratch));
    return job->result;
}

static void expect(struct str s, const char *want)
{
    if (!want ? s.ptr != NULL : !(s.ptr && str_eq(s, str_of(want))))
        fail_msg("want %s, got " STR_FMT, want ? want : "NULL", STR_ARG(s));
}

static void primed_prompt_splits_at_the_first_close(void **state)
{
    (void)state;
    struct job *job = begin(&tiny, CHAT ",\"expected\":\" 2\"}");
    assert_true(job->prompts[0].thinking);
    say(job, 0, "\nsum: 2\n</think>\n\nThe answer is \\boxed{2}. </think>");
    const struct result *r = finish(job);
    expect(r->reasoning, "sum: 2");
    expect(r->answer, "The answer is \\boxed{2}. </think>");
    assert_int_equal(r->correct, 1);
    assert_int_equal(r->status, RESULT_OK);
    assert_true(r->reasoning_tokens > 0 && r->reasoning_tokens < r->completion_tokens);
    expect(r->choices, "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The answer "
                       "is \\\\boxed{2}. </think>\",\"reasoning_content\":\"sum: 2\",\"refusal\":"
                       "null},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}]");
    job_close(job);
}

static void without_close_all_is_reasoning(void **state)
{
    (void)state;
    struct job *job = begin(&tiny, CHAT ",\"expected\":2}");
    say(job, 0, "carry 1");
    const struct result *r = finish(job);
    expect(r->reasoning, "carry 1");
    expect(r->answer, NULL);
    assert_int_equal(r->correct, 0);
    assert_int_equal(r->reasoning_tokens, r->completion_tokens);
    assert_non_null(strstr(r->choices.ptr, "\"content\":null"));
    job_close(job);
}

static void unprimed_prompt_is_left_whole(void **state)
{
    (void)state;
    struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"1+1\",\"max_tokens\":64}");
    assert_false(job->prompts[0].thinking);
    say(job, 0, " a </think> b ");
    const struct result *r = finish(job);
    expect(r->answer, " a </think> b ");
    expect(r->reasoning, NULL);
    job_close(job);
    job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"1+1\",\"max_tokens\":64}");
    say(job, 0, "<think>\nq\n</think>\nb"); /* it opens one itself */
    r = finish(job);
    expect(r->answer, "b");
    expect(r->reasoning, "q");
    assert_non_null(strstr(r->choices.ptr, "<think>\\nq\\n</think>\\nb"));
    job_close(job);
}

static void stop_string_cuts_bytes(void **state)
{
    (void)state;
    struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"x\",\"stop\":\"END\"}");
    say(job, 0, "abcEND");
    job->choices[0].finished.end = (struct sequence_end){
        .reason = FINISH_STOP, .stop_id = -1, .stop_string = 0, .raw_bytes = 3};
    const struct result *r = finish(job);
    expect(r->answer, "abc");
    assert_non_null(strstr(r->choices.ptr, "\"stop_reason\":\"END\""));
    job_close(job);
}

/* An ordinary token among stop_token_ids ends the text and is dropped, unless asked for: vLLM's
 * include_stop_str_in_output means both kinds of stops. */
static void stop_id_is_included_where_asked(void **state)
{
    (void)state;
    static const struct {
        const char *more, *want;
    } cases[] = {{"", "abc"},
                 {",\"include_stop_str_in_output\":false", "abc"},
                 {",\"include_stop_str_in_output\":true", "abc!"}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        char line[256];
        int32_t stop_id = id_of_byte('!');
        snprintf(line, sizeof line, "{\"id\":\"a\",\"prompt\":\"x\",\"stop_token_ids\":[%d]%s}",
                 stop_id, cases[i].more);
        struct job *job = begin(&tiny, line);
        struct job_choice *c = &job->choices[0];
        for (int k = 0; k < 4; k++)
            c->out.ids[k] = k < 3 ? id_of_byte((unsigned char)("abc"[k])) : stop_id;
        c->out.n = 4;
        c->finished.end =
            (struct sequence_end){.reason = FINISH_STOP, .stop_id = stop_id, .stop_string = -1};
        expect(finish(job)->answer, cases[i].want);
        job_close(job);
    }
}

static const struct result *say_bytes(struct job *job, const char *bytes, size_t n)
{
    struct generated *g = &job->choices[0].out;
    for (size_t i = 0; i < n; i++) {
        g->ids[i] = id_of_byte((unsigned char)bytes[i]);
        assert_true(g->ids[i] >= 0);
    }
    g->n = (int32_t)n;
    return finish(job);
}

/* The rules end the first choice as in the engine; the row is what it becomes. */
static const struct result *say_until_stopped(struct job *job, const struct sequence_rules *rules,
                                              const int32_t *ids, int32_t n)
{
    struct job_choice *c = &job->choices[0];
    struct sequence_state st;
    assert_true(n <= c->out.cap);
    memcpy(c->out.ids, ids, (size_t)n * sizeof *ids);
    sequence_begin(&st, rules, job->prompts[0].ids, job->prompts[0].n);
    for (int32_t i = 0; i < n; i++) {
        c->finished.end = sequence_advance(&st, rules, &c->sampling, c->out.ids, i);
        assert_int_equal(c->finished.end.reason, i + 1 < n ? FINISH_NONE : FINISH_STOP);
    }
    c->out.n = n;
    return finish(job);
}

static void stop_string_behind_a_stray_byte(void **state)
{
    (void)state;
    static const char said[] = "x\xE4"
                               "END";
    int32_t ids[sizeof said - 1];
    for (size_t i = 0; i < TR_COUNT(ids); i++)
        ids[i] = id_of_byte((unsigned char)said[i]);
    struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"x\",\"stop\":\"END\"}");
    const struct result *r = say_until_stopped(job, &tiny.rules, ids, (int32_t)TR_COUNT(ids));
    expect(r->answer, "x\xEF\xBF\xBD");
    expect(r->raw, "x\xE4");
    job_close(job);
}

#define REPLACE(from, to)                                                                          \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"

/* A SentencePiece vocabulary: the 256 bytes, then "\u2581Hello" 256, "\u2581world" 257, "STOP" 258.
 */
static struct tokenizer *pieces_open(void)
{
    struct text json = {0};
    struct err err = {0};
    struct tokenizer *t;
    text_add(&json,
             STR("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],"
                 "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
                 "\"prepend\":\"\u2581\"}," REPLACE(
                     " ", "\u2581") "]},\"pre_tokenizer\":null,"
                                    "\"post_processor\":null,\"decoder\":{\"type\":\"Sequence\","
                                    "\"decoders\":[" REPLACE(
                                        "\u2581",
                                        " ") ",{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
                                             "{\"type\":\"Strip\",\"content\":\" "
                                             "\",\"start\":1,\"stop\":0}]},\"model\":"
                                             "{\"type\":\"BPE\",\"unk_token\":\"<0x00>\",\"byte_"
                                             "fallback\":true,\"vocab\":{"));
    for (int byte = 0; byte < 256; byte++)
        text_f(&json, "\"<0x%02X>\":%d,", byte, byte);
    text_add(&json, STR("\"\u2581Hello\":256,\"\u2581world\":257,\"STOP\":258},\"merges\":[]}}"));
    if (tokenizer_parse(&t, text_view(&json), (struct str){NULL, 0}, &err) < 0)
        fail_msg("%s", err.msg);
    text_close(&json);
    return t;
}

/* Decoding drops the first space, a row keeps it. */
static void stop_string_of_a_sentencepiece_model(void **state)
{
    (void)state;
    struct loaded_model pieces = {.rules = bytes_model.rules};
    pieces.tokenizer = pieces_open();
    pieces.rules.tokenizer = pieces.tokenizer;
    struct job *job = begin(&pieces, "{\"id\":\"a\",\"prompt\":[1],\"stop\":\"STOP\"}");
    static const int32_t ids[] = {256, 257, 258};
    const struct result *r = say_until_stopped(job, &pieces.rules, ids, 3);
    expect(r->answer, " Hello world");
    assert_false(r->sanitized);
    job_close(job);
    tokenizer_close(pieces.tokenizer);
}

static void half_a_character_becomes_valid_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *want;
        size_t n;
    } cases[] = {{"\xe4\xbd\xa0\xe5\xa5", "\xe4\xbd\xa0\xef\xbf\xbd", 5}, /* Chinese, cut */
                 {"ok \xf0\x9f\xab", "ok \xef\xbf\xbd", 6},               /* emoji, cut */
                 {"a\0b",
                  "a\xef\xbf\xbd"
                  "b",
                  3}, /* NUL */
                 {"\xff\xfe", "\xef\xbf\xbd\xef\xbf\xbd", 2}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"x\"}");
        const struct result *r = say_bytes(job, cases[i].bytes, cases[i].n);
        expect(r->answer, cases[i].want);
        assert_true(r->sanitized);
        assert_int_equal(r->raw.len, cases[i].n);
        assert_memory_equal(r->raw.ptr, cases[i].bytes, cases[i].n);
        job_close(job);
    }
    struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"x\"}");
    const struct result *r = say_bytes(job, "\xf0\x9f\xab\xa8", 4);
    expect(r->answer, "\xf0\x9f\xab\xa8");
    assert_false(r->sanitized);
    assert_null(r->raw.ptr);
    job_close(job);
}

static void a_later_choice_keeps_its_bytes(void **state)
{
    (void)state;
    struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"x\",\"n\":2}");
    say(job, 0, "fine");
    job->choices[1].out.ids[0] = id_of_byte(0xFF);
    job->choices[1].out.n = 1;
    const struct result *r = finish(job);
    assert_true(r->sanitized);
    assert_null(r->raw.ptr);
    assert_non_null(strstr(r->choices.ptr, "\"raw_hex\":\"ff\""));
    expect(r->answer, "fine");
    job_close(job);
}

static void chat_logprobs_have_openai_s_shape(void **state)
{
    (void)state;
    struct job *job = begin(&bytes_model, CHAT ",\"logprobs\":true,\"top_logprobs\":1}");
    struct generated *g = &job->choices[0].out;
    g->n = 1;
    g->ids[0] = 'A' - ' ';
    g->logprobs[0] = -0.5f;
    g->top_ids[0] = 'B' - ' ';
    g->top_logprobs[0] = -0.25f;
    const struct result *r = finish(job);
    expect(r->logprobs, "[{\"content\":[{\"token\":\"A\",\"logprob\":-0.5,\"bytes\":[65],"
                        "\"top_logprobs\":[{\"token\":\"B\",\"logprob\":-0.25,\"bytes\":[66]}]}],"
                        "\"refusal\":null}]");
    job_close(job);
}

static void completion_logprobs_have_openai_s_shape(void **state)
{
    (void)state;
    struct job *job = begin(&bytes_model, "{\"id\":\"a\",\"prompt\":\"x\",\"logprobs\":1}");
    struct generated *g = &job->choices[0].out;
    g->n = 2;
    for (int i = 0; i < 2; i++) {
        g->ids[i] = 'A' - ' ' + i;
        g->logprobs[i] = i ? -1e30f : -0.5f;
        g->top_ids[i] = 'A' - ' ';
        g->top_logprobs[i] = -0.5f;
    }
    const struct result *r = finish(job);
    expect(r->logprobs, "[{\"tokens\":[\"A\",\"B\"],\"token_logprobs\":[-0.5,-9999.0],"
                        "\"top_logprobs\":[{\"A\":-0.5},{\"A\":-0.5,\"B\":-9999.0}],"
                        "\"text_offset\":[0,1]}]");
    job_close(job);
}

static void prompt_logprobs_have_vllm_s_shape(void **state)
{
    (void)state;
    struct job *job =
        begin(&bytes_model, "{\"id\":\"a\",\"prompt\":[33,34],\"prompt_logprobs\":0}");
    struct generated *g = &job->choices[0].out;
    g->prompt_logprobs[1] = -2;
    const struct result *r = finish(job);
    expect(r->prompt_logprobs, "[[null,{\"34\":{\"logprob\":-2.0,\"decoded_token\":\"B\"}}]]");
    job_close(job);
}

/* A row with fewer finite logits than asked for: what is not there is -1 and is not told. */
static void logprobs_end_where_a_row_has_no_more(void **state)
{
    (void)state;
    struct job *job = begin(&bytes_model, CHAT ",\"logprobs\":true,\"top_logprobs\":2}");
    struct generated *g = &job->choices[0].out;
    g->n = 1;
    g->ids[0] = g->top_ids[0] = 'A' - ' ';
    g->logprobs[0] = g->top_logprobs[0] = -0.5f;
    g->top_ids[1] = -1;
    expect(finish(job)->logprobs,
           "[{\"content\":[{\"token\":\"A\",\"logprob\":-0.5,\"bytes\":[65],"
           "\"top_logprobs\":[{\"token\":\"A\",\"logprob\":-0.5,\"bytes\":[65]}]}],"
           "\"refusal\":null}]");
    job_close(job);
    job = begin(&bytes_model,
                "{\"id\":\"a\",\"prompt\":[33,34],\"logprobs\":2,\"prompt_logprobs\":2}");
    g = &job->choices[0].out;
    g->n = 1;
    g->ids[0] = g->top_ids[0] = 'A' - ' ';
    g->logprobs[0] = g->top_logprobs[0] = g->prompt_logprobs[1] = -0.5f;
    g->top_ids[1] = -1;
    g->prompt_top_ids[2] = 35;
    g->prompt_top_ids[3] = -1;
    g->prompt_top_logprobs[2] = -0.25f;
    const struct result *r = finish(job);
    assert_non_null(strstr(r->logprobs.ptr, "\"top_logprobs\":[{\"A\":-0.5}]"));
    expect(r->prompt_logprobs, "[[null,{\"34\":{\"logprob\":-0.5,\"decoded_token\":\"B\"},"
                               "\"35\":{\"logprob\":-0.25,\"decoded_token\":\"C\"}}]]");
    job_close(job);
}

static void a_failed_choice_fails_the_row(void **state)
{
    (void)state;
    struct job *job = begin(&bytes_model, "{\"id\":\"a\",\"prompt\":\"x\",\"n\":2}");
    job->choices[1].finished.end.reason = FINISH_FAILED;
    err_typed(&job->choices[1].finished.err, E_JOB, "nan_logits", "row 3: NaN");
    const struct result *r = finish(job);
    assert_int_equal(r->status, RESULT_FAILED);
    expect(r->error_code, "nan_logits");
    expect(r->error_detail, "row 3: NaN");
    expect(r->choices, NULL);
    job_close(job);
}

/* Byte tokens with logprobs, all choices full. */
static struct job *begin_large(const char *line)
{
    struct job *job = begin(&bytes_model, line);
    for (int32_t i = 0; i < job->n_choices; i++) {
        struct generated *g = &job->choices[i].out;
        for (g->n = 0; g->n < g->cap; g->n++) {
            g->ids[g->n] = 'A' - ' ' + g->n % 26;
            if (g->logprobs)
                g->logprobs[g->n] = -0.5f;
            if (g->top_ids) {
                g->top_ids[g->n] = g->ids[g->n];
                g->top_logprobs[g->n] = -0.5f;
            }
        }
    }
    return job;
}

static size_t bytes_of(const struct result *r)
{
    return r->answer.len + r->reasoning.len + r->raw.len + r->choices.len + r->logprobs.len +
           r->prompt_logprobs.len + r->request.len + r->params.len + r->source.len;
}

/* One byte over the limit fails the row without its texts, which are not made to their end. */
static void a_row_over_the_limit_fails(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"id\":\"a\",\"prompt\":\"x\",\"logprobs\":1,\"n\":8,\"prompt_logprobs\":0,"
        "\"expected\":\"q\"}",
        CHAT ",\"logprobs\":true,\"top_logprobs\":1,\"n\":8,\"expected\":\"q\"}",
        "{\"id\":\"a\",\"prompt\":[33,34,35,36,37,38],\"prompt_logprobs\":0}"};
    for (size_t i = 0; i < TR_COUNT(lines); i++) {
        struct job *job = begin_large(lines[i]);
        char limit[64];
        size_t bytes = bytes_of(finish(job));
        assert_int_equal(job->result->status, RESULT_OK);
        job_drop_result(job);
        result_ctx.row_bytes_max = bytes;
        assert_int_equal(finish(job)->status, RESULT_OK);
        job_drop_result(job);
        result_ctx.row_bytes_max = bytes - 1;
        const struct result *r = finish(job);
        assert_int_equal(r->status, RESULT_FAILED);
        expect(r->error_code, "too_large");
        snprintf(limit, sizeof limit, " %zu bytes or more, the limit is %zu;", bytes, bytes - 1);
        if (!strstr(r->error_detail.ptr, limit))
            fail_msg("want \"%s\" in: %s", limit, r->error_detail.ptr);
        assert_true(!r->answer.ptr && !r->choices.ptr && !r->logprobs.ptr && !r->raw.ptr);
        assert_true(!r->prompt_logprobs.ptr && r->request.ptr && r->source.ptr);
        assert_int_equal(r->correct, -1);
        assert_int_equal(r->completion_tokens, job->n_choices * job->choices[0].out.cap);
        job_drop_result(job);
        result_ctx.row_bytes_max = 1000;
        expect(finish(job)->error_code, bytes > 1000 ? "too_large" : NULL);
        assert_true(scratch.json.len + scratch.logprobs.len + scratch.raw.len < 5000);
        job_close(job);
    }
}

static void answers_are_judged(void **state)
{
    (void)state;
    static const struct {
        const char *answer, *expected;
        bool correct;
    } cases[] = {{"42", "42", true},
                 {" 42\n", "42 ", true},
                 {"42.", "42", false},
                 {"so \\boxed{41} no, \\boxed{42}", "42", true},
                 {"\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", true},
                 {"\\boxed{4", "\\boxed{4", true},
                 {"\\boxed{42} and 7", "7", false},
                 {"", "", true},
                 {"", "x", false}};
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        if (answer_is_correct(str_of(cases[i].answer), str_of(cases[i].expected)) !=
            cases[i].correct)
            fail_msg("case %zu", i);
}

static void refused_jobs_have_rows_too(void **state)
{
    (void)state;
    struct job *job = begin(&bytes_model, "{\"id\":\"a\",\"prompt\":\"x\"}");
    assert_true(result_refuse(job, &result_ctx, RESULT_INVALID, "bad_json", "near \xff", 5));
    assert_int_equal(job->result->status, RESULT_INVALID);
    expect(job->result->error_detail, "near \xef\xbf\xbd");
    expect(job->result->source, "{\"source\":\"b.jsonl\",\"line\":1,\"position\":0}");
    job_close(job);
}

static void output_hash_tells_outputs_apart(void **state)
{
    (void)state;
    uint8_t first[32];
    struct job *job = begin(&tiny, "{\"id\":\"a\",\"prompt\":\"x\"}");
    say(job, 0, "one");
    memcpy(first, finish(job)->output_sha256, 32);
    assert_memory_equal(finish(job)->output_sha256, first, 32);
    say(job, 0, "two");
    assert_memory_not_equal(finish(job)->output_sha256, first, 32);
    job_close(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(primed_prompt_splits_at_the_first_close),
        cmocka_unit_test(without_close_all_is_reasoning),
        cmocka_unit_test(unprimed_prompt_is_left_whole),
        cmocka_unit_test(stop_string_cuts_bytes),
        cmocka_unit_test(stop_id_is_included_where_asked),
        cmocka_unit_test(stop_string_behind_a_stray_byte),
        cmocka_unit_test(stop_string_of_a_sentencepiece_model),
        cmocka_unit_test(half_a_character_becomes_valid_utf8),
        cmocka_unit_test(a_later_choice_keeps_its_bytes),
        cmocka_unit_test(chat_logprobs_have_openai_s_shape),
        cmocka_unit_test(completion_logprobs_have_openai_s_shape),
        cmocka_unit_test(prompt_logprobs_have_vllm_s_shape),
        cmocka_unit_test(logprobs_end_where_a_row_has_no_more),
        cmocka_unit_test(a_failed_choice_fails_the_row),
        cmocka_unit_test(a_row_over_the_limit_fails),
        cmocka_unit_test(answers_are_judged),
        cmocka_unit_test(refused_jobs_have_rows_too),
        cmocka_unit_test(output_hash_tells_outputs_apart),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
