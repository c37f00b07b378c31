/* A model's logits on CUDA against Hugging Face Transformers in fp32 (tests/golden/logits, made by
 * tools/golden_logits.py): relative RMS, cosine, and the best id where the reference is sure; the
 * prompt in one step, in chunks, and one id a step. Then the example model's greedy ids
 * (tests/golden/tiny). Run from the root of the repository; python3 makes the models. Needs a GPU.
 * usage: golden_cuda_test */
#include <limits.h>
#include <math.h>
#include <unistd.h>

#include "engine/backend_cuda_impl.h"
#include "engine/json.h"
#include "engine/log.h"
#include "tests/cuda/jobs.h"

enum { POSITIONS = 1280, PAGES = POSITIONS / KV_PAGE_TOKENS, SLOTS = 3, SLOT = 1, CASES_MAX = 64 };
#define RMS_MAX    2e-2
#define COSINE_MIN 0.9995
#define SURE       0.25

struct golden {
    int32_t ids[POSITIONS], n_ids, vocab, n_kept;
    bool kept[POSITIONS];
    float *logits; /* [n_kept, vocab] */
};

static json_t *open_json(const char *path)
{
    struct err err = {0};
    json_t *doc = NULL;
    must(json_parse_file(&doc, path, &json_limits_file, &err), &err);
    return doc;
}

static int32_t take_ids(int32_t *out, int32_t cap, const json_t *ids)
{
    const int32_t n = (int32_t)json_array_size(ids);
    struct err err = {0};
    must(n <= cap ? 0 : err_set(&err, E_FATAL, "%d ids, room for %d", n, cap), &err);
    for (int32_t i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    return n;
}

static void golden_open(struct golden *g, const char *preset)
{
    struct err err = {0};
    char path[PATH_MAX];
    int32_t kept[POSITIONS];
    *g = (struct golden){0};
    snprintf(path, sizeof path, "tests/golden/logits/%s.json", preset);
    json_t *doc = open_json(path);
    g->n_ids = take_ids(g->ids, POSITIONS, json_object_get(doc, "ids"));
    g->n_kept = take_ids(kept, POSITIONS, json_object_get(doc, "logit_positions"));
    g->vocab = (int32_t)json_integer_value(json_object_get(doc, "vocab"));
    for (int32_t i = 0; i < g->n_kept; i++)
        g->kept[kept[i]] = true;
    const size_t n = (size_t)g->n_kept * (size_t)g->vocab;
    g->logits = mem_alloc(n, sizeof *g->logits);
    snprintf(path, sizeof path, "tests/golden/logits/%s.f32", preset);
    FILE *f = fopen(path, "rb");
    if (!f || fread(g->logits, sizeof *g->logits, n, f) != n)
        must(err_set(&err, E_FATAL, "%s: want %zu floats", path, n), &err);
    fclose(f);
    json_decref(doc);
}

struct runner {
    struct model *model;
    struct backend *backend;
    struct network *network;
    int32_t table[SLOTS * PAGES];
};

static void runner_open(struct runner *r, const char *folder)
{
    struct err err = {0};
    *r = (struct runner){0};
    must(model_open(&r->model, folder, &err), &err);
    const struct model_config *c = model_config(r->model);
    const struct backend_opts opts = {.threads = 1,
                                      .rows_cap = POSITIONS,
                                      .logits_cap = POSITIONS,
                                      .n_layers = c->n_layers,
                                      .n_pages = PAGES + 1,
                                      .slots = SLOTS,
                                      .pages_per_slot = PAGES,
                                      .n_heads = c->n_heads,
                                      .n_kv_heads = c->n_kv_heads,
                                      .head_dim = c->head_dim,
                                      .vocab_size = c->vocab_size,
                                      .dtype = c->dtype};
    must(backend_cuda_open(&r->backend, &opts, 0, &err), &err);
    must(network_open(&r->network, r->model, r->backend, POSITIONS, POSITIONS, &err), &err);
    for (int32_t i = 0; i < PAGES; i++)
        r->table[SLOT * PAGES + i] = PAGES - i;
}

/* Ids at .. at+n-1 in one step; the kept rows' logits to out. Returns how many rows they are. */
static int32_t run_chunk(struct runner *r, const struct golden *g, int32_t at, int32_t n,
                         float *out)
{
    static int32_t position[POSITIONS], slot[POSITIONS];
    static struct step_logit logits[POSITIONS];
    static struct sample_token tokens[POSITIONS];
    struct step step = {.tokens = g->ids + at, .logits = logits};
    struct err err = {0};
    for (int32_t i = 0; i < n; i++) {
        position[i] = at + i;
        slot[i] = SLOT;
        if (g->kept[at + i])
            logits[step.n_logits++] = (struct step_logit){
                .row = i, .slot = SLOT, .kind = STEP_PROMPT_LOGPROB, .target = 1};
    }
    step.rows = (struct kv_rows){n, position, slot, r->table, PAGES};
    must(network_forward(r->network, &step, tokens, &err), &err);
    must(backend_cuda_drain(r->backend, tokens, &err), &err);
    if (step.n_logits == 0)
        return 0;
    const struct cuda_backend *b = cuda_self(r->backend);
    const size_t row = (size_t)g->vocab * sizeof(float);
    const cudaError_t e =
        cudaMemcpy2D(out, row, b->logits, (size_t)b->logits_stride * sizeof(float), row,
                     (size_t)step.n_logits, cudaMemcpyDeviceToHost);
    must(e == cudaSuccess ? 0 : err_set(&err, E_FATAL, "%s", cudaGetErrorString(e)), &err);
    return step.n_logits;
}

static int best_of(const float *row, int32_t n, float *gap)
{
    int best = 0;
    float second = -INFINITY;
    for (int i = 1; i < n; i++) {
        if (row[i] > row[best]) {
            second = row[best];
            best = i;
        } else if (row[i] > second) {
            second = row[i];
        }
    }
    *gap = row[best] - second;
    return best;
}

static void expect_close(const char *name, const struct golden *g, const float *got)
{
    double off = 0, all = 0, dot = 0, mine = 0;
    int sure = 0, wrong = 0;
    char detail[160];
    for (int32_t k = 0; k < g->n_kept; k++) {
        const float *want = g->logits + (int64_t)k * g->vocab, *have = got + (int64_t)k * g->vocab;
        float gap, ignored;
        for (int32_t i = 0; i < g->vocab; i++) {
            off += ((double)have[i] - want[i]) * ((double)have[i] - want[i]);
            all += (double)want[i] * want[i];
            mine += (double)have[i] * have[i];
            dot += (double)want[i] * have[i];
        }
        const int best = best_of(want, g->vocab, &gap);
        sure += gap > (float)SURE;
        wrong += gap > (float)SURE && best_of(have, g->vocab, &ignored) != best;
    }
    const double rms = sqrt(off / all), cosine = dot / sqrt(all * mine);
    snprintf(detail, sizeof detail, "relative RMS %.2e, cosine %.6f, %d of %d sure ids differ", rms,
             cosine, wrong, sure);
    verdict(rms <= RMS_MAX && cosine >= COSINE_MIN && wrong == 0 && sure > g->n_kept / 4, name,
            detail);
}

static void logits_case(const char *root, const char *preset)
{
    static const int32_t chunks[] = {POSITIONS, 50, 1};
    struct golden g;
    struct runner r;
    char folder[PATH_MAX], command[2 * PATH_MAX], name[96];
    float *first = NULL;
    golden_open(&g, preset);
    snprintf(folder, sizeof folder, "%s/%s", root, preset);
    snprintf(command, sizeof command, "python3 tools/random_model.py %s --preset %s --seed 1",
             folder, preset);
    if (system(command) != 0) {
        verdict(false, preset, command);
        return;
    }
    const size_t n = (size_t)g.n_kept * (size_t)g.vocab;
    runner_open(&r, folder);
    for (size_t c = 0; c < TR_COUNT(chunks); c++) {
        float *got = mem_alloc(n, sizeof *got), *at = got;
        for (int32_t p = 0; p < g.n_ids; p += chunks[c])
            at += (int64_t)run_chunk(&r, &g, p, TR_MIN(chunks[c], g.n_ids - p), at) * g.vocab;
        snprintf(name, sizeof name, "%s, chunks of %d", preset, TR_MIN(chunks[c], g.n_ids));
        if (!first)
            expect_close(name, &g, got);
        else
            verdict(memcmp(first, got, n * sizeof *got) == 0, name, "the same bits");
        if (first)
            mem_free(got);
        else
            first = got;
    }
    mem_free(first);
    network_close(r.network);
    r.backend->ops->close(r.backend);
    model_close(r.model);
    mem_free(g.logits);
}

/* Transformers' greedy answers of the example model, whose best logit leads by 1 or more. */
static void greedy_case(void)
{
    struct job *jobs = mem_alloc(CASES_MAX, sizeof *jobs);
    json_t *doc = open_json("tests/golden/tiny/greedy.json"),
           *cases = json_object_get(doc, "cases");
    const int32_t n = (int32_t)TR_MIN(json_array_size(cases), CASES_MAX);
    const struct way w = {.slots = 16, .jobs = n, .kind = ENGINE_CUDA, .greedy = true};
    struct model *model = NULL;
    struct err err = {0};
    int wrong = 0, ids = 0;
    char detail[96];
    must(model_open(&model, "examples/tiny-model", &err), &err);
    struct engine *e = engine_for(model, &w);
    for (int32_t i = 0; i < n; i++) {
        struct job *j = &jobs[i];
        make_job(j, i, &w);
        j->r.n_prompt = take_ids(j->prompt, LEN,
                                 json_object_get(json_array_get(cases, (size_t)i), "prompt_ids"));
        j->r.sampling.ignore_eos = false;
        j->r.sampling.max_tokens = (int32_t)json_integer_value(json_object_get(doc, "max_tokens"));
        must(engine_submit(e, &j->r, &err), &err);
    }
    while (!engine_idle(e)) {
        struct finished f[CASES_MAX];
        must(engine_step(e, f, CASES_MAX, &err), &err);
    }
    for (int32_t i = 0; i < n; i++) {
        int32_t want[LEN];
        const int32_t many =
            take_ids(want, LEN, json_object_get(json_array_get(cases, (size_t)i), "ids"));
        wrong += jobs[i].out.n != many || memcmp(jobs[i].ids, want, (size_t)many * 4) != 0;
        ids += many;
    }
    snprintf(detail, sizeof detail, "%d of %d answers differ, %d ids", wrong, n, ids);
    verdict(wrong == 0 && n >= 32, "greedy answers are those of Transformers", detail);
    engine_close(e);
    model_close(model);
    json_decref(doc);
    mem_free(jobs);
}

int main(void)
{
    static const char *const presets[] = {"qwen3-head-dim-bf16", "mistral-window-heads-of-64-bf16",
                                          "qwen2-heads-of-128-bf16"};
    char root[] = "/tmp/tranche_golden_XXXXXX", command[64];
    log_setup(getenv("VERBOSE") ? LOG_DEBUG : LOG_WARN, LOG_LOGFMT, 1);
    if (!mkdtemp(root)) {
        printf("FAIL no folder below /tmp\n");
        return 1;
    }
    for (size_t i = 0; i < TR_COUNT(presets); i++)
        logits_case(root, presets[i]);
    greedy_case();
    snprintf(command, sizeof command, "rm -r %s", root);
    printf("%d passed, %d failed%s\n", passed, failed, system(command) == 0 ? "" : "; rm failed");
    return failed != 0;
}
