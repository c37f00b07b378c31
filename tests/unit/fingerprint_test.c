/* fingerprint: every part that a GPU's bits hang on changes it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/engine_core.h"

enum { CAP = sizeof((struct engine_net *)0)->fingerprint };

static void every_part_changes_it(void **state)
{
    (void)state;
    const struct cuda_build builds[] = {{"NVIDIA H100 80GB HBM3", "qwen2", 130201, 13000},
                                        {"NVIDIA H200", "qwen2", 130201, 13000},
                                        {"NVIDIA H100 80GB HBM3", "llama", 130201, 13000},
                                        {"NVIDIA H100 80GB HBM3", "qwen2", 130300, 13000},
                                        {"NVIDIA H100 80GB HBM3", "qwen2", 130201, 13010}};
    char made[TR_COUNT(builds)][CAP];
    for (size_t i = 0; i < TR_COUNT(builds); i++) {
        engine_cuda_fingerprint(made[i], CAP, &builds[i]);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(made[i], made[k]);
    }
    assert_string_equal(made[0],
                        "cuda-v3 cublasLt-130201 cudart-13000 NVIDIA H100 80GB HBM3 qwen2");
}

/* The number only rises (it was put back once, by a tree that was behind). Who raises it raises it
 * here as well. */
static void the_arithmetic_s_number_stays_raised(void **state)
{
    (void)state;
    assert_int_equal(CUDA_ARITHMETIC, 3);
}

static void a_long_device_name_hides_no_version(void **state)
{
    (void)state;
    char name[257] = "", a[CAP], b[CAP];
    memset(name, 'x', sizeof name - 1);
    engine_cuda_fingerprint(a, CAP, &(struct cuda_build){name, "qwen2", 1, 1});
    engine_cuda_fingerprint(b, CAP, &(struct cuda_build){name, "qwen2", 1, 2});
    assert_string_not_equal(a, b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_changes_it),
        cmocka_unit_test(the_arithmetic_s_number_stays_raised),
        cmocka_unit_test(a_long_device_name_hides_no_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
