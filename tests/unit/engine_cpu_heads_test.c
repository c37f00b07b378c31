/* engine_cpu: a config.json whose heads the CPU's attention has no room for is refused at open,
 * and one just within it runs. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "engine/model.h"
#include "tests/unit/models_root.h"

static void make_model(const char *path, int heads, int head_dim)
{
    char command[2 * PATH_MAX];
    snprintf(command, sizeof command,
             "python3 -c \"import sys; sys.path.insert(0, 'tools'); import random_model as r; "
             "r.make('%s', {'family': 'llama', 'layers': 1, 'hidden': 16, 'heads': %d, "
             "'kv_heads': 1, 'head_dim': %d, 'intermediate': 16, 'vocab': 260})\"",
             path, heads, head_dim);
    assert_int_equal(system(command), 0);
}

/* Two tokens behind a prompt of three. */
static void generate(struct engine *e)
{
    const int32_t prompt[] = {1, 2, 3};
    int32_t ids[2], done = 0;
    struct generated out = {.cap = 2, .ids = ids};
    struct request r = {.prompt = prompt, .n_prompt = 3, .out = &out};
    struct finished end;
    struct err err = {0};
    sampling_init(&r.sampling);
    r.sampling.max_tokens = 2;
    r.sampling.ignore_eos = true;
    r.sampling.params.n_top = -1;
    assert_int_equal(engine_submit(e, &r, &err), ENGINE_ACCEPTED);
    while (done == 0)
        done = engine_step(e, &end, 1, &err);
    assert_int_equal(done, 1);
    assert_int_equal(end.end.reason, FINISH_LENGTH);
    assert_int_equal(out.n, 2);
}

/* Refused with `why`, or NULL: opens and generates. */
static void check(int heads, int head_dim, const char *why)
{
    char path[PATH_MAX];
    struct model *model = NULL;
    struct engine *e = NULL;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/%d-%d", root, heads, head_dim);
    make_model(path, heads, head_dim);
    if (model_open(&model, path, &err) != E_OK)
        fail_msg("%s", err.msg);
    struct engine_opts o = {.kind = ENGINE_CPU,
                            .model = model,
                            .slots = 1,
                            .max_model_len = 64,
                            .threads = 1,
                            .isa = -1,
                            .kv_bytes = 64 << 20};
    o.rules = (struct sequence_rules){.think_open_id = -1, .think_close_id = -1};
    int rc = engine_open(&e, &o, &err);
    if (why) {
        assert_int_equal(rc, E_FATAL);
        assert_string_equal(err.msg, why);
    } else {
        if (rc != E_OK)
            fail_msg("%s", err.msg);
        generate(e);
    }
    engine_close(e);
    model_close(model);
}

static void heads_have_a_greatest_size(void **state)
{
    (void)state;
    check(1, 256, NULL);
    check(1, 258, "config.json: head_dim: want at most 256 on the CPU, file has 258");
    check(1, 512, "config.json: head_dim: want at most 256 on the CPU, file has 512");
}

static void a_kv_head_has_a_greatest_number_of_heads(void **state)
{
    (void)state;
    check(64, 2, NULL);
    check(65, 2,
          "config.json: num_attention_heads: want at most 64 for each of num_key_value_heads on "
          "the CPU, file has 65 for 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_have_a_greatest_size),
        cmocka_unit_test(a_kv_head_has_a_greatest_number_of_heads),
    };
    return cmocka_run_group_tests_name("engine_cpu_heads", tests, models_root_make,
                                       models_root_remove);
}
