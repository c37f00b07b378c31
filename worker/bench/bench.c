/* bench: `tranche bench`: ceilings, decode, prefill and tokenizer in one run, as a table or JSON.
 */
#include "worker/bench/bench.h"

#include <jansson.h>

#include "engine/json.h"
#include "engine/log.h"
#include "worker/bench/bench_gpu.h"
#include "worker/bench/bench_json.h"
#include "worker/commands/commands.h"
#include "worker/commands/doctor.h"

enum { BENCH_MODEL_LEN = 1024 };

/* What one decode step reads of the weights: all but an embedding table that is not the head. */
static double step_bytes(const struct model *m)
{
    const struct model_config *c = model_config(m);
    double table = (double)c->vocab_size * c->hidden * (double)dtype_size(c->dtype);
    return (double)model_weight_bytes(m) - (c->tied ? 0 : table);
}

static int64_t engine_bytes(const struct engine *e)
{
    struct memory_line lines[16];
    int n = engine_memory(e, lines, TR_COUNT(lines));
    int64_t bytes = 0;
    for (int i = 0; i < n && i < (int)TR_COUNT(lines); i++)
        bytes += lines[i].bytes;
    return bytes;
}

static json_t *run_object(const char *workload, const struct loaded_model *m,
                          const struct engine *e, const struct bench_result *r)
{
    return json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:f, s:I, s:s}", "workload", workload,
                     "precision", bench_precision(model_config(m->model)->dtype), "sampling",
                     "greedy", "requests", r->requests, "out_tok_s", r->out_tok_s,
                     "out_tok_s_steady", r->out_tok_s_steady, "in_tok_s", r->in_tok_s, "peak_bytes",
                     (json_int_t)engine_bytes(e), "outputs_sha256", r->outputs_sha256);
}

static int run_decode(json_t *runs, const struct loaded_model *m, struct engine *e,
                      struct bench_stream *stream, double seconds, struct err *err)
{
    static const int counts[] = {1, 4, 16};
    for (size_t i = 0; i < TR_COUNT(counts); i++) {
        struct bench_result r;
        char workload[32];
        int rc = bench_decode(&r, e, stream, model_config(m->model), counts[i], seconds, err);
        if (rc != E_OK)
            return rc;
        snprintf(workload, sizeof workload, "decode-%d", counts[i]);
        json_t *run = run_object(workload, m, e, &r);
        CHECK(run);
        /* Weight bytes alone, so a small model that lives in the cache can pass 1. */
        json_object_set_new(run, "share_read",
                            json_real(step_bytes(m->model) / r.stream_bytes_step));
        CHECK(json_array_append_new(runs, run) == 0);
    }
    return E_OK;
}

static int run_prefill(json_t *runs, const struct loaded_model *m, struct engine *e,
                       const struct bench_ceilings *top, double seconds, struct err *err)
{
    const struct model_config *c = model_config(m->model);
    struct bench_result r;
    char workload[32];
    int length = TR_MIN(BENCH_PREFILL_PROMPT, engine_max_model_len(e) - 1);
    int rc = bench_prefill(&r, e, c, length, seconds, err);
    if (rc != E_OK)
        return rc;
    snprintf(workload, sizeof workload, "prefill-%d", length);
    json_t *run = run_object(workload, m, e, &r);
    /* Two operations a weight and token in the layers; the head runs for one row a prompt. */
    double head = (double)c->vocab_size * c->hidden * (double)dtype_size(c->dtype);
    double layers = (step_bytes(m->model) - head) / (double)dtype_size(c->dtype);
    CHECK(run);
    json_object_set_new(run, "share_gemm",
                        json_real(r.in_tok_s * 2 * layers / (top->fp32_GFLOPs * 1e9)));
    CHECK(json_array_append_new(runs, run) == 0);
    return E_OK;
}

static int run_tokenizer(json_t *runs, const struct loaded_model *m, const char *path,
                         double seconds, struct err *err)
{
    struct bench_text r = {0};
    int rc = bench_tokenizer(&r, m->tokenizer, path, seconds, err);
    if (rc != E_OK)
        return rc;
    json_t *run = json_pack("{s:s, s:f, s:f, s:I}", "workload", "tokenizer", "MBps", r.MBps,
                            "bytes_per_token", r.bytes_per_token, "bytes", (json_int_t)r.bytes);
    CHECK(run && json_array_append_new(runs, run) == 0);
    return E_OK;
}

static int run_all(json_t *doc, const struct loaded_model *m, struct engine *e,
                   const struct config *config, struct err *err)
{
    double seconds = (double)config_int(config, "measure") / 1e9;
    int threads = (int)config_int(config, "threads");
    int isa = config_choice(config, "isa");
    struct bench_ceilings top;
    struct bench_stream *stream;
    json_t *runs = json_object_get(doc, "runs");
    threads = threads ? threads : threads_chosen();
    int rc =
        bench_stream_open(&stream, threads, isa ? (enum cpu_isa)(isa - 1) : cpu_isa_best(), err);
    if (rc == E_OK)
        rc = bench_ceilings(&top, stream, seconds, err);
    if (rc != E_OK)
        goto out;
    json_t *ceilings = json_pack("{s:f, s:f, s:f}", "read_GBps", top.read_GBps, "copy_GBps",
                                 top.copy_GBps, "fp32_GFLOPs", top.fp32_GFLOPs);
    CHECK(ceilings && json_object_set_new(doc, "ceilings", ceilings) == 0);
    rc = run_decode(runs, m, e, stream, seconds, err);
    if (rc == E_OK)
        rc = run_prefill(runs, m, e, &top, seconds, err);
    if (rc == E_OK)
        rc = run_tokenizer(runs, m, config_text(config, "text"), seconds, err);
out:
    bench_stream_close(stream);
    return rc;
}

static void print_figure(const char *name, double value, const char *unit, double was)
{
    printf("  %-22s %12.2f %-8s", name, value, unit);
    if (was > 0)
        printf(" was %12.2f  x %.2f", was, value / was);
    putchar('\n');
}

static void print_table(const json_t *doc, const json_t *old)
{
    /* Which figures say something of which workload. */
    static const char *const keys[][3] = {
        {"decode", "out_tok_s", "tok/s"},     {"decode", "out_tok_s_steady", "tok/s"},
        {"decode", "share_read", "of read"},  {"prefill", "in_tok_s", "tok/s"},
        {"prefill", "share_gemm", "of GEMM"}, {"tokenizer", "MBps", "MB/s"}};
    const char *key;
    json_t *value, *run;
    size_t i;
    printf("%s on %s\n\nceilings\n", json_string_value(json_object_get(doc, "model")),
           json_string_value(json_object_get(doc, "device")));
    json_object_foreach(json_object_get(doc, "ceilings"), key, value)
        print_figure(key, json_number_value(value), "",
                     json_number_value(json_object_get(json_object_get(old, "ceilings"), key)));
    json_array_foreach(json_object_get(doc, "runs"), i, run)
    {
        const char *workload = json_string_value(json_object_get(run, "workload"));
        printf("\n%s\n", workload);
        for (size_t k = 0; k < TR_COUNT(keys); k++) {
            if (strncmp(workload, keys[k][0], strlen(keys[k][0])) == 0)
                print_figure(keys[k][1], json_number_value(json_object_get(run, keys[k][1])),
                             keys[k][2],
                             bench_earlier(old, "runs", "workload", workload, keys[k][1]));
        }
    }
}

static int open_parts(struct loaded_model *m, struct engine **e, const struct model_opts *opts,
                      struct err *err)
{
    int rc = loaded_model_open(m, opts, err);
    if (rc != E_OK)
        return rc;
    /* Prompts that differ share nothing; 16 slots and 1,024 tokens hold every workload here. */
    if (m->engine.slots == 0)
        m->engine.slots = BENCH_SEQS_MAX;
    if (m->engine.max_model_len == 0)
        m->engine.max_model_len = TR_MIN(BENCH_MODEL_LEN, model_config(m->model)->max_positions);
    return loaded_model_engine(e, m, err);
}

/* The CPU's: ceilings, decode, prefill, tokenizer. */
static int bench_cpu(json_t **doc, const struct config *config, struct err *err)
{
    struct model_opts opts;
    struct loaded_model m = {0};
    struct engine *e = NULL;
    int rc = model_opts_from_config(&opts, config, err);
    if (rc == E_OK)
        rc = open_parts(&m, &e, &opts, err);
    if (rc == E_OK) {
        *doc = bench_document(engine_fingerprint(e), "", m.name);
        rc = run_all(*doc, &m, e, config, err);
    }
    engine_close(e);
    loaded_model_close(&m);
    return rc;
}

int command_bench(const struct config *config)
{
    struct err err = {0};
    struct model_opts opts;
    json_t *doc = NULL, *old = NULL;
    const char *compare = config_text(config, "compare");
    command_log_setup(config);
    if (config_origin(config, "log-level") == CONFIG_DEFAULT)
        log_setup(LOG_WARN, LOG_LOGFMT, 2);
    int rc = engine_opts_from_config(&opts, config, &err);
    const bool gpu = rc == E_OK && opts.engine.kind == ENGINE_CUDA;
    if (rc == E_OK && compare)
        rc = json_parse_file(&old, compare, &json_limits_file, &err);
    if (rc == E_OK)
        rc = gpu ? bench_gpu(&doc, &opts, config, &err) : bench_cpu(&doc, config, &err);
    if (doc && config_flag(config, "json")) {
        json_dumpf(doc, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        putchar('\n');
    } else if (doc && gpu) {
        bench_gpu_print(doc, old);
    } else if (rc == E_OK) {
        print_table(doc, old);
    }
    json_decref(doc);
    json_decref(old);
    return rc == E_OK ? EXIT_WELL : command_failed(config, &err);
}
