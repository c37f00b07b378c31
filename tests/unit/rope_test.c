/* rope: closed forms for the plain table; frequencies of the scaled types against values computed
 * by Transformers 5.23 (ROPE_INIT_FUNCTIONS), see the comment at each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "engine/model.h"

static struct model_config config(enum rope_type type, int32_t head_dim, double theta)
{
    return (struct model_config){.head_dim = head_dim,
                                 .rope = {.type = type, .theta = theta, .attention_factor = 1}};
}

/* The frequency of pair i: the angle at position 1, unscaled (it stays below pi/2). */
static double frequency(const struct model_config *c, int32_t i)
{
    float table[2 * 256];
    rope_table(c, 2, table);
    const float *row = table + c->head_dim;
    return atan2((double)row[c->head_dim / 2 + i], (double)row[i]);
}

static void near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("got %.9g, want %.9g", got, want);
}

static void plain_table_is_cos_and_sin(void **state)
{
    (void)state;
    static float table[3000 * 6];
    struct model_config c = config(ROPE_DEFAULT, 6, 10000);
    rope_table(&c, 3000, table);
    for (int32_t t = 0; t < 3000; t += 7) {
        for (int32_t i = 0; i < 3; i++) {
            double angle = t * pow(10000, -2.0 * i / 6);
            assert_true(fabs((double)table[t * 6 + i] - cos(angle)) < 3e-4);
            assert_true(fabs((double)table[t * 6 + 3 + i] - sin(angle)) < 3e-4);
        }
    }
    assert_true(table[0] == 1.0f && table[3] == 0.0f);
}

static void llama3_frequencies_equal_transformers(void **state)
{
    (void)state;
    /* LlamaConfig of Llama-3.2-1B: head_dim 64, theta 5e5, factor 32, low 1, high 4, 8192. */
    static const struct {
        int32_t i;
        double f;
    } want[] = {{0, 1},
                {5, 0.128687382},
                {12, 0.00729266508},
                {14, 0.00321144611},
                {15, 0.00129054801},
                {16, 0.000429556705},
                {17, 9.70828623e-05},
                {18, 1.94616387e-05},
                {31, 9.41830649e-08}};
    struct model_config c = config(ROPE_LLAMA3, 64, 5e5);
    c.rope.factor = 32;
    c.rope.low_freq_factor = 1;
    c.rope.high_freq_factor = 4;
    c.rope.original_max_positions = 8192;
    for (size_t k = 0; k < TR_COUNT(want); k++)
        near(frequency(&c, want[k].i), want[k].f, 5e-7);
}

static void yarn_frequencies_equal_transformers(void **state)
{
    (void)state;
    /* Qwen3Config with head_dim 128, theta 1e6, yarn factor 4, original 32768. */
    static const struct {
        int32_t i;
        double f;
    } want[] = {{0, 1},
                {5, 0.339820832},
                {15, 0.0392418988},
                {24, 0.00537532149},
                {28, 0.00184827659},
                {31, 0.000802959781},
                {40, 4.44569851e-05},
                {50, 5.13381246e-06},
                {63, 3.10234441e-07}};
    struct model_config c = config(ROPE_YARN, 128, 1e6);
    c.rope.factor = 4;
    c.rope.beta_fast = 32;
    c.rope.beta_slow = 1;
    c.rope.original_max_positions = 32768;
    c.rope.attention_factor = 1.138629436111989;
    for (size_t k = 0; k < TR_COUNT(want); k++)
        near(frequency(&c, want[k].i), want[k].f, 5e-7);
    float table[3 * 128];
    rope_table(&c, 3, table);
    for (int32_t i = 0; i < 64; i++)
        near(hypot((double)table[256 + i], (double)table[256 + 64 + i]), 1.138629436, 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_table_is_cos_and_sin),
        cmocka_unit_test(llama3_frequencies_equal_transformers),
        cmocka_unit_test(yarn_frequencies_equal_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
