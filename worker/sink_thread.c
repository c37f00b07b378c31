/* sink_thread: the sink's calls, one after the other. See threads.h. */
#include <pthread.h>

#include "engine/log.h"
#include "worker/threads.h"

static const int64_t PAUSE_MIN_NS = 100000000, PAUSE_MAX_NS = 30000000000;

struct sink_thread {
    struct sink *sink;
    struct queue *calls, *events;
    const struct clock *clock;
    pthread_t thread;
    atomic_bool give_up;
};

static int call_once(struct sink *sink, struct sink_call *c)
{
    c->err = (struct err){0};
    switch (c->kind) {
    case SINK_LOOKUP:
        return sink->ops->lookup(sink, c->lookups, c->n, &c->err);
    case SINK_COUNT:
        return sink->ops->count_attempts(sink, c->keys, c->n, c->delta, c->attempts, &c->err);
    case SINK_COMMIT:
        return sink->ops->commit(sink, &c->commit, &c->counts, &c->err);
    case SINK_PROGRESS:
        return sink->ops->progress_read(sink, c->progress, c->n, &c->err);
    case SINK_PARK:
        return sink->ops->park(sink, c->parked, c->n, &c->err);
    case SINK_UNPARK:
        return sink->ops->unpark(sink, c->keys, c->n, c->take, c->take_ctx, &c->err);
    case SINK_CANCELLED:
        return sink->ops->cancelled(sink, c->keys, c->n, c->cancelled, &c->err);
    default:
        return sink->ops->totals(sink, &c->totals, &c->err);
    }
}

/* Sleeps in slices, so that giving up is noticed. */
static void pause_ns(struct sink_thread *st, int64_t ns)
{
    for (; ns > 0 && !atomic_load(&st->give_up); ns -= PAUSE_MIN_NS)
        clock_sleep_ns(st->clock, TR_MIN(ns, PAUSE_MIN_NS));
}

static void *sink_main(void *arg)
{
    struct sink_thread *st = arg;
    struct item item;
    while (queue_pop(st->calls, &item, 1, -1) > 0) {
        struct sink_call *c = item.ptr;
        int64_t wait_ns = PAUSE_MIN_NS;
        while ((c->rc = call_once(st->sink, c)) == E_RETRY && !atomic_load(&st->give_up)) {
            if (st->sink->retry_ns > 0)
                wait_ns = st->sink->retry_ns;
            LOG(LOG_WARN, "sink_retry", LOG_S("error", c->err.msg),
                LOG_F("seconds", (double)wait_ns / 1e9));
            pause_ns(st, wait_ns);
            wait_ns = TR_MIN(wait_ns * 2, PAUSE_MAX_NS);
        }
        item.kind = EVENT_SINK_DONE;
        queue_push(st->events, &item, 1);
    }
    return NULL;
}

int sink_thread_open(struct sink_thread **out, struct sink *sink, struct queue *calls,
                     struct queue *events, const struct clock *clock, struct err *err)
{
    struct sink_thread *st = mem_alloc(1, sizeof *st);
    if (!st)
        return err_set(err, E_FATAL, "sink thread: no memory");
    st->sink = sink;
    st->calls = calls;
    st->events = events;
    st->clock = clock;
    if (pthread_create(&st->thread, NULL, sink_main, st) != 0) {
        mem_free(st);
        return err_set(err, E_FATAL, "sink thread: cannot start");
    }
    *out = st;
    return E_OK;
}

void sink_thread_give_up(struct sink_thread *st)
{
    atomic_store(&st->give_up, true);
}

void sink_thread_close(struct sink_thread *st)
{
    if (!st)
        return;
    pthread_join(st->thread, NULL);
    mem_free(st);
}
