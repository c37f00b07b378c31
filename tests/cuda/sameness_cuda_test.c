/* Row independence on a GPU, bit for bit: 1,000 requests alone, among 64, 1,408 and all the slots
 * that the engine takes, in other orders and chunks, with and without shared prefixes, evicted,
 * parked and resumed. Ids, logprobs, the best of each place and the prompts' own logprobs are
 * compared. Needs a GPU; a plain program. usage: sameness_cuda_test [MODEL_DIR...] (bf16,
 * vocabulary of at least 300); without one, examples/tiny-model and two random models of other
 * shapes, made in a folder below /tmp. */
#include <unistd.h>

#include "engine/log.h"
#include "tests/cuda/jobs.h"

enum { N = 1000, SOME = 48, FULL = 2816, ROOM = N + FULL };
static struct job *alone, *other;
static const struct model *model;

enum pages { PLENTY, FEW }; /* FEW: a part of what the same run took with plenty */

struct trial {
    struct way way;
    enum pages pages;
};

static bool same(const struct job *a, const struct job *b)
{
    const size_t n = (size_t)a->out.n, p = (size_t)a->r.n_prompt;
    return a->out.n == b->out.n && a->end.end.reason == b->end.end.reason &&
           memcmp(a->ids, b->ids, n * 4) == 0 && memcmp(a->logprobs, b->logprobs, n * 4) == 0 &&
           memcmp(a->top_ids, b->top_ids, sizeof a->top_ids) == 0 &&
           memcmp(a->top_logprobs, b->top_logprobs, sizeof a->top_logprobs) == 0 &&
           memcmp(a->prompt_logprobs, b->prompt_logprobs, p * 4) == 0 &&
           memcmp(a->prompt_top_ids, b->prompt_top_ids, p * 4) == 0 &&
           memcmp(a->prompt_top_logprobs, b->prompt_top_logprobs, p * 4) == 0;
}

static void expect_same(const struct way *w, enum pages pages, const struct outcome *o)
{
    char detail[256];
    int differ = 0, first = -1, at = 0;
    for (int32_t i = 0; i < w->jobs; i++)
        if (!same(&alone[i], &other[i])) {
            first = first < 0 ? i : first;
            differ++;
        }
    if (first >= 0) {
        const struct job *a = &alone[first], *b = &other[first];
        while (at < a->out.n && a->ids[at] == b->ids[at] && a->logprobs[at] == b->logprobs[at])
            at++;
    }
    snprintf(
        detail, sizeof detail,
        "%d of %d differ (job %d at token %d); %d at once, %lld steps, %lld evicted, %lld rows "
        "taken over, %.1f s",
        differ, w->jobs, first, at, o->running_peak, (long long)o->stats.steps,
        (long long)o->stats.evictions, (long long)o->stats.cached_rows, o->seconds);
    const bool met = (pages == PLENTY || o->stats.evictions > 0) &&
                     (w->slots == 1 || w->no_sharing == (o->stats.cached_rows == 0)) &&
                     o->running_peak <= o->stats.slots &&
                     (pages == FEW || w->park_every || w->jobs == SOME ||
                      o->running_peak > o->stats.slots / 8 * 7) &&
                     o->stats.padding_rows == o->padding_due && o->stats.pages_used == 0;
    verdict(differ == 0 && met, w->name, detail);
    if (!met)
        printf("     the case is not met: %d slots, %lld padding rows for %lld, %d pages in use\n",
               o->stats.slots, (long long)o->stats.padding_rows, (long long)o->padding_due,
               o->stats.pages_used);
}

/* The same trials among so many. */
static const struct trial trials[] = {
    {{.name = "plain"}, PLENTY},
    {{.name = "evicted"}, FEW},
    {{.name = "another order", .order = 1}, PLENTY},
    {{.name = "chunks of 60", .chunk = 60, .step_tokens = 1}, PLENTY},
    {{.name = "prefixes read apart", .share_from = 1 << 30, .deep_from = 1}, PLENTY},
    {{.name = "prefixes read together", .share_from = 1, .order = 2}, PLENTY},
    {{.name = "chunks of 60, together, evicted", .chunk = 60, .step_tokens = 1, .share_from = 1},
     FEW},
    {{.name = "parked at every 16th token", .park_every = 16}, PLENTY},
    {{.name = "parked, together, another order",
      .park_every = 24,
      .share_from = 1,
      .deep_from = 1,
      .order = 3},
     PLENTY},
    {{.name = "nothing shared", .no_sharing = true}, PLENTY},
    {{.name = "nothing shared, evicted", .no_sharing = true}, FEW},
    {{.name = "nothing shared, parked", .no_sharing = true, .park_every = 32, .order = 4}, PLENTY},
};

static void among(int32_t slots)
{
    int32_t peak = 0;
    for (size_t i = 0; i < TR_COUNT(trials); i++) {
        char name[96];
        struct way w = trials[i].way;
        const int32_t n = slots ? slots : FULL;
        snprintf(name, sizeof name, "%s%d: %s", slots ? "" : "full, ", n, w.name);
        w.name = name;
        w.kind = ENGINE_CUDA;
        w.slots = slots;
        w.jobs = N;
        /* Those that grow push others out, and keep the slots full while the jobs come and go. */
        w.fillers = n > N ? n - 4 * N / 5 : trials[i].pages == FEW ? n : 0;
        w.step_tokens = w.step_tokens ? TR_MAX(2 * n, 256) : 0;
        w.pages = trials[i].pages == FEW ? TR_MAX(peak * 4 / 10, LEN / KV_PAGE_TOKENS + 2) : 0;
        const struct outcome o = run(model, &w, other);
        peak = trials[i].pages == PLENTY && !w.order ? o.stats.pages_peak : peak;
        expect_same(&w, trials[i].pages, &o);
    }
}

#define ALL  .jobs = N, .kind = ENGINE_CUDA
#define FEWS .jobs = SOME, .kind = ENGINE_CUDA
/* Of few requests, and those that go alone: more steps a request. */
static const struct trial slow[] = {
    {{.name = "two at once", .slots = 2, .step_tokens = 256, .chunk = 256, FEWS}, PLENTY},
    {{.name = "7 at once, another order", .slots = 7, .step_tokens = 256, .order = 5, FEWS},
     PLENTY},
    {{.name = "48 at once, chunks of 1", .slots = 48, .step_tokens = 64, .chunk = 1, FEWS}, PLENTY},
    {{.name = "16 at once, chunks of 100", .slots = 16, .step_tokens = 200, .chunk = 100, FEWS},
     PLENTY},
    {{.name = "7 at once, chunks of 7, nothing shared",
      .slots = 7,
      .step_tokens = 64,
      .chunk = 7,
      .no_sharing = true,
      FEWS},
     PLENTY},
    {{.name = "48 at once, fewest pages",
      .slots = 48,
      .step_tokens = 512,
      .pages = 27,
      .fillers = SOME,
      FEWS},
     FEW},
    {{.name = "12 at once, parked at every token",
      .slots = 12,
      .step_tokens = 512,
      .chunk = 64,
      .park_every = 1,
      FEWS},
     PLENTY},
    {{.name = "alone: another order, prefixes shared", .slots = 1, .order = 6, ALL}, PLENTY},
    {{.name = "alone: parked at every 16th token", .slots = 1, .park_every = 16, ALL}, PLENTY},
    {{.name = "alone: chunks of 50, nothing shared",
      .slots = 1,
      .step_tokens = 64,
      .chunk = 50,
      .no_sharing = true,
      ALL},
     PLENTY},
};

/* That the requests are what the grid is about: lengths, sampling, thoughts that are cut. */
static void check_cases(const struct outcome *o)
{
    char detail[160];
    int thought = 0, sampled = 0, crossings[3] = {0};
    for (int k = 0; k < N; k++) {
        const struct job *j = &alone[k];
        const int32_t n = j->r.n_prompt, end = n + j->out.n;
        sampled += j->out.n >= 64 && j->r.sampling.params.temperature > 0;
        crossings[0] += n < 128 && end > 128;
        crossings[1] += n < 512 && end > 512;
        crossings[2] += n < 1024 && end > 1024;
        for (int32_t t = 0; k % 6 == 5 && t + 1 < j->out.n; t++)
            thought += j->ids[t] == THINK_CLOSE && j->ids[t + 1] == THOUGHT_END;
    }
    snprintf(detail, sizeof detail,
             "%d sampled, %d thoughts cut, 128, 512 and 1,024 keys crossed by %d, %d, %d; %.1f s",
             sampled, thought, crossings[0], crossings[1], crossings[2], o->seconds);
    verdict(sampled > N / 2 && thought >= N / 10 && crossings[0] > 50 && crossings[1] > 50 &&
                crossings[2] > 50,
            "alone, and the cases are met", detail);
}

static void grid(const char *folder)
{
    const struct way one = {.name = "alone",
                            .slots = 1,
                            .step_tokens = LEN,
                            .no_sharing = true,
                            .jobs = N,
                            .kind = ENGINE_CUDA};
    struct err err = {0};
    struct model *m = NULL;
    const int64_t start_ns = clock_mono_ns(clock_system());
    must(model_open(&m, folder, &err), &err);
    model = m;
    const struct model_config *c = model_config(m);
    printf("model %s: %d layers, %d / %d heads of %d\n", folder, c->n_layers, c->n_heads,
           c->n_kv_heads, c->head_dim);
    const struct outcome o = run(model, &one, alone);
    check_cases(&o);
    among(64);
    among(1408);
    among(0);
    for (size_t i = 0; i < TR_COUNT(slow); i++) {
        const struct outcome got = run(model, &slow[i].way, other);
        expect_same(&slow[i].way, slow[i].pages, &got);
    }
    model_close(m);
    printf("     %s: %.0f s\n", folder, (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9);
}

/* Random models of the other two head sizes: 5 query heads to 1 with norms of queries and keys and
 * a gate and up product wide enough for the fused kernel; 7 to 1, biases, and layers with a window.
 */
static void random_models(void)
{
    static const char *const shapes[] = {
        "--family qwen3 --hidden 512 --layers 2 --heads 10 --kv-heads 2 --head-dim 128 "
        "--intermediate 640 --vocab 1003 --dtype bf16",
        "--family qwen2 --hidden 320 --layers 3 --heads 7 --kv-heads 1 --head-dim 64 "
        "--intermediate 448 --vocab 611 --dtype bf16 --config '{\"use_sliding_window\": true, "
        "\"sliding_window\": 300, \"max_window_layers\": 1}'"};
    char root[] = "/tmp/tranche_sameness_XXXXXX", command[640], folder[64];
    if (!mkdtemp(root)) {
        printf("FAIL no folder below /tmp\n");
        exit(1);
    }
    for (size_t i = 0; i < TR_COUNT(shapes); i++) {
        snprintf(folder, sizeof folder, "%s/%zu", root, i);
        snprintf(command, sizeof command, "python3 tools/random_model.py %s %s", folder, shapes[i]);
        if (system(command) != 0) {
            printf("FAIL %s\n", command);
            exit(1);
        }
        grid(folder);
    }
    snprintf(command, sizeof command, "rm -r %s", root);
    if (system(command) != 0)
        printf("     %s stays\n", root);
}

int main(int argc, char **argv)
{
    log_setup(getenv("VERBOSE") ? LOG_DEBUG : LOG_WARN, LOG_LOGFMT, 1);
    alone = calloc(N, sizeof *alone);
    other = calloc(ROOM, sizeof *other);
    for (int i = 1; i < argc; i++)
        grid(argv[i]);
    if (argc == 1) {
        grid("examples/tiny-model");
        random_models();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
