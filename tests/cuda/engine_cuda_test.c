/* The whole engine on CUDA beside the CPU engine: greedy ids, and the counters of a step's rows.
 * Needs a GPU; a plain program, so it runs where there is only the driver (sameness_cuda_test has
 * the same bytes in every way of running). usage: engine_cuda_test MODEL_DIR... (vocabulary of at
 * least 300) */
#include <math.h>

#include "engine/log.h"
#include "tests/cuda/jobs.h"

enum { N = 48 };
static struct job on_cpu[N], on_gpu[N];

/* Greedy ids equal the CPU engine's up to the first place where the CPU's two best logits are close
 * (0.25); behind it the texts differ and say nothing. */
static void compare(void)
{
    int compared = 0, wrong = 0, close_calls = 0;
    double gap = 0;
    char detail[160];
    for (int32_t i = 0; i < N; i++) {
        const struct job *c = &on_cpu[i], *g = &on_gpu[i];
        for (int32_t t = 0; t < c->out.n && t < g->out.n; t++) {
            if (c->ids[t] != g->ids[t]) {
                const bool close = c->top_logprobs[2 * t] - c->top_logprobs[2 * t + 1] <= 0.25f;
                close_calls += close, wrong += !close;
                break;
            }
            gap = fmax(gap, fabs((double)c->logprobs[t] - g->logprobs[t]));
            compared++;
        }
    }
    snprintf(detail, sizeof detail,
             "%d ids compared, %d wrong, %d close calls, logprobs within %.3g", compared, wrong,
             close_calls, gap);
    verdict(wrong == 0 && compared > N * 10 && gap < 0.25, "greedy ids are the CPU engine's",
            detail);
}

/* Rows of padding are what the products' buckets come to, and every row is counted once. */
static void expect_counts(const struct outcome *o)
{
    const struct engine_stats *s = &o->stats;
    char detail[160];
    snprintf(detail, sizeof detail,
             "%lld rows in %lld steps, %lld of padding for %lld; %lld prefill, %lld decode",
             (long long)s->rows, (long long)s->steps, (long long)s->padding_rows,
             (long long)o->padding_due, (long long)s->prefill_rows, (long long)s->decode_rows);
    verdict(s->padding_rows > 0 && s->padding_rows == o->padding_due &&
                s->rows == s->prefill_rows + s->decode_rows,
            "rows and padding are counted", detail);
    snprintf(detail, sizeof detail, "%.3f s busy, %.3f s idle, %.3f s in steps",
             (double)s->busy_ns * 1e-9, (double)s->idle_ns * 1e-9, (double)s->device_ns * 1e-9);
    verdict(s->busy_ns > 0 && s->idle_ns >= 0 && s->device_ns > 0, "times are taken", detail);
}

int main(int argc, char **argv)
{
    log_setup(getenv("VERBOSE") ? LOG_DEBUG : LOG_WARN, LOG_LOGFMT, 1);
    for (int i = 1; i < argc; i++) {
        struct way w = {.slots = 16, .step_tokens = 512, .jobs = N, .greedy = true};
        struct err err = {0};
        struct model *model = NULL;
        printf("model %s\n", argv[i]);
        must(model_open(&model, argv[i], &err), &err);
        w.kind = ENGINE_CPU;
        run(model, &w, on_cpu);
        w.kind = ENGINE_CUDA;
        const struct outcome o = run(model, &w, on_gpu);
        compare();
        expect_counts(&o);
        model_close(model);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
