/* pool: how long memory may be refused to a row, and what a renderer keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/log.h"
#include "tests/unit/refused_memory.h"
#include "tests/unit/result_job.h"

/* A request of 30,000 bytes: its clean copy and nothing else asks for ROOM bytes. */
enum { LONG = 30000, ROOM = 131072, DONE = 7 };

static struct job *long_job(void)
{
    static char request[LONG];
    memset(request, 'x', sizeof request);
    struct job *job = begin(&tiny, CHAT "}");
    job->request = (struct str){request, sizeof request};
    return job;
}

static void render(struct queue *tasks, struct queue *out, struct job *job)
{
    struct item item = {TASK_RENDER, job};
    assert_true(queue_push(tasks, &item, 1));
    assert_int_equal(queue_pop(out, &item, 1, 60000000000), 1);
    assert_ptr_equal(item.ptr, job);
    assert_int_equal(item.kind, DONE);
}

/* A job that the breaker holds is rendered again, hours behind the first time: its refusal of then
 * must be forgotten. */
static void each_row_has_its_own_time_without_memory(void **state)
{
    (void)state;
    struct err err = {0};
    struct pool *pool = NULL;
    struct queue *tasks = NULL, *out = NULL;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    struct job *job = long_job();
    struct pool_opts opts = {.threads = 1,
                             .done[TASK_RENDER] = DONE,
                             .prepare = &prepare_ctx,
                             .result = &result_ctx,
                             .render_ns = 3600000000000};
    assert_int_equal(queue_open(&tasks, 4, &err), E_OK);
    assert_int_equal(queue_open(&out, 4, &err), E_OK);
    opts.tasks = tasks;
    opts.out = out;
    assert_int_equal(pool_open(&pool, &opts, &err), E_OK);
    refuse(ROOM, ROOM, 0, 3);
    render(tasks, out, job);
    assert_true(atomic_load(&refuse_seen) > 3);
    assert_int_equal(job->result->status, RESULT_OK);
    assert_int_equal(job->unrendered_ns, 0);
    queue_shut(tasks);
    pool_close(pool);
    queue_close(tasks);
    queue_close(out);
    job_close(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_row_has_its_own_time_without_memory)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
