/* queue: order, bounds, timeouts, and what shutting does to waiters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>

#include "worker/queue.h"

static struct queue *open_queue(size_t cap)
{
    struct queue *q = NULL;
    struct err err = {0};
    assert_int_equal(queue_open(&q, cap, &err), E_OK);
    return q;
}

static void items_come_out_in_order(void **state)
{
    (void)state;
    struct queue *q = open_queue(4);
    struct item in[3] = {{1, NULL}, {2, NULL}, {3, NULL}}, out[4];
    for (int round = 0; round < 5; round++) { /* the ring wraps */
        assert_true(queue_push(q, in, 3));
        assert_int_equal(queue_length(q), 3);
        assert_int_equal(queue_pop(q, out, 2, 0), 2);
        assert_int_equal(out[0].kind, 1);
        assert_int_equal(out[1].kind, 2);
        assert_int_equal(queue_pop(q, out, 4, 0), 1);
        assert_int_equal(out[0].kind, 3);
    }
    assert_int_equal(queue_pop(q, out, 4, 0), 0);
    queue_close(q);
    queue_close(NULL);
}

static void pop_waits_no_longer_than_asked(void **state)
{
    (void)state;
    struct queue *q = open_queue(1);
    struct item out;
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(queue_pop(q, &out, 1, 30000000), 0);
    assert_true(clock_mono_ns(clock_system()) - start >= 30000000);
    queue_close(q);
}

static void shut_queue_gives_what_is_inside(void **state)
{
    (void)state;
    struct queue *q = open_queue(4);
    struct item in = {7, NULL}, out[4];
    assert_true(queue_push(q, &in, 1));
    queue_shut(q);
    assert_true(queue_is_shut(q));
    assert_false(queue_push(q, &in, 1));
    assert_int_equal(queue_pop(q, out, 4, -1), 1);
    assert_int_equal(queue_pop(q, out, 4, -1), 0);
    queue_close(q);
}

enum { PUSHERS = 3, EACH = 20000 };
static void *push_many(void *arg)
{
    struct queue *q = arg;
    for (intptr_t i = 1; i <= EACH; i++) {
        struct item item = {0, (void *)i};
        queue_push(q, &item, 1);
    }
    return NULL;
}
static void *pop_many(void *arg)
{
    struct queue *q = arg;
    struct item out[16];
    size_t n;
    intptr_t sum = 0;
    while ((n = queue_pop(q, out, 16, -1)) > 0)
        for (size_t i = 0; i < n; i++)
            sum += (intptr_t)out[i].ptr;
    return (void *)sum;
}

static void nothing_is_lost_between_threads(void **state)
{
    (void)state;
    struct queue *q = open_queue(8); /* smaller than what is pushed: pushers wait */
    pthread_t push[PUSHERS], pop[2];
    void *sum[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&pop[i], NULL, pop_many, q), 0);
    for (int i = 0; i < PUSHERS; i++)
        assert_int_equal(pthread_create(&push[i], NULL, push_many, q), 0);
    for (int i = 0; i < PUSHERS; i++)
        pthread_join(push[i], NULL);
    queue_shut(q);
    for (int i = 0; i < 2; i++)
        pthread_join(pop[i], &sum[i]);
    assert_int_equal((intptr_t)sum[0] + (intptr_t)sum[1],
                     (intptr_t)PUSHERS * EACH * (EACH + 1) / 2);
    queue_close(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(items_come_out_in_order),
        cmocka_unit_test(pop_waits_no_longer_than_asked),
        cmocka_unit_test(shut_queue_gives_what_is_inside),
        cmocka_unit_test(nothing_is_lost_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
