/* worker_breaker: what the breaker (breaker.h) means for jobs. One that failed while it is open
 * gets no row: its start is given back, and it waits in `held` until the breaker closes. Waiting
 * jobs are the probes; when all of them have failed, the canary is: if it ends well, they get their
 * rows. */
#include "engine/log.h"
#include "worker/monitor/metrics.h"
#include "worker/worker_impl.h"

static void release_held(struct worker *w)
{
    for (struct job *job; (job = list_take(&w->held));)
        worker_wait(w, job);
}

static void tell(struct worker *w, enum breaker_change change, bool probe)
{
    const struct breaker *b = &w->breaker;
    double pause_s = (double)b->pause_ns / 1e9;
    if (change == BREAKER_TRIPPED)
        LOG(LOG_ERROR, "breaker_open", LOG_I("failed", b->n_failed), LOG_I("of", b->n),
            LOG_F("pause_seconds", pause_s));
    else if (change == BREAKER_MENDED)
        LOG(LOG_INFO, "breaker_closed", LOG_I("held", w->held.n + w->failed.n));
    else if (probe)
        LOG(LOG_ERROR, "breaker_probe_failed", LOG_F("pause_seconds", pause_s));
}

void worker_breaker_refused(struct worker *w, const struct job *job)
{
    if (job != w->probe)
        return;
    w->probe = NULL;
    breaker_no_answer(&w->breaker);
}

/* An end that an engine gave: what the breaker makes of it. */
static void note_end(struct worker *w, const struct job *job, bool failed)
{
    bool probe = job == w->probe, counts = probe || job != w->canary;
    int64_t now = clock_mono_ns(w->opts.clock), pause_ns = w->breaker.pause_ns;
    enum breaker_change change =
        counts ? breaker_ended(&w->breaker, failed, probe, now) : BREAKER_SAME;
    w->proven = w->proven || !failed;
    w->probe = probe ? NULL : w->probe;
    tell(w, change, probe);
    if (change != BREAKER_MENDED)
        return;
    if (job == w->canary) /* no job of the queue has ended well: the next pause is a longer one */
        w->breaker.pause_ns = pause_ns;
    release_held(w);
}

/* The model did its part: its texts are too large for a row. */
static bool is_too_large(const struct result *r)
{
    return str_eq(r->error_code, STR("too_large"));
}

/* This machine had no memory for its texts: that says nothing of the model, neither good nor bad.
 */
static bool says_nothing(const struct result *r)
{
    return str_eq(r->error_code, STR("no_memory"));
}

bool worker_hold(struct worker *w, struct job *job)
{
    bool ok = job->result && job->result->status == RESULT_OK;
    bool failed = job->result && job->result->status == RESULT_FAILED;
    if (failed && is_too_large(job->result)) {
        ok = true;
        failed = false;
    }
    if (failed && says_nothing(job->result))
        failed = false;
    if (ok || failed)
        note_end(w, job, failed);
    else
        worker_breaker_refused(w, job); /* cut while it ran, or not fit to run */
    if (worker_canary_gone(w, job))
        return true;
    if (!failed || w->breaker.state == BREAKER_CLOSED)
        return false;
    job_drop_result(job);
    /* Stays STAGE_COUNTED: at a stop its start is given back with the others. */
    job->err = (struct err){0};
    job->submitted = false;
    job->n_choices = 0; /* their ids are gone: nothing to park */
    list_add(&w->failed, job);
    return true;
}

int64_t worker_breaker_room(struct worker *w)
{
    int64_t room = breaker_room(&w->breaker, clock_mono_ns(w->opts.clock));
    if (room == 1 && worker_none_waits(w) && w->held.n > 0 && worker_canary_send(w)) {
        breaker_probe(&w->breaker);
        w->probe = w->canary;
        return 0;
    }
    return room;
}

void worker_breaker_counted(struct worker *w, struct job *first)
{
    if (w->breaker.state != BREAKER_OPEN)
        return;
    breaker_probe(&w->breaker);
    w->probe = first;
}

bool worker_give_back(struct worker *w)
{
    size_t n = 0;
    for (struct job *job; n < COUNT_MAX && (job = list_take(&w->failed)); n++) {
        w->counted[n] = job;
        w->keys[n] = (struct key){job->run, job->batch_id, job->custom_id};
    }
    if (n == 0)
        return false;
    w->count.keys = w->keys;
    w->count.n = n;
    w->count.delta = COUNT_BACK;
    w->count.attempts = w->attempts;
    worker_call_sink(w, &w->count, SINK_COUNT);
    return true;
}

void worker_gave_back(struct worker *w)
{
    metric_add(METRIC_ATTEMPTS, ATTEMPT_RETURNED, (int64_t)w->count.n);
    for (size_t i = 0; i < w->count.n; i++) {
        struct job *job = w->counted[i];
        job->attempts = w->attempts[i];
        job->stage = STAGE_WAITING;
        if (w->breaker.state == BREAKER_CLOSED)
            worker_wait(w, job);
        else
            list_add(&w->held, job);
    }
}

void worker_breaker_drain(struct worker *w)
{
    for (struct job *job; (job = list_take(&w->failed));)
        list_add(&w->parking.undone, job);
    release_held(w);
}
