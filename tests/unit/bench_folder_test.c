/* The folder of random weights: opens as a model of its shape, runs, and goes without a trace. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "engine/log.h"
#include "engine/model.h"
#include "worker/bench/bench_folder.h"

static const struct bench_shape small = {2, 64, 96, 4, 2, 16, 320};

static void opens_and_runs(void **state)
{
    (void)state;
    char path[256];
    struct err err = {0};
    struct model *model = NULL;
    struct engine *e = NULL;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    if (bench_folder_make(path, sizeof path, &small, &err) < 0)
        fail_msg("%s", err.msg);
    if (model_open(&model, path, &err) < 0)
        fail_msg("%s", err.msg);
    bench_folder_remove(path);
    assert_int_not_equal(access(path, F_OK), 0); /* open files stay readable */
    const struct model_config *c = model_config(model);
    assert_int_equal(c->n_layers, 2);
    assert_int_equal(c->head_dim, 16);
    assert_int_equal(c->dtype, DTYPE_BF16);
    assert_true(c->qkv_bias && !c->tied);
    struct engine_opts o = {.kind = ENGINE_CPU,
                            .model = model,
                            .slots = 2,
                            .max_model_len = 64,
                            .threads = 1,
                            .isa = -1};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    if (engine_open(&e, &o, &err) < 0)
        fail_msg("%s", err.msg);
    int32_t prompt[] = {1, 2, 3}, ids[20];
    float logprobs[20];
    struct generated out = {.cap = 20, .ids = ids, .logprobs = logprobs};
    struct request r = {.tag = 1, .prompt = prompt, .n_prompt = 3, .out = &out};
    sampling_init(&r.sampling);
    r.sampling.max_tokens = 20;
    r.sampling.ignore_eos = true;
    r.sampling.params.n_top = 0;
    assert_int_equal(engine_submit(e, &r, &err), ENGINE_ACCEPTED);
    struct finished f[2];
    while (!engine_idle(e))
        assert_true(engine_step(e, f, 2, &err) >= 0);
    assert_int_equal(out.n, 20);
    for (int i = 0; i < 20; i++) /* neither flat nor certain: the weights are spread */
        assert_true(isfinite(logprobs[i]) && logprobs[i] < -0.01f && logprobs[i] > -20);
    engine_close(e);
    model_close(model);
}

static void no_place_is_told(void **state)
{
    (void)state;
    char path[256];
    struct err err = {0};
    setenv("TMPDIR", "/nowhere", 1);
    assert_true(bench_folder_make(path, sizeof path, &small, &err) < 0);
    assert_non_null(strstr(err.msg, "/nowhere"));
    unsetenv("TMPDIR");
    /* More than any disk holds. */
    struct bench_shape huge = {28, 1 << 22, 1 << 22, 1 << 10, 1, 1 << 12, 1 << 24};
    err = (struct err){0};
    assert_int_equal(bench_folder_make(path, sizeof path, &huge, &err), E_USAGE);
    assert_non_null(strstr(err.msg, "MiB left"));
    assert_int_not_equal(access(path, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(opens_and_runs),
                                       cmocka_unit_test(no_place_is_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
