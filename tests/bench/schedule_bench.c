/* schedule_bench: the real step loop over a net that only counts: how full the steps and slots are,
 * what eviction and the drain cost, and what the host spends on a step. No model: the length of
 * every answer is drawn, and a step's time is a formula with figures measured on one H200 for a
 * 1.5B model (matrix time by rows, KV bytes over bandwidth).
 *
 *   schedule_bench [requests]      W1: 128 in, 128 out; W2: 512 in, 1,024 out on average
 * (lognormal, sigma 0.8, at most 8,192); W3: a shared prefix of 1,000 ids, 100 own, 64 out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine_core.h"

enum { SLOTS = 2816, BUDGET = 2816, PAGES = 41000, OUT_MOST = 8192, VOCAB = 1000 };
static const double kv_bytes_per_token = 28 * 2 * 2 * 128 * 2, bandwidth = 2.7e12;

struct workload {
    const char *name;
    int32_t prefix, own, out;
    double sigma;
};
static const struct workload workloads[] = {
    {"W1", 0, 128, 128, 0}, {"W2", 0, 512, 1024, 0.8}, {"W3", 1000, 100, 64, 0}};

static double step_seconds(double rows, double logits, double kv_tokens)
{
    static const double m[] = {0, 64, 128, 256, 512, 1024, 2048, 4096};
    static const double ms[] = {1.3, 1.39, 1.53, 1.68, 2.65, 3.99, 7.52, 14.78};
    size_t i = 1;
    while (i + 1 < TR_COUNT(m) && rows > m[i])
        i++;
    double body = ms[i - 1] + (ms[i] - ms[i - 1]) * (rows - m[i - 1]) / (m[i] - m[i - 1]);
    double head = logits * 2 * 1536 * 151936 / 730e12;
    return body * 1e-3 + head + kv_tokens * kv_bytes_per_token / bandwidth + rows * 0.3e-6 + 250e-6;
}

struct count {
    double seconds;
    double drain_seconds; /* after the last request got a slot */
    int64_t steps, out_tokens, drain_tokens;
    int64_t steady_steps, steady_rows, steady_decodes, steady_pages; /* before the drain */
    bool draining;
};

static int count_forward(void *ctx, const struct step *s, struct sample_token *tokens,
                         struct err *err)
{
    struct count *c = ctx;
    double kv = 0;
    (void)err;
    for (int32_t i = 0; i < s->n_logits; i++) {
        tokens[i].id = 1 + i % (VOCAB - 1);
        kv += s->rows.position[s->logits[i].row];
    }
    double t = step_seconds(s->rows.n, s->n_logits, kv);
    c->seconds += t;
    c->steps++;
    c->out_tokens += s->n_logits;
    if (c->draining) {
        c->drain_seconds += t;
        c->drain_tokens += s->n_logits;
    } else {
        c->steady_steps++;
        c->steady_rows += s->rows.n;
        c->steady_decodes += s->n_logits;
    }
    return E_OK;
}

static uint64_t rng = 7;
static double uniform(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return ((double)(rng >> 11) + 0.5) * 0x1p-53;
}

static int32_t draw_length(const struct workload *w)
{
    if (w->sigma <= 0)
        return w->out;
    double normal = sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
    double v = (double)w->out * exp(w->sigma * normal - w->sigma * w->sigma / 2);
    return (int32_t)TR_MIN(TR_MAX(v, 1), (double)OUT_MOST);
}

/* Fixed batches of SLOTS: every batch waits for its longest; rows of those that ended are wasted.
 */
static double batch_seconds(const struct workload *w, const int32_t *len, int n)
{
    double seconds = 0;
    for (int at = 0; at < n; at += SLOTS) {
        int size = TR_MIN(SLOTS, n - at);
        int32_t longest = 0;
        for (int i = 0; i < size; i++)
            longest = TR_MAX(longest, len[at + i]);
        double prompt = (double)(w->prefix + w->own) * size;
        seconds += prompt / BUDGET * step_seconds(BUDGET, 0, 0);
        for (int32_t k = 0; k < longest; k++) {
            double live = 0;
            for (int i = 0; i < size && k % 64 == 0; i++)
                live += len[at + i] > k;
            if (k % 64 == 0) /* KV of the living only; every row is computed */
                seconds += TR_MIN(64, longest - k) *
                           step_seconds(size, size, live * (w->prefix + w->own + k));
        }
    }
    return seconds;
}

static struct engine *open_engine(struct count *c, int32_t max_len)
{
    struct engine *e = NULL;
    struct err err = {0};
    struct engine_opts o = {.slots = SLOTS,
                            .queue_cap = SLOTS,
                            .step_tokens = BUDGET,
                            .chunk_tokens = BUDGET,
                            .max_model_len = max_len};
    const struct engine_net net = {.ctx = c, .vocab_size = VOCAB, .forward = count_forward};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    if (engine_core_open(&e, &o, &net, PAGES, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        exit(70);
    }
    return e;
}

struct job {
    struct request r;
    struct generated out;
};

static void submit_some(struct engine *e, struct job *jobs, int32_t *prompts, int n_prompt,
                        int32_t *sent, int n, struct count *c)
{
    struct err err = {0};
    struct engine_stats st;
    engine_stats(e, &st);
    c->draining = *sent == n && st.waiting == 0;
    c->steady_pages += c->draining ? 0 : st.pages_used;
    for (; *sent < n; (*sent)++) {
        struct job *j = &jobs[*sent];
        j->out.ids = j->out.ids ? j->out.ids : malloc((size_t)j->out.cap * sizeof(int32_t));
        j->r.prompt = prompts + (size_t)*sent * (size_t)n_prompt;
        j->r.out = &j->out;
        int rc = engine_submit(e, &j->r, &err);
        if (rc == ENGINE_FULL)
            return;
        CHECK(rc == ENGINE_ACCEPTED);
    }
}

static void run(const struct workload *w, int n)
{
    struct count c = {0};
    int32_t n_prompt = w->prefix + w->own, sent = 0;
    struct engine *e = open_engine(&c, n_prompt + OUT_MOST);
    struct job *jobs = calloc((size_t)n, sizeof *jobs);
    int32_t *prompts = malloc((size_t)n * (size_t)n_prompt * sizeof *prompts);
    int32_t *len = malloc((size_t)n * sizeof *len);
    struct finished *f = malloc(SLOTS * sizeof *f);
    struct err err = {0};
    for (int i = 0; i < n; i++) {
        sampling_init(&jobs[i].r.sampling);
        len[i] = jobs[i].out.cap = jobs[i].r.sampling.max_tokens = draw_length(w);
        jobs[i].r.tag = (uint64_t)i;
        jobs[i].r.n_prompt = n_prompt;
        for (int32_t k = 0; k < n_prompt; k++)
            prompts[(size_t)i * (size_t)n_prompt + (size_t)k] =
                k < w->prefix ? k % VOCAB : (int32_t)(uniform() * VOCAB);
    }
    int64_t start = clock_mono_ns(clock_system());
    for (int done = 0; done < n;) {
        submit_some(e, jobs, prompts, n_prompt, &sent, n, &c);
        int k = engine_step(e, f, SLOTS, &err);
        for (int i = 0; i < k; i++)
            free(jobs[f[i].tag].out.ids);
        done += k;
    }
    double host = (double)(clock_mono_ns(clock_system()) - start) * 1e-3 / (double)c.steps;
    struct engine_stats st;
    engine_stats(e, &st);
    double steps = (double)c.steady_steps, steady = c.seconds - c.drain_seconds;
    double least = (double)(st.rows - st.prefill_rows) + w->prefix + (double)n * w->own;
    printf(
        "%s n=%d out/s=%.0f | steady: out/s=%.0f rows=%.1f%% of the budget, decodes a step=%.0f, "
        "pages=%.1f%% | drain=%.1f%% of the time | evictions=%lld recomputed=%.2f%% | host "
        "us/step=%.0f of %.0f | time of fixed batches=%.1fx\n",
        w->name, n, (double)c.out_tokens / c.seconds,
        (double)(c.out_tokens - c.drain_tokens) / steady,
        100 * (double)c.steady_rows / steps / BUDGET, (double)c.steady_decodes / steps,
        100 * (double)c.steady_pages / steps / PAGES, 100 * c.drain_seconds / c.seconds,
        (long long)st.evictions, 100 * ((double)st.rows - least) / least, host,
        1e6 * c.seconds / (double)c.steps, batch_seconds(w, len, n) / c.seconds);
    engine_close(e);
    free(jobs);
    free(prompts);
    free(len);
    free(f);
}

int main(int argc, char **argv)
{
    int n = argc > 1 ? atoi(argv[1]) : 20000;
    for (size_t i = 0; i < TR_COUNT(workloads) && n > 0; i++)
        run(&workloads[i], n);
    return n > 0 ? 0 : 64;
}
