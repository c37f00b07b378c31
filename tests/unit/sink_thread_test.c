/* sink_thread: giving up on a database that is away, at whatever moment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/log.h"
#include "worker/threads.h"

static int away_lookup(struct sink *s, struct lookup *l, size_t n, struct err *err)
{
    (void)s, (void)l, (void)n;
    return err_set(err, E_RETRY, "away");
}

/* A clock that gives up the sink at one of its readings: those stand between the thread's own
 * looks at what it has been told, where another thread can come in. */
struct moment {
    _Atomic(struct sink_thread *) sink;
    atomic_int readings_left; /* 0: never */
};

static int64_t reading(void *ctx)
{
    struct moment *m = ctx;
    if (atomic_load(&m->readings_left) > 0 && atomic_fetch_sub(&m->readings_left, 1) == 1)
        sink_thread_give_up(atomic_load(&m->sink));
    return clock_mono_ns(clock_system());
}

static void give_up_at(int which)
{
    static const struct sink_ops ops = {.lookup = away_lookup};
    struct moment moment = {.readings_left = 0};
    struct clock clock = *clock_system();
    struct sink sink = {.ops = &ops, .retry_ns = 5000000};
    struct sink_thread_opts opts = {.sink = &sink, .clock = &clock};
    struct sink_thread *thread;
    struct sink_call call = {.kind = SINK_LOOKUP, .busy = true};
    struct item item = {0, &call};
    struct err err = {0};
    clock.mono_ns = reading;
    clock.ctx = &moment;
    assert_int_equal(queue_open(&opts.calls, 4, &err), E_OK);
    assert_int_equal(queue_open(&opts.events, 16, &err), E_OK);
    assert_int_equal(sink_thread_open(&thread, &opts, &err), E_OK);
    atomic_store(&moment.sink, thread);
    atomic_store(&moment.readings_left, which);
    assert_true(queue_push(opts.calls, &item, 1));
    do {
        item.ptr = NULL;
        queue_pop(opts.events, &item, 1, 10000000000);
        if (!item.ptr)
            fail_msg("given up at reading %d: the call is never answered", which);
    } while (item.kind != EVENT_SINK_DONE);
    assert_ptr_equal(item.ptr, &call);
    assert_int_equal(call.rc, E_RETRY);
    assert_string_equal(call.err.msg, "away");
    queue_shut(opts.calls);
    sink_thread_close(thread);
    queue_close(opts.calls);
    queue_close(opts.events);
}

static void a_call_that_waits_is_answered_whenever_it_is_given_up(void **state)
{
    (void)state;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    for (int which = 1; which <= 24; which++)
        give_up_at(which);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_that_waits_is_answered_whenever_it_is_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
