/* params: request parameters, their defaults and ranges, the limits of the context, the seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/model.h"
#include "worker/job/prepare.h"

static struct prepare_scratch scratch;
static struct loaded_model model; /* no folder: a byte is a token */
static struct generation_defaults generation;
static struct prepare_context context;

static int set_up(void **state)
{
    (void)state;
    struct err err = {0};
    model.rules = (struct sequence_rules){.think_open_id = -1, .think_close_id = -1};
    context = (struct prepare_context){.model = &model,
                                       .params = {.generation = &generation,
                                                  .default_max_tokens = 2048,
                                                  .vocab_size = 256,
                                                  .max_model_len = 4096},
                                       .defaults = {STR("main"), STR("b")}};
    return prepare_scratch_open(&scratch, &model, &err);
}

static int tear_down(void **state)
{
    (void)state;
    prepare_scratch_close(&scratch);
    return 0;
}

static struct job *prepare(const char *line)
{
    size_t len = strlen(line);
    struct job *job = job_open(len);
    memcpy((char *)(uintptr_t)job->message.ptr, line, len);
    job->origin = job_str(job, STR("b:1"));
    prepare_job(job, &context, &scratch);
    return job;
}

static struct job *prepare_well(const char *line)
{
    struct job *job = prepare(line);
    if (job->err.code)
        fail_msg("%s\n  %s: %s", line, job->err.type, job->err.msg);
    return job;
}

static void expect_error(const char *line, const char *type, const char *part)
{
    struct job *job = prepare(line);
    if (job->err.code != E_JOB || strcmp(job->err.type, type) != 0 || !strstr(job->err.msg, part))
        fail_msg("%s\n  want %s with \"%s\", got %s: %s", line, type, part, job->err.type,
                 job->err.msg);
    job_close(job);
}

#define CHAT "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define TEXT "{\"id\":\"a\",\"prompt\":\"hi\""

static void defaults_are_openai_s(void **state)
{
    (void)state;
    struct job *job = prepare_well(CHAT "}");
    const struct sampling *s = &job->params.sampling;
    assert_true(s->params.temperature == 1 && s->params.top_p == 1 && s->params.min_p == 0);
    assert_int_equal(s->max_tokens, 2048);
    assert_int_equal(s->params.n_top, -1);
    assert_int_equal(s->max_thinking_tokens, -1);
    job_close(job);
    job = prepare_well(TEXT "}");
    assert_int_equal(job->params.sampling.max_tokens, 16);
    job_close(job);
}

static void generation_config_stands_in(void **state)
{
    (void)state;
    generation = (struct generation_defaults){.has_temperature = true,
                                              .temperature = 0.6f,
                                              .has_top_k = true,
                                              .top_k = 20,
                                              .has_max_new_tokens = true,
                                              .max_new_tokens = 77};
    struct job *job = prepare_well(CHAT ",\"top_k\":-1}");
    assert_true(job->params.sampling.params.temperature == 0.6f);
    assert_int_equal(job->params.sampling.params.top_k, 0);
    assert_int_equal(job->params.sampling.max_tokens, 77);
    job_close(job);
    job = prepare_well(CHAT ",\"temperature\":0,\"max_tokens\":5}");
    assert_true(job->params.sampling.params.temperature == 0);
    assert_int_equal(job->params.sampling.params.top_k, 20);
    assert_int_equal(job->params.sampling.max_tokens, 5);
    job_close(job);
    generation = (struct generation_defaults){0};
}

static void every_parameter_arrives(void **state)
{
    (void)state;
    struct job *job = prepare_well(
        CHAT ",\"temperature\":0.5,\"top_p\":0.9,\"min_p\":0.1,\"top_k\":7,\"n\":3,\"seed\":-5,"
             "\"repetition_penalty\":1.1,\"frequency_penalty\":-0.5,\"presence_penalty\":2,"
             "\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[1,2],\"max_tokens\":9,"
             "\"max_completion_tokens\":8,\"min_tokens\":2,\"ignore_eos\":true,\"logprobs\":true,"
             "\"top_logprobs\":4,\"prompt_logprobs\":1,\"logit_bias\":{\"65\":-100},"
             "\"include_stop_str_in_output\":true,\"loop_tokens\":64,\"user\":\"u\",\"store\":true,"
             "\"metadata\":{},\"stream\":false,\"model\":\"m\"}");
    job_close(job);
}

static void unknown_null_is_still_unknown(void **state)
{
    (void)state;
    expect_error(CHAT ",\"nonsense_field\":null}", "unknown_field", "nonsense_field");
    struct job *job = prepare_well(CHAT ",\"stop\":null,\"tools\":null,\"seed\":null}");
    assert_false(job->params.seed_given);
    job_close(job);
}

static void values_reach_the_sampler(void **state)
{
    (void)state;
    struct job *job = prepare_well(
        CHAT ",\"temperature\":0.5,\"n\":3,\"seed\":-5,\"presence_penalty\":2,\"stop\":[\"a\","
             "\"bc\"],\"stop_token_ids\":[1,2],\"max_tokens\":9,\"max_completion_tokens\":8,"
             "\"min_tokens\":2,\"logprobs\":true,\"top_logprobs\":4,\"logit_bias\":{\"65\":-100}}");
    const struct sampling *s = &job->params.sampling;
    assert_true(s->params.temperature == 0.5f && s->params.presence_penalty == 2);
    assert_int_equal(job->params.n, 3);
    assert_true(job->params.seed == -5);
    assert_int_equal(s->n_stop_strings, 2);
    assert_int_equal(s->stop_strings[1].len, 2);
    assert_int_equal(s->stop_ids[1], 2);
    assert_int_equal(s->max_tokens, 8); /* max_completion_tokens supersedes */
    assert_int_equal(s->params.n_top, 4);
    assert_int_equal(s->params.bias_ids[0], 65);
    assert_true(s->params.bias[0] == -100);
    struct err err = {0};
    assert_int_equal(prepare_choices(job, &err), E_OK);
    assert_int_equal(job->n_choices, 3);
    assert_int_equal(job->choices[2].sampling.params.choice, 2);
    assert_non_null(job->choices[2].out.top_logprobs);
    job_close(job);
}

static void out_of_range_names_the_value(void **state)
{
    (void)state;
    expect_error(CHAT ",\"temperature\":2.1}", "bad_value", "temperature: want 0 to 2, got 2.1");
    expect_error(CHAT ",\"temperature\":\"1\"}", "bad_field", "want a number, got string");
    expect_error(CHAT ",\"top_p\":-0.1}", "bad_value", "top_p");
    expect_error(CHAT ",\"n\":0}", "bad_value", "n: want 1 to 128, got 0");
    expect_error(CHAT ",\"n\":1.5}", "bad_field", "n: want an integer");
    expect_error(CHAT ",\"seed\":1.5}", "bad_field", "seed");
    expect_error(CHAT ",\"max_tokens\":0}", "bad_value", "max_tokens");
    expect_error(CHAT ",\"top_logprobs\":21,\"logprobs\":true}", "bad_value", "top_logprobs");
    expect_error(CHAT ",\"top_logprobs\":2}", "bad_value", "logprobs true");
    expect_error(CHAT ",\"logit_bias\":{\"256\":1}}", "bad_value", "token ids below 256");
    expect_error(CHAT ",\"logit_bias\":{\"1\":101}}", "bad_value", "-100 to 100");
    expect_error(CHAT ",\"logit_bias\":{\"5\":10,\"05\":-10}}", "bad_value", "got \"05\"");
    expect_error(CHAT ",\"logit_bias\":{\"00\":1}}", "bad_value", "got \"00\"");
    job_close(prepare_well(CHAT ",\"logit_bias\":{\"0\":1,\"10\":1}}"));
    expect_error(CHAT ",\"stop\":\"\"}", "bad_value", "1 to 256 bytes, got 0");
    expect_error(CHAT
                 ",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\",\"j\",\"k\","
                 "\"l\",\"m\",\"n\",\"o\",\"p\",\"q\"]}",
                 "bad_value", "at most 16");
    expect_error(CHAT ",\"min_tokens\":5,\"max_tokens\":4}", "bad_value", "min_tokens");
    expect_error(CHAT ",\"max_thinking_tokens\":5}", "unsupported_field", "<think>");
}

static void unsupported_and_unknown_fields(void **state)
{
    (void)state;
    expect_error(CHAT ",\"tools\":[{}]}", "unsupported_field", "tools");
    expect_error(CHAT ",\"stream\":true}", "unsupported_field", "stream");
    expect_error(CHAT ",\"response_format\":{\"type\":\"json_object\"}}", "unsupported_field",
                 "response_format");
    job_close(prepare_well(CHAT ",\"response_format\":{\"type\":\"text\"}}"));
    expect_error(CHAT ",\"temprature\":1}", "unknown_field", "do you mean temperature?");
    expect_error(CHAT ",\"zzz\":1}", "unknown_field", "zzz: unknown field");
    expect_error(TEXT ",\"top_logprobs\":1}", "unknown_field", "no field of /v1/completions");
    expect_error(TEXT ",\"best_of\":2}", "unsupported_field", "best_of");
    job_close(prepare_well(TEXT ",\"best_of\":1,\"echo\":false}"));
}

static void messages_are_checked(void **state)
{
    (void)state;
#define M(content) "{\"id\":\"a\",\"messages\":" content "}"
    expect_error(M("[]"), "bad_value", "1 to 4096 messages, got 0");
    expect_error(M("{}"), "bad_field", "want an array, got object");
    expect_error(M("[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]"),
                 "unsupported_content", "messages[0].content[0]");
    expect_error(M("[{\"role\":\"user\",\"content\":5}]"), "bad_field", "messages[0].content");
    expect_error(M("[{\"role\":\"user\"}]"), "missing_field", "messages[0].content");
    expect_error(M("[{\"role\":\"usr\",\"content\":\"\"}]"), "bad_value", "usr");
    expect_error(M("[{\"role\":\"tool\",\"content\":\"\"}]"), "unsupported_field", "tool");
    expect_error(M("[{\"role\":\"user\",\"content\":\"x\",\"contend\":1}]"), "unknown_field",
                 "do you mean content?");
    struct job *job = prepare_well(
        M("[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":"
          "\"text\",\"text\":\"b\"}]}]"));
    const char want[] = "system: a\nb\n";
    assert_int_equal(job->prompts[0].n, (int)sizeof want - 1);
    for (size_t i = 0; i + 1 < sizeof want; i++)
        assert_int_equal(job->prompts[0].ids[i], want[i]);
    job_close(job);
}

static void prompts_of_four_shapes(void **state)
{
    (void)state;
    struct job *job = prepare_well("{\"prompt\":[\"a\",\"bcd\"],\"n\":2}");
    struct err err = {0};
    assert_int_equal(job->n_prompts, 2);
    assert_int_equal(job->prompts[1].n, 3);
    assert_int_equal(prepare_choices(job, &err), E_OK);
    assert_int_equal(job->n_choices, 4);
    assert_int_equal(job->choices[3].prompt, 1);
    job_close(job);
    job = prepare_well("{\"prompt\":[5,6,7]}");
    assert_int_equal(job->n_prompts, 1);
    assert_int_equal(job->prompts[0].ids[2], 7);
    job_close(job);
    job = prepare_well("{\"prompt\":[[5],[6,7]]}");
    assert_int_equal(job->n_prompts, 2);
    job_close(job);
    expect_error("{\"prompt\":[5,\"a\"]}", "bad_value", "token 1");
    expect_error("{\"prompt\":[5,256]}", "bad_value", "0 to 255");
    expect_error("{\"prompt\":[]}", "bad_value", "1 to 128 prompts");
    expect_error("{\"prompt\":\"\"}", "bad_value", "at least one token");
    expect_error("{\"prompt\":{}}", "bad_field", "got object");
    expect_error("{\"prompt\":[\"a\",\"b\"],\"n\":65}", "bad_value", "2 times 65");
}

static void context_is_kept(void **state)
{
    (void)state;
    char line[6000];
    memset(line, 'x', sizeof line);
    int head = snprintf(line, sizeof line, "{\"prompt\":\"");
    line[head] = 'x';
    snprintf(line + head + 4090, 64, "\",\"max_tokens\":7}");
    expect_error(line, "prompt_too_long",
                 "4090 tokens and max_tokens 7 need 4097, the context has "
                 "4096");
    snprintf(line + head + 4090, 64, "\"}"); /* the default of 16 is cut to what fits */
    struct job *job = prepare_well(line);
    assert_int_equal(job->params.sampling.max_tokens, 6);
    job_close(job);
    memset(line + head, 'x', 4200);
    snprintf(line + head + 4096, 64, "\"}");
    expect_error(line, "prompt_too_long", "has 4096 tokens, the context 4096");
}

static void prompt_bytes_are_limited(void **state)
{
    (void)state;
    size_t n = JOB_PROMPT_BYTES_MAX + 100;
    char *line = mem_alloc(n, 1);
    memset(line, 'x', n - 1);
    memcpy(line, "{\"prompt\":\"", 11);
    memcpy(line + n - 3, "\"}", 3);
    expect_error(line, "prompt_too_long", "the limit is 2097152");
    mem_free(line);
}

static uint64_t key_of(const char *line)
{
    struct job *job = prepare_well(line);
    uint64_t key = job->params.sampling.params.rng_key;
    job_close(job);
    return key;
}

static void seed_decides_the_draw(void **state)
{
    (void)state;
    assert_true(key_of("{\"id\":\"a\",\"prompt\":\"x\",\"seed\":1}") ==
                key_of("{\"id\":\"b\",\"prompt\":\"x\",\"seed\":1}"));
    assert_true(key_of("{\"id\":\"a\",\"prompt\":\"x\",\"seed\":1}") !=
                key_of("{\"id\":\"a\",\"prompt\":\"x\",\"seed\":2}"));
    assert_true(key_of("{\"id\":\"a\",\"prompt\":\"x\"}") !=
                key_of("{\"id\":\"b\",\"prompt\":\"x\"}"));
    assert_true(key_of("{\"id\":\"a\",\"prompt\":\"x\"}") ==
                key_of("{ \"prompt\":\"x\", \"id\":\"a\"}"));
}

static void params_column_is_the_effect(void **state)
{
    (void)state;
    struct job *job = prepare_well(TEXT ",\"temperature\":0.005,\"stop\":\"\\n\"}");
    const char want[] =
        "{\"n\":1,\"max_tokens\":16,\"temperature\":0.01,\"top_p\":1.0,\"top_k\":0,\"min_p\":0.0,"
        "\"repetition_penalty\":1.0,\"frequency_penalty\":0.0,\"presence_penalty\":0.0,"
        "\"min_tokens\":0,\"ignore_eos\":false,\"stop\":[\"\\n\"]}";
    assert_true(str_eq(job->params_json, STR(want)));
    job_close(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_openai_s),
        cmocka_unit_test(generation_config_stands_in),
        cmocka_unit_test(unknown_null_is_still_unknown),
        cmocka_unit_test(values_reach_the_sampler),
        cmocka_unit_test(out_of_range_names_the_value),
        cmocka_unit_test(unsupported_and_unknown_fields),
        cmocka_unit_test(messages_are_checked),
        cmocka_unit_test(prompts_of_four_shapes),
        cmocka_unit_test(context_is_kept),
        cmocka_unit_test(prompt_bytes_are_limited),
        cmocka_unit_test(seed_decides_the_draw),
        cmocka_unit_test(params_column_is_the_effect),
        cmocka_unit_test(every_parameter_arrives),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
