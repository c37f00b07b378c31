/* worker_breaker: what becomes of one job that failed while the breaker is open. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/log.h"
#include "tests/unit/result_job.h"
#include "worker/worker_impl.h"

/* It may be tried again for days: what its row took is given back each time. */
static void a_held_job_keeps_nothing_of_its_row(void **state)
{
    (void)state;
    static struct worker w; /* large */
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    struct job *job = begin(&tiny, CHAT "}");
    job->choices[0].finished.end.reason = FINISH_FAILED;
    err_typed(&job->choices[0].finished.err, E_FATAL, "bad_logits", "row 3: NaN");
    static char request[100000];
    memset(request, 'x', sizeof request);
    job->request = (struct str){request, sizeof request};
    size_t before = job->bytes;
    w = (struct worker){.opts.clock = clock_system(), .breaker = {.state = BREAKER_OPEN}};
    for (int i = 0; i < 2; i++) {
        assert_true(result_render(job, &result_ctx, &scratch));
        assert_int_equal(job->result->status, RESULT_FAILED);
        assert_true(job->bytes > before);
        assert_true(worker_hold(&w, job));
        assert_null(job->result);
        assert_int_equal(job->bytes, before);
        assert_ptr_equal(list_take(&w.failed), job);
        job->n_choices = 1;
    }
    job_close(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_held_job_keeps_nothing_of_its_row)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
