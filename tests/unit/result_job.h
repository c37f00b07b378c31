/* result_job: a job as an engine has ended it, and its row. The model is the tiny one's tokenizer
 * where ids matter, or none (a byte is a token). Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_RESULT_JOB_H
#define TRANCHE_TESTS_RESULT_JOB_H

#include "worker/job/prepare.h"
#include "worker/job/result.h"

static const char folder[] = "examples/tiny-model";
static struct loaded_model bytes_model, tiny;
static struct prepare_scratch bytes_scratch, tiny_scratch;
static struct result_scratch scratch;
static struct prepare_context prepare_ctx;
static struct result_context result_ctx;
static struct tokenizer_scratch *encoder;

static int set_up(void **state)
{
    (void)state;
    struct err err = {0};
    bytes_model.rules = (struct sequence_rules){.think_open_id = -1, .think_close_id = -1};
    struct model_opts opts = {.dir = folder, .engine = {.kind = ENGINE_SIM}};
    if (loaded_model_open(&tiny, &opts, &err) < 0 ||
        prepare_scratch_open(&bytes_scratch, &bytes_model, &err) < 0 ||
        prepare_scratch_open(&tiny_scratch, &tiny, &err) < 0)
        fail_msg("%s", err.msg);
    encoder = tokenizer_scratch_open(tiny.tokenizer);
    return encoder ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tokenizer_scratch_close(encoder);
    prepare_scratch_close(&bytes_scratch);
    prepare_scratch_close(&tiny_scratch);
    result_scratch_close(&scratch);
    loaded_model_close(&tiny);
    return 0;
}

/* A job with its choices, as if the engine had just taken it. */
static struct job *begin(const struct loaded_model *model, const char *line)
{
    struct err err = {0};
    prepare_ctx = (struct prepare_context){.model = model,
                                           .params = {.default_max_tokens = 64,
                                                      .vocab_size = 512,
                                                      .max_model_len = 4096,
                                                      .thinks = true},
                                           .defaults = {STR("main"), STR("b")}};
    result_ctx = (struct result_context){.model = model,
                                         .fingerprint = "test",
                                         .config_revision = "r1",
                                         .worker = "w",
                                         .source_label = STR("b.jsonl"),
                                         .mono_to_wall_ns = 1000};
    struct job *job = job_open(strlen(line));
    memcpy((char *)(uintptr_t)job->message.ptr, line, strlen(line));
    job->origin = job_str(job, STR("b:1"));
    job->place = job_str(job, STR("\"line\":1"));
    prepare_job(job, &prepare_ctx, model == &tiny ? &tiny_scratch : &bytes_scratch);
    if (job->err.code || prepare_choices(job, &err) < 0)
        fail_msg("%s %s", job->err.msg, err.msg);
    for (int32_t i = 0; i < job->n_choices; i++)
        job->choices[i].finished.end =
            (struct sequence_end){.reason = FINISH_STOP, .stop_id = -1, .stop_string = -1};
    return job;
}

/* The choice's ids from text, special tokens obeyed. */
static inline void say(struct job *job, int32_t choice, const char *text)
{
    struct err err = {0};
    struct generated *g = &job->choices[choice].out;
    int64_t n =
        tokenizer_encode(tiny.tokenizer, encoder, str_of(text), 0, g->ids, (size_t)g->cap, &err);
    assert_true(n >= 0 && n <= g->cap);
    g->n = (int32_t)n;
}

/* One id for each of the bytes, found by asking the tokenizer. */
static inline int32_t id_of_byte(unsigned char byte)
{
    for (int32_t id = 0; id < tokenizer_vocab_size(tiny.tokenizer); id++) {
        struct str s = tokenizer_token_bytes(tiny.tokenizer, id);
        if (s.len == 1 && (unsigned char)s.ptr[0] == byte)
            return id;
    }
    return -1;
}

#define CHAT "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"1+1\"}]"

#endif
