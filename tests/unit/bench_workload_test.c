/* A workload through an engine (the simulated one), and the document that tells of it. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/log.h"
#include "worker/bench/bench_gpu.h"
#include "worker/bench/bench_json.h"

static struct roofline roofline(void)
{
    const struct model_config c = {.hidden = 64,
                                   .inner = 96,
                                   .n_layers = 2,
                                   .n_heads = 4,
                                   .n_kv_heads = 2,
                                   .head_dim = 16,
                                   .vocab_size = 320};
    struct roofline r;
    roofline_init(&r, &c, 1e9, 1e9);
    return r;
}

static void run(struct workload_run *out, const struct workload *w, int32_t slots, int rc_wanted,
                struct err *err)
{
    struct engine *e = NULL;
    struct roofline r = roofline();
    struct engine_opts o = {.kind = ENGINE_SIM,
                            .slots = slots,
                            .step_tokens = 64,
                            .max_model_len = 512,
                            .sim = {.vocab_size = 320, .poison_id = -1}};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    assert_int_equal(engine_open(&e, &o, err), E_OK);
    assert_int_equal(workload_run(out, e, w, &r, 320, err), rc_wanted);
    engine_close(e);
}

static void every_token_is_counted(void **state)
{
    (void)state;
    const struct workload w = {"T", 16, 20, 24, 100, false};
    struct workload_run a, b;
    struct err err = {0};
    run(&a, &w, 8, E_OK, &err);
    run(&b, &w, 32, E_OK, &err);
    assert_int_equal(a.tokens, 2400);
    assert_string_equal(a.outputs_sha256, b.outputs_sha256);
    assert_int_equal(strlen(a.outputs_sha256), 64);
    const struct run_moments *m = &b.moments;
    assert_true(m->start.at > 0 && m->start.at < m->full.at && m->full.at < m->refilled.at &&
                m->refilled.at <= m->end.at);
    assert_true(m->start.tokens == 0 && m->end.tokens == 2400);
    assert_true(m->full.tokens < m->refilled.tokens && m->refilled.tokens < 2400);
    struct roofline r = roofline();
    double want = 100 * roofline_seconds(&r, 16, 20, 24);
    assert_true(m->end.work > want * 0.999999 && m->end.work < want * 1.000001);
    struct workload other = w;
    other.greedy = true;
    run(&a, &other, 8, E_OK, &err);
    assert_string_not_equal(a.outputs_sha256, b.outputs_sha256);
}

static void what_does_not_fit_is_told(void **state)
{
    (void)state;
    const struct workload w = {"T", 0, 600, 24, 2, false};
    struct workload_run a;
    struct err err = {0};
    run(&a, &w, 8, E_USAGE, &err);
    assert_non_null(strstr(err.msg, "T: "));
    assert_non_null(strstr(err.msg, "600"));
}

static void the_document_has_its_keys(void **state)
{
    (void)state;
    static const char *const head[] = {"device", "driver", "date", "commit", "model"};
    static const char *const keys[] = {"workload",       "precision",   "sampling",
                                       "requests",       "out_tok_s",   "out_tok_s_steady",
                                       "r_seq_tok_s",    "share_r_seq", "share_r_seq_whole",
                                       "gpu_idle_share", "peak_bytes",  "outputs_sha256"};
    struct workload w = *workload_find("W1");
    struct workload_run a;
    struct err err = {0};
    w.requests = 40;
    run(&a, &w, 8, E_OK, &err);
    json_t *doc = bench_document("card", "1.2", "model");
    bench_append(doc, "runs", bench_run_json(&w, &a, DTYPE_BF16, 12345));
    for (size_t i = 0; i < TR_COUNT(head); i++)
        assert_true(json_is_string(json_object_get(doc, head[i])));
    json_t *run_doc = json_array_get(json_object_get(doc, "runs"), 0);
    for (size_t i = 0; i < TR_COUNT(keys); i++)
        assert_non_null(json_object_get(run_doc, keys[i]));
    assert_string_equal(json_string_value(json_object_get(run_doc, "precision")), "bf16");
    assert_int_equal(json_integer_value(json_object_get(run_doc, "peak_bytes")), 12345);
    assert_true(bench_earlier(doc, "runs", "workload", "W1", "requests") == 40);
    assert_true(bench_earlier(doc, "runs", "workload", "W2", "requests") == 0);
    assert_true(bench_earlier(NULL, "runs", "workload", "W1", "requests") == 0);
    json_decref(doc);
}

static void steps_and_products_have_theirs(void **state)
{
    (void)state;
    struct roofline r = roofline();
    const struct cuda_step_shape shape = {.name = "8x100", .decodes = 8, .context = 100};
    struct cuda_step_times t = {.seconds = 0.004, .n_ops = 2};
    t.ops[0].name = "attention", t.ops[0].seconds = 8 * 100 * r.kv_bytes / r.copy_Bps * 2;
    t.ops[1].name = "gemm o", t.ops[1].seconds = 0.001;
    json_t *a = bench_attention_json(&shape, &t, t.ops[0].seconds / 4, &r);
    json_t *s = bench_step_json(&shape, &t);
    double share = json_number_value(json_object_get(a, "share_copy"));
    assert_true(share > 0.4999 && share < 0.5001);
    share = json_number_value(json_object_get(a, "row_share_copy"));
    assert_true(share > 1.9999 && share < 2.0001);
    assert_true(json_number_value(json_object_get(json_object_get(s, "ops_ms"), "gemm o")) == 1);
    const struct cuda_product p = {"head", 10, 20, 30, 1e-6};
    json_t *g = bench_product_json(&p);
    assert_string_equal(json_string_value(json_object_get(g, "gemm")), "head-10");
    double tflops = json_number_value(json_object_get(g, "TFLOPs"));
    assert_true(tflops > 0.01199 && tflops < 0.01201);
    json_decref(a);
    json_decref(s);
    json_decref(g);
}

/* The table, beside an earlier document: figures of one name stand together with their ratio. */
static void the_table_compares(void **state)
{
    (void)state;
    const char *path = "build/bench_table.txt";
    char text[8192] = "";
    json_t *doc = bench_document("card", "1.2", "model"), *old = bench_document("c", "", "m");
    json_object_set_new(json_object_get(doc, "ceilings"), "copy_TBps", json_real(4));
    json_object_set_new(json_object_get(old, "ceilings"), "copy_TBps", json_real(2));
    bench_append(
        doc, "runs",
        json_pack("{s:s, s:f, s:i}", "workload", "W1", "out_tok_s", 90000.0, "requests", 7));
    bench_append(old, "runs", json_pack("{s:s, s:f}", "workload", "W2", "out_tok_s", 10.0));
    bench_append(old, "runs", json_pack("{s:s, s:f}", "workload", "W1", "out_tok_s", 45000.0));
    fflush(stdout);
    int saved = dup(1), to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(saved >= 0 && to >= 0 && dup2(to, 1) == 1);
    bench_gpu_print(doc, old);
    dup2(saved, 1);
    close(saved);
    close(to);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_true(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    unlink(path);
    assert_non_null(strstr(text, "copy 4.000 TB/s x 2.00"));
    const char *row = strstr(text, "\nW1 ");
    assert_non_null(row);
    assert_non_null(strstr(row, "90000"));
    assert_non_null(strstr(row, "x 2.00"));
    json_decref(doc);
    json_decref(old);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_compares), cmocka_unit_test(every_token_is_counted),
        cmocka_unit_test(what_does_not_fit_is_told), cmocka_unit_test(the_document_has_its_keys),
        cmocka_unit_test(steps_and_products_have_theirs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
