/* worker: the protocol while the database, an engine or the model misbehaves, and jobs that have
 * killed workers before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_run.h"
#include "worker/breaker.h"
#include "worker/monitor/metrics.h"

static void unknown_commit_outcome_is_sent_again(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 100, .before = 1, .after = 2};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(100);
    assert_int_equal(ask("SELECT count(*) FROM results"), 100);
    assert_int_equal(ask("SELECT rows_ok FROM batches"), 100);
}

static void suspects_run_apart_and_the_convicted_not_at_all(void **state)
{
    (void)state;
    enum { N = 60, SUSPECTS = 20 };
    static char text[N][64];
    static const char *lines[N];
    struct setting set = {.lines = lines, .n = 0};
    assert_int_equal(run(&set), E_OK); /* makes the file */
    for (int i = 0; i < N; i++) {
        const char *kind = i % 3 == 0 ? "s" : i == 40 ? "d" : "j";
        snprintf(text[i], sizeof text[i], "{\"id\":\"%s%d\",\"prompt\":\"p%d\"}", kind, i, i);
        lines[i] = text[i];
        char sql[200];
        snprintf(
            sql, sizeof sql,
            "INSERT INTO job_attempts VALUES ('main','b','%s%d',%d,'',%d,'SIGSEGV',NULL,0,NULL)",
            kind, i, 3 + i % 2, *kind == 'd' ? 2 : *kind == 's');
        if (*kind != 'j')
            ask(sql);
    }
    suspects_met = suspects_alone = group_max = group_mixed = group_unsettled = 0;
    set.n = N;
    assert_int_equal(run(&set), E_OK);
    expect_all_done(N);
    assert_int_equal(suspects_met, SUSPECTS);
    assert_true(suspects_alone >= 1 && group_max > 1 && group_max <= SUSPECTS / 2);
    assert_int_equal(group_mixed, 0);
    assert_int_equal(group_unsettled, 0);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok'"), N - 1);
    assert_int_equal(ask("SELECT count(*) FROM results JOIN dead_letters USING (custom_id) WHERE "
                         "custom_id='d40' AND status='dead' AND error_code='crashed' AND "
                         "reason='crashed' AND error_detail LIKE '%died 2 times%SIGSEGV%' AND "
                         "CAST(payload AS TEXT) LIKE '%p40%' AND source_key LIKE 'main/b/b:41/%'"),
                     1);
    assert_int_equal(ask("SELECT rows_dead + dead_letters FROM batches"), 2);
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.present, N);
}

static void a_dead_sink_leaves_the_rest_unacknowledged(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY, .fatal_at = 3};
    assert_int_equal(run(&set), E_FATAL);
    assert_string_equal(error.msg, "injected");
    assert_int_equal(acked_without_row, 0);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
    assert_true(source.acked < MANY && summary.work_left);
    set.fatal_at = 0;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
}

/* Away for a while in the middle, with a spool, without one, and with one that is soon full. */
static void an_outage_loses_and_doubles_nothing(void **state)
{
    (void)state;
    static const int64_t bytes[] = {1 << 20, 0, 12000};
    for (size_t i = 0; i < TR_COUNT(bytes); i++)
        for (int at = 0; at < 12; at += 3) {
            struct setting set = {.lines = many,
                                  .n = MANY,
                                  .down_at = at,
                                  .down_for = 40,
                                  .spool_bytes = bytes[i],
                                  .step_ns = 200000};
            assert_int_equal(unlink(rows_path), 0);
            assert_int_equal(run(&set), E_OK);
            expect_all_done(MANY);
            assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
            assert_int_equal(summary.rows[RESULT_OK], MANY);
            assert_int_equal(summary.spooled, 0);
            assert_int_equal(spool_left, 0);
        }
}

/* The outage ends with a database that will never take a row (a configuration that nobody mended):
 * the worker leaves with that reason, and the rows stay in the spool. */
static void an_outage_that_ends_badly_keeps_the_spool(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .down_at = 3,
                          .down_for = 40,
                          .fatal_at = 12,
                          .spool_bytes = 1 << 20,
                          .step_ns = 500000};
    assert_int_equal(run(&set), E_FATAL);
    assert_string_equal(error.msg, "injected");
    assert_true(summary.work_left && summary.spooled > 0 && spool_left > 0);
    assert_int_equal(acked_without_row, 0);
    assert_true(source.acked <= ask("SELECT count(*) FROM results"));
    set.down_for = set.fatal_at = 0;
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
    assert_int_equal(spool_left, 0);
}

/* Stopped while the database is away: what was finished stands in the spool, nothing of it is
 * acknowledged, and the next worker writes it before it claims anything. */
static void the_next_worker_replays(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .down_at = 5,
                          .down_for = 1 << 20,
                          .spool_bytes = 1 << 20,
                          .claim_rows = 200,
                          .step_ns = 1000000,
                          .grace_ns = 300000000,
                          .stop = &stop_flag};
    stop_in(1);
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left && summary.spooled > 0 && spool_left > 0);
    assert_int_equal(acked_without_row, 0);
    int64_t there = ask("SELECT count(*) FROM results"), spooled = summary.spooled;
    assert_int_equal(source.acked, there);
    stop_flag = 0;
    set.down_for = 0;
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
    assert_int_equal(summary.present, there + spooled); /* not computed again */
    assert_int_equal(spool_left, 0);
}

/* Another worker has had the outage's time to answer another request under an id of ours: met by
 * the worker that spooled, and by the one behind it. */
static void a_replay_meets_a_row_of_another_request(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = 100,
                          .down_at = 1,
                          .down_for = 100,
                          .spool_bytes = 1 << 20,
                          .grace_ns = 300000000,
                          .stop = &stop_flag};
    for (int how = 0; how < 2; how++) {
        rows_file_remove();
        if (how == 1) {
            set.down_for = 1 << 20;
            stop_in(1);
            assert_int_equal(run(&set), E_OK);
            assert_true(summary.work_left && spool_left > 0);
            stop_flag = 0;
            set.down_for = 0;
        }
        rival = "j0";
        assert_int_equal(run(&set), E_OK);
        assert_null(rival);
        expect_all_done(100);
        assert_int_equal(spool_left, 0);
        assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok'"), 100);
        assert_int_equal(ask("SELECT count(*) FROM results WHERE answer='theirs'"), 1);
        assert_int_equal(ask("SELECT count(*) FROM dead_letters"), 1);
        assert_int_equal(ask("SELECT count(*) FROM dead_letters WHERE custom_id='j0' AND "
                             "reason='id_conflict' AND length(payload) > 0"),
                         1);
    }
}

static void engine_failures_are_failed_rows(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 200, .fail_share = 0.3};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(200);
    int64_t failed = ask("SELECT count(*) FROM results WHERE status='failed' AND error_code<>''");
    assert_true(failed > 20 && failed < 120);
    assert_int_equal(summary.rows[RESULT_FAILED], failed);
}

static void a_lost_engine_ends_the_worker(void **state)
{
    (void)state;
    struct setting set = {
        .lines = many, .n = MANY, .engines = 3, .step_ns = 200000, .fault_at = 40};
    assert_int_equal(run(&set), E_FATAL);
    assert_non_null(strstr(error.msg, "lost at step 40"));
    assert_true(summary.work_left);
    assert_int_equal(acked_without_row, 0);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
    assert_true(source.acked > 0 && source.acked < MANY);
    set.fault_at = 0;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
}

/* A model that fails always: few failed rows, then none; what came after is there for a whole one.
 */
static void a_broken_model_stops_intake(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .stop = &stop_flag,
                          .fail_share = 1,
                          .breaker = 0.2,
                          .claim_rows = 600};
    stop_in(2);
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left);
    assert_int_equal(summary.rows[RESULT_FAILED], BREAKER_LEAST - 1);
    assert_int_equal(ask("SELECT count(*) FROM results"), BREAKER_LEAST - 1);
    assert_int_equal(ask("SELECT count(*) FROM dead_letters"), 0);
    assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
    set.fail_share = 0;
    set.stop = NULL;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND attempts=1"),
                     MANY - BREAKER_LEAST + 1);
    expect_all_done(MANY);
}

/* A row too large for its database is no sign of a broken model. */
static void rows_too_large_open_no_breaker(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY, .breaker = 0.2, .row_bytes_max = 10};
    metrics_reset();
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(metric_get(METRIC_ATTEMPTS, ATTEMPT_RETURNED), 0); /* nothing was held */
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='failed' AND "
                         "error_code='too_large' AND request<>'' AND answer IS NULL"),
                     MANY);
}

/* Three of ten fail: it opens, a probe closes it, and in the end every job has its row. What is
 * left then is too little to open it again; each pause is twice as long as the one before. */
static void a_probe_lets_the_rest_through(void **state)
{
    (void)state;
    enum { JOBS = 90 };
    struct setting set = {.lines = many, .n = JOBS, .fail_share = 0.3, .breaker = 0.2};
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    assert_true(clock_mono_ns(clock_system()) - start >= 5000000000); /* it did open */
    expect_all_done(JOBS);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE attempts=1"), JOBS);
    int64_t failed = ask("SELECT count(*) FROM results WHERE status='failed'");
    assert_true(failed > 10 && failed < 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FILE(unknown_commit_outcome_is_sent_again),
        WITH_FILE(suspects_run_apart_and_the_convicted_not_at_all),
        WITH_FILE(a_dead_sink_leaves_the_rest_unacknowledged),
        WITH_FILE(an_outage_loses_and_doubles_nothing),
        WITH_FILE(an_outage_that_ends_badly_keeps_the_spool),
        WITH_FILE(the_next_worker_replays),
        WITH_FILE(a_replay_meets_a_row_of_another_request),
        WITH_FILE(engine_failures_are_failed_rows),
        WITH_FILE(a_lost_engine_ends_the_worker),
        WITH_FILE(a_broken_model_stops_intake),
        WITH_FILE(rows_too_large_open_no_breaker),
        WITH_FILE(a_probe_lets_the_rest_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
