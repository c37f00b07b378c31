/* Opening and closing the engine over and over: each open takes all of the device's memory, a mixed
 * run takes no more of it, each close gives all of it back. Needs a GPU; a plain program.
 * usage: opens_cuda_test MODEL_DIR TIMES [nographs] */
#include <stdio.h>
#include <stdlib.h>

#include "engine/cuda_measure.h"
#include "engine/engine.h"
#include "engine/log.h"
#include "engine/model.h"

/* Instances of small steps' graphs are made when their make-up is first met: 2 MiB were seen. */
enum { GRAPHS_BYTES = 8 << 20 };
enum { REQUESTS = 300, PROMPT_MAX = 200, OUT = 24 };

struct job {
    int32_t prompt[PROMPT_MAX], ids[OUT], top[OUT * 2];
    float logprobs[OUT], top_logprobs[OUT * 2];
    struct generated out;
    struct request r;
};
static struct job jobs[REQUESTS];

static void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}

static int64_t in_use(void)
{
    struct err err = {0};
    int64_t used = 0, total = 0;
    must(cuda_measure_memory(0, &used, &total, &err), &err);
    return used;
}

static void fill(struct job *j, int i, int64_t vocab)
{
    const int n = 1 + i * 37 % PROMPT_MAX;
    for (int k = 0; k < n; k++)
        j->prompt[k] = (int32_t)(hash_bytes(&k, sizeof k, (uint64_t)(i % 5)) % (uint64_t)vocab);
    j->out = (struct generated){.cap = OUT,
                                .ids = j->ids,
                                .logprobs = j->logprobs,
                                .top_ids = j->top,
                                .top_logprobs = j->top_logprobs};
    j->r = (struct request){.tag = (uint64_t)i, .prompt = j->prompt, .n_prompt = n, .out = &j->out};
    sampling_init(&j->r.sampling);
    struct sampling *s = &j->r.sampling;
    s->max_tokens = 1 + i % OUT;
    s->ignore_eos = true;
    s->params.rng_key = (uint64_t)i;
    s->params.temperature = i % 3 ? 0.8f : 0;
    s->params.top_p = i % 4 ? 1 : 0.9f;
    s->params.top_k = i % 7 == 0 ? 20 : 0;
    s->params.n_top = i % 5 == 0 ? 2 : -1;
    s->params.frequency_penalty = i % 6 == 0 ? 0.3f : 0;
}

static void run(struct engine *e, int64_t vocab)
{
    struct finished f[64];
    struct err err = {0};
    int at = 0, done = 0;
    while (done < REQUESTS) {
        while (at < REQUESTS) {
            fill(&jobs[at], at, vocab);
            int rc = engine_submit(e, &jobs[at].r, &err);
            must(rc, &err);
            if (rc == ENGINE_FULL)
                break;
            at++;
        }
        int n = engine_step(e, f, 64, &err);
        must(n, &err);
        for (int i = 0; i < n; i++)
            if (f[i].end.reason != FINISH_LENGTH) {
                printf("FAIL request %d ended otherwise: %s\n", (int)f[i].tag, f[i].err.msg);
                exit(1);
            }
        done += n;
    }
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct model *model = NULL;
    int64_t before = 0, most = 0, taken = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: opens_cuda_test MODEL_DIR TIMES [nographs]\n");
        return 2;
    }
    log_setup(LOG_WARN, LOG_LOGFMT, 1);
    must(model_open(&model, argv[1], &err), &err);
    const int times = atoi(argv[2]);
    for (int i = 0; i < times; i++) {
        struct engine *e = NULL;
        struct engine_opts o = {.kind = ENGINE_CUDA, .model = model, .isa = -1};
        o.rules.think_open_id = o.rules.think_close_id = -1;
        o.slots = 16 + i % 3 * 32;
        o.no_graphs = argc > 3;
        o.max_model_len = 512;
        o.kv_bytes = i % 2 ? INT64_C(1) << 30 : 0;
        must(engine_open(&e, &o, &err), &err);
        const int64_t open = in_use();
        if (i % 4 != 3)
            run(e, model_config(model)->vocab_size);
        const int64_t after = in_use();
        engine_close(e);
        const int64_t closed = in_use();
        most = open > most ? open : most;
        taken = after - open > taken ? after - open : taken;
        before = i == 1 ? closed : before; /* the first open loads kernels, which stay */
        if (after > open + GRAPHS_BYTES || (i > 1 && closed > before)) {
            printf("FAIL open %d: %lld MiB in use when open, %lld after a run, %lld when closed "
                   "(%lld once)\n",
                   i, (long long)(open >> 20), (long long)(after >> 20), (long long)(closed >> 20),
                   (long long)(before >> 20));
            return 1;
        }
    }
    printf(
        "ok   %d opens of %s: at most %lld MiB in use, %lld when closed, %lld MiB taken by runs\n",
        times, argv[1], (long long)(most >> 20), (long long)(before >> 20),
        (long long)(taken >> 20));
    model_close(model);
    return 0;
}
