/* worker: the loop and the protocol. See worker.h, outstanding.h (what is in flight) and
 * threads.h (who does the blocking work).
 *
 * Life of a job (job->stage): arrived -> in lookup -> waiting -> counted (its attempt is durable)
 * -> with the engine -> rendered -> committing -> acknowledged. A job that needs no engine
 * (invalid, expired, cancelled) goes from lookup to rendered; one whose row is there waits for the
 * next transaction too, because that is where the watermark passes it. */
#include "worker/worker_impl.h"

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/monitor/metrics.h"

static const int64_t TICK_NS = 100000000, MEMORY_WAIT_NS = 600000000000;

void list_add(struct list *l, struct job *job)
{
    job->next = NULL;
    if (l->last)
        l->last->next = job;
    else
        l->first = job;
    l->last = job;
    l->n++;
}

struct job *list_take(struct list *l)
{
    struct job *job = l->first;
    if (job) {
        l->first = job->next;
        l->last = l->first ? l->last : NULL;
        l->n--;
        job->next = NULL;
    }
    return job;
}

void worker_call_sink(struct worker *w, struct sink_call *c, enum sink_call_kind kind)
{
    struct item item = {0, c};
    c->kind = kind;
    c->busy = true;
    queue_push(w->calls, &item, 1);
}

void worker_conflict(struct worker *w, struct job *job)
{
    while (job) {
        struct job *same = job->same;
        job->same = NULL;
        job->result = NULL;
        job->err = (struct err){0};
        err_typed(&job->err, E_JOB, "id_conflict",
                  "the id belongs to another request: its row, or an earlier message, has another "
                  "request_sha256");
        worker_to_commit(w, job);
        job = same;
    }
}

void worker_refuse(struct worker *w, struct job *job, enum result_status status, const char *code,
                   const char *detail)
{
    int64_t now = clock_wall_ns(w->opts.clock);
    worker_breaker_refused(w, job);
    if (!result_refuse(job, w->opts.result, status, code, detail, now)) {
        LOG(LOG_ERROR, "row_without_texts", LOG_I("sequence", job->sequence));
        result_refuse_bare(job, w->opts.result, status, code, now);
    }
    worker_to_commit(w, job);
}

/* Another group's: no row, and the watermark passes it as one whose row is there. */
static void pass_over(struct worker *w, struct job *job)
{
    w->summary->passed_over++;
    w->present_bytes += job->position - job->from_position;
    metric_add(METRIC_PASSED_OVER, 0, 1);
    worker_present(w, job);
}

/* In order of arrival, so that of two payloads under one id the same one always wins. */
static void admit(struct worker *w, struct job *job)
{
    bool comes = !job->tombstone && !job->passed_over;
    struct job *twin = comes ? outstanding_find(&w->out, job) : NULL;
    if (job->tombstone) {
        worker_take_back(w, job);
    } else if (job->passed_over) {
        pass_over(w, job);
    } else if (!twin) {
        outstanding_enter_key(&w->out, job);
        job->stage = STAGE_LOOKUP;
        list_add(&w->to_look_up, job);
    } else if (memcmp(twin->sha256, job->sha256, sizeof job->sha256) == 0) {
        /* The watermark waits for both; what is on its way to the database holds only one. */
        job->stage = twin->stage == STAGE_COMMITTING ? STAGE_DONE : twin->stage;
        job->same = twin->same;
        twin->same = job;
        w->summary->repeated++;
    } else {
        worker_conflict(w, job);
    }
}

static void after_lookup(struct worker *w, struct job *job, const struct lookup *l)
{
    char why[128];
    if (job->stage == STAGE_SPOOLED) {
        worker_found_replayed(w, job, l->state);
        return;
    }
    job->attempts = l->attempts;
    job->parked = l->parked;
    if (l->state == LOOKUP_SAME) {
        w->summary->present++;
        w->present_bytes += job->position - job->from_position;
        worker_present(w, job);
    } else if (l->state == LOOKUP_CONFLICT) {
        outstanding_leave_key(&w->out, job);
        worker_conflict(w, job);
    } else if (l->state == LOOKUP_CANCELLED) {
        worker_refuse(w, job, RESULT_CANCELLED, "cancelled", "a cancellation was asked for");
    } else if (suspect_convicted(l->attempts, l->deaths) && !atomic_load(&job->cut) &&
               !job->err.code && !worker_deadline_passed(w, job)) {
        worker_convict(job, l, why, sizeof why);
        worker_refuse(w, job, RESULT_DEAD, "crashed", why);
    } else if (!worker_pin(w, job, l)) {
        worker_go_on(w, job);
    }
}

/* It could not be prepared; others will give memory back. Not for ever: on an endless queue there
 * are always others. */
static bool waits_for_memory(const struct worker *w, struct job *job)
{
    if (job->err.code != E_RETRY)
        return false;
    int64_t now = clock_mono_ns(w->opts.clock);
    bool first = job->refused_ns == 0;
    bool others = !worker_settled(w) || !worker_none_waits(w) || w->to_look_up.n > 0 ||
                  w->lookup.busy || w->count.busy;
    if (first)
        job->refused_ns = now;
    return first || (others && now - job->refused_ns < MEMORY_WAIT_NS);
}

void worker_go_on(struct worker *w, struct job *job)
{
    bool waits = waits_for_memory(w, job);
    if (atomic_load(&job->cut)) {
        worker_refuse_cut(w, job);
    } else if (waits && w->draining) {
        worker_wait(w, job); /* released with those that have not begun */
    } else if (waits) {
        worker_prepare_again(w, job);
    } else if (job->err.code) {
        bool ours = job->err.code != E_JOB;
        worker_refuse(w, job, ours ? RESULT_FAILED : RESULT_INVALID,
                      job->err.type[0] ? job->err.type
                      : ours           ? "no_memory"
                                       : "invalid",
                      job->err.msg);
    } else if (worker_deadline_passed(w, job)) {
        worker_refuse(w, job, RESULT_EXPIRED, "expired",
                      "its deadline had passed before it could start");
    } else {
        worker_wait(w, job);
        worker_cancel_watch(w, job);
    }
}

/* A drain begins nothing, but what is finished is still acknowledged. */
static struct job *next_lookup(struct worker *w)
{
    struct job *job = list_take(&w->replayed);
    return job || w->draining ? job : list_take(&w->to_look_up);
}

static void send_lookups(struct worker *w)
{
    size_t n = 0;
    if (w->lookup.busy)
        return;
    for (struct job *job; n < LOOKUP_MAX && (job = next_lookup(w)); n++) {
        w->looked_up[n] = job;
        w->lookups[n] = (struct lookup){.key = {job->run, job->batch_id, job->custom_id},
                                        .sha256 = job->sha256};
    }
    if (n == 0)
        return;
    w->lookup.lookups = w->lookups;
    w->lookup.n = n;
    FAILPOINT("s4.before_lookup");
    worker_call_sink(w, &w->lookup, SINK_LOOKUP);
}

/* False: no memory for its output. While others hold theirs it waits for these (short_of_memory);
 * where nobody does it is a job too large for this worker, and has its row. */
static bool take_output(struct worker *w, struct job *job, size_t n)
{
    struct err err = {0};
    bool waited = w->short_of_memory;
    w->short_of_memory = false;
    if (prepare_choices(job, &err) == E_OK) {
        w->output_bytes += (int64_t)job->output_bytes;
        return true;
    }
    if (n == 0 && worker_settled(w)) {
        worker_refuse(w, job, RESULT_FAILED, "no_memory", err.msg);
        return false;
    }
    if (!waited)
        LOG(LOG_WARN, "memory_refused", LOG_STR("custom_id", job->custom_id),
            LOG_S("error", err.msg));
    w->short_of_memory = w->settle = true;
    worker_wait(w, job);
    return false;
}

/* Moves waiting jobs towards the ready queue: their output memory, then their durable attempt. One
 * whose output is larger than the cap goes in where no other has any. */
static void send_counts(struct worker *w)
{
    size_t n = 0;
    if (w->count.busy || w->draining || worker_give_back(w))
        return;
    int64_t room = worker_room(w);
    while (n < COUNT_MAX && (int64_t)n < room && w->output_bytes < w->opts.claim_bytes) {
        struct job *job = worker_next(w);
        if (!job)
            break;
        if (outstanding_orphaned(&w->out, job)) {
            worker_release(w, job);
            continue;
        }
        if (!take_output(w, job, n)) {
            if (w->short_of_memory)
                break;
            continue;
        }
        w->counted[n] = job;
        w->revisions[n] = str_of(job->config ? job->config->revision : NULL);
        w->keys[n++] = (struct key){job->run, job->batch_id, job->custom_id};
    }
    if (n == 0)
        return;
    w->count.keys = w->keys;
    w->count.revisions = w->revisions;
    w->count.n = n;
    w->count.delta = worker_count_kind(w, n);
    w->count.attempts = w->attempts;
    w->with_engine += (int64_t)n;
    FAILPOINT("s5.before_count");
    worker_call_sink(w, &w->count, SINK_COUNT);
}

static void after_count(struct worker *w)
{
    FAILPOINT("s5.after_count");
    if (!w->begun_ns)
        w->begun_ns = clock_mono_ns(w->opts.clock);
    metric_add(METRIC_ATTEMPTS, ATTEMPT_STARTED, (int64_t)w->count.n);
    for (size_t i = 0; i < w->count.n; i++) {
        w->counted[i]->stage = STAGE_COUNTED;
        w->counted[i]->attempts = w->attempts[i];
    }
    worker_to_engine(w, w->counted, w->count.n);
}

/* ---- events ---- */

static void give_up(struct worker *w, int rc, const struct err *why)
{
    if (rc == E_RETRY && w->draining) {
        LOG(LOG_WARN, "drain_cut_short", LOG_S("error", why->msg));
    } else if (w->rc == E_OK && rc < 0) {
        w->rc = rc;
        err_typed(w->err, rc, why->type, "%s", why->msg);
    }
    sink_thread_give_up(w->sink);
    w->stop = true;
}

static void on_sink(struct worker *w, struct sink_call *c)
{
    c->busy = false;
    if (worker_park_answer(w, c) || worker_cancel_answer(w, c) || worker_config_answer(w, c))
        return;
    if (c->rc == E_RETRY && w->gave_up) {
        w->stop = true; /* its time was over; work is left */
    } else if (c->rc < 0) {
        give_up(w, c->rc, &c->err);
    } else if (c->kind == SINK_LOOKUP) {
        FAILPOINT("s4.after_lookup");
        for (size_t i = 0; i < c->n; i++)
            after_lookup(w, w->looked_up[i], &w->lookups[i]);
    } else if (c->kind == SINK_COUNT && c->delta == COUNT_BACK) {
        worker_gave_back(w);
    } else if (c->kind == SINK_COUNT) {
        after_count(w);
    } else if (c->kind == SINK_COMMIT && c->rc == SINK_SPOOLED) {
        worker_after_spool(w);
    } else if (c->kind == SINK_COMMIT && c->rc == SINK_CONFLICT) {
        worker_after_conflict(w);
    } else if (c->kind == SINK_COMMIT) {
        worker_after_commit(w);
    } else if (c->kind == SINK_PROGRESS) {
        worker_partition_after_starts(w);
    }
}

/* What is in hand is finished first; the reason is told at the end. */
static void source_failed(struct worker *w)
{
    const struct err *why = intake_error(w->intake);
    bool refused = strcmp(why->type, SOURCE_REFUSED) == 0;
    w->rc = err_typed(w->err, why->code, refused ? SOURCE_REFUSED : "source", "%s", why->msg);
}

static void on_rendered(struct worker *w, struct job *job)
{
    w->rendered++;
    w->output_bytes -= (int64_t)job->output_bytes;
    mem_free(job->output); /* text now; nobody reads the ids again */
    job->output = NULL;
    if (!worker_hold(w, job))
        worker_to_commit(w, job);
}

static void on_event(struct worker *w, const struct item *item)
{
    struct job *job = item->ptr;
    switch ((enum event)item->kind) {
    case EVENT_PREPARED:
        outstanding_arrive(&w->out, job);
        while ((job = outstanding_next(&w->out)))
            admit(w, job);
        break;
    case EVENT_PREPARED_AGAIN:
        worker_prepared_again(w, job);
        break;
    case EVENT_CONFIG:
        worker_config_offer(w, item->ptr);
        break;
    case EVENT_RENDERED:
        on_rendered(w, job);
        break;
    case EVENT_UNDONE:
        worker_undone(w, job);
        break;
    case EVENT_ASSIGNED:
    case EVENT_REVOKED:
    case EVENT_LOST:
    case EVENT_GAP:
    case EVENT_STARTED:
        worker_partition_event(w, item);
        break;
    case EVENT_DRAINED:
        w->drained = true;
        break;
    case EVENT_SOURCE_FAILED:
        source_failed(w);
        break;
    case EVENT_SINK_DONE:
        on_sink(w, item->ptr);
        break;
    case EVENT_SINK_STATE:
        worker_sink_state(w, (enum sink_state)(intptr_t)item->ptr);
        break;
    case EVENT_SINK_FAILED: {
        struct err why;
        sink_thread_error(w->sink, &why);
        give_up(w, why.code, &why);
        break;
    }
    case EVENT_SPOOL_REPLAYED:
        worker_after_replay(w);
        break;
    case EVENT_ENGINE_FAILED:
        w->rc = err_typed(w->err, E_FATAL, "engine", "%s", engine_group_error(w->engine)->msg);
        LOG(LOG_ERROR, "engine_failed", LOG_S("error", w->err->msg));
        w->engine_failed = true;
        worker_start_drain(
            w); /* engines beside it finish what they run; EVENT_ENGINE_IDLE follows */
        break;
    case EVENT_ENGINE_IDLE:
        w->engine_gone = true;
        break;
    }
}

static bool finished(const struct worker *w)
{
    bool quiet = !w->lookup.busy && !w->count.busy && !w->commit.busy && !w->start.busy &&
                 !w->cancelling.call.busy && !worker_park_busy(w) && !worker_config_busy(w);
    if (w->stop)
        return quiet;
    return quiet && w->to_commit.n == 0 && worker_park_empty(w) && !worker_rows_owed(w) &&
           worker_last_rows(w);
}

void worker_loop(struct worker *w)
{
    struct item items[EVENT_MAX];
    worker_partition_first(w);
    while (!finished(w)) {
        size_t n = queue_pop(w->events, items, EVENT_MAX, TICK_NS);
        for (size_t i = 0; i < n; i++)
            on_event(w, &items[i]);
        worker_mind_signals(w);
        worker_metrics_step(w);
        if (w->stop)
            continue;
        worker_canary_first(w);
        worker_config_step(w);
        send_lookups(w);
        send_counts(w);
        worker_cancel_step(w);
        worker_send_commit(w);
        worker_park_step(w);
        worker_partition_flush(w);
        worker_partition_starts(w);
        worker_show_progress(w);
    }
    worker_metrics_end(w);
}
