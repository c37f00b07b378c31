/* Slices of `range` near the ends of 64 bits. What they give is what Python's
 * list(range(...)[a:b:c]) gave, str(range(...)[a:b:c]) below. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "engine/chat_template.h"

/* No template here has a token of a tokenizer. */
struct tokenizer {
    int none;
};

struct str tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    (void)t;
    (void)name;
    return (struct str){NULL, 0};
}

struct range_case {
    const char *expr, *want; /* MIN is -2^63, which no literal says */
};

/* Renders {{ expr | list }} or {{ expr }}; an error as its text. */
static void check(const struct range_case *c, const char *filter)
{
    struct chat_template *t = NULL;
    struct chat_template_output out = {0};
    struct err err = {0};
    json_t *messages = json_array();
    struct chat_template_input in = {.messages = messages};
    char text[256], got[256];
    snprintf(text, sizeof text, "{%% set MIN = -9223372036854775807 - 1 %%}{{ %s%s }}", c->expr,
             filter);
    if (chat_template_compile(&t, str_of(text), "t", &err) < 0 ||
        chat_template_render(t, &in, &out, &err) < 0)
        snprintf(got, sizeof got, "%s", err.msg);
    else
        snprintf(got, sizeof got, "%.*s", STR_ARG(out.pieces[0].text));
    if (strcmp(got, c->want) != 0)
        fail_msg("%s: want %s, got %s", text, c->want, got);
    chat_template_output_free(&out);
    chat_template_close(t);
    json_decref(messages);
}

static const struct range_case slices[] = {
    {"range(0, 10, 3)[0:9223372036854775806:4611686018427387904]", "[0]"},
    {"range(0, 10, 3)[1:3:4611686018427387904]", "[3]"},
    {"range(0, 10, 3)[1:1:-4611686018427387904]", "[]"},
    {"range(10, 0, -3)[MIN:3:9223372036854775807]", "[10]"},
    {"range(10, 0, -3)[-1:-3:-4611686018427387904]", "[1]"},
    {"range(10, 0, -3)[9223372036854775806:1:4611686018427387904]", "[]"},
    {"range(9223372036854775797, 9223372036854775807, 4)[:9223372036854775806:1]",
     "[9223372036854775797, 9223372036854775801, 9223372036854775805]"},
    {"range(9223372036854775797, 9223372036854775807, 4)[:3:1]",
     "[9223372036854775797, 9223372036854775801, 9223372036854775805]"},
    {"range(9223372036854775797, 9223372036854775807, 4)[0:3:-9223372036854775807]", "[]"},
    {"range(MIN, -9223372036854775799, 4)[::-5]", "[-9223372036854775800]"},
    {"range(MIN, -9223372036854775799, 4)[-1::-1]",
     "[-9223372036854775800, -9223372036854775804, -9223372036854775808]"},
    {"range(MIN, -9223372036854775799, 4)[9223372036854775806:-1:4611686018427387904]", "[]"},
    {"range(-9223372036854775799, MIN, -4)[9223372036854775806:0:MIN]", "[-9223372036854775807]"},
    {"range(-9223372036854775799, MIN, -4)[1::9223372036854775807]", "[-9223372036854775803]"},
    {"range(-9223372036854775799, MIN, -4)[0:-1:MIN]", "[]"},
    {"range(MIN, 9223372036854775807, 9223372036854775807)[1:-3:-4611686018427387904]", "[-1]"},
    {"range(MIN, 9223372036854775807, 9223372036854775807)[MIN:-1:4611686018427387904]",
     "[-9223372036854775808]"},
    {"range(MIN, 9223372036854775807, "
     "9223372036854775807)[9223372036854775807:-3:4611686018427387904]",
     "[]"},
    {"range(9223372036854775807, MIN, MIN)[3:-3:-5]", "[-1]"},
    {"range(9223372036854775807, MIN, MIN)[-1:0:MIN]", "[-1]"},
    {"range(9223372036854775807, MIN, MIN)[MIN:-3:-4611686018427387904]", "[]"},
    {"range(MIN, 9223372036854775807, 4611686018427387904)[0:MIN:-1]", "[-9223372036854775808]"},
    {"range(MIN, 9223372036854775807, 4611686018427387904)[0::9223372036854775807]",
     "[-9223372036854775808]"},
    {"range(MIN, 9223372036854775807, 4611686018427387904)[-1:MIN:5]", "[]"},
    {"range(9223372036854775807, MIN, -4611686018427387904)[1:-1:9223372036854775807]",
     "[4611686018427387903]"},
    {"range(9223372036854775807, MIN, -4611686018427387904)[:0:-5]", "[-4611686018427387905]"},
    {"range(9223372036854775807, MIN, -4611686018427387904)[MIN:MIN:4611686018427387904]", "[]"},
    {"range(9223372036854775806, MIN, -4611686018427387904)[-1::MIN]", "[-4611686018427387906]"},
    {"range(9223372036854775806, MIN, -4611686018427387904)[-1::-1]",
     "[-4611686018427387906, -2, 4611686018427387902, 9223372036854775806]"},
    {"range(9223372036854775806, MIN, -4611686018427387904)[1:9223372036854775806:-5]", "[]"},
    {"range(0, 1, 9223372036854775807)[0:1:5]", "[0]"},
    {"range(0, 1, 9223372036854775807)[-1::-9223372036854775807]", "[0]"},
    {"range(0, 1, 9223372036854775807)[-1:1:MIN]", "[]"},
    {"range(0, -1, MIN)[9223372036854775807:-3:MIN]", "[0]"},
    {"range(0, -1, MIN)[MIN:9223372036854775806:9223372036854775807]", "[0]"},
    {"range(0, -1, MIN)[9223372036854775807:9223372036854775807:-5]", "[]"},
    {"range(-5, 9223372036854775807, 9223372036854775807)[:9223372036854775806:5]", "[-5]"},
    {"range(-5, 9223372036854775807, 9223372036854775807)[3::-1]", "[9223372036854775802, -5]"},
    {"range(-5, 9223372036854775807, 9223372036854775807)[MIN:0:-9223372036854775807]", "[]"},
    /* slices of slices, whose step is beyond 128 bits */
    {"range(0, 30, 3)[::9223372036854775807][::9223372036854775807][::-9223372036854775807]",
     "[0]"},
    {"range(0, 30, 3)[9::MIN][::MIN][-1:][::MIN]", "[27]"},
    {"range(0, 30, 3)[::MIN][1:][::MIN]", "[]"},
    {"range(9223372036854775806, MIN, -4611686018427387904)[::-1][1:3][::-1]",
     "[4611686018427387902, -2]"},
};

static void far_slices_have_pythons_items(void **state)
{
    (void)state;
    for (size_t i = 0; i < TR_COUNT(slices); i++)
        check(&slices[i], " | list");
}

static void far_ranges_print_within_64_bits(void **state)
{
    (void)state;
    static const struct range_case cases[] = {
        {"range(10)[::4611686018427387904]", "range(0, 10, 4611686018427387904)"},
        {"range(10)[::MIN]", "range(9, -1, -9223372036854775808)"},
        {"range(9223372036854775804, 9223372036854775807)[::-1]",
         "range(9223372036854775806, 9223372036854775803, -1)"},
        {"range(MIN, 9223372036854775807, 9223372036854775807)[:0:-1]",
         "range(9223372036854775806, -9223372036854775808, -9223372036854775807)"},
        {"range(0, 10, 3)[::4611686018427387904]", "t: line 1: integer beyond 64 bits"},
        {"[range(0, 10, 3)[::MIN]]", "t: line 1: integer beyond 64 bits"},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        check(&cases[i], "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(far_slices_have_pythons_items),
        cmocka_unit_test(far_ranges_print_within_64_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
