/* kafka_watermark: against a plain list of offsets, with gaps, ends and any order of finishing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "worker/source/kafka_watermark.h"

static void finishes_in_any_order(void **state)
{
    (void)state;
    struct kafka_watermark w = {0};
    struct err err = {0};
    kafka_watermark_start(&w, 10);
    assert_int_equal(kafka_watermark_value(&w), 10);
    for (int64_t at = 10; at < 14; at++)
        assert_int_equal(kafka_watermark_deliver(&w, at, &err), 1);
    assert_true(kafka_watermark_done(&w, 12));
    assert_true(kafka_watermark_done(&w, 13));
    assert_int_equal(kafka_watermark_value(&w), 10);
    assert_true(kafka_watermark_done(&w, 10));
    assert_int_equal(kafka_watermark_value(&w), 11);
    assert_true(kafka_watermark_done(&w, 11));
    assert_int_equal(kafka_watermark_value(&w), 14);
    assert_int_equal(w.open, 0);
    kafka_watermark_close(&w);
}

static void the_log_has_gaps(void **state)
{
    (void)state;
    struct kafka_watermark w = {0};
    struct err err = {0};
    kafka_watermark_start(&w, 0);
    assert_int_equal(kafka_watermark_deliver(&w, 5, &err), 1); /* 0..4 were compacted away */
    assert_int_equal(kafka_watermark_deliver(&w, 9, &err), 1);
    assert_int_equal(kafka_watermark_value(&w), 5);
    assert_true(kafka_watermark_done(&w, 5));
    assert_int_equal(kafka_watermark_value(&w), 9);
    kafka_watermark_end(&w, 12); /* 10 and 11 are transaction markers */
    assert_int_equal(kafka_watermark_value(&w), 9);
    assert_true(kafka_watermark_done(&w, 9));
    assert_int_equal(kafka_watermark_value(&w), 12);
    kafka_watermark_end(&w, 3); /* never back */
    assert_int_equal(kafka_watermark_value(&w), 12);
    kafka_watermark_close(&w);
}

static void strangers_and_repeats(void **state)
{
    (void)state;
    struct kafka_watermark w = {0};
    struct err err = {0};
    kafka_watermark_start(&w, 100);
    assert_int_equal(kafka_watermark_deliver(&w, 99, &err), 0);
    assert_int_equal(kafka_watermark_deliver(&w, 100, &err), 1);
    assert_int_equal(kafka_watermark_deliver(&w, 100, &err), 0);
    assert_false(kafka_watermark_done(&w, 99));
    assert_false(kafka_watermark_done(&w, 101));
    assert_int_equal(kafka_watermark_deliver(&w, 101, &err), 1);
    assert_true(kafka_watermark_done(&w, 101));
    assert_true(kafka_watermark_done(&w, 101)); /* an orphan and its twin both end */
    assert_int_equal(w.open, 1);
    assert_int_equal(kafka_watermark_value(&w), 100);
    kafka_watermark_start(&w, 50); /* taken away and given again */
    assert_false(kafka_watermark_done(&w, 100));
    assert_int_equal(kafka_watermark_value(&w), 50);
    kafka_watermark_close(&w);
}

/* 200 logs with random gaps, random order of delivery and finishing, against the plain definition:
 * the first offset that was delivered and is not done, else the position. */
static void equals_the_plain_definition(void **state)
{
    enum { N = 3000 };
    static int64_t offsets[N];
    static bool done[N];
    (void)state;
    srand(7);
    for (int round = 0; round < 200; round++) {
        struct kafka_watermark w = {0};
        struct err err = {0};
        int64_t at = rand() % 1000, position = at;
        int n = 0, first = 0;
        kafka_watermark_start(&w, at);
        for (int step = 0; step < N; step++) {
            int what = rand() % 8;
            if (what < 4) {
                at += rand() % 3 ? 0 : rand() % 50;
                offsets[n] = at;
                done[n++] = false;
                assert_int_equal(kafka_watermark_deliver(&w, at, &err), 1);
                position = ++at;
            } else if (what < 7 && n > first) {
                int reach = 1 + rand() % 400; /* the macro below evaluates twice */
                int pick = first + rand() % TR_MIN(n - first, reach);
                assert_true(kafka_watermark_done(&w, offsets[pick]));
                done[pick] = true;
            } else if (what == 7 && rand() % 10 == 0) {
                at += rand() % 3;
                position = at;
                kafka_watermark_end(&w, at);
            }
            while (first < n && done[first])
                first++;
            assert_int_equal(kafka_watermark_value(&w), first < n ? offsets[first] : position);
        }
        kafka_watermark_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finishes_in_any_order), cmocka_unit_test(the_log_has_gaps),
        cmocka_unit_test(strangers_and_repeats), cmocka_unit_test(equals_the_plain_definition)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
