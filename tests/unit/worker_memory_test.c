/* worker: the cap on the memory of outputs, and what becomes of a job whose output finds none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/refused_memory.h"
#include "tests/unit/worker_run.h"
#include "worker/breaker.h"
#include "worker/monitor/metrics.h"

/* Each takes 4 + 4 + 8 * 20 bytes a token: 300 KB, where the cap is 1 MiB. */
enum {
    LARGE = 50,
    LARGE_BYTES = 1800 * 168,
    CAP_JOBS = ((1 << 20) + LARGE_BYTES - 1) / LARGE_BYTES
};
static char large_text[LARGE][128];
static const char *large[LARGE];

static int set_up_large(void **state)
{
    for (int i = 0; i < LARGE; i++) {
        snprintf(large_text[i], sizeof large_text[i],
                 "{\"id\":\"j%d\",\"prompt\":\"p\",\"max_tokens\":1800,\"logprobs\":20}", i);
        large[i] = large_text[i];
    }
    return set_up(state);
}

static int tear_down_large(void **state)
{
    refuse(SIZE_MAX, 0, 0, 0);
    return tear_down(state);
}

/* Also where nothing is in flight, as at each start. */
static void outputs_stay_below_their_cap(void **state)
{
    (void)state;
    struct setting set = {.lines = large, .n = LARGE};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(LARGE);
    assert_int_equal(summary.rows[RESULT_OK], LARGE);
    assert_in_range(count_max, 1, CAP_JOBS);
}

/* One job that is larger than the cap is let in, alone. */
static void a_job_above_the_cap_runs(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"id\":\"a\",\"prompt\":\"p\",\"max_tokens\":1800,\"logprobs\":20,\"n\":8}",
        "{\"id\":\"b\",\"prompt\":\"p\",\"max_tokens\":1800,\"logprobs\":20,\"n\":8}"};
    struct setting set = {.lines = lines, .n = 2};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(2);
    assert_int_equal(summary.rows[RESULT_OK], 2);
    assert_int_equal(count_max, 1);
}

/* The second job is refused twice: beside the first one in one count, and while that is with the
 * engine. */
static void a_job_without_memory_waits_for_the_others(void **state)
{
    (void)state;
    struct setting set = {.lines = large, .n = LARGE};
    refuse(LARGE_BYTES, LARGE_BYTES + 63, 1, 2);
    assert_int_equal(run(&set), E_OK);
    expect_all_done(LARGE);
    assert_int_equal(summary.rows[RESULT_OK], LARGE);
    assert_int_equal(ask("SELECT max(attempts) FROM results"), 1);
}

static void a_job_that_never_finds_memory_has_its_row(void **state)
{
    (void)state;
    struct setting set = {.lines = large, .n = LARGE, .flush_rows = 1000, .flush_ns = 60000000000};
    refuse(LARGE_BYTES, LARGE_BYTES + 63, 0, INT32_MAX);
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    expect_all_done(LARGE);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE error_code='no_memory'"), LARGE);
    assert_true(clock_mono_ns(clock_system()) - start < 60000000000); /* none waits for a flush */
}

/* Refused to the first prompts, while nothing is in flight yet: the ids of 5,000 bytes. */
static void a_prompt_without_memory_is_prepared_again(void **state)
{
    (void)state;
    enum { LONG = 5000, LONG_JOBS = 20 };
    static char text[LONG_JOBS][LONG + 64];
    static const char *lines[LONG_JOBS];
    for (int i = 0; i < LONG_JOBS; i++) {
        snprintf(text[i], sizeof text[i], "{\"id\":\"j%d\",\"prompt\":\"%0*d\"}", i, LONG / 2, i);
        lines[i] = text[i];
    }
    struct setting set = {.lines = lines, .n = LONG_JOBS};
    refuse(LONG * 2, LONG * 2 + 200, 0, 7);
    assert_int_equal(run(&set), E_OK);
    expect_all_done(LONG_JOBS);
    assert_int_equal(summary.rows[RESULT_OK], LONG_JOBS);
    assert_true(atomic_load(&refuse_seen) >= LONG_JOBS + 7);
    refuse(LONG * 2, LONG * 2 + 200, 0, INT32_MAX); /* for ever: each has its row */
    ask("DELETE FROM results");
    ask("DELETE FROM partition_progress");
    assert_int_equal(run(&set), E_OK);
    expect_all_done(LONG_JOBS);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE error_code='no_memory'"), LONG_JOBS);
}

/* Refused to the copy of the request that its hash covers, of 3 KB. */
static void a_message_without_memory_is_read_again(void **state)
{
    (void)state;
    enum { LONG_JOBS = 20 };
    static char text[LONG_JOBS][3200];
    static const char *lines[LONG_JOBS];
    for (int i = 0; i < LONG_JOBS; i++) {
        snprintf(text[i], sizeof text[i], "{\"id\":\"j%d\",\"prompt\":\"%03000d\"}", i, i);
        lines[i] = text[i];
    }
    struct setting set = {.lines = lines, .n = LONG_JOBS};
    refuse(3008, 3200, 0, 7);
    assert_int_equal(run(&set), E_OK);
    expect_all_done(LONG_JOBS);
    assert_int_equal(summary.rows[RESULT_OK], LONG_JOBS);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE custom_id LIKE 'j%' AND "
                         "length(request) > 3000"),
                     LONG_JOBS);
}

/* Requests of 3.9 KB, one to a job out of two. In a row's making and nowhere else the clean copy of
 * one asks for ROOM bytes. */
enum { ROW_JOBS = 20, ROOM = 16384 };
static char row_text[ROW_JOBS][4200];
static const char *row_lines[ROW_JOBS];
static void write_row_lines(const char *more)
{
    for (int i = 0; i < ROW_JOBS; i++) {
        snprintf(row_text[i], sizeof row_text[i], "{\"id\":\"j%d\",\"prompt\":\"%0*d\"%s}", i,
                 i % 2 ? 3900 : 2, i, more);
        row_lines[i] = row_text[i];
    }
}

static void a_row_that_never_finds_memory_is_made_without_its_texts(void **state)
{
    (void)state;
    struct setting set = {.lines = row_lines, .n = ROW_JOBS, .render_ns = 50000000};
    write_row_lines("");
    refuse(ROOM, ROOM, 0, INT32_MAX);
    alarm(120); /* it had no end */
    assert_int_equal(run(&set), E_OK);
    alarm(0);
    expect_all_done(ROW_JOBS);
    assert_int_equal(summary.rows[RESULT_OK], ROW_JOBS / 2);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='failed' AND "
                         "error_code='no_memory' AND error_detail LIKE '%memory%' AND "
                         "completion_tokens > 0 AND prompt_tokens >= 3900 AND answer IS NULL AND "
                         "choices IS NULL AND request IS NULL AND source IS NULL AND "
                         "finish_reason IS NULL AND attempts=1"),
                     ROW_JOBS / 2);
    assert_int_equal(run(&set), E_OK); /* each is its job's row: none is asked for again */
    assert_int_equal(summary.present, ROW_JOBS);
}

/* That the host has no memory is no sign of a broken model. */
static void rows_without_memory_open_no_breaker(void **state)
{
    (void)state;
    enum { N = 2 * BREAKER_LEAST };
    static char text[N][4200];
    static const char *lines[N];
    struct setting set = {
        .lines = lines, .n = N, .breaker = 0.2, .render_ns = 50000000, .stop = &stop_flag};
    for (int i = 0; i < N; i++) {
        snprintf(text[i], sizeof text[i], "{\"id\":\"j%d\",\"prompt\":\"%03900d\"}", i, i);
        lines[i] = text[i];
    }
    metrics_reset();
    refuse(ROOM, ROOM, 0, INT32_MAX);
    stop_in(60); /* an open one never closes here */
    assert_int_equal(run(&set), E_OK);
    alarm(0);
    assert_int_equal(metric_get(METRIC_ATTEMPTS, ATTEMPT_RETURNED), 0); /* nothing was held */
    expect_all_done(N);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE error_code='no_memory'"), N);
}

/* A host without memory ends those that are begun, a minute later each; it begins no more of them.
 */
static void a_host_without_memory_begins_no_more(void **state)
{
    (void)state;
    enum { N = LINES_MAX, COUNTED_AT_ONCE = 1024 };
    static char text[N][4200];
    static const char *lines[N];
    struct setting set = {.lines = lines,
                          .n = N,
                          .claim_rows = 3000,
                          .claim_bytes = 64 << 20,
                          .step_ns = 50000000,
                          .grace_ns = 100000000,
                          .stop = &stop_flag};
    for (int i = 0; i < N; i++) {
        snprintf(text[i], sizeof text[i], "{\"id\":\"j%d\",\"prompt\":\"%03900d\"}", i, i);
        lines[i] = text[i];
    }
    metrics_reset();
    refuse(ROOM, ROOM, 0, INT32_MAX);
    stop_in(6);
    assert_int_equal(run(&set), E_OK);
    alarm(0);
    assert_in_range(metric_get(METRIC_ATTEMPTS, ATTEMPT_STARTED), COUNTED_AT_ONCE / 2,
                    COUNTED_AT_ONCE + 128);
}

/* The worker has failed, so nobody will look at the rows that are being made. */
static void an_end_waits_for_no_row_without_memory(void **state)
{
    (void)state;
    struct setting set = {.lines = row_lines, .n = ROW_JOBS, .fatal_at = 1, .flush_rows = 1};
    write_row_lines("");
    refuse(ROOM, ROOM, 0, INT32_MAX);
    int64_t start = clock_mono_ns(clock_system());
    alarm(120);
    assert_int_equal(run(&set), E_FATAL);
    alarm(0);
    assert_true(clock_mono_ns(clock_system()) - start < 30000000000); /* of its 60 s */
    assert_int_equal(source.acked, 0);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts WHERE n > 0"), 0);
}

/* Not a dead letter, and no end of the worker, while the database is there or away. */
static void a_refusal_without_memory_is_a_row(void **state)
{
    (void)state;
    for (int away = 0; away < 2; away++) {
        struct setting set = {
            .lines = row_lines, .n = ROW_JOBS, .spool_bytes = 1 << 20, .down_for = away ? 20 : 0};
        write_row_lines(",\"bogus\":1");
        refuse(ROOM, ROOM, 0, INT32_MAX);
        assert_int_equal(run(&set), E_OK);
        expect_all_done(ROW_JOBS);
        assert_int_equal(spool_left, 0);
        assert_int_equal(ask("SELECT count(*) FROM dead_letters"), 0);
        assert_int_equal(ask("SELECT count(*) FROM results WHERE status='invalid' AND "
                             "error_code='unknown_field' AND error_detail LIKE '%memory%' AND "
                             "request IS NULL AND source IS NULL"),
                         ROW_JOBS / 2);
        assert_int_equal(ask("SELECT count(*) FROM results WHERE status='invalid' AND "
                             "error_detail LIKE '%bogus%' AND request IS NOT NULL"),
                         ROW_JOBS / 2);
        ask("DELETE FROM results");
        ask("DELETE FROM partition_progress");
    }
}

#define WITH_LARGE(test) cmocka_unit_test_setup_teardown(test, set_up_large, tear_down_large)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_LARGE(outputs_stay_below_their_cap),
        WITH_LARGE(a_job_above_the_cap_runs),
        WITH_LARGE(a_job_without_memory_waits_for_the_others),
        WITH_LARGE(a_job_that_never_finds_memory_has_its_row),
        WITH_LARGE(a_prompt_without_memory_is_prepared_again),
        WITH_LARGE(a_message_without_memory_is_read_again),
        WITH_LARGE(a_row_that_never_finds_memory_is_made_without_its_texts),
        WITH_LARGE(rows_without_memory_open_no_breaker),
        WITH_LARGE(a_host_without_memory_begins_no_more),
        WITH_LARGE(an_end_waits_for_no_row_without_memory),
        WITH_LARGE(a_refusal_without_memory_is_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
