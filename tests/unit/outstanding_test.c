/* outstanding: where a partition's watermark stands, and the order in which its jobs go on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/outstanding.h"

static void watermark_stands_before_the_oldest_open_job(void **state)
{
    (void)state;
    struct outstanding o;
    struct err err = {0};
    struct job *jobs[4];
    int64_t messages;
    assert_int_equal(outstanding_open(&o, 8, &err), E_OK);
    static const int order[] = {2, 0, 3, 1};
    for (int i = 0; i < 4; i++) {
        jobs[i] = job_open(0);
        jobs[i]->arrival = jobs[i]->sequence = i;
        jobs[i]->from_position = i * 10;
        jobs[i]->position = i * 10 + 10;
        jobs[i]->priority = i == 3;
    }
    int entered = 0;
    for (int i = 0; i < 4; i++) {
        outstanding_arrive(&o, jobs[order[i]]);
        for (struct job *job; (job = outstanding_next(&o)); entered++)
            assert_ptr_equal(job, jobs[entered]);
    }
    assert_int_equal(entered, 4);
    outstanding_leave(&o, jobs[1]);
    assert_int_equal(partition_watermark(&o.partitions[0], 9, &messages), 0);
    jobs[0]->stage = 9;
    assert_int_equal(partition_watermark(&o.partitions[0], 9, &messages), 20);
    assert_int_equal(messages, 2);
    outstanding_leave(&o, jobs[0]);
    job_heap_push(&o.waiting, jobs[2]);
    job_heap_push(&o.waiting, jobs[3]);
    assert_ptr_equal(job_heap_pop(&o.waiting), jobs[3]); /* priority before age */
    assert_ptr_equal(job_heap_pop(&o.waiting), jobs[2]);
    assert_null(job_heap_pop(&o.waiting));
    job_close(jobs[0]);
    job_close(jobs[1]);
    outstanding_close(&o);
}

static void a_released_job_holds_the_watermark(void **state)
{
    (void)state;
    struct outstanding o;
    struct err err = {0};
    struct job *jobs[4];
    int64_t messages;
    assert_int_equal(outstanding_open(&o, 8, &err), E_OK);
    for (int i = 0; i < 4; i++) {
        jobs[i] = job_open(0);
        jobs[i]->arrival = jobs[i]->sequence = i;
        jobs[i]->from_position = i * 10;
        jobs[i]->position = i * 10 + 10;
        outstanding_arrive(&o, jobs[i]);
        assert_ptr_equal(outstanding_next(&o), jobs[i]);
    }
    static const int order[] = {3, 1, 2};
    for (int i = 0; i < 3; i++) {
        outstanding_hold(&o, jobs[order[i]]);
        outstanding_leave(&o, jobs[order[i]]);
    }
    outstanding_leave(&o, jobs[0]); /* settled */
    assert_int_equal(partition_watermark(&o.partitions[0], 9, &messages), 10);
    assert_int_equal(messages, 1);
    outstanding_disown(&o, 0, 1); /* whoever comes next begins anew */
    assert_false(o.partitions[0].held);
    for (int i = 0; i < 4; i++)
        job_close(jobs[i]);
    outstanding_close(&o);
}

static bool wanted_cut(const struct job *job)
{
    return atomic_load(&job->cut) != CUT_NONE;
}

static void a_heap_gives_out_what_is_wanted(void **state)
{
    (void)state;
    struct job_heap h;
    struct err err = {0};
    struct job *jobs[200], *out[200];
    assert_int_equal(job_heap_open(&h, 200, &err), E_OK);
    for (int i = 0; i < 200; i++) {
        jobs[i] = job_open(0);
        jobs[i]->arrival = i;
        jobs[i]->priority = i * 7 % 5;
        atomic_store(&jobs[i]->cut, i % 3 == 0);
        job_heap_push(&h, jobs[i]);
    }
    size_t n = job_heap_take(&h, wanted_cut, out);
    assert_int_equal(n, 67);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(out[i]->arrival % 3, 0);
    struct job *last = NULL;
    for (struct job *job; (job = job_heap_pop(&h)); last = job, n++) {
        assert_int_not_equal(job->arrival % 3, 0);
        assert_true(!last || last->priority > job->priority ||
                    (last->priority == job->priority && last->arrival < job->arrival));
    }
    assert_int_equal(n, 200);
    for (int i = 0; i < 200; i++)
        job_close(jobs[i]);
    job_heap_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(watermark_stands_before_the_oldest_open_job),
        cmocka_unit_test(a_released_job_holds_the_watermark),
        cmocka_unit_test(a_heap_gives_out_what_is_wanted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
