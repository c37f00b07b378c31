/* sink_postgres: what a real server knows of jobs that have no row yet: lookups, attempts, deaths,
 * cancellations, parked states. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/postgres_rows.h"
#include "tests/unit/sink_deaths.h"
#include "tests/unit/sink_revision.h"

static void lookup_tells_four_states(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct result row = make_result("a", STR("one"), RESULT_OK);
    commit_all(s, &row, 1, NULL, 0);
    run_sql("INSERT INTO tranche.cancellations (run,batch_id,custom_id) VALUES ('main','b','c'), "
            "('main','gone','')");
    uint8_t one[32], two[32];
    sha256_of(STR("one"), one);
    sha256_of(STR("two"), two);
    struct lookup l[] = {{.key = {STR("main"), STR("b"), STR("a")}, .sha256 = one},
                         {.key = {STR("main"), STR("b"), STR("a")}, .sha256 = two},
                         {.key = {STR("main"), STR("b"), STR("c")}, .sha256 = one},
                         {.key = {STR("main"), STR("gone"), STR("z")}, .sha256 = one},
                         {.key = {STR("blue"), STR("b"), STR("a")}, .sha256 = two}};
    static const enum lookup_state want[] = {LOOKUP_SAME, LOOKUP_CONFLICT, LOOKUP_CANCELLED,
                                             LOOKUP_CANCELLED, LOOKUP_ABSENT};
    struct err err = {0};
    assert_int_equal(s->ops->lookup(s, l, TR_COUNT(l), &err), E_OK);
    for (size_t i = 0; i < TR_COUNT(l); i++)
        assert_int_equal(l[i].state, want[i]);
    sink_close(s);
}

static void attempts_are_counted_until_the_row(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    uint8_t sha[32] = {0};
    int32_t n[4];
    /* Out of order, and one twice. */
    struct key keys[4] = {{STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("b"), STR("a")},
                          {STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("a"), STR("q")}};
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 4, 1, n, &err), E_OK);
    assert_true(n[0] == 2 && n[1] == 1 && n[2] == 2 && n[3] == 1);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, 1, n, &err), E_OK);
    assert_true(n[0] == 3 && n[1] == 2);
    struct lookup l = {.key = keys[0], .sha256 = sha};
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_int_equal(l.attempts, 3);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, -1, n, &err), E_OK);
    assert_true(n[0] == 2 && n[1] == 1);
    assert_int_equal(s->ops->count_attempts(s, &keys[3], NULL, 1, -1, NULL, &err), E_OK);
    assert_int_equal(s->ops->count_attempts(s, &keys[3], NULL, 1, -1, n, &err), E_OK);
    assert_int_equal(n[0], 0); /* never below */
    struct result rows[2] = {make_result("z", STR("x"), RESULT_OK),
                             make_result("a", STR("y"), RESULT_OK)};
    commit_all(s, rows, 2, NULL, 0);
    assert_int_equal(ask("SELECT count(*) FROM tranche.job_attempts WHERE batch_id='b'"), 0);
    sink_close(s);
}

static void the_first_revision_is_kept(void **state)
{
    (void)state;
    struct sink *s = fresh();
    check_first_revision(s);
    sink_close(s);
}

static void deaths_charge_only_who_was_alone(void **state)
{
    (void)state;
    struct sink *s = fresh();
    check_deaths(s);
    sink_close(s);
}

/* A worker that lost its job counts it behind the row of another, and dies. */
static void starts_behind_a_row_are_forgotten(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    struct result row = make_result("a", STR("y"), RESULT_OK);
    struct key keys[2] = {row.key, {STR("main"), STR("b"), STR("open")}};
    commit_all(s, &row, 1, NULL, 0);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, COUNT_START, NULL, &err), E_OK);
    assert_int_equal(s->ops->progress_read(s, NULL, 0, &err), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM tranche.job_attempts"), 1);
    assert_int_equal(ask("SELECT n FROM tranche.job_attempts WHERE custom_id='open'"), 1);
    sink_close(s);
}

static void cancellations_name_jobs_and_batches(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    bool out[3] = {true, true, true};
    struct key keys[3] = {{STR("main"), STR("b"), STR("a")},
                          {STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("c"), STR("a")}};
    assert_int_equal(s->ops->cancelled(s, keys, 3, out, &err), E_OK);
    assert_false(out[0] || out[1] || out[2]);
    run_sql("INSERT INTO tranche.cancellations (run, batch_id, custom_id) VALUES "
            "('main','b','z'), ('main','c','')");
    assert_int_equal(s->ops->cancelled(s, keys, 3, out, &err), E_OK);
    assert_true(!out[0] && out[1] && out[2]);
    run_sql("TRUNCATE tranche.cancellations");
    sink_close(s);
}

struct seen {
    struct str want; /* of choice 1 */
    size_t calls;
    int32_t n[2]; /* by choice */
};
static void see(void *ctx, size_t at, const struct parked *p)
{
    struct seen *seen = ctx;
    seen->calls++;
    assert_int_equal(at, 1);
    assert_true(p->choice == 0 || p->choice == 1);
    seen->n[p->choice] = p->n;
    if (p->choice == 1) {
        assert_int_equal(p->state.len, seen->want.len);
        assert_memory_equal(p->state.ptr, seen->want.ptr, seen->want.len);
        assert_true(str_eq(p->worker, STR("w")) && !p->config_revision.ptr);
    }
}

static void parked_states_come_back_whole(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    char bytes[300];
    for (int i = 0; i < 300; i++)
        bytes[i] = (char)i;
    struct key key = {STR("main"), STR("b"), STR("a")};
    struct parked p[2] = {{.key = key,
                           .choice = 1,
                           .n = 70000,
                           .state = {bytes, 300},
                           .worker = STR("w"),
                           .parked_ns = now},
                          {.key = key, .choice = 0, .n = 1, .state = {bytes, 1}, .parked_ns = now}};
    assert_int_equal(s->ops->park(s, p, 2, &err), E_OK);
    p[1].n = 2;
    assert_int_equal(s->ops->park(s, &p[1], 1, &err), E_OK);
    uint8_t sha[32] = {0};
    struct key keys[2] = {{STR("main"), STR("b"), STR("z")}, key};
    struct lookup l[2] = {{.key = keys[0], .sha256 = sha}, {.key = keys[1], .sha256 = sha}};
    assert_int_equal(s->ops->lookup(s, l, 2, &err), E_OK);
    assert_true(!l[0].parked && l[1].parked);
    struct seen seen = {.want = {bytes, 300}};
    assert_int_equal(s->ops->unpark(s, keys, 2, see, &seen, &err), E_OK);
    assert_int_equal(seen.calls, 2);
    assert_int_equal(seen.n[0], 2);
    assert_int_equal(seen.n[1], 70000);
    struct result row = make_result("a", STR("x"), RESULT_OK);
    commit_all(s, &row, 1, NULL, 0);
    assert_int_equal(ask("SELECT count(*) FROM tranche.parked"), 0);
    /* A peer was faster: nothing is left behind. */
    assert_int_equal(s->ops->park(s, p, 2, &err), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM tranche.parked"), 0);
    sink_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lookup_tells_four_states),
        cmocka_unit_test(attempts_are_counted_until_the_row),
        cmocka_unit_test(the_first_revision_is_kept),
        cmocka_unit_test(deaths_charge_only_who_was_alone),
        cmocka_unit_test(starts_behind_a_row_are_forgotten),
        cmocka_unit_test(cancellations_name_jobs_and_batches),
        cmocka_unit_test(parked_states_come_back_whole),
    };
    return cmocka_run_group_tests(tests, group_up, group_down);
}
