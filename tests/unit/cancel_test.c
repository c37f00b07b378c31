/* Jobs that are cancelled or expire while they wait or run; and the urgent, which go first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/park_run.h"

static void cancellations_reach_what_waits_and_what_runs(void **state)
{
    (void)state;
    static char text[20][160];
    static const char *lines[20];
    for (int i = 0; i < 20; i++) { /* the first two run for two seconds */
        snprintf(text[i], sizeof text[i], "{\"id\":\"j%d\",\"prompt\":\"p\",%s}", i,
                 i < 2 ? "\"max_tokens\":400,\"min_tokens\":400"
                       : "\"max_tokens\":60,\"min_tokens\":30");
        lines[i] = text[i];
    }
    struct setting set = {.lines = lines,
                          .n = 20,
                          .slots = 4,
                          .step_ns = 5000000,
                          .cancel_ns = 20000000,
                          .stop_after_ns = 15000000,
                          .sql = "INSERT INTO cancellations (run,batch_id,custom_id) VALUES "
                                 "('main','b','j0'), ('main','b','j1'), ('main','b','j18'), "
                                 "('main','b','j19'), ('main','other','') RETURNING 1"};
    assert_int_equal(run(&set), E_OK);
    assert_false(summary.work_left);
    assert_int_equal(source.acked, 20);
    assert_true(polls > 1);
    assert_int_equal(summary.rows[RESULT_CANCELLED], 4);
    assert_int_equal(summary.rows[RESULT_OK], 20 - 4);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='cancelled' AND error_code="
                         "'cancelled' AND answer IS NULL AND choices IS NULL AND finish_reason IS "
                         "NULL AND custom_id IN ('j0','j1','j18','j19')"),
                     4);
    /* The first two ran: slots, not the whole of it, were spent on them. */
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='cancelled' AND attempts=1 AND "
                         "completion_tokens > 0 AND started_at IS NOT NULL"),
                     2);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
}

static void a_whole_batch_is_cancelled(void **state)
{
    (void)state;
    struct setting set = {
        .lines = many,
        .n = MANY,
        .slots = 4,
        .step_ns = 2000000,
        .cancel_ns = 20000000,
        .stop_after_ns = 60000000,
        .sql = "INSERT INTO cancellations (run,batch_id) VALUES ('main','b') RETURNING 1"};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(source.acked, MANY);
    assert_int_equal(summary.rows[RESULT_CANCELLED] + summary.rows[RESULT_OK], MANY);
    assert_true(summary.rows[RESULT_CANCELLED] > MANY / 2);
}

/* ---- a wall clock that runs fast, so that a deadline's minute of slack passes ---- */
static int64_t wall_zero, wall_speed;
static int64_t fast_mono(void *ctx)
{
    (void)ctx;
    return clock_mono_ns(clock_system());
}
static int64_t fast_wall(void *ctx)
{
    (void)ctx;
    return wall_zero + (clock_mono_ns(clock_system()) - wall_zero) * wall_speed;
}
static void fast_sleep(void *ctx, int64_t ns)
{
    (void)ctx;
    clock_sleep_ns(clock_system(), ns);
}
static const struct clock fast_clock = {fast_mono, fast_wall, fast_sleep, NULL};

static void deadlines_pass_while_jobs_wait_and_run(void **state)
{
    (void)state;
    static char text[6][200];
    static const char *lines[6];
    wall_zero = clock_mono_ns(clock_system());
    wall_speed = 60; /* a minute, and the minute of slack, in two seconds */
    for (int i = 0; i < 6; i++) {
        const char *last = i % 2 ? "\"max_tokens\":3000,\"min_tokens\":3000,\"deadline\":"
                                 : "\"max_tokens\":300,\"min_tokens\":300,\"seed\":";
        snprintf(text[i], sizeof text[i], "{\"id\":\"d%d\",\"prompt\":\"p%d\",%s%lld}", i, i, last,
                 i % 2 ? (long long)(wall_zero / 1000000000 + 60) : 7LL);
        lines[i] = text[i];
    }
    struct setting set = {
        .lines = lines, .n = 6, .slots = 2, .step_ns = 2000000, .clock = &fast_clock};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(source.acked, 6);
    assert_int_equal(summary.rows[RESULT_OK], 3);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='expired' AND "
                         "error_code='expired' AND choices IS NULL AND finish_reason IS NULL"),
                     3);
    assert_int_equal(ask("SELECT completion_tokens > 0 FROM results WHERE custom_id='d1'"), 1);
    assert_int_equal(ask("SELECT completion_tokens FROM results WHERE custom_id='d5'"), 0);
}

static void the_urgent_go_first(void **state)
{
    (void)state;
    static char text[MANY][160];
    static const char *lines[MANY];
    for (int i = 0; i < MANY; i++) {
        snprintf(text[i], sizeof text[i], "{\"id\":\"p%02d\",\"prompt\":\"p\",\"priority\":%d%s}",
                 i, i % 3 - 1, i ? "" : ",\"max_tokens\":300,\"min_tokens\":300");
        lines[i] = text[i];
    }
    struct setting set = {
        .lines = lines, .n = MANY, .slots = 1, .step_ns = 1000000, .tokens_mean = 2};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    /* The first one holds the slot until the others have come. But for the two or three that got to
     * the engine meanwhile, nobody started behind one of lower priority. */
    assert_true(ask("SELECT count(*) FROM results a WHERE EXISTS (SELECT 1 FROM results b WHERE "
                    "b.started_at < a.started_at AND coalesce(json_extract(b.source,'$.priority'),"
                    "0) < coalesce(json_extract(a.source,'$.priority'),0) AND b.rowid > 4)") == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FILE(cancellations_reach_what_waits_and_what_runs),
        WITH_FILE(a_whole_batch_is_cancelled),
        WITH_FILE(deadlines_pass_while_jobs_wait_and_run),
        WITH_FILE(the_urgent_go_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
