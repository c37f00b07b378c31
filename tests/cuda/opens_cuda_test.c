/* Opening and closing the engine over and over: an open takes all of the device's memory that it
 * will use, a mixed run takes no more of it (every tenth one while nothing is left to take), each
 * close gives all of it back. Needs a GPU; a plain program.
 * usage: opens_cuda_test MODEL_DIR TIMES [nographs] */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
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

/* Sizes in turn: the engine's own, which take all the memory that its slots can use; few slots; a
 * fixed arena. The first of each, and every 50th, find their GEMM plans anew. */
static struct engine_opts opts_of(const struct model *model, int i, bool graphs)
{
    struct engine_opts o = {.kind = ENGINE_CUDA, .model = model, .isa = -1, .no_graphs = !graphs};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    if (i % 3 > 0) {
        o.slots = i % 3 == 1 ? 16 : 80;
        o.step_tokens = i % 3 == 1 ? 256 : 1024;
        o.max_model_len = 512;
        o.kv_bytes = i % 3 == 1 ? 0 : INT64_C(1) << 30;
    }
    if (i > 2 && i % 50 != 49)
        o.cache_dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    return o;
}

/* Takes the rest of the device's memory but what a small step's graph may need: a run that asked
 * for more would fail. */
static void *take_the_rest(void)
{
    size_t left = 0, total = 0;
    void *rest = NULL;
    struct err err = {0};
    cudaError_t e = cudaMemGetInfo(&left, &total);
    for (size_t spared = GRAPHS_BYTES; e == cudaSuccess && !rest && spared < left; spared *= 2)
        if (cudaMalloc(&rest, left - spared) != cudaSuccess)
            rest = NULL;
    cudaGetLastError();
    must(rest ? 0 : err_set(&err, E_FATAL, "nothing to take of %zu bytes", left), &err);
    return rest;
}

struct tally {
    int64_t before, most, taken;         /* bytes in use when closed, when open; taken by a run */
    double opening[3], running, closing; /* seconds; opening by opts_of's sizes */
};

static double seconds_since(int64_t *then_ns)
{
    const int64_t now_ns = clock_mono_ns(clock_system());
    const double s = (double)(now_ns - *then_ns) * 1e-9;
    *then_ns = now_ns;
    return s;
}

static bool one_open(struct tally *t, const struct model *model, int i, bool graphs)
{
    const struct engine_opts o = opts_of(model, i, graphs);
    struct engine *e = NULL;
    struct err err = {0};
    int64_t at_ns = clock_mono_ns(clock_system());
    must(engine_open(&e, &o, &err), &err);
    t->opening[i % 3] += seconds_since(&at_ns);
    const int64_t open = in_use();
    void *rest = i % 10 == 5 ? take_the_rest() : NULL;
    backend_cuda_deep_from(rest ? 1 : 0); /* a form of a kernel that the warm-up did not launch */
    at_ns = clock_mono_ns(clock_system());
    if (i % 4 != 3)
        run(e, model_config(model)->vocab_size);
    t->running += seconds_since(&at_ns);
    cudaFree(rest);
    const int64_t after = in_use();
    at_ns = clock_mono_ns(clock_system());
    engine_close(e);
    t->closing += seconds_since(&at_ns);
    const int64_t closed = in_use();
    t->most = TR_MAX(open, t->most);
    t->taken = TR_MAX(after - open, t->taken);
    t->before = i <= 2 ? closed : t->before; /* the first of each size load kernels, which stay */
    if (after <= open + GRAPHS_BYTES && closed <= t->before)
        return true;
    printf("FAIL open %d: %lld MiB in use when open, %lld after a run, %lld when closed (%lld "
           "once)\n",
           i, (long long)(open >> 20), (long long)(after >> 20), (long long)(closed >> 20),
           (long long)(t->before >> 20));
    return false;
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct model *model = NULL;
    struct tally t = {0};
    if (argc < 3) {
        fprintf(stderr, "usage: opens_cuda_test MODEL_DIR TIMES [nographs]\n");
        return 2;
    }
    log_setup(getenv("VERBOSE") ? LOG_INFO : LOG_WARN, LOG_LOGFMT, 1);
    must(model_open(&model, argv[1], &err), &err);
    const int times = atoi(argv[2]);
    for (int i = 0; i < times; i++) {
        if (!one_open(&t, model, i, argc == 3))
            return 1;
        if (i % 100 == 99)
            fprintf(stderr, "     %d opens\n", i + 1);
    }
    printf(
        "ok   %d opens of %s: at most %lld MiB in use, %lld when closed, %lld KiB taken by runs; "
        "opening %.1f + %.1f + %.1f s, runs %.1f s, closing %.1f s\n",
        times, argv[1], (long long)(t.most >> 20), (long long)(t.before >> 20),
        (long long)(t.taken >> 10), t.opening[0], t.opening[1], t.opening[2], t.running, t.closing);
    model_close(model);
    return 0;
}
