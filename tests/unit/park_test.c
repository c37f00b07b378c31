/* Jobs that leave the engine before their end: parked by a drain and resumed by the next worker
 * with the bytes of an undisturbed run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/park_run.h"

/* The sum over all rows' outputs, and the tokens, of a run that nobody disturbs. */
static struct totals calm_totals;
static int64_t calm_sampled;
static void run_calm(void)
{
    struct setting set = {.lines = many, .n = MANY};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    assert_false(summary.work_left);
    calm_totals = summary.totals;
    calm_sampled = summary.engine.sampled;
    rows_file_remove();
}

static void expect_calm_rows(void)
{
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND attempts=1"), MANY);
    assert_int_equal(ask("SELECT count(*) FROM parked"), 0);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
    assert_int_equal(ask("SELECT position FROM partition_progress"), MANY);
    assert_memory_equal(summary.totals.outputs_sha256, calm_totals.outputs_sha256, 32);
}

static void parked_work_goes_on_and_is_not_done_again(void **state)
{
    (void)state;
    run_calm();
    int64_t sampled = 0, parked = 0, resumed = 0, rows = 0, device_ns = 0;
    for (int round = 0;; round++) {
        struct setting set = {.lines = many,
                              .n = MANY,
                              .step_ns = 1000000,
                              .stop_after_ns = 60000000,
                              .signals = 1,
                              .grace_ns = 40000000};
        assert_true(round < 200);
        assert_int_equal(run(&set), E_OK);
        sampled += summary.engine.sampled;
        device_ns += summary.engine.device_ns;
        resumed += summary.resumed;
        rows += summary.rows[RESULT_OK];
        assert_int_equal(released_before_park, 0);
        assert_int_equal(source.acked, summary.rows[RESULT_OK] + summary.present);
        if (!summary.work_left)
            break;
        parked += summary.parked;
        assert_true(source.released > 0 || source.next < MANY);
        assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
        assert_int_equal(ask("SELECT count(*) FROM parked p JOIN results r USING (run, batch_id, "
                             "custom_id)"),
                         0);
        /* Nothing is said to be settled that is not. */
        assert_int_equal(
            ask("SELECT count(*) FROM partition_progress g WHERE (SELECT count(*) FROM "
                "results WHERE json_extract(source,'$.position') <= g.position) <> "
                "g.position"),
            0);
    }
    assert_int_equal(rows, MANY);
    assert_true(parked > MANY && resumed > MANY);
    assert_int_equal(sampled, calm_sampled);
    expect_calm_rows();
    /* A row tells of all its lives; what is not in one is that of steps before a first token. */
    int64_t told = ask("SELECT sum(device_seconds) * 1e9 FROM results");
    assert_true(told <= device_ns + 1000 * MANY && told > device_ns / 2);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE started_at IS NULL OR started_at > "
                         "finished_at"),
                     0);
}

static void other_revisions_states_are_not_continued(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 1000000,
                          .stop_after_ns = 60000000,
                          .signals = 1,
                          .grace_ns = 4000000};
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.parked > 0);
    struct setting other = {.lines = many, .n = MANY, .revision = "another"};
    int64_t rows = summary.rows[RESULT_OK];
    assert_int_equal(run(&other), E_OK);
    assert_int_equal(summary.resumed, 0);
    assert_int_equal(summary.rows[RESULT_OK], MANY - rows);
    expect_calm_rows(); /* the simulated engine does not know of revisions */
}

static void a_torn_state_is_not_continued(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 1000000,
                          .stop_after_ns = 60000000,
                          .signals = 1,
                          .grace_ns = 4000000};
    assert_int_equal(run(&set), E_OK);
    int64_t parked = summary.parked;
    assert_true(parked > 2);
    ask("UPDATE parked SET state=substr(state,1,length(state)-1) WHERE choice=0 RETURNING 1");
    ask("UPDATE parked SET choice=999 WHERE rowid=(SELECT max(rowid) FROM parked) RETURNING 1");
    struct setting rest = {.lines = many, .n = MANY};
    assert_int_equal(run(&rest), E_OK);
    assert_true(summary.resumed < parked);
    expect_calm_rows();
}

static void jobs_go_back_when_nothing_can_be_parked(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 1000000,
                          .stop_after_ns = 60000000,
                          .signals = 1,
                          .grace_ns = 4000000};
    park_answer = E_FATAL;
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left && released_before_park > 0);
    assert_int_equal(summary.parked, 0);
    assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
    park_answer = E_RETRY; /* until the time for it is over */
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left);
    park_answer = E_OK;
    struct setting rest = {.lines = many, .n = MANY};
    assert_int_equal(run(&rest), E_OK);
    expect_calm_rows();
}

static void a_second_signal_leaves_at_once(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 20000000,
                          .stop_after_ns = 200000000,
                          .signals = 2,
                          .grace_ns = 3600000000000};
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    assert_true(clock_mono_ns(clock_system()) - start < 20000000000);
    assert_true(summary.work_left && summary.parked > 0);
    struct setting rest = {.lines = many, .n = MANY};
    assert_int_equal(run(&rest), E_OK);
    assert_true(summary.resumed > 0);
    expect_calm_rows();
}

/* With time enough, what runs ends here. */
static void what_fits_the_grace_is_finished(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = 8,
                          .step_ns = 1000000,
                          .stop_after_ns = 20000000,
                          .signals = 1,
                          .slots = 32,
                          .grace_ns = 600000000000};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.rows[RESULT_OK], 8);
    assert_int_equal(summary.parked, 0);
    assert_false(summary.work_left);
}

static void the_grace_is_split(void **state)
{
    (void)state;
    const int64_t s = 1000000000;
    struct drain_budget b = drain_budget_of(120 * s);
    assert_int_equal(b.work_ns, 90 * s);
    assert_int_equal(b.sink_ns, 110 * s);
    assert_int_equal(b.exit_ns, 115 * s);
    b = drain_budget_of(30 * s);
    assert_int_equal(b.sink_ns, 27500000000);
    assert_true(b.answer_ns - b.sink_ns >= s / 4); /* a server that is well and late */
    assert_true(b.back_ns - b.answer_ns >= s / 4); /* the spool, and starts that go back */
    assert_true(b.exit_ns - b.back_ns >= s / 4);   /* the broker's goodbye */
    b = drain_budget_of(3600 * s);
    assert_int_equal(b.work_ns, 3570 * s);
    b = drain_budget_of(0);
    assert_int_equal(b.work_ns, 0);
    assert_int_equal(b.sink_ns, 0);
    assert_true(0 < b.answer_ns && b.answer_ns < b.back_ns && b.back_ns < b.exit_ns);
    assert_int_equal(b.exit_ns, 5 * s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FILE(parked_work_goes_on_and_is_not_done_again),
        WITH_FILE(other_revisions_states_are_not_continued),
        WITH_FILE(a_torn_state_is_not_continued),
        WITH_FILE(jobs_go_back_when_nothing_can_be_parked),
        WITH_FILE(a_second_signal_leaves_at_once),
        WITH_FILE(what_fits_the_grace_is_finished),
        cmocka_unit_test(the_grace_is_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
