/* network on the CPU backend: logits and greedy ids of small random models of every family against
 * Hugging Face Transformers in fp32 (tests/golden/logits, made by tools/golden_logits.py), and the
 * same bits for any chunking, thread count and page order. The models are made anew by
 * tools/random_model.py and recognised by their hash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/json.h"
#include "engine/log.h"
#include "engine/model.h"
#include "tests/unit/models_root.h"

#define GOLDEN "tests/golden/logits/"
enum { POSITIONS = 1280, PAGES = POSITIONS / KV_PAGE_TOKENS, SLOTS = 3, SLOT = 1 };

static const char *const presets[] = {
    "qwen2-untied-fp32",       "qwen2-odd-bf16",
    "qwen2-window-fp32",       "qwen2-window-off-bf16",
    "qwen2-long-fp32",         "qwen3-head-dim-bf16",
    "qwen3-yarn-fp32",         "llama3-rope-fp32",
    "llama-biases-fp16",       "mistral-window-fp32",
    "mistral-sharded-bf16",    "llama-mqa-rope-parameters-bf16",
    "qwen2-heads-of-128-bf16", "mistral-window-heads-of-64-bf16",
};

struct golden {
    json_t *doc;
    int32_t ids[POSITIONS], n_ids;
    int32_t vocab, n_kept;
    bool kept[POSITIONS];
    float *logits; /* [n_kept][vocab] */
};

static void golden_open(struct golden *g, const char *preset)
{
    struct err err = {0};
    char path[PATH_MAX];
    *g = (struct golden){0};
    snprintf(path, sizeof path, GOLDEN "%s.json", preset);
    if (json_parse_file(&g->doc, path, &json_limits_file, &err) != E_OK)
        fail_msg("%s", err.msg);
    json_t *ids = json_object_get(g->doc, "ids");
    json_t *kept = json_object_get(g->doc, "logit_positions");
    g->vocab = (int32_t)json_integer_value(json_object_get(g->doc, "vocab"));
    g->n_ids = (int32_t)json_array_size(ids);
    g->n_kept = (int32_t)json_array_size(kept);
    assert_in_range(g->n_ids, 1, POSITIONS);
    for (int32_t i = 0; i < g->n_ids; i++)
        g->ids[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    for (int32_t i = 0; i < g->n_kept; i++)
        g->kept[json_integer_value(json_array_get(kept, (size_t)i))] = true;
    size_t n = (size_t)g->n_kept * (size_t)g->vocab;
    g->logits = mem_alloc(n, sizeof *g->logits);
    snprintf(path, sizeof path, GOLDEN "%s.f32", preset);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(g->logits, sizeof *g->logits, n, f), n);
    fclose(f);
}

static void golden_close(struct golden *g)
{
    mem_free(g->logits);
    json_decref(g->doc);
}

/* The golden file is of this very model. */
static void check_hashes(const struct golden *g, const char *preset)
{
    const char *name;
    json_t *want;
    json_object_foreach(json_object_get(g->doc, "weights_sha256"), name, want)
    {
        char path[PATH_MAX], block[4096], hex[2 * EVP_MAX_MD_SIZE + 1] = "";
        unsigned char hash[EVP_MAX_MD_SIZE];
        unsigned n_hash = 0;
        snprintf(path, sizeof path, "%s/%s/%s", root, preset, name);
        FILE *f = fopen(path, "rb");
        assert_non_null(f);
        EVP_MD_CTX *ctx = EVP_MD_CTX_new();
        EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
        for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;)
            EVP_DigestUpdate(ctx, block, n);
        EVP_DigestFinal_ex(ctx, hash, &n_hash);
        EVP_MD_CTX_free(ctx);
        fclose(f);
        for (unsigned i = 0; i < n_hash; i++)
            snprintf(hex + 2 * i, 3, "%02x", hash[i]);
        assert_string_equal(hex, json_string_value(want));
    }
}

struct runner {
    struct model *model;
    struct backend *backend;
    struct network *network;
    int32_t block_table[SLOTS * PAGES];
    float *kept; /* [chunk][V] of the last step */
};
struct how {
    int32_t threads, chunk, isa;
    bool pages_reversed;
};

static void runner_open(struct runner *r, const char *preset, const struct how *how)
{
    struct err err = {0};
    char path[PATH_MAX];
    *r = (struct runner){0};
    snprintf(path, sizeof path, "%s/%s", root, preset);
    if (model_open(&r->model, path, &err) != E_OK)
        fail_msg("%s", err.msg);
    const struct model_config *c = model_config(r->model);
    struct backend_opts opts = {
        .threads = how->threads,
        .isa = how->isa,
        .rows_cap = how->chunk,
        .logits_cap = 5, /* a step's logits take several turns */
        .n_layers = c->n_layers,
        .n_pages = PAGES + 1,
        .slots = SLOTS,
        .pages_per_slot = PAGES,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .vocab_size = c->vocab_size,
        .dtype = c->dtype,
    };
    if (backend_cpu_open(&r->backend, &opts, &err) != E_OK ||
        network_open(&r->network, r->model, r->backend, how->chunk, POSITIONS, &err) != E_OK)
        fail_msg("%s", err.msg);
    for (int32_t i = 0; i < PAGES; i++)
        r->block_table[SLOT * PAGES + i] = how->pages_reversed ? PAGES - i : i;
    r->kept = mem_alloc((size_t)how->chunk * (size_t)c->vocab_size, sizeof *r->kept);
    backend_cpu_keep_logits(r->backend, r->kept);
}

static void runner_close(struct runner *r)
{
    mem_free(r->kept);
    network_close(r->network);
    r->backend->ops->close(r->backend);
    model_close(r->model);
}

static const struct sample_params greedy_params = {.top_p = 1, .repetition_penalty = 1, .n_top = 2};

/* One step of tokens at..at+n-1 of ids with logits for every row that `wanted` marks (NULL: the
 * last row). Row logits kind: prompt logprob of id 1, or the greedy sample in the last row. */
static int32_t runner_step(struct runner *r, const int32_t *ids, int32_t at, int32_t n,
                           const bool *wanted, struct sample_token *tokens)
{
    static int32_t position[POSITIONS], slot[POSITIONS];
    static struct step_logit logits[POSITIONS];
    struct err err = {0};
    struct step step = {.tokens = ids, .logits = logits};
    for (int32_t i = 0; i < n; i++) {
        position[i] = at + i;
        slot[i] = SLOT;
        if (wanted ? !wanted[at + i] : i != n - 1)
            continue;
        logits[step.n_logits++] =
            i == n - 1
                ? (struct step_logit){.row = i,
                                      .slot = SLOT,
                                      .kind = STEP_SAMPLE,
                                      .sample = {.params = &greedy_params, .forced = -1}}
                : (struct step_logit){
                      .row = i, .slot = SLOT, .kind = STEP_PROMPT_LOGPROB, .target = 1, .n_top = 3};
    }
    step.rows = (struct kv_rows){n, position, slot, r->block_table, PAGES};
    if (network_forward(r->network, &step, tokens, &err) != E_OK)
        fail_msg("%s", err.msg);
    return step.n_logits;
}

/* Prefill in chunks; all kept logits, end to end, into `out`. */
static void prefill(struct runner *r, const struct golden *g, int32_t chunk, float *out)
{
    struct sample_token tokens[POSITIONS];
    for (int32_t at = 0; at < g->n_ids; at += chunk) {
        int32_t n = TR_MIN(chunk, g->n_ids - at);
        int32_t k = runner_step(r, g->ids + at, at, n, g->kept, tokens);
        memcpy(out, r->kept, (size_t)k * (size_t)g->vocab * sizeof *out);
        out += (int64_t)k * g->vocab;
    }
}

static void check_logits(const char *preset, const struct golden *g, const float *got,
                         enum dtype dtype)
{
    double off = 0, all = 0;
    for (int64_t i = 0; i < (int64_t)g->n_kept * g->vocab; i++) {
        double d = (double)got[i] - (double)g->logits[i];
        off += d * d;
        all += (double)g->logits[i] * (double)g->logits[i];
    }
    double relative = sqrt(off / all), limit = dtype == DTYPE_F32 ? 1e-5 : 2e-2;
    print_message("  %-32s relative RMS %.2e over %d x %d logits\n", preset, relative, g->n_kept,
                  g->vocab);
    if (!(relative <= limit))
        fail_msg("%s: relative RMS %g, the limit is %g", preset, relative, limit);
}

/* The reference's own continuation is fed, so one near-tie does not spoil what follows; where the
 * step before agreed, its token comes from the backend (STEP_TOKEN_LAST). */
static void check_greedy(const char *preset, struct runner *r, const struct golden *g,
                         int32_t chunk, enum dtype dtype)
{
    struct sample_token tokens[POSITIONS];
    json_t *ids = json_object_get(g->doc, "greedy"), *gaps = json_object_get(g->doc, "greedy_gap");
    int32_t prompt = (int32_t)json_integer_value(json_object_get(g->doc, "greedy_prompt"));
    int32_t judged = 0, next = 0;
    for (int32_t at = 0; at < prompt; at += chunk)
        runner_step(r, g->ids + at, at, TR_MIN(chunk, prompt - at), NULL, tokens);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int32_t want = (int32_t)json_integer_value(json_array_get(ids, i));
        double gap = json_number_value(json_array_get(gaps, i));
        if (dtype == DTYPE_F32 || gap > 0.25) {
            judged++;
            if (tokens[0].id != want)
                fail_msg("%s: greedy id %zu: want %d, got %d (gap %g)", preset, i, want,
                         tokens[0].id, gap);
        }
        next = tokens[0].id == want ? STEP_TOKEN_LAST : want;
        runner_step(r, &next, prompt + (int32_t)i, 1, NULL, tokens);
    }
    assert_true(judged >= 4);
}

static void logits_equal_transformers(void **state)
{
    (void)state;
    for (size_t p = 0; p < TR_COUNT(presets); p++) {
        struct golden g;
        struct runner r;
        struct how how = {.threads = 2, .chunk = 50, .isa = -1, .pages_reversed = true};
        golden_open(&g, presets[p]);
        check_hashes(&g, presets[p]);
        runner_open(&r, presets[p], &how);
        assert_int_equal(model_config(r.model)->vocab_size, g.vocab);
        float *got = mem_alloc((size_t)g.n_kept * (size_t)g.vocab, sizeof *got);
        prefill(&r, &g, how.chunk, got);
        check_logits(presets[p], &g, got, model_config(r.model)->dtype);
        check_greedy(presets[p], &r, &g, how.chunk, model_config(r.model)->dtype);
        mem_free(got);
        runner_close(&r);
        golden_close(&g);
    }
}

static void bits_do_not_hang_on_how(void **state)
{
    (void)state;
    static const struct how ways[] = {{1, POSITIONS, CPU_ISA_SCALAR, false},
                                      {2, 64, -1, true},
                                      {3, 1, -1, false},
                                      {2, 7, -1, true}};
    for (size_t p = 0; p < TR_COUNT(presets); p++) {
        struct golden g;
        float *first = NULL;
        golden_open(&g, presets[p]);
        size_t n = (size_t)g.n_kept * (size_t)g.vocab;
        for (size_t w = 0; w < TR_COUNT(ways); w++) {
            struct runner r;
            if (ways[w].chunk == 1 && g.n_ids > 400)
                continue; /* the engine's own grid walks long sequences one by one */
            runner_open(&r, presets[p], &ways[w]);
            float *got = mem_alloc(n, sizeof *got);
            prefill(&r, &g, ways[w].chunk, got);
            if (first && memcmp(first, got, n * sizeof *got) != 0)
                fail_msg("%s: way %zu gives other bits than way 0", presets[p], w);
            runner_close(&r);
            if (first)
                mem_free(got);
            else
                first = got;
        }
        mem_free(first);
        golden_close(&g);
    }
}

static void prompt_logprobs_are_of_the_raw_logits(void **state)
{
    (void)state;
    struct golden g;
    struct runner r;
    struct how how = {.threads = 2, .chunk = 20, .isa = -1};
    struct sample_token tokens[POSITIONS];
    bool wanted[POSITIONS];
    memset(wanted, true, sizeof wanted);
    golden_open(&g, presets[0]);
    runner_open(&r, presets[0], &how);
    assert_int_equal(runner_step(&r, g.ids, 0, 20, wanted, tokens), 20);
    for (int32_t i = 0; i < 20; i++) {
        const float *row = r.kept + (int64_t)i * g.vocab;
        double sum = 0;
        for (int32_t v = 0; v < g.vocab; v++)
            sum += exp((double)row[v]);
        int32_t id = tokens[i].id;
        if (i < 19)
            assert_int_equal(id, 1);
        assert_true(fabs((double)tokens[i].logprob - ((double)row[id] - log(sum))) < 1e-5);
        assert_int_equal(tokens[i].n_top, i < 19 ? 3 : 2);
        assert_true(tokens[i].top_logprobs[0] >= tokens[i].top_logprobs[1]);
    }
    runner_close(&r);
    golden_close(&g);
}

static void copied_pages_are_the_same_prefix(void **state)
{
    (void)state;
    struct golden g;
    struct runner r;
    struct how how = {.threads = 2, .chunk = 64, .isa = -1};
    struct sample_token tokens[2];
    golden_open(&g, presets[1]);
    runner_open(&r, presets[1], &how);
    runner_step(&r, g.ids, 0, 40, NULL, tokens);
    /* Slot 2 takes 39 of the 40 tokens by a copied page and computes the last one itself. */
    struct step_copy copy = {r.block_table[SLOT * PAGES], PAGES, 39};
    int32_t position = 39, slot = 2;
    struct step_logit want = {
        .kind = STEP_SAMPLE, .slot = 2, .sample = {.params = &greedy_params, .forced = -1}};
    r.block_table[2 * PAGES] = PAGES;
    struct step step = {
        .tokens = &g.ids[39], .logits = &want, .n_logits = 1, .copies = &copy, .n_copies = 1};
    step.rows = (struct kv_rows){1, &position, &slot, r.block_table, PAGES};
    size_t row = (size_t)g.vocab * sizeof(float);
    float *before = mem_alloc(1, row);
    memcpy(before, r.kept, row);
    struct err err = {0};
    assert_int_equal(network_forward(r.network, &step, tokens + 1, &err), E_OK);
    assert_memory_equal(before, r.kept, row);
    assert_int_equal(tokens[0].id, tokens[1].id);
    mem_free(before);
    runner_close(&r);
    golden_close(&g);
}

static void memory_is_reported(void **state)
{
    (void)state;
    struct runner r;
    struct how how = {.threads = 1, .chunk = 8, .isa = -1};
    runner_open(&r, "mistral-sharded-bf16", &how);
    const struct model_config *c = model_config(r.model);
    const struct backend_ops *ops = r.backend->ops;
    assert_int_equal(ops->bytes(r.backend, "kv pages"), (int64_t)c->n_layers * (PAGES + 1) * 2 *
                                                            c->n_kv_heads * c->head_dim *
                                                            KV_PAGE_TOKENS * 2);
    assert_true(ops->bytes(r.backend, "weights") >= model_weight_bytes(r.model));
    assert_true(ops->bytes(r.backend, "activations") > 8 * 4 * c->hidden);
    assert_int_equal(ops->bytes(r.backend, "biscuits"), 0);
    runner_close(&r);
}

/* A weight file cut between open and upload: an error with a name, never a signal. */
static void a_cut_file_is_an_error(void **state)
{
    (void)state;
    char path[PATH_MAX];
    struct err err = {0};
    struct model *m;
    struct backend *b;
    struct network *n = NULL;
    snprintf(path, sizeof path, "%s/qwen2-window-off-bf16", root);
    assert_int_equal(model_open(&m, path, &err), E_OK);
    const struct model_config *c = model_config(m);
    struct backend_opts opts = {.threads = 1,
                                .isa = -1,
                                .rows_cap = 4,
                                .logits_cap = 4,
                                .n_layers = c->n_layers,
                                .n_pages = 2,
                                .slots = 1,
                                .pages_per_slot = 2,
                                .n_kv_heads = c->n_kv_heads,
                                .head_dim = c->head_dim,
                                .vocab_size = c->vocab_size,
                                .dtype = c->dtype};
    assert_int_equal(backend_cpu_open(&b, &opts, &err), E_OK);
    strcat(path, "/model.safetensors");
    assert_int_equal(truncate(path, 100000), 0);
    assert_int_equal(network_open(&n, m, b, 4, 64, &err), E_FATAL);
    assert_null(n);
    if (!strstr(err.msg, "model.safetensors: want") || !strstr(err.msg, "file has 100000 now"))
        fail_msg("%s", err.msg);
    b->ops->close(b);
    model_close(m);
}

static int make_models(void **state)
{
    (void)state;
    char command[PATH_MAX];
    if (models_root_make(state) < 0)
        return -1;
    snprintf(command, sizeof command, "/usr/bin/python3 tools/random_model.py %s --all >&2", root);
    return system(command);
}

int main(void)
{
    log_setup(LOG_ERROR, LOG_LOGFMT, 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_transformers),
        cmocka_unit_test(bits_do_not_hang_on_how),
        cmocka_unit_test(prompt_logprobs_are_of_the_raw_logits),
        cmocka_unit_test(copied_pages_are_the_same_prefix),
        cmocka_unit_test(memory_is_reported),
        cmocka_unit_test(a_cut_file_is_an_error), /* last: it breaks its model */
    };
    return cmocka_run_group_tests(tests, make_models, models_root_remove);
}
