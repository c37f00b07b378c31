/* job: the two shapes, keys, hashes and typed errors of a message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/job/job.h"

static struct text scratch;
static const struct job_defaults defaults = {{"main", 4}, {"jobs", 4}};

static struct job *parse_bytes(const char *bytes, size_t len)
{
    struct job *job = job_open(len);
    assert_non_null(job);
    memcpy((char *)(uintptr_t)job->message.ptr, bytes, len);
    job->origin = job_str(job, STR("jobs:7"));
    job_parse(job, &defaults, &scratch);
    return job;
}
#define PARSE(literal) parse_bytes(literal, sizeof(literal) - 1)

static void expect_str(struct str s, const char *want)
{
    assert_true(s.ptr != NULL);
    if (!str_eq(s, str_of(want)))
        fail_msg("want \"%s\", got \"" STR_FMT "\"", want, STR_ARG(s));
}

static void expect_error(const char *line, const char *type, const char *part)
{
    struct job *job = parse_bytes(line, strlen(line));
    if (job->err.code != E_JOB || strcmp(job->err.type, type) != 0 || !strstr(job->err.msg, part))
        fail_msg("%s\n  want %s with \"%s\", got %s: %s", line, type, part, job->err.type,
                 job->err.msg);
    assert_true(job->custom_id.ptr && job->batch_id.ptr && job->run.ptr && job->request.ptr);
    job_close(job);
}

static void batch_line_is_read(void **state)
{
    (void)state;
    struct job *job =
        PARSE("{\"custom_id\": \"request-1\", \"method\": \"POST\", \"url\": "
              "\"/v1/chat/completions\", \"body\": {\"model\": \"gpt-3.5-turbo-0125\", "
              "\"messages\": [{\"role\": \"user\", \"content\": \"Hello world!\"}],\"max_tokens\": "
              "1000}, \"batch_id\":\"b\", \"run\":\"blue\", \"deadline\":\"2026-01-31T12:00:00Z\", "
              "\"priority\":-3, \"expected\": 42, \"metadata\":{\"b\":1,\"a\":\"x\"}}");
    assert_int_equal(job->err.code, 0);
    expect_str(job->custom_id, "request-1");
    expect_str(job->batch_id, "b");
    expect_str(job->run, "blue");
    expect_str(job->model, "gpt-3.5-turbo-0125");
    expect_str(job->expected, "42");
    expect_str(job->metadata, "{\"a\":\"x\",\"b\":1}");
    assert_int_equal(job->priority, -3);
    assert_true(job->deadline_ns == 1769860800000000000);
    assert_int_equal(job->kind, JOB_CHAT);
    job_close(job);
}

static void short_form_is_read(void **state)
{
    (void)state;
    struct job *job = PARSE("{\"id\":\"a\",\"prompt\":\"x\",\"expected\":\"y\"}");
    assert_int_equal(job->err.code, 0);
    expect_str(job->custom_id, "a");
    expect_str(job->batch_id, "jobs");
    expect_str(job->run, "main");
    expect_str(job->request, "{\"prompt\":\"x\"}");
    assert_int_equal(job->kind, JOB_COMPLETION);
    job_close(job);
    job = PARSE("{\"messages\":[]}"); /* no id: its origin */
    expect_str(job->custom_id, "jobs:7");
    job_close(job);
}

static bool same_hash(const char *a, const char *b)
{
    struct job *x = parse_bytes(a, strlen(a)), *y = parse_bytes(b, strlen(b));
    bool same = memcmp(x->sha256, y->sha256, 32) == 0;
    job_close(x);
    job_close(y);
    return same;
}

static void hash_covers_the_body_alone(void **state)
{
    (void)state;
    assert_true(same_hash("{\"id\":\"a\",\"prompt\":\"x\",\"seed\":1}",
                          "{ \"seed\":1, \"prompt\":\"x\",\"id\":\"b\",\"priority\":3}"));
    assert_true(same_hash("{\"id\":\"a\",\"prompt\":\"x\"}",
                          "{\"custom_id\":\"q\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                          "\"body\":{\"prompt\":\"x\"}}"));
    assert_false(same_hash("{\"id\":\"a\",\"prompt\":\"x\"}", "{\"id\":\"a\",\"prompt\":\"y\"}"));
    assert_false(same_hash("{\"id\":\"a\",\"prompt\":\"x\",\"temperature\":0.1}",
                           "{\"id\":\"a\",\"prompt\":\"x\",\"temperature\":0.10000000000000002}"));
    assert_false(same_hash("not json", "not jso"));
}

static void request_text_hashes_to_its_column(void **state)
{
    (void)state;
    uint8_t sha[32];
    struct job *job = PARSE("{\"id\":\"a\",\"prompt\":\"\\u4f60\\u0000\",\"top_p\":0.1}");
    expect_str(job->request, "{\"prompt\":\"\xe4\xbd\xa0\\u0000\",\"top_p\":0.1}");
    sha256_of(job->request, sha);
    assert_memory_equal(sha, job->sha256, 32);
    job_close(job);
}

static void bad_messages_are_typed_rows(void **state)
{
    (void)state;
    expect_error("nonsense", "bad_json", "line 1");
    expect_error("[1]", "bad_json", "want an object, got array");
    expect_error("{\"id\":\"a\"}", "missing_field", "prompt");
    expect_error("{\"id\":\"a\",\"prompts\":\"x\"}", "unknown_field", "do you mean prompt?");
    expect_error("{\"id\":\"a\",\"mesages\":[]}", "unknown_field", "do you mean messages?");
    expect_error("{\"id\":\"a\",\"top_p\":1}", "missing_field", "prompt");
    expect_error("{\"id\":\"a\",\"prompt\":\"x\",\"messages\":[]}", "bad_value", "got both");
    expect_error("{\"id\":5,\"prompt\":\"x\"}", "bad_field", "id: want a string, got integer");
    expect_error("{\"id\":\"\",\"prompt\":\"x\"}", "bad_value", "1 to 512 bytes, got 0");
    expect_error("{\"id\":\"a\\u0000b\",\"prompt\":\"x\"}", "bad_value", "NUL");
    expect_error("{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\"}",
                 "missing_field", "body: want an object, got absent");
    expect_error("{\"custom_id\":\"a\",\"url\":\"/v1/chat/completions\",\"body\":{}}",
                 "missing_field", "method");
    expect_error("{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{}}",
                 "unsupported_url", "/v1/embeddings");
    expect_error("{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                 "\"body\":{},\"prioriti\":1}",
                 "unknown_field", "do you mean priority?");
    expect_error("{\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{}}", "missing_field",
                 "custom_id");
    expect_error("{\"id\":\"a\",\"prompt\":\"x\",\"deadline\":\"soon\"}", "bad_value", "deadline");
    expect_error("{\"id\":\"a\",\"prompt\":\"x\",\"deadline\":\"4052-01-31T12:00:00Z\"}",
                 "bad_value", "deadline");
    expect_error("{\"id\":\"a\",\"prompt\":\"x\",\"priority\":1e9}", "bad_field", "priority");
    expect_error("{\"id\":\"a\",\"prompt\":\"x\",\"expected\":[1]}", "bad_field", "expected");
    expect_error("{\"id\":\"a\",\"id\":\"b\",\"prompt\":\"x\"}", "bad_json", "duplicate");
    expect_error("{\"id\":\"\\ud800\",\"prompt\":\"x\"}", "bad_json", "");
    expect_error("{\"id\":\"\xff\",\"prompt\":\"x\"}", "bad_json", "");
}

static void a_cut_message_keeps_its_true_length(void **state)
{
    (void)state;
    struct job *job = job_open(10);
    job->origin = job_str(job, STR("jobs:1"));
    job->message_full = 5000000;
    job_parse(job, &defaults, &scratch);
    assert_string_equal(job->err.type, "too_large");
    assert_non_null(strstr(job->err.msg, "5000000"));
    expect_str(job->custom_id, "jobs:1");
    job_close(job);
}

static void id_limit_is_exact(void **state)
{
    (void)state;
    char line[JOB_ID_BYTES_MAX + 64], id[JOB_ID_BYTES_MAX + 2];
    memset(id, 'x', sizeof id);
    int n = snprintf(line, sizeof line, "{\"prompt\":\"p\",\"id\":\"%.*s\"}", JOB_ID_BYTES_MAX, id);
    struct job *job = parse_bytes(line, (size_t)n);
    assert_int_equal(job->err.code, 0);
    job_close(job);
    n = snprintf(line, sizeof line, "{\"prompt\":\"p\",\"id\":\"%.*s\"}", JOB_ID_BYTES_MAX + 1, id);
    job = parse_bytes(line, (size_t)n);
    assert_string_equal(job->err.type, "bad_value");
    expect_str(job->custom_id, "jobs:7");
    job_close(job);
}

static void times_with_offsets(void **state)
{
    (void)state;
    struct job *job = PARSE("{\"prompt\":\"x\",\"deadline\":\"2026-01-31T14:00:00.5+02:00\"}");
    assert_true(job->deadline_ns == 1769860800000000000);
    job_close(job);
    job = PARSE("{\"prompt\":\"x\",\"deadline\":1769860800}");
    assert_true(job->deadline_ns == 1769860800000000000);
    job_close(job);
}

static void reals_are_shortest(void **state)
{
    (void)state;
    const struct {
        double v;
        const char *want;
    } cases[] = {{0.1, "0.1"}, {1, "1.0"}, {1e300, "1e+300"}, {0.1 + 0.2, "0.30000000000000004"}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        text_reset(&scratch);
        text_json_real(&scratch, cases[i].v);
        expect_str(text_view(&scratch), cases[i].want);
    }
    text_reset(&scratch);
    text_json_float(&scratch, 0.6f);
    expect_str(text_view(&scratch), "0.6");
}

static int close_scratch(void **state)
{
    (void)state;
    text_close(&scratch);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batch_line_is_read),
        cmocka_unit_test(short_form_is_read),
        cmocka_unit_test(hash_covers_the_body_alone),
        cmocka_unit_test(request_text_hashes_to_its_column),
        cmocka_unit_test(bad_messages_are_typed_rows),
        cmocka_unit_test(a_cut_message_keeps_its_true_length),
        cmocka_unit_test(id_limit_is_exact),
        cmocka_unit_test(times_with_offsets),
        cmocka_unit_test(reals_are_shortest),
    };
    return cmocka_run_group_tests(tests, NULL, close_scratch);
}
