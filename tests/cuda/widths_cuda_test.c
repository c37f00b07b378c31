/* Steps of many widths: the engine opens (its plans are made, its blocks hold what the widest
 * product writes), and prompts with logprobs, more than one turn of logit rows, have the same bytes
 * at every width. Needs a GPU; a plain program. usage: widths_cuda_test MODEL_DIR */
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine.h"
#include "engine/gemm_rows.h"
#include "engine/log.h"
#include "engine/model.h"

enum { JOBS = 16, PROMPT = 200, OUT = 8, LEN = 512, SLOTS = CUDA_STEP_TOKENS_MAX / LEN };

struct job {
    int32_t prompt[PROMPT], ids[OUT];
    float logprobs[OUT], prompt_logprobs[PROMPT];
    struct generated out;
};

static void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}

static struct request fill(struct job *j, int i, int64_t vocab)
{
    *j = (struct job){0};
    for (int k = 0; k < PROMPT; k++)
        j->prompt[k] = (int32_t)(hash_bytes(&k, sizeof k, (uint64_t)i) % (uint64_t)vocab);
    j->out = (struct generated){
        .cap = OUT, .ids = j->ids, .logprobs = j->logprobs, .prompt_logprobs = j->prompt_logprobs};
    struct request r = {
        .tag = (uint64_t)i, .prompt = j->prompt, .n_prompt = PROMPT, .out = &j->out};
    sampling_init(&r.sampling);
    r.sampling.max_tokens = OUT;
    r.sampling.ignore_eos = true;
    r.sampling.prompt_logprobs = 0;
    r.sampling.params.n_top = 0;
    r.sampling.params.temperature = i % 2 ? 1.f : 0.f;
    r.sampling.params.rng_key = (uint64_t)i;
    return r;
}

/* A hash of what all jobs gave, in steps of at most `width` rows. */
static uint64_t run(const struct model *model, int32_t width)
{
    static struct job jobs[JOBS];
    struct engine *e = NULL;
    struct err err = {0};
    const struct engine_opts o = {.kind = ENGINE_CUDA,
                                  .model = model,
                                  .slots = SLOTS,
                                  .step_tokens = width,
                                  .max_model_len = LEN,
                                  .isa = -1};
    must(engine_open(&e, &o, &err), &err);
    for (int i = 0; i < JOBS; i++) {
        const struct request r = fill(&jobs[i], i, model_config(model)->vocab_size);
        must(engine_submit(e, &r, &err), &err);
    }
    uint64_t sum = 1;
    for (int done = 0; done < JOBS;) {
        struct finished f[JOBS];
        const int n = engine_step(e, f, JOBS, &err);
        must(n, &err);
        for (int i = 0; i < n; i++)
            if (f[i].end.reason != FINISH_LENGTH) {
                printf("FAIL a job ended with %s: %s\n", finish_reason_name(f[i].end.reason),
                       f[i].err.msg);
                exit(1);
            }
        done += n;
    }
    for (int i = 0; i < JOBS; i++) {
        sum = hash_bytes(jobs[i].ids, sizeof jobs[i].ids, sum);
        sum = hash_bytes(jobs[i].logprobs, sizeof jobs[i].logprobs, sum);
        sum = hash_bytes(jobs[i].prompt_logprobs, sizeof jobs[i].prompt_logprobs, sum);
    }
    engine_close(e);
    return sum;
}

int main(int argc, char **argv)
{
    /* 1,216 is a multiple of 64 and no bucket; 16,384 rows took more plans than there was room. */
    static const int32_t widths[] = {
        64, 100, 1000, 1100, 1200, 1408, 5632, 16384, CUDA_STEP_TOKENS_MAX};
    struct err err = {0};
    struct model *model = NULL;
    uint64_t first = 0;
    int failed = 0;
    log_setup(LOG_WARN, LOG_LOGFMT, 1);
    must(argc == 2 ? E_OK : err_set(&err, E_USAGE, "usage: widths_cuda_test MODEL_DIR"), &err);
    must(model_open(&model, argv[1], &err), &err);
    for (size_t i = 0; i < TR_COUNT(widths); i++) {
        const int64_t from_ns = clock_mono_ns(clock_system());
        const uint64_t sum = run(model, widths[i]);
        first = i == 0 ? sum : first;
        failed += sum != first;
        printf("%s steps of %d: %016llx, %.2f s\n", sum == first ? "ok  " : "FAIL", widths[i],
               (unsigned long long)sum, (double)(clock_mono_ns(clock_system()) - from_ns) * 1e-9);
        fflush(stdout);
    }
    model_close(model);
    printf("%zu passed, %d failed\n", TR_COUNT(widths) - (size_t)failed, failed);
    return failed != 0;
}
