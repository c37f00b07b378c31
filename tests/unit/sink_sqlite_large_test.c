/* sink_sqlite, rows that a file cannot hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/rows_file.h"
#include "worker/sink/sink_sqlite.h"

/* One value over SQLite's limit, and a row whose values are over it together: these rows fail, not
 * the others, and not the run. */
static void rows_too_large_for_the_file(void **state)
{
    (void)state;
    enum { LARGE = 2000000, PART = 400000, ROWS = 5 };
    struct sink *s = NULL;
    struct sqlite_opts opts = {.path = rows_path};
    struct err err = {0};
    struct commit_counts counts;
    char *large = malloc(LARGE);
    struct result r[ROWS];
    const struct result *at[ROWS];
    static const char *const ids[ROWS] = {"a", "b", "c", "d", "e"};
    assert_non_null(large);
    assert_int_equal(sink_sqlite_open(&s, &opts, &err), E_OK);
    memset(large, 'x', LARGE);
    sqlite3_limit(((struct sink_sqlite *)s)->db, SQLITE_LIMIT_LENGTH, 1000000);
    for (int i = 0; i < ROWS; i++) {
        r[i] = (struct result){.key = {STR("main"), STR("b"), str_of(ids[i])},
                               .answer = STR("fine"),
                               .correct = -1,
                               .attempts = 1,
                               .finished_ns = 1769860800123000000};
        at[i] = &r[i];
    }
    r[1].logprobs = (struct str){large, LARGE};
    r[3].logprobs = r[3].choices = r[3].raw = (struct str){large, PART};
    struct commit c = {.results = at, .n_results = ROWS, .now_ns = 1};
    for (int again = 0; again < 2; again++) {
        if (s->ops->commit(s, &c, &counts, &err) < 0)
            fail_msg("%s", err.msg);
        assert_int_equal(again ? counts.already : counts.inserted, ROWS);
    }
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND answer='fine'"), 3);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='failed' AND "
                         "error_code='unstorable' AND answer IS NULL AND logprobs IS NULL AND "
                         "error_detail LIKE '%have 2000004 bytes%holds 1000000' AND "
                         "custom_id='b'"),
                     1);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='failed' AND "
                         "error_code='unstorable' AND error_detail LIKE '% 1200004 bytes%' AND "
                         "custom_id='d'"),
                     1);
    assert_int_equal(ask("SELECT rows_ok * 10 + rows_failed FROM batches"), 32);
    free(large);
    sink_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_too_large_for_the_file, rows_file_set_up,
                                        rows_file_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
