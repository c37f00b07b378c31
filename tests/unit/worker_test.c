/* worker: rows, acks and positions of jobs of every kind, of several engines, of a stop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_run.h"

static void every_job_gets_one_row_before_its_ack(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND attempts=1"), MANY);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    struct totals first = summary.totals;
    assert_int_equal(run(&set), E_OK); /* again: nothing is computed, all is acknowledged */
    assert_int_equal(source.acked, MANY);
    assert_int_equal(summary.present, MANY);
    assert_int_equal(summary.engine.steps, 0);
    assert_memory_equal(first.outputs_sha256, summary.totals.outputs_sha256, 32);
}

/* A job whose row is there, and a second message of one that is being written: no ack of theirs
 * overtakes the stored position either. */
static void no_ack_overtakes_the_position(void **state)
{
    (void)state;
    static const char *twice[2 * MANY];
    for (int i = 0; i < 2 * MANY; i++)
        twice[i] = many[i / 2];
    struct setting set = {.lines = many, .n = MANY, .claim_rows = 100};
    assert_int_equal(run(&set), E_OK);
    ask("UPDATE partition_progress SET position = 0, messages = 0");
    ask("DELETE FROM results WHERE custom_id LIKE '%7'");
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    ask("DELETE FROM partition_progress");
    ask("DELETE FROM results WHERE custom_id LIKE '%3'");
    set = (struct setting){.lines = twice, .n = 1000, .claim_rows = 20, .flush_rows = 2};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(1000);
}

static void twins_and_conflicts_in_flight(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"id\":\"a\",\"prompt\":\"x\"}", "{\"id\":\"a\",\"prompt\":\"x\"}",
        "{\"id\":\"a\",\"prompt\":\"y\"}", "{\"id\":\"b\",\"prompt\":\"x\"}",
        "{ \"prompt\":\"x\", \"id\":\"a\"}"};
    struct setting set = {.lines = lines, .n = 5};
    for (int round = 0; round < 2; round++) { /* the second meets rows, not twins */
        assert_int_equal(run(&set), E_OK);
        expect_all_done(5);
        assert_int_equal(ask("SELECT count(*) FROM results"), 2);
        assert_int_equal(ask("SELECT count(*) FROM dead_letters WHERE reason='id_conflict' AND "
                             "source_key LIKE 'main/b/b:3/%'"),
                         1);
        assert_int_equal(ask("SELECT request='{\"prompt\":\"x\"}' FROM results WHERE "
                             "custom_id='a'"),
                         1); /* the first in the file wins */
    }
}

static void bad_lines_do_not_stop_the_rest(void **state)
{
    (void)state;
    static const char *const lines[] = {"{\"id\":\"a\",\"prompt\":\"x\"}", "nonsense",
                                        "{\"id\":\"c\",\"prompt\":\"x\",\"tmperature\":1}",
                                        "{\"id\":\"d\",\"prompt\":\"x\",\"deadline\":1}"};
    struct setting set = {.lines = lines, .n = 4};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(4);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE custom_id='b:2' AND "
                         "error_code='bad_json' AND status='invalid'"),
                     1);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE error_code='unknown_field'"), 1);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='expired'"), 1);
    assert_int_equal(summary.rows[RESULT_OK], 1);
}

static void several_engines_do_each_job_once(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY, .engines = 3, .step_ns = 200000};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    assert_int_equal(summary.engine.slots, 24);
}

static void cancelled_jobs_are_not_run(void **state)
{
    (void)state;
    struct sink *sink = NULL;
    struct sqlite_opts sqlite = {.path = rows_path};
    assert_int_equal(sink_sqlite_open(&sink, &sqlite, &error), E_OK);
    sink_close(sink);
    ask("INSERT INTO cancellations (run,batch_id,custom_id) VALUES ('main','b','j5') RETURNING 1");
    struct setting set = {.lines = many, .n = 20};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(20);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='cancelled' AND "
                         "custom_id='j5'"),
                     1);
    assert_int_equal(summary.rows[RESULT_OK], 19);
}

static void a_stop_finishes_what_runs(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .stop = &stop_flag,
                          .step_ns = 2000000,
                          .stall_at = 300,
                          .claim_rows = 600};
    stop_flag = 1; /* at once: whatever got to the engine is finished, the rest is left */
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left);
    assert_int_equal(acked_without_row, 0);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
    assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
    set.stop = NULL;
    set.stall_at = 0;
    set.step_ns = 0;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
    assert_int_equal(ask("SELECT max(attempts) FROM results"), 1);
}

static void grace_ends_a_long_step(void **state)
{
    (void)state;
    struct setting set = {
        .lines = many, .n = 64, .stop = &stop_flag, .step_ns = 50000000, .grace_ns = 1};
    stop_flag = 1;
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    assert_true(clock_mono_ns(clock_system()) - start < 3000000000);
    assert_true(summary.work_left);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
}

/* The source has said that it is empty; its last line, a long one, is still being prepared. */
static void a_stop_forgets_no_line_that_is_being_prepared(void **state)
{
    (void)state;
    enum { LONG = 8 << 20 };
    char *text = mem_alloc(LONG + 64, 1);
    assert_non_null(text);
    int n = snprintf(text, 64, "{\"id\":\"long\",\"prompt\":\"");
    memset(text + n, 'x', LONG);
    snprintf(text + n + LONG, 8, "\"}");
    const char *lines[] = {text};
    struct setting set = {
        .lines = lines, .n = 1, .stop = &stop_flag, .stop_at_end = true, .grace_ns = 1};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), 0);
    assert_true(summary.work_left);
    assert_int_equal(summary.left, 1);
    mem_free(text);
}

static void tiny_budget_still_ends(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 50, .claim_rows = 1, .flush_rows = 1};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(50);
}

/* Looked up before the other's row was there, and run: its own result may not pass for that row. */
static void a_row_of_another_request_makes_a_dead_letter(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 100};
    rival = "j33";
    assert_int_equal(run(&set), E_OK);
    assert_null(rival);
    expect_all_done(100);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok'"), 100);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE answer='theirs'"), 1);
    assert_int_equal(ask("SELECT count(*) FROM dead_letters"), 1);
    assert_int_equal(ask("SELECT count(*) FROM dead_letters WHERE custom_id='j33' AND "
                         "reason='id_conflict' AND length(payload) > 0"),
                     1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FILE(every_job_gets_one_row_before_its_ack),
        WITH_FILE(no_ack_overtakes_the_position),
        WITH_FILE(twins_and_conflicts_in_flight),
        WITH_FILE(a_row_of_another_request_makes_a_dead_letter),
        WITH_FILE(bad_lines_do_not_stop_the_rest),
        WITH_FILE(several_engines_do_each_job_once),
        WITH_FILE(cancelled_jobs_are_not_run),
        WITH_FILE(a_stop_finishes_what_runs),
        WITH_FILE(grace_ends_a_long_step),
        WITH_FILE(a_stop_forgets_no_line_that_is_being_prepared),
        WITH_FILE(tiny_budget_still_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
