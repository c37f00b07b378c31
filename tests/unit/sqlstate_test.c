/* sqlstate, retry: each class has its action, each action its steps, pauses stay in their bounds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/sink/sqlstate.h"

static const int64_t second = 1000000000;

static void each_code_has_its_action(void **state)
{
    (void)state;
    static const struct {
        const char *code;
        enum sql_action want;
    } table[] = {
        {NULL, SQL_WAIT},        {"", SQL_WAIT},
        {"08000", SQL_WAIT},     {"08006", SQL_WAIT},
        {"08P01", SQL_WAIT},     {"57P01", SQL_WAIT},
        {"57P02", SQL_WAIT},     {"57P03", SQL_WAIT},
        {"53000", SQL_WAIT},     {"53100", SQL_WAIT},
        {"53200", SQL_WAIT},     {"53300", SQL_WAIT},
        {"53400", SQL_WAIT},     {"58000", SQL_WAIT},
        {"58030", SQL_WAIT},     {"55P03", SQL_WAIT},
        {"55006", SQL_WAIT},     {"40001", SQL_CONFLICT},
        {"40P01", SQL_CONFLICT}, {"25006", SQL_WRONG_NODE},
        {"57014", SQL_TIMEOUT},  {"28000", SQL_CONFIG},
        {"28P01", SQL_CONFIG},   {"3D000", SQL_CONFIG},
        {"3F000", SQL_CONFIG},   {"42501", SQL_CONFIG},
        {"42P01", SQL_CONFIG},   {"42703", SQL_CONFIG},
        {"0A000", SQL_CONFIG},   {"22021", SQL_DATA},
        {"22P05", SQL_DATA},     {"22P02", SQL_DATA},
        {"22003", SQL_DATA},     {"23502", SQL_DATA},
        {"23514", SQL_DATA},     {"23505", SQL_DATA},
        {"54000", SQL_DATA},     {"21000", SQL_DATA},
        {"54001", SQL_UNKNOWN},  {"XX000", SQL_UNKNOWN},
        {"XX001", SQL_UNKNOWN},  {"P0001", SQL_UNKNOWN},
        {"42601", SQL_UNKNOWN},  {"25P02", SQL_UNKNOWN},
        {"40003", SQL_UNKNOWN},  {"57000", SQL_UNKNOWN},
        {"99999", SQL_UNKNOWN},  {"5", SQL_UNKNOWN},
    };
    for (size_t i = 0; i < TR_COUNT(table); i++)
        if (sqlstate_action(table[i].code) != table[i].want)
            fail_msg("%s: want %s, got %s", table[i].code, sql_action_name(table[i].want),
                     sql_action_name(sqlstate_action(table[i].code)));
}

static enum sql_step failed(struct sql_policy *p, enum sql_action action, int64_t now_ns)
{
    int64_t wait_ns;
    enum sql_step step = sql_policy_failed(p, action, now_ns, &wait_ns);
    assert_true((step == SQL_LATER) <= (wait_ns > 0));
    assert_true(wait_ns <= 30 * second);
    if (action == SQL_CONFIG)
        assert_int_equal(wait_ns, 30 * second);
    return step;
}

static void conflicts_five_times_at_once(void **state)
{
    (void)state;
    struct sql_policy p;
    sql_policy_open(&p, 1000, 1);
    for (int i = 0; i < 5; i++)
        assert_int_equal(failed(&p, SQL_CONFLICT, 0), SQL_AGAIN);
    assert_int_equal(failed(&p, SQL_CONFLICT, 0), SQL_LATER);
    sql_policy_succeeded(&p);
    assert_int_equal(failed(&p, SQL_CONFLICT, 0), SQL_AGAIN);
}

static void unknown_three_tries(void **state)
{
    (void)state;
    struct sql_policy p;
    sql_policy_open(&p, 1000, 1);
    assert_int_equal(failed(&p, SQL_UNKNOWN, 0), SQL_AGAIN);
    assert_int_equal(failed(&p, SQL_UNKNOWN, 0), SQL_AGAIN);
    for (int i = 0; i < 100; i++)
        assert_int_equal(failed(&p, SQL_UNKNOWN, 0), SQL_LATER);
}

static void timeouts_halve_and_success_grows_back(void **state)
{
    (void)state;
    struct sql_policy p;
    sql_policy_open(&p, 1000, 1);
    for (int want = 500; want >= 1; want /= 2) {
        assert_int_equal(failed(&p, SQL_TIMEOUT, 0), SQL_SMALLER);
        assert_int_equal(p.piece_rows, want);
    }
    assert_int_equal(failed(&p, SQL_TIMEOUT, 0), SQL_LATER);
    sql_policy_succeeded(&p); /* a lookup: says nothing about pieces */
    assert_int_equal(p.piece_rows, 1);
    for (int i = 0; i < 12; i++)
        sql_policy_widen(&p);
    assert_int_equal(p.piece_rows, 1000);
    sql_policy_narrow(&p, 90); /* as many as it held, of 1,000 that it might have */
    assert_int_equal(p.piece_rows, 45);
    sql_policy_narrow(&p, 90);
    assert_int_equal(p.piece_rows, 22);
    sql_policy_narrow(&p, 1);
    assert_int_equal(p.piece_rows, 1);
}

static void configuration_gives_up_after_ten_minutes(void **state)
{
    (void)state;
    struct sql_policy p;
    sql_policy_open(&p, 1000, 1);
    for (int64_t now = 5 * second; now < 605 * second; now += 30 * second)
        assert_int_equal(failed(&p, SQL_CONFIG, now), SQL_LATER);
    assert_int_equal(failed(&p, SQL_CONFIG, 605 * second), SQL_GIVE_UP);
    /* Something else in between: it was mended once, so the time begins anew. */
    assert_int_equal(failed(&p, SQL_WAIT, 606 * second), SQL_LATER);
    assert_int_equal(failed(&p, SQL_CONFIG, 607 * second), SQL_LATER);
}

static void the_rest(void **state)
{
    (void)state;
    struct sql_policy p;
    sql_policy_open(&p, 1000, 1);
    assert_int_equal(failed(&p, SQL_DATA, 0), SQL_BISECT);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(failed(&p, SQL_WAIT, 0), SQL_LATER);
        assert_int_equal(failed(&p, SQL_WRONG_NODE, 0), SQL_LATER);
    }
}

/* Uniform in [min, bound], the bound doubles up to max: mean and extremes of each try. */
static void pauses_grow_and_scatter(void **state)
{
    (void)state;
    const int64_t min = 100, max = 3000;
    for (int tries = 0; tries < 8; tries++) {
        int64_t bound = TR_MIN(min << (tries + 1), max), least = max, most = 0;
        double sum = 0;
        for (uint64_t seed = 0; seed < 4000; seed++) {
            struct retry r;
            int64_t wait = 0;
            retry_open(&r, min, max, seed);
            for (int i = 0; i <= tries; i++)
                wait = retry_wait_ns(&r);
            least = TR_MIN(least, wait);
            most = TR_MAX(most, wait);
            sum += (double)wait;
        }
        assert_in_range(least, min, min + (bound - min) / 50);
        assert_in_range(most, bound - (bound - min) / 50, bound);
        double mean = sum / 4000, want = (double)(min + bound) / 2;
        assert_true(mean > want * 0.97 && mean < want * 1.03);
    }
    struct retry r;
    retry_open(&r, min, max, 1);
    for (int i = 0; i < 1000; i++)
        assert_in_range(retry_wait_ns(&r), min, max);
    retry_reset(&r);
    assert_in_range(retry_wait_ns(&r), min, 2 * min);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_code_has_its_action),
        cmocka_unit_test(conflicts_five_times_at_once),
        cmocka_unit_test(unknown_three_tries),
        cmocka_unit_test(timeouts_halve_and_success_grows_back),
        cmocka_unit_test(configuration_gives_up_after_ten_minutes),
        cmocka_unit_test(the_rest),
        cmocka_unit_test(pauses_grow_and_scatter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
