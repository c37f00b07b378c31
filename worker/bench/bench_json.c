/* bench_json: see bench_json.h. */
#include "worker/bench/bench_json.h"

#include <stdio.h>
#include <time.h>

#include "generated/version.h"

const char *bench_precision(enum dtype d)
{
    static const char *const names[] = {"fp32", "bf16", "fp16"};
    return names[d];
}

json_t *bench_document(const char *device, const char *driver, const char *model)
{
    char date[32];
    time_t now = (time_t)(clock_wall_ns(clock_system()) / 1000000000);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_t *doc =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:{}, s:[]}", "device", device, "driver", driver,
                  "date", date, "commit", TRANCHE_COMMIT, "model", model, "ceilings", "runs");
    CHECK(doc);
    return doc;
}

json_t *bench_run_json(const struct workload *w, const struct workload_run *run, enum dtype dtype,
                       int64_t peak_bytes)
{
    const struct run_shares *s = &run->shares;
    const struct engine_stats *a = &run->after, *b = &run->before;
    json_t *doc = json_pack(
        "{s:s, s:s, s:s, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, "
        "s:s}",
        "workload", w->name, "precision", bench_precision(dtype), "sampling",
        w->greedy ? "greedy" : "temperature 0.6, top_p 0.95", "requests", w->requests, "out_tokens",
        (json_int_t)run->tokens, "out_tok_s", s->out_tok_s, "out_tok_s_steady", s->out_tok_s_steady,
        "r_seq_tok_s", s->r_seq_tok_s, "share_r_seq", s->share_r_seq, "share_r_seq_whole",
        s->share_r_seq_whole, "gpu_idle_share", s->gpu_idle_share, "seconds",
        run->moments.end.at - run->moments.start.at, "steady_seconds", s->steady_seconds,
        "drain_seconds", s->drain_seconds, "steps", (json_int_t)(a->steps - b->steps), "evictions",
        (json_int_t)(a->evictions - b->evictions), "peak_bytes", (json_int_t)peak_bytes,
        "outputs_sha256", run->outputs_sha256);
    CHECK(doc);
    return doc;
}

json_t *bench_product_json(const struct cuda_product *p)
{
    const double flop = 2.0 * (double)p->rows * (double)p->n * (double)p->k;
    char name[48];
    snprintf(name, sizeof name, "%s-%lld", p->name, (long long)p->rows);
    json_t *doc = json_pack("{s:s, s:I, s:I, s:I, s:f, s:f}", "gemm", name, "rows",
                            (json_int_t)p->rows, "n", (json_int_t)p->n, "k", (json_int_t)p->k, "us",
                            p->seconds * 1e6, "TFLOPs", flop / p->seconds * 1e-12);
    CHECK(doc);
    return doc;
}

json_t *bench_step_json(const struct cuda_step_shape *shape, const struct cuda_step_times *t)
{
    json_t *ops = json_object();
    double sum = 0;
    for (int i = 0; i < t->n_ops; i++) {
        sum += t->ops[i].seconds;
        CHECK(json_object_set_new(ops, t->ops[i].name, json_real(t->ops[i].seconds * 1e3)) == 0);
    }
    json_t *doc = json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:o}", "step", shape->name,
                            "decodes", shape->decodes, "context", shape->context, "prompt_rows",
                            shape->prompts * shape->prompt, "ms", t->seconds * 1e3, "host_ms",
                            t->host_seconds * 1e3, "ops_sum_ms", sum * 1e3, "ops_ms", ops);
    CHECK(doc);
    return doc;
}

static double op_seconds(const struct cuda_step_times *t, const char *name)
{
    for (int i = 0; i < t->n_ops; i++)
        if (strcmp(t->ops[i].name, name) == 0)
            return t->ops[i].seconds;
    return 0;
}

json_t *bench_attention_json(const struct cuda_step_shape *shape, const struct cuda_step_times *t,
                             double row_seconds, const struct roofline *r)
{
    const double seconds = op_seconds(t, "attention");
    const double bytes = (double)shape->decodes * shape->context * r->kv_bytes;
    json_t *doc =
        json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f}", "attention", shape->name, "batch",
                  shape->decodes, "context", shape->context, "ms", seconds * 1e3, "share_copy",
                  seconds > 0 ? bytes / seconds / r->copy_Bps : 0.0, "row_ms", row_seconds * 1e3,
                  "row_share_copy", row_seconds > 0 ? bytes / row_seconds / r->copy_Bps : 0.0);
    CHECK(doc);
    return doc;
}

void bench_append(json_t *doc, const char *key, json_t *value)
{
    json_t *list = json_object_get(doc, key);
    if (!list) {
        list = json_array();
        CHECK(json_object_set_new(doc, key, list) == 0);
    }
    CHECK(value && json_array_append_new(list, value) == 0);
}

double bench_earlier(const json_t *doc, const char *list, const char *name, const char *value,
                     const char *key)
{
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(doc, list), i, member)
    {
        const char *is = json_string_value(json_object_get(member, name));
        if (is && value && strcmp(is, value) == 0)
            return json_number_value(json_object_get(member, key));
    }
    return 0;
}
