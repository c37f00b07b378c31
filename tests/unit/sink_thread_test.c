/* sink_thread: giving up on a database that is away, at whatever moment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

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

static int away_commit(struct sink *s, const struct commit *c, struct commit_counts *counts,
                       struct err *err)
{
    (void)s, (void)c, (void)counts;
    return err_set(err, E_RETRY, "away");
}

/* It went away behind the give-up. The worker, which waits for what is in the spool while the
 * database is well, has to hear of it. */
static void a_last_commit_that_goes_to_the_spool_says_why(void **state)
{
    static const struct sink_ops refusing = {.commit = away_commit};
    struct sink away_sink = {.ops = &refusing};
    char dir[] = "/tmp/tranche-spool-XXXXXX", remove[64];
    struct spool_opts where = {
        .dir = mkdtemp(dir), .bytes = 64 << 20, .owner = {1, STR("postgres:llm"), STR("main")}};
    struct sink_thread_opts o = {.sink = &away_sink, .clock = clock_system()};
    struct sink_thread *thread;
    struct result one = {.key = {STR("main"), STR("b"), STR("j0")}, .correct = -1};
    const struct result *rows[1] = {&one};
    struct sink_call call = {
        .kind = SINK_COMMIT, .busy = true, .commit = {.results = rows, .n_results = 1}};
    struct item item = {0, &call};
    struct err err = {0};
    (void)state;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    assert_int_equal(spool_open(&o.spool, &where, &err), E_OK);
    assert_int_equal(queue_open(&o.calls, 4, &err), E_OK);
    assert_int_equal(queue_open(&o.events, 16, &err), E_OK);
    assert_int_equal(sink_thread_open(&thread, &o, &err), E_OK);
    sink_thread_give_up(thread);
    assert_true(queue_push(o.calls, &item, 1));
    assert_int_equal(queue_pop(o.events, &item, 1, 10000000000), 1);
    assert_int_equal(item.kind, EVENT_SINK_STATE);
    assert_int_equal((intptr_t)item.ptr, SINK_AWAY);
    assert_int_equal(queue_pop(o.events, &item, 1, 10000000000), 1);
    assert_ptr_equal(item.ptr, &call);
    assert_int_equal(call.rc, SINK_SPOOLED);
    queue_shut(o.calls);
    sink_thread_close(thread);
    queue_close(o.calls);
    queue_close(o.events);
    spool_close(o.spool);
    snprintf(remove, sizeof remove, "rm -r %s", dir);
    assert_int_equal(system(remove), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_that_waits_is_answered_whenever_it_is_given_up),
        cmocka_unit_test(a_last_commit_that_goes_to_the_spool_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
