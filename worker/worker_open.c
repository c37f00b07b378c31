/* worker_open: the worker's threads and queues from start to end. See worker.h. */
#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/worker_impl.h"

static int open_queues(struct worker *w, struct err *err)
{
    size_t cap = (size_t)w->opts.claim_rows + SOURCE_CLAIM_MAX + CALLS + 8;
    struct queue **queues[] = {&w->tasks, &w->events, &w->returns, &w->calls};
    int rc = E_OK;
    for (size_t i = 0; rc == E_OK && i < TR_COUNT(queues); i++)
        rc = queue_open(queues[i], cap, err);
    w->commit_max = (size_t)w->opts.flush_rows * 2;
    w->committing = mem_alloc(w->commit_max, sizeof *w->committing);
    w->results = mem_alloc(w->commit_max, sizeof *w->results);
    w->conflicts = mem_alloc(w->commit_max, sizeof *w->conflicts);
    w->dead = mem_alloc(w->commit_max, sizeof *w->dead);
    if (rc == E_OK && !(w->committing && w->results && w->conflicts && w->dead))
        rc =
            err_set(err, E_FATAL, "worker: no memory for a transaction of %zu rows", w->commit_max);
    if (rc == E_OK)
        rc = ready_queue_open(&w->ready, cap, err);
    if (rc == E_OK)
        rc = outstanding_open(&w->out, cap, err);
    if (rc == E_OK)
        rc = worker_cancel_open(w, err);
    return rc;
}

static int open_watch(struct worker *w, struct err *err)
{
    struct job_config *first = job_config_current(w->opts.prepare->configs);
    struct config_watch_opts watch = {w->opts.configs, first->revision, w->events, 0};
    int rc = config_watch_open(&w->watch, &watch, err);
    job_config_release(first);
    return rc;
}

static int open_threads(struct worker *w, struct err *err)
{
    const struct worker_opts *o = &w->opts;
    struct pool_opts pool = {.threads = o->prepare_threads,
                             .tasks = w->tasks,
                             .out = w->events,
                             .done = {0, EVENT_PREPARED, EVENT_RENDERED, EVENT_PREPARED_AGAIN},
                             .prepare = o->prepare,
                             .result = o->result,
                             .render_ns = o->render_ns};
    struct engine_group_opts engine = {o->engines, o->n_engines, w->ready, w->tasks,
                                       w->events,  o->clock,     o->self};
    struct intake_opts intake = {.source = o->source,
                                 .tasks = w->tasks,
                                 .returns = w->returns,
                                 .events = w->events,
                                 .rows = o->claim_rows,
                                 .bytes = o->claim_bytes,
                                 .hold = !spool_empty(o->spool)};
    struct sink_thread_opts sink = {o->sink, o->spool, w->calls, w->events, o->clock};
    int rc = pool_open(&w->pool, &pool, err);
    if (rc == E_OK)
        rc = engine_group_open(&w->engine, &engine, err);
    if (rc == E_OK)
        rc = sink_thread_open(&w->sink, &sink, err);
    if (rc == E_OK)
        rc = intake_open(&w->intake, &intake, err);
    if (rc == E_OK && o->configs && o->configs->dir)
        rc = open_watch(w, err);
    return rc;
}

/* Started here, and its row is not in the database: also where it has ended and the sink is away.
 */
static bool start_unanswered(const struct job *job)
{
    bool ended = job->stage == STAGE_DONE || job->stage == STAGE_COMMITTING;
    return job->attempts > 0 && (job->stage == STAGE_COUNTED || (ended && job->choices));
}

/* Starts that did not end: back to what they were, so that a stop counts against nobody. Where an
 * engine failed, what had been submitted stays counted: one of these may be why. */
static void uncount(struct worker *w)
{
    size_t n = 0;
    for (size_t p = 0; p <= SOURCE_PARTITIONS_MAX; p++)
        for (struct job *job = p < SOURCE_PARTITIONS_MAX ? w->out.partitions[p].first
                                                         : w->out.orphans.first;
             job; job = job->behind) {
            bool blamed = w->engine_failed && job->stage == STAGE_COUNTED && job->submitted;
            if (!start_unanswered(job) || blamed)
                continue;
            w->keys[n++] = (struct key){job->run, job->batch_id, job->custom_id};
            if (n < COUNT_MAX)
                continue;
            struct err err = {0};
            (void)w->opts.sink->ops->count_attempts(w->opts.sink, w->keys, NULL, n, -1, NULL, &err);
            n = 0;
        }
    struct err err = {0};
    if (n && w->opts.sink->ops->count_attempts(w->opts.sink, w->keys, NULL, n, -1, NULL, &err) < 0)
        LOG(LOG_WARN, "attempts_not_returned", LOG_S("error", err.msg));
}

/* Behind uncount: what still carries our name was with the engine when it failed. */
static void answer_for_engine(struct worker *w)
{
    struct err err = {0};
    struct death d = {.process = w->opts.sink->process, .cause = DEATH_ENGINE};
    if (!w->engine_failed || !d.process.ptr)
        return;
    int rc = w->opts.sink->ops->record_death(w->opts.sink, &d, &err);
    if (rc < 0)
        LOG(LOG_WARN, "death_not_recorded", LOG_S("error", err.msg));
    else
        LOG(LOG_INFO, "death_recorded", LOG_STR("process", d.process), LOG_S("cause", "engine"),
            LOG_I("jobs", d.jobs), LOG_I("charged", d.charged));
}

/* Ends the threads in the order of the flow and frees every job. The sink is ours again. */
static void close_threads(struct worker *w)
{
    struct item items[EVENT_MAX];
    size_t n;
    config_watch_close(w->watch);
    if (w->intake)
        intake_stop(w->intake);
    if (w->returns)
        queue_shut(w->returns);
    intake_close(w->intake);
    engine_group_close(w->engine);
    if (w->tasks)
        queue_shut(w->tasks);
    pool_close(w->pool);
    if (w->calls)
        queue_shut(w->calls);
    sink_thread_close(w->sink);
    while (w->events && (n = queue_pop(w->events, items, EVENT_MAX, 0)) > 0)
        for (size_t i = 0; i < n; i++)
            if (items[i].kind == EVENT_PREPARED)
                outstanding_arrive(&w->out, items[i].ptr);
            else if (items[i].kind == EVENT_CONFIG)
                job_config_release(items[i].ptr);
            else if (items[i].kind == EVENT_GAP || items[i].kind == EVENT_STARTED)
                mem_free(items[i].ptr);
}

static void close_rest(struct worker *w)
{
    struct queue *queues[] = {w->tasks, w->events, w->returns, w->calls};
    outstanding_close(&w->out);
    ready_queue_close(w->ready);
    worker_cancel_close(w);
    job_close(w->canary);
    worker_park_close(w);
    worker_config_close(w);
    for (size_t i = 0; i < TR_COUNT(queues); i++)
        queue_close(queues[i]);
    mem_free(w->committing);
    mem_free(w->results);
    mem_free(w->conflicts);
    mem_free(w->dead);
    mem_free(w);
}

/* A source that a drain found empty has no work left, `left` aside: what it has handed out and no
 * row tells of. Asked last: a broker that is away takes its time to say so. The source is ours
 * again. */
static bool work_left(struct worker *w, int64_t left)
{
    struct source *source = w->opts.source;
    if (left > 0)
        return true;
    return w->cut_short && !(w->rc == E_OK && source->ops->left && source->ops->left(source) == 0);
}

/* Behind the threads. `claimed`: what the intake handed out. */
static void count_left(struct worker *w, int64_t claimed)
{
    struct worker_summary *s = w->summary;
    struct source_lag lag;
    s->left = claimed - w->out.next_arrival + (int64_t)w->out.n + w->parking.released;
    s->work_left = work_left(w, s->left);
    if (!s->work_left || !w->opts.tell_stop)
        return;
    w->opts.source->ops->lag(w->opts.source, &lag);
    s->unread = (lag.messages < 0 || lag.messages > s->left) && lag.bytes != 0;
}

static void sum_stats(const struct worker_opts *opts, struct engine_stats *out)
{
    struct engine_stats one;
    engine_stats(opts->engines[0], out);
    for (int i = 1; i < opts->n_engines; i++) {
        engine_stats(opts->engines[i], &one);
        engine_stats_add(out, &one);
    }
}

int worker_run(const struct worker_opts *opts, struct worker_summary *summary, struct err *err)
{
    struct worker *w = mem_alloc(1, sizeof *w);
    if (!w)
        return err_set(err, E_FATAL, "worker: no memory");
    *summary = (struct worker_summary){0};
    struct engine_stats stats;
    sum_stats(opts, &stats);
    w->opts = *opts;
    w->summary = summary;
    w->err = err;
    w->breaker.share = opts->breaker > 0 ? opts->breaker : 1;
    w->start_ns = clock_mono_ns(opts->clock);
    w->ready_cap = TR_MIN(TR_MAX((int64_t)stats.slots * 2, (int64_t)COUNT_MAX), opts->claim_rows);
    w->wave = stats.slots + w->ready_cap;
    w->rc = open_queues(w, err);
    if (w->rc == E_OK)
        w->rc = open_threads(w, err);
    if (w->rc == E_OK)
        worker_loop(w);
    int64_t claimed = w->intake ? intake_claimed(w->intake) : 0;
    close_threads(w);
    worker_spool_rest(w);
    sum_stats(opts, &summary->engine);
    summary->seconds = (double)(clock_mono_ns(opts->clock) - w->start_ns) / 1e9;
    FAILPOINT("drain.before_uncount");
    atomic_store(&opts->sink->until_ns, w->parking.back_until_ns);
    uncount(w);
    answer_for_engine(w);
    FAILPOINT("drain.after_uncount");
    struct err ignored = {0};
    if (opts->sink->ops->totals(opts->sink, &summary->totals, &ignored) < 0)
        LOG(LOG_WARN, "totals_failed", LOG_S("error", ignored.msg));
    count_left(w, claimed);
    int rc = w->rc;
    close_rest(w);
    return rc;
}
