/* bench_gpu: see bench_gpu.h. In order: the folder of random weights, the card's ceilings, steps of
 * given make-up on a meter, then an engine and its workloads. */
#include "worker/bench/bench_gpu.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>

#include "engine/backend_cuda.h"
#include "engine/log.h"
#include "worker/bench/bench_folder.h"
#include "worker/bench/bench_json.h"

enum { ROWS = 5632, LOGITS = 1408, MODEL_LEN = 8832, METER_SLOTS = 2880, METER_LEN = 32768 };
enum { METER_PAGES = 33000, SHARED_PAGES = 15, ALONE_TOKENS = 512 };

struct gpu_bench {
    const struct model_opts *opts;
    const struct config *config;
    struct model *model;
    struct cuda_ceilings top;
    struct roofline roofline;
    json_t *doc;
};

static double now_seconds(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

static void set_real(json_t *object, const char *key, double value)
{
    CHECK(json_object_set_new(object, key, json_real(value)) == 0);
}

/* A run takes minutes: each part is told when it is done, on standard error, so that a run that is
 * cut short has not been in vain. */
static void told(const char *list, const json_t *part)
{
    fprintf(stderr, "%s ", list);
    json_dumpf(part, stderr, JSON_COMPACT | JSON_REAL_PRECISION(6));
    fputc('\n', stderr);
}

/* Whether --workloads names it. */
static bool wanted(const struct gpu_bench *g, const char *name)
{
    const char *at = config_text(g->config, "workloads");
    for (size_t n; *at; at += n + (at[n] == ',')) {
        n = strcspn(at, ",");
        if (n == strlen(name) && strncmp(at, name, n) == 0)
            return true;
    }
    return false;
}

static int check_workloads(const struct gpu_bench *g, struct err *err)
{
    static const char *const names[] = {"W1", "W2", "W3", "one", "steps"};
    const char *at = config_text(g->config, "workloads");
    for (size_t n; *at; at += n + (at[n] == ',')) {
        bool known = false;
        n = strcspn(at, ",");
        for (size_t i = 0; i < TR_COUNT(names); i++)
            known = known || (n == strlen(names[i]) && strncmp(at, names[i], n) == 0);
        if (!known)
            return err_set(err, E_USAGE,
                           "--workloads: want a list of W1, W2, W3, one and steps, found \"%.*s\"",
                           (int)n, at);
    }
    return E_OK;
}

static int open_model(struct gpu_bench *g, struct err *err)
{
    char path[PATH_MAX];
    if (g->opts->dir)
        return model_open(&g->model, g->opts->dir, err);
    const double start = now_seconds();
    int rc = bench_folder_make(path, sizeof path, &bench_shape_r1, err);
    if (rc != E_OK)
        return rc;
    rc = model_open(&g->model, path, err);
    bench_folder_remove(path); /* its files are open */
    LOG(LOG_INFO, "bench_weights_made",
        LOG_I("bytes", rc == E_OK ? model_weight_bytes(g->model) : 0),
        LOG_F("seconds", now_seconds() - start));
    return rc;
}

/* First of all: without a GPU nothing else is worth its while. */
static int measure_ceilings(struct gpu_bench *g, struct err *err)
{
    char driver[64];
    int rc = cuda_measure_ceilings(&g->top, g->opts->engine.device, err);
    if (rc != E_OK)
        return rc;
    cuda_measure_driver(driver, sizeof driver);
    g->doc = bench_document(
        backend_cuda_device_name(g->opts->engine.device), driver,
        g->opts->dir ? g->opts->dir : "random weights, shape of DeepSeek-R1-Distill-Qwen-1.5B");
    json_t *ceilings = json_object_get(g->doc, "ceilings");
    set_real(ceilings, "copy_TBps", g->top.copy_Bps * 1e-12);
    set_real(ceilings, "bf16_TFLOPs", g->top.gemm_flops * 1e-12);
    told("ceilings", ceilings);
    return E_OK;
}

static int measure_products(struct gpu_bench *g, struct cuda_meter *m, struct err *err)
{
    static const int64_t rows[] = {16, 64, 256, 704, 1408, 2816, ROWS};
    for (size_t i = 0; i < TR_COUNT(rows); i++) {
        struct cuda_product p[CUDA_PRODUCTS];
        int rc = cuda_meter_products(m, rows[i], p, err);
        if (rc != E_OK)
            return rc;
        for (int k = 0; k < CUDA_PRODUCTS; k++)
            bench_append(g->doc, "gemms", bench_product_json(&p[k]));
    }
    return E_OK;
}

/* The steady state of a workload with `slots` sequences: as many prompt rows a step as decode rows
 * use up, contexts at their mean over tokens. */
static struct cuda_step_shape steady_shape(const char *name, int32_t slots)
{
    struct cuda_step_shape s = {.name = name, .decodes = slots, .prompts = 1};
    double rows = slots;
    if (strcmp(name, "W1") == 0) {
        s.context = 192;
        s.prompts = TR_MAX(slots / 128, 1);
    } else if (strcmp(name, "W2") == 0) {
        s.context = 1446; /* mean over the tokens of lognormal answers */
        rows = slots * 512.0 / 1024;
        s.prompts = TR_MAX(slots / 1024, 1);
    } else {
        s.context = 1132;
        rows = slots * 100.0 / 64;
        s.prompts = TR_MAX((int32_t)(slots / 64), 1);
        s.before = 1000;
        s.shared_pages = SHARED_PAGES;
    }
    s.prompt = TR_MAX((int32_t)lround(rows / s.prompts), 1);
    while (s.decodes + s.prompts * s.prompt > ROWS)
        s.prompt--;
    return s;
}

static double tokens_a_second(const struct roofline *r, const char *name)
{
    const struct workload *w = workload_find(name);
    double seconds = 0, tokens = 0;
    for (uint32_t i = 1; i <= 5000; i++) {
        const double n = w->out > 0 ? w->out : lognormal_length(i, 1024, 0.8, 8192);
        seconds += roofline_seconds(r, w->shared, w->own, n);
        tokens += n;
    }
    return tokens / seconds;
}

/* Tokens a second of steps in the steady state of each workload, over the number of slots. */
static int sweep_slots(struct gpu_bench *g, struct cuda_meter *m, struct err *err)
{
    static const char *const names[] = {"W1", "W2", "W3"};
    static const int32_t full[] = {2816, 1408, 2198}, slots[] = {1, 4, 16, 64, 256, 704, 0};
    for (size_t w = 0; w < TR_COUNT(names); w++)
        for (size_t i = 0; i < TR_COUNT(slots); i++) {
            const int32_t n = slots[i] > 0 ? slots[i] : full[w];
            struct cuda_step_shape shape = steady_shape(names[w], n);
            struct roofline at = g->roofline;
            struct cuda_step_times t;
            char name[32];
            int rc = cuda_meter_step(m, &shape, &t, err);
            if (rc != E_OK)
                return rc;
            at.rows = n;
            snprintf(name, sizeof name, "%s-%d", names[w], n);
            bench_append(g->doc, "slots",
                         json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:f}", "point", name,
                                   "workload", names[w], "slots", n, "ms", t.seconds * 1e3,
                                   "host_ms", t.host_seconds * 1e3, "out_tok_s", n / t.seconds,
                                   "r_seq_tok_s", tokens_a_second(&g->roofline, names[w]),
                                   "r_seq_tok_s_at_slots", tokens_a_second(&at, names[w])));
            if (slots[i] == 0 || slots[i] == 16 || slots[i] == 256) {
                shape.name = name;
                json_t *doc = bench_step_json(&shape, &t);
                bench_append(g->doc, "steps", doc);
                told("steps", doc);
            }
        }
    return E_OK;
}

static int measure_attention(struct gpu_bench *g, struct cuda_meter *m, struct err *err)
{
    static const struct cuda_step_shape shapes[] = {
        {.name = "1408x192", .decodes = 1408, .context = 192},
        {.name = "1877x1024", .decodes = 1877, .context = 1024},
        {.name = "1100x1450", .decodes = 1100, .context = 1450},
        {.name = "1408x512", .decodes = 1408, .context = 512},
        {.name = "704x2048", .decodes = 704, .context = 2048},
        {.name = "64x8192", .decodes = 64, .context = 8192},
        {.name = "8x32768", .decodes = 8, .context = 32768}};
    for (size_t i = 0; i < TR_COUNT(shapes); i++) {
        struct cuda_step_times t;
        double row = 0;
        int rc = cuda_meter_step(m, &shapes[i], &t, err);
        if (rc == E_OK)
            rc = cuda_meter_attention(m, &shapes[i], &row, err);
        if (rc != E_OK)
            return rc;
        json_t *doc = bench_attention_json(&shapes[i], &t, row, &g->roofline);
        bench_append(g->doc, "attention", doc);
        told("attention", doc);
    }
    return E_OK;
}

static int measure_steps(struct gpu_bench *g, struct err *err)
{
    const struct cuda_meter_opts opts = {.device = g->opts->engine.device,
                                         .rows_cap = ROWS,
                                         .logits_cap = LOGITS,
                                         .slots = METER_SLOTS,
                                         .n_pages = METER_PAGES,
                                         .max_model_len = METER_LEN,
                                         .no_graphs = g->opts->engine.no_graphs};
    struct cuda_meter *m = NULL;
    int rc = cuda_meter_open(&m, g->model, &opts, err);
    if (rc == E_OK)
        rc = measure_products(g, m, err);
    if (rc == E_OK)
        rc = sweep_slots(g, m, err);
    if (rc == E_OK)
        rc = measure_attention(g, m, err);
    cuda_meter_close(m);
    return rc;
}

static int run_one(struct gpu_bench *g, struct engine *e, const struct workload *w, struct err *err)
{
    const struct model_config *c = model_config(g->model);
    struct workload_run run;
    int64_t used = 0, total = 0;
    int rc = workload_run(&run, e, w, &g->roofline, c->vocab_size, err);
    if (rc == E_OK)
        rc = cuda_measure_memory(g->opts->engine.device, &used, &total, err);
    if (rc != E_OK)
        return rc;
    json_t *doc = bench_run_json(w, &run, c->dtype, used);
    if (w->requests == 1)
        set_real(doc, "share_weights",
                 run.shares.out_tok_s * roofline_weights_seconds(&g->roofline));
    bench_append(g->doc, "runs", doc);
    told("runs", doc);
    return E_OK;
}

static int run_workloads(struct gpu_bench *g, struct engine *e, struct err *err)
{
    static const char *const names[] = {"W1", "W2", "W3"};
    const struct workload alone = {"one", 0, 128, ALONE_TOKENS, 1, true};
    int rc = wanted(g, "one") ? run_one(g, e, &alone, err) : E_OK;
    for (size_t i = 0; i < TR_COUNT(names) && rc == E_OK; i++) {
        struct workload w = *workload_find(names[i]);
        w.requests = TR_MAX((int32_t)(w.requests * config_real(g->config, "scale")), 1);
        w.greedy = config_flag(g->config, "greedy");
        if (wanted(g, w.name))
            rc = run_one(g, e, &w, err);
    }
    return rc;
}

static int measure_engine(struct gpu_bench *g, struct err *err)
{
    struct engine_opts o = g->opts->engine;
    struct engine *e = NULL;
    struct memory_line lines[16];
    if (!wanted(g, "one") && !wanted(g, "W1") && !wanted(g, "W2") && !wanted(g, "W3"))
        return E_OK;
    o.model = g->model;
    o.rules.think_open_id = o.rules.think_close_id = -1;
    if (o.max_model_len == 0)
        o.max_model_len = TR_MIN(MODEL_LEN, model_config(g->model)->max_positions);
    const double start = now_seconds();
    int rc = engine_open(&e, &o, err);
    if (rc != E_OK)
        return rc;
    set_real(g->doc, "open_seconds", now_seconds() - start);
    json_t *memory = json_object();
    const int n = TR_MIN(engine_memory(e, lines, TR_COUNT(lines)), (int)TR_COUNT(lines));
    for (int i = 0; i < n; i++)
        CHECK(json_object_set_new(memory, lines[i].what, json_integer(lines[i].bytes)) == 0);
    CHECK(json_object_set_new(g->doc, "memory", memory) == 0);
    rc = run_workloads(g, e, err);
    engine_close(e);
    return rc;
}

int bench_gpu(json_t **doc, const struct model_opts *opts, const struct config *config,
              struct err *err)
{
    struct gpu_bench g = {.opts = opts, .config = config};
    int rc = check_workloads(&g, err);
    if (rc == E_OK && opts->n_devices > 1)
        rc =
            err_set(err, E_USAGE, "--device: bench measures one device, found %d", opts->n_devices);
    if (rc != E_OK)
        return rc;
    rc = measure_ceilings(&g, err);
    *doc = g.doc;
    if (rc == E_OK)
        rc = open_model(&g, err);
    if (rc == E_OK)
        roofline_init(&g.roofline, model_config(g.model), g.top.gemm_flops, g.top.copy_Bps);
    if (rc == E_OK && wanted(&g, "steps"))
        rc = measure_steps(&g, err);
    if (rc == E_OK)
        rc = measure_engine(&g, err);
    model_close(g.model);
    return rc;
}
