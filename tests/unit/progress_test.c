/* progress: the line that a person watches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "worker/monitor/progress.h"

static void progress_line_reads_well(void **state)
{
    (void)state;
    char line[256];
    struct progress_view v = {
        .rows = 50, .failed = 2, .done_bytes = 25, .total_bytes = 100, .running = 8, .waiting = 42};
    progress_line(line, sizeof line, &v, 123.4, 10);
    assert_string_equal(line, "rows 50 (25%)  failed 2  running 8  waiting 42  123 tokens/s  5 "
                              "rows/s  ETA 30s");
    /* What was there already took no time: 10 bytes in 10 s, 75 to come. */
    v.present = 30;
    v.present_bytes = 15;
    progress_line(line, sizeof line, &v, 123.4, 10);
    assert_non_null(strstr(line, "rows 50 (25%)"));
    assert_non_null(strstr(line, "  2 rows/s  ETA 1m15s"));
    v.present_bytes = 25;
    progress_line(line, sizeof line, &v, 0, 10);
    assert_non_null(strstr(line, "ETA ?"));
    v.total_bytes = -1;
    progress_line(line, sizeof line, &v, 0, 0);
    assert_non_null(strstr(line, "ETA ?"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(progress_line_reads_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
