/* Unit tests of bottleneck.h: what is named, of each situation that the rule tells apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "worker/monitor/bottleneck.h"

static void test_rule(void **state)
{
    static const struct {
        struct bottleneck_view v;
        enum bottleneck want;
    } cases[] = {
        {{.slots = 64}, BOTTLENECK_IDLE},
        {{.slots = 64, .lag = -1}, BOTTLENECK_IDLE},
        {{.slots = 64, .lag = 500}, BOTTLENECK_SOURCE},
        {{.slots = 64, .running = 3, .jobs = 3, .lag = 3}, BOTTLENECK_ENGINE}, /* the last ones */
        {{.slots = 64, .running = 3, .jobs = 3, .lag = 900}, BOTTLENECK_SOURCE},
        {{.slots = 64, .running = 64, .jobs = 900, .lag = 5000}, BOTTLENECK_ENGINE},
        {{.slots = 64, .running = 58, .jobs = 900, .pages = 100, .pages_used = 100},
         BOTTLENECK_ENGINE},
        {{.slots = 64, .running = 20, .jobs = 900, .pages = 100, .pages_used = 95},
         BOTTLENECK_PAGES},
        {{.slots = 64, .running = 20, .jobs = 900, .pages = 100, .pages_used = 40},
         BOTTLENECK_PREPARE},
        {{.slots = 64, .jobs = 900}, BOTTLENECK_PREPARE},
        {{.slots = 64, .running = 64, .jobs = 900, .sink_away = true}, BOTTLENECK_SINK},
    };
    (void)state;
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        assert_int_equal(bottleneck_of(&cases[i].v), cases[i].want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rule)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
