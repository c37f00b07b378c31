/* breaker: when it trips, what it lets through, how it mends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/breaker.h"

static const int64_t S = 1000000000;

static void a_share_of_the_window_trips_it(void **state)
{
    (void)state;
    struct breaker b = {.share = 0.2};
    for (int i = 0; i < BREAKER_LEAST - 1; i++) /* however many: too few to tell */
        assert_int_equal(breaker_ended(&b, true, false, 0), BREAKER_SAME);
    assert_int_equal(breaker_room(&b, 0), INT64_MAX);
    assert_int_equal(breaker_ended(&b, false, false, 0), BREAKER_TRIPPED);

    b = (struct breaker){.share = 0.2};
    for (int i = 0; i < 10000; i++) /* a fifth is not more than a fifth */
        assert_int_equal(breaker_ended(&b, i % 5 == 4, false, 0), BREAKER_SAME);
    assert_int_equal(breaker_ended(&b, true, false, 0), BREAKER_TRIPPED);

    b = (struct breaker){.share = 0.2}; /* old ends are forgotten */
    for (int i = 0; i < BREAKER_WINDOW; i++)
        assert_int_equal(breaker_ended(&b, i % 5 == 4, false, 0), BREAKER_SAME);
    for (int i = 0; i < BREAKER_WINDOW; i++)
        assert_int_equal(breaker_ended(&b, false, false, 0), BREAKER_SAME);
    for (int i = 0; i < BREAKER_WINDOW / 5; i++)
        assert_int_equal(breaker_ended(&b, true, false, 0), BREAKER_SAME);
    assert_int_equal(breaker_ended(&b, true, false, 0), BREAKER_TRIPPED);

    b = (struct breaker){.share = 1};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(breaker_ended(&b, true, false, 0), BREAKER_SAME);
}

static void one_probe_at_a_time_after_growing_pauses(void **state)
{
    (void)state;
    struct breaker b = {.share = 0.2};
    int64_t now = 100 * S, pause = 5 * S;
    for (int i = 0; i < BREAKER_LEAST; i++)
        (void)breaker_ended(&b, true, false, now);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(b.state, BREAKER_OPEN);
        assert_int_equal(breaker_room(&b, now + pause - 1), 0);
        assert_int_equal(breaker_room(&b, now + pause), 1);
        /* Ends from before it opened say nothing, either way. */
        assert_int_equal(breaker_ended(&b, false, false, now), BREAKER_SAME);
        assert_int_equal(breaker_ended(&b, true, false, now), BREAKER_SAME);
        now += pause;
        breaker_probe(&b);
        assert_int_equal(breaker_room(&b, now + 1000 * S), 0);
        assert_int_equal(breaker_ended(&b, false, false, now), BREAKER_SAME);
        breaker_no_answer(&b); /* it was cancelled: the next one may try at once */
        assert_int_equal(breaker_room(&b, now), 1);
        breaker_probe(&b);
        assert_int_equal(breaker_ended(&b, true, true, now), BREAKER_SAME);
        pause = TR_MIN(2 * pause, 300 * S);
    }
    breaker_probe(&b);
    assert_int_equal(breaker_ended(&b, false, true, now), BREAKER_MENDED);
    assert_int_equal(breaker_room(&b, now), INT64_MAX);
    for (int i = 0; i < BREAKER_LEAST - 1; i++) /* it begins anew, short pauses too */
        assert_int_equal(breaker_ended(&b, true, false, now), BREAKER_SAME);
    assert_int_equal(breaker_ended(&b, true, false, now), BREAKER_TRIPPED);
    assert_int_equal(breaker_room(&b, now + 5 * S), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_share_of_the_window_trips_it),
        cmocka_unit_test(one_probe_at_a_time_after_growing_pauses),
    };
    return cmocka_run_group_tests_name("breaker", tests, NULL, NULL);
}
