/* sink_thread: the sink's calls, one after the other. See threads.h.
 *
 * While the sink is away, calls wait in order and one of them is sent again with growing pauses; a
 * commit goes to the spool instead, where there is one, and its jobs with it out of the worker's
 * hands. Once the sink answers, the spool is replayed first, then the calls that waited. */
#include <pthread.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/monitor/metrics.h"
#include "worker/threads.h"

enum { WAITING_MAX = 16 };
static const int64_t PAUSE_MIN_NS = 100000000, PAUSE_MAX_NS = 30000000000;

struct sink_thread {
    struct sink *sink;
    struct spool *spool;
    struct queue *calls, *events;
    const struct clock *clock;
    pthread_t thread;
    atomic_bool give_up;
    struct sink_call *waiting[WAITING_MAX];
    size_t n_waiting;
    int64_t due_ns, pause_ns; /* when next (mono) */
    enum sink_state state;
    bool failed;
    pthread_mutex_t mutex; /* guards what follows */
    struct commit_counts replayed;
    struct err err;
};

static int call_once(struct sink *sink, struct sink_call *c)
{
    c->err = (struct err){0};
    int rc = FAILPOINT_ERROR("sink.call", &c->err);
    if (rc < 0)
        return rc;
    switch (c->kind) {
    case SINK_LOOKUP:
        return sink->ops->lookup(sink, c->lookups, c->n, &c->err);
    case SINK_COUNT:
        return sink->ops->count_attempts(sink, c->keys, c->revisions, c->n, c->delta, c->attempts,
                                         &c->err);
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
    case SINK_CONFIG_WRITE:
        return sink->ops->config_write(sink, c->revision, c->config, &c->err);
    case SINK_CONFIG_READ:
        return sink->ops->config_read(sink, c->revision, c->found, &c->err);
    default:
        return sink->ops->totals(sink, &c->totals, &c->err);
    }
}

static void tell(struct sink_thread *st, enum event kind, void *ptr)
{
    struct item item = {(int)kind, ptr};
    queue_push(st->events, &item, 1);
}

static void set_state(struct sink_thread *st, enum sink_state state)
{
    if (state == SINK_WELL)
        st->pause_ns = PAUSE_MIN_NS;
    if (st->state == state)
        return;
    st->state = state;
    tell(st, EVENT_SINK_STATE, (void *)(intptr_t)state);
}

/* It answered E_RETRY: when to ask next. */
static void put_off(struct sink_thread *st, const struct err *why)
{
    int64_t wait_ns = st->sink->retry_ns > 0 ? st->sink->retry_ns : st->pause_ns;
    st->pause_ns = TR_MIN(st->pause_ns * 2, PAUSE_MAX_NS);
    metric_add(METRIC_SINK_RETRIES, 0, 1);
    st->due_ns = clock_mono_ns(st->clock) + wait_ns;
    LOG(LOG_WARN, "sink_retry", LOG_S("error", why->msg), LOG_F("seconds", (double)wait_ns / 1e9));
    if (st->state == SINK_WELL)
        set_state(st, SINK_AWAY);
}

/* ---- spool ---- */

/* Whether the commit is off the worker's hands. Progress is not kept: it is sent again. */
static bool spooled(struct sink_thread *st, struct sink_call *c)
{
    struct err why = {0};
    if (!st->spool || c->kind != SINK_COMMIT)
        return false;
    bool rows = c->commit.n_results + c->commit.n_dead_letters + c->commit.n_lost_ranges > 0;
    if (rows && spool_append(st->spool, &c->commit, &why) < 0) {
        LOG(LOG_ERROR, "spool_refused", LOG_S("error", why.msg),
            LOG_I("rows", c->commit.n_results + c->commit.n_dead_letters));
        set_state(st, SINK_AWAY_FULL);
        return false;
    }
    if (rows)
        LOG(LOG_INFO, "spooled", LOG_I("rows", c->commit.n_results + c->commit.n_dead_letters),
            LOG_I("bytes", spool_bytes(st->spool)));
    c->rc = SINK_SPOOLED;
    return true;
}

/* Everything that waits is told what ended it, and so is the worker. */
static void fail(struct sink_thread *st, const struct err *why)
{
    st->failed = true;
    pthread_mutex_lock(&st->mutex);
    st->err = *why;
    pthread_mutex_unlock(&st->mutex);
    for (size_t i = 0; i < st->n_waiting; i++) {
        st->waiting[i]->rc = why->code;
        st->waiting[i]->err = *why;
        tell(st, EVENT_SINK_DONE, st->waiting[i]);
    }
    st->n_waiting = 0;
    tell(st, EVENT_SINK_FAILED, NULL);
}

/* False: not now. */
static bool replay(struct sink_thread *st)
{
    struct spool_replayed done = {0};
    struct err why = {0};
    if (spool_empty(st->spool))
        return true;
    int rc = spool_replay(st->spool, st->sink, &done, &why);
    pthread_mutex_lock(&st->mutex);
    st->replayed.inserted += done.counts.inserted;
    st->replayed.already += done.counts.already;
    st->replayed.dead_letters += done.counts.dead_letters;
    pthread_mutex_unlock(&st->mutex);
    if (done.rows || done.damaged || rc >= 0)
        LOG(done.damaged ? LOG_ERROR : LOG_INFO, "spool_replayed", LOG_I("rows", done.rows),
            LOG_I("inserted", done.counts.inserted), LOG_I("already", done.counts.already),
            LOG_I("damaged", done.damaged), LOG_I("torn_bytes", done.torn_bytes));
    if (rc >= 0)
        tell(st, EVENT_SPOOL_REPLAYED, NULL);
    else if (rc == E_RETRY)
        put_off(st, &why);
    else
        fail(st, &why);
    return rc >= 0;
}

/* ---- calls ---- */

static bool away(const struct sink_thread *st)
{
    return st->n_waiting > 0 || !spool_empty(st->spool);
}

static void serve(struct sink_thread *st, struct sink_call *c)
{
    bool last = atomic_load(&st->give_up);
    c->rc = st->failed ? st->err.code : E_RETRY;
    c->err = st->err;
    if (!st->failed && (last || !away(st))) {
        c->rc = call_once(st->sink, c);
        if (c->rc == E_RETRY && !last)
            put_off(st, &c->err);
        else if (c->rc == E_RETRY && st->state == SINK_WELL)
            set_state(st, SINK_AWAY); /* what goes to the spool now comes back to nobody */
        else if (c->rc >= 0 && !away(st))
            set_state(st, SINK_WELL); /* a commit of progress alone leaves nothing that waits */
    }
    if (c->rc == E_RETRY && !spooled(st, c) && !last) {
        CHECK(st->n_waiting < WAITING_MAX);
        st->waiting[st->n_waiting++] = c;
        return;
    }
    tell(st, EVENT_SINK_DONE, c);
}

/* The sink may be back. */
static void again(struct sink_thread *st)
{
    if (!replay(st))
        return;
    while (st->n_waiting) {
        struct sink_call *c = st->waiting[0];
        c->rc = call_once(st->sink, c);
        if (c->rc == E_RETRY) {
            put_off(st, &c->err);
            return;
        }
        memmove(st->waiting, st->waiting + 1, --st->n_waiting * sizeof *st->waiting);
        tell(st, EVENT_SINK_DONE, c);
    }
    set_state(st, SINK_WELL);
}

/* E_RETRY is final now; rows still go to the spool where there is room. */
static void give_up_waiting(struct sink_thread *st)
{
    for (size_t i = 0; i < st->n_waiting; i++) {
        if (!spooled(st, st->waiting[i]))
            st->waiting[i]->rc = E_RETRY;
        if (!st->waiting[i]->err.code)
            err_typed(&st->waiting[i]->err, E_RETRY, "database", "the database is away");
        tell(st, EVENT_SINK_DONE, st->waiting[i]);
    }
    st->n_waiting = 0;
}

static void *sink_main(void *arg)
{
    struct sink_thread *st = arg;
    struct item item;
    metric_set(METRIC_SPOOL_LIMIT, 0, st->spool ? spool_limit(st->spool) : 0);
    for (;;) {
        metric_set(METRIC_SPOOL_BYTES, 0, st->spool ? spool_bytes(st->spool) : 0);
        bool last = atomic_load(&st->give_up);
        if (last) /* before the pop, which then has no end */
            give_up_waiting(st);
        bool tries = !st->failed && !last && away(st);
        bool shut = queue_is_shut(st->calls); /* asked first: nothing comes behind it */
        int64_t left = TR_MAX(st->due_ns - clock_mono_ns(st->clock), (int64_t)0);
        size_t n = queue_pop(st->calls, &item, 1, tries ? TR_MIN(left, PAUSE_MIN_NS) : -1);
        if (n)
            serve(st, item.ptr);
        else if (shut && st->n_waiting == 0)
            return NULL;
        else if (shut)
            clock_sleep_ns(st->clock, PAUSE_MIN_NS);
        if (tries && clock_mono_ns(st->clock) >= st->due_ns && !atomic_load(&st->give_up))
            again(st);
    }
}

int sink_thread_open(struct sink_thread **out, const struct sink_thread_opts *opts, struct err *err)
{
    struct sink_thread *st = mem_alloc(1, sizeof *st);
    if (!st)
        return err_set(err, E_FATAL, "sink thread: no memory");
    st->sink = opts->sink;
    st->spool = opts->spool;
    st->calls = opts->calls;
    st->events = opts->events;
    st->clock = opts->clock;
    st->pause_ns = PAUSE_MIN_NS;
    pthread_mutex_init(&st->mutex, NULL);
    if (!spool_empty(st->spool)) /* an earlier process's: before anything else */
        set_state(st, SINK_AWAY);
    if (pthread_create(&st->thread, NULL, sink_main, st) != 0) {
        pthread_mutex_destroy(&st->mutex);
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

void sink_thread_replayed(struct sink_thread *st, struct commit_counts *out)
{
    pthread_mutex_lock(&st->mutex);
    *out = st->replayed;
    st->replayed = (struct commit_counts){0};
    pthread_mutex_unlock(&st->mutex);
}

void sink_thread_error(struct sink_thread *st, struct err *out)
{
    pthread_mutex_lock(&st->mutex);
    *out = st->err;
    pthread_mutex_unlock(&st->mutex);
}

void sink_thread_close(struct sink_thread *st)
{
    if (!st)
        return;
    pthread_join(st->thread, NULL);
    pthread_mutex_destroy(&st->mutex);
    mem_free(st);
}
