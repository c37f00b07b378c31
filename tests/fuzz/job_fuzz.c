/* job_fuzz: a message of any bytes is a job with a key, a hash and either prompts or a typed error;
 * its row is valid UTF-8. */
#include "worker/job/prepare.h"
#include "worker/job/result.h"

static struct loaded_model model;
static struct prepare_context context;
static struct result_context result_ctx;
static struct prepare_scratch scratch;
static struct result_scratch result_scratch;
static struct generation_defaults generation = {.has_temperature = true, .temperature = 0.6f};

static void open_once(void)
{
    struct err err = {0};
    if (context.model)
        return;
    model.rules = (struct sequence_rules){.think_open_id = 60, .think_close_id = 62};
    context = (struct prepare_context){.model = &model,
                                       .params = {.generation = &generation,
                                                  .default_max_tokens = 16,
                                                  .vocab_size = 256,
                                                  .max_model_len = 4096,
                                                  .thinks = true},
                                       .defaults = {STR("main"), STR("b")}};
    result_ctx = (struct result_context){.model = &model,
                                         .fingerprint = "f",
                                         .config_revision = "r",
                                         .worker = "w",
                                         .source_label = STR("b.jsonl")};
    CHECK(prepare_scratch_open(&scratch, &model, &err) == E_OK);
}

static void check_text(struct str s)
{
    bool changed = false;
    size_t n = utf8_repair(s, NULL, 0, &changed);
    CHECK(!changed && n == s.len);
    CHECK(s.len == 0 || !memchr(s.ptr, 0, s.len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    open_once();
    struct job *job = job_open(size);
    CHECK(job);
    if (size)
        memcpy((char *)(uintptr_t)job->message.ptr, data, size);
    job->origin = job_str(job, STR("b:1"));
    job->place = job_str(job, STR("\"line\":1"));
    prepare_job(job, &context, &scratch);
    CHECK(job->run.len && job->batch_id.len && job->custom_id.len && job->request.ptr);
    CHECK(job->custom_id.len <= JOB_ID_BYTES_MAX);
    if (job->err.code) {
        CHECK(job->err.type[0] && job->err.msg[0]);
        CHECK(result_refuse(job, &result_ctx, RESULT_INVALID, job->err.type, job->err.msg, 1));
    } else {
        CHECK(job->n_prompts > 0 && job->params.sampling.max_tokens > 0);
        CHECK(prepare_choices(job, &err) == E_OK);
        for (int32_t i = 0; i < job->n_choices; i++) /* the prompt's bytes serve as the output */
            for (int32_t k = 0; k < job->prompts[0].n && k < job->choices[i].out.cap; k++)
                job->choices[i].out.ids[job->choices[i].out.n++] = job->prompts[0].ids[k];
        for (int32_t i = 0; i < job->n_choices; i++)
            job->choices[i].finished.end =
                (struct sequence_end){.reason = FINISH_LENGTH, .stop_id = -1, .stop_string = -1};
        CHECK(result_render(job, &result_ctx, &result_scratch));
        check_text(job->result->answer);
        check_text(job->result->choices);
    }
    check_text(job->result->request);
    check_text(job->result->error_detail);
    job_close(job);
    return 0;
}
