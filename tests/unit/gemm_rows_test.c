/* gemm_rows: the buckets of products, counted; what the CUDA engine refuses before it opens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/engine_core.h"
#include "engine/gemm_rows.h"
#include "engine/model.h"

static void plans_are_counted(void **state)
{
    (void)state;
    int64_t buckets = 0, at_256 = 0;
    for (int64_t m = 1; m <= CUDA_STEP_TOKENS_MAX; m++) {
        const int64_t rows = cuda_gemm_rows(m);
        assert_true(rows >= m && rows - m < 128 && cuda_gemm_rows(rows) == rows);
        assert_true(cuda_gemm_rows(m + 1) >= rows);
        buckets += m == 1 || cuda_gemm_rows(m - 1) != rows;
        at_256 = m == 256 ? buckets : at_256;
        if (m == 1 || m == 64 || m == 65 || m == 1024 || m == 1200 || m == 5632)
            assert_int_equal(cuda_gemm_plans(m, m), 4 * TR_MAX(buckets, m > 256 ? 0 : 7) + buckets);
    }
    assert_int_equal(at_256, 7);
    assert_int_equal(cuda_gemm_plans(CUDA_STEP_TOKENS_MAX, 1), 4 * buckets + 1);
}

static void every_step_allowed_has_its_plans(void **state)
{
    (void)state;
    assert_true(cuda_gemm_plans(CUDA_STEP_TOKENS_MAX, ENGINE_CUDA_LOGITS) <= PLANS_MAX);
    assert_true(cuda_gemm_plans(16384, ENGINE_CUDA_LOGITS) <= PLANS_MAX);
}

static void a_wider_step_is_refused_with_both_numbers(void **state)
{
    (void)state;
    struct err err = {0};
    struct model *model = NULL;
    struct engine *e = NULL;
    if (model_open(&model, "examples/tiny-model", &err) < 0)
        fail_msg("%s", err.msg);
    struct engine_opts o = {
        .kind = ENGINE_CUDA, .model = model, .step_tokens = CUDA_STEP_TOKENS_MAX + 1};
    assert_int_equal(engine_open(&e, &o, &err), E_USAGE);
    if (!strstr(err.msg, "32769") || !strstr(err.msg, "32768"))
        fail_msg("want both numbers: %s", err.msg);
    o.step_tokens = 0;
    o.slots = 40000; /* a step is as wide as there are slots, unless it is said */
    err = (struct err){0};
    assert_int_equal(engine_open(&e, &o, &err), E_USAGE);
    if (!strstr(err.msg, "40000") || !strstr(err.msg, "32768"))
        fail_msg("want both numbers: %s", err.msg);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_are_counted),
        cmocka_unit_test(every_step_allowed_has_its_plans),
        cmocka_unit_test(a_wider_step_is_refused_with_both_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
