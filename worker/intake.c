/* intake: the source's thread. See threads.h. */
#include <pthread.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/job/prepare.h"
#include "worker/threads.h"

enum { RETURN_BATCH = 512 };
static const int64_t PAUSE_NS = 100000000, LAG_NS = 500000000;
static const size_t JOB_OVERHEAD = 4096; /* struct, ids, request, result: beside 4 x the message */

struct intake {
    struct intake_opts opts;
    pthread_t thread;
    atomic_bool stop, hold;
    atomic_llong claimed;
    int64_t rows, bytes, last_position[SOURCE_PARTITIONS_MAX];
    int32_t epoch[SOURCE_PARTITIONS_MAX];
    bool drained;
    int64_t lag_ns;
    pthread_mutex_t mutex; /* guards lag and err */
    struct source_lag lag;
    struct err err;
};

static int64_t charge_of(const struct job *job)
{
    return (int64_t)(JOB_OVERHEAD + 4 * job->message.len);
}

static void fail(struct intake *in, const struct err *err)
{
    pthread_mutex_lock(&in->mutex);
    in->err = *err;
    pthread_mutex_unlock(&in->mutex);
    struct item item = {EVENT_SOURCE_FAILED, NULL};
    queue_push(in->opts.events, &item, 1);
    in->drained = true;
}

/* The worker's answers to what service told. */
static void answer(struct intake *in, const struct item *item)
{
    struct source *source = in->opts.source;
    struct start *start = item->ptr;
    struct err err = {0};
    if (item->kind == TASK_FLUSHED && source->ops->flushed(source, &err) < 0)
        LOG(LOG_WARN, "source_service_failed", LOG_S("error", err.msg));
    if (item->kind != TASK_START)
        return;
    int rc = source->ops->start(source, start->partition, start->position, &err);
    mem_free(start);
    if (rc == E_RETRY)
        LOG(LOG_WARN, "source_away", LOG_S("error", err.msg));
    else if (rc < 0)
        fail(in, &err);
}

/* Acknowledges or releases jobs and lets go of their memory. */
static void settle(struct intake *in, const struct item *items, size_t n)
{
    struct job *jobs[RETURN_BATCH];
    struct source *source = in->opts.source;
    for (int kind = TASK_ACK; kind <= TASK_RELEASE; kind++) {
        size_t count = 0;
        for (size_t i = 0; i < n; i++)
            if (items[i].kind == kind)
                jobs[count++] = items[i].ptr;
        if (count > 0)
            FAILPOINT(kind == TASK_ACK ? "s8.before_ack" : "drain.before_release");
        struct err err = {0};
        int rc = count == 0         ? E_OK
                 : kind == TASK_ACK ? source->ops->ack(source, jobs, count, &err)
                                    : source->ops->release(source, jobs, count, &err);
        if (rc < 0) /* the rows exist: a message that comes again is found there */
            LOG(LOG_WARN, "ack_failed", LOG_I("messages", count), LOG_S("error", err.msg));
        if (count > 0 && kind == TASK_ACK)
            FAILPOINT("s8.after_ack");
        for (size_t i = 0; i < count; i++) {
            in->rows--;
            in->bytes -= charge_of(jobs[i]);
            job_close(jobs[i]);
        }
    }
}

/* In the worker's order: what it acknowledges behind a flush belongs to no watermark that it has
 * stored, and must find the partition given back. */
static void give_back(struct intake *in, const struct item *items, size_t n)
{
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        if (items[i].kind == TASK_ACK || items[i].kind == TASK_RELEASE)
            continue;
        settle(in, items + from, i - from);
        answer(in, &items[i]);
        from = i + 1;
    }
    settle(in, items + from, n - from);
}

static void tell(struct intake *in, enum event kind, const int32_t *partitions, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        in->epoch[partitions[i]] += kind != EVENT_ASSIGNED;
        struct item item = {(int)kind, partition_item(partitions[i], in->epoch[partitions[i]])};
        queue_push(in->opts.events, &item, 1);
    }
}

/* A copy of it, the worker's to free. Without memory the source ends: the next process finds the
 * same, because nothing of it is on record. */
static void hand_over(struct intake *in, enum event kind, const void *what, size_t size)
{
    struct item item = {(int)kind, mem_alloc(1, size)};
    struct err err = {0};
    if (!item.ptr) {
        (void)err_set(&err, E_FATAL, "source thread: no memory for a partition's news");
        fail(in, &err);
        return;
    }
    memcpy(item.ptr, what, size);
    if (!queue_push(in->opts.events, &item, 1))
        mem_free(item.ptr);
}

static void service(struct intake *in)
{
    struct source_service news;
    struct err err = {0};
    int rc = in->opts.source->ops->service(in->opts.source, &news, &err);
    tell(in, EVENT_REVOKED, news.revoked, news.n_revoked);
    tell(in, EVENT_LOST, news.lost, news.n_lost);
    tell(in, EVENT_ASSIGNED, news.assigned, news.n_assigned);
    for (int32_t i = 0; i < news.n_gaps; i++)
        hand_over(in, EVENT_GAP, &news.gaps[i], sizeof news.gaps[i]);
    for (int32_t i = 0; i < news.n_started; i++)
        hand_over(in, EVENT_STARTED, &news.started[i], sizeof news.started[i]);
    if (rc == E_FATAL && !in->drained)
        fail(in, &err);
    else if (rc < 0)
        LOG(LOG_WARN, "source_service_failed", LOG_S("error", err.msg));
}

static void note_lag(struct intake *in)
{
    struct source_lag lag;
    in->opts.source->ops->lag(in->opts.source, &lag);
    in->lag_ns = clock_mono_ns(clock_system());
    pthread_mutex_lock(&in->mutex);
    in->lag = lag;
    pthread_mutex_unlock(&in->mutex);
}

static void claim(struct intake *in)
{
    struct job *jobs[SOURCE_CLAIM_MAX];
    struct item items[SOURCE_CLAIM_MAX];
    struct err err = {0};
    struct source *source = in->opts.source;
    int64_t free_bytes = in->opts.bytes - in->bytes, free_rows = in->opts.rows - in->rows;
    struct source_budget budget = {TR_MIN(free_rows, free_bytes / (int64_t)JOB_OVERHEAD + 1),
                                   free_bytes / 4};
    FAILPOINT("s2.before_claim");
    int n =
        source->ops->claim(source, &budget, jobs, SOURCE_CLAIM_MAX, PAUSE_NS, &in->drained, &err);
    if (n == E_RETRY) {
        LOG(LOG_WARN, "source_away", LOG_S("error", err.msg));
        clock_sleep_ns(clock_system(), PAUSE_NS);
        return;
    }
    if (n < 0) {
        fail(in, &err);
        return;
    }
    if (n > 0)
        FAILPOINT("s2.after_claim");
    int64_t arrival = atomic_load(&in->claimed);
    for (int i = 0; i < n; i++) {
        int64_t *last = &in->last_position[jobs[i]->partition];
        jobs[i]->arrival = arrival + i;
        if (!source->ops->start)
            jobs[i]->from_position = *last;
        jobs[i]->epoch = in->epoch[jobs[i]->partition];
        *last = jobs[i]->position;
        in->rows++;
        in->bytes += charge_of(jobs[i]);
        items[i] = (struct item){TASK_PREPARE, jobs[i]};
    }
    atomic_store(&in->claimed, arrival + n);
    note_lag(in);
    for (int i = 0; n > 0 && !queue_push(in->opts.tasks, items, (size_t)n) && i < n; i++)
        job_close(jobs[i]); /* the pool has gone: nobody saw them */
}

static bool room(const struct intake *in)
{
    /* In pieces: a claim for every single ack would wake the pool for one job. */
    int64_t piece = TR_MIN((int64_t)SOURCE_CLAIM_MAX, TR_MAX(in->opts.rows / 4, (int64_t)1));
    return in->rows == 0 || (in->opts.rows - in->rows >= piece && in->bytes < in->opts.bytes);
}

static void *intake_main(void *arg)
{
    struct intake *in = arg;
    struct item items[RETURN_BATCH];
    bool told = false;
    for (;;) {
        bool wants = !in->drained && !atomic_load(&in->stop) && !atomic_load(&in->hold) && room(in);
        bool last = queue_is_shut(in->opts.returns); /* asked first: nothing comes behind it */
        size_t n = queue_pop(in->opts.returns, items, RETURN_BATCH, wants ? 0 : PAUSE_NS);
        give_back(in, items, n);
        if (n == 0 && last)
            return NULL;
        service(in);
        if (clock_mono_ns(clock_system()) - in->lag_ns >= LAG_NS)
            note_lag(in);
        if (wants)
            claim(in);
        if (!told && (in->drained || atomic_load(&in->stop))) {
            struct item item = {EVENT_DRAINED, NULL};
            told = true;
            queue_push(in->opts.events, &item, 1);
        }
    }
}

int intake_open(struct intake **out, const struct intake_opts *opts, struct err *err)
{
    struct intake *in = mem_alloc(1, sizeof *in);
    if (!in)
        return err_set(err, E_FATAL, "source thread: no memory");
    in->opts = *opts;
    atomic_store(&in->hold, opts->hold);
    pthread_mutex_init(&in->mutex, NULL);
    note_lag(in);
    if (pthread_create(&in->thread, NULL, intake_main, in) != 0) {
        pthread_mutex_destroy(&in->mutex);
        mem_free(in);
        return err_set(err, E_FATAL, "source thread: cannot start");
    }
    *out = in;
    return E_OK;
}

void intake_stop(struct intake *in)
{
    atomic_store(&in->stop, true);
}

void intake_hold(struct intake *in, bool hold)
{
    atomic_store(&in->hold, hold);
}

int64_t intake_claimed(struct intake *in)
{
    return atomic_load(&in->claimed);
}

void intake_lag(struct intake *in, struct source_lag *out)
{
    pthread_mutex_lock(&in->mutex);
    *out = in->lag;
    pthread_mutex_unlock(&in->mutex);
}

const struct err *intake_error(const struct intake *in)
{
    return &in->err;
}

void intake_close(struct intake *in)
{
    if (!in)
        return;
    pthread_join(in->thread, NULL);
    pthread_mutex_destroy(&in->mutex);
    mem_free(in);
}
