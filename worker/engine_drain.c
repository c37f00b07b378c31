/* engine_drain: jobs that leave an engine before their end: cut by a cancellation or a deadline,
 * or parked by a drain. See engine_thread_impl.h. */
#include "worker/engine_thread_impl.h"

enum { SEQUENCES_MIN = 8 }; /* that have ended, before their mean says anything */
static const int64_t PASS_NS = 10000000;

void engine_thread_enter(struct engine_thread *et, struct job *job)
{
    job->running_before = NULL;
    job->running_behind = et->running;
    if (et->running)
        et->running->running_before = job;
    et->running = job;
}

void engine_thread_leave(struct engine_thread *et, struct job *job)
{
    if (job->running_before)
        job->running_before->running_behind = job->running_behind;
    else if (et->running == job)
        et->running = job->running_behind;
    if (job->running_behind)
        job->running_behind->running_before = job->running_before;
    job->running_before = job->running_behind = NULL;
}

/* ---- estimates ---- */

void engine_drain_note_step(struct engine_thread *et)
{
    int64_t now = clock_mono_ns(et->opts.clock), took = now - et->step_end_ns;
    if (et->step_end_ns > 0)
        et->step_ns = et->step_ns > 0 ? et->step_ns + (took - et->step_ns) / 8 : took;
    et->step_end_ns = engine_idle(et->opts.engine) ? 0 : now;
}

void engine_drain_note_end(struct engine_thread *et, const struct job_choice *c)
{
    et->sequences++;
    et->sequence_tokens += c->out.n;
}

static int64_t estimate_ns(int32_t n, int32_t max_tokens, int64_t mean, int64_t step_ns)
{
    int64_t left = max_tokens - n;
    return (mean > 0 ? TR_MIN(left, mean) : left) * step_ns;
}

static bool fits(const struct engine_thread *et, const struct job *job, int64_t left_ns)
{
    int64_t mean = et->sequences >= SEQUENCES_MIN ? et->sequence_tokens / et->sequences + 1 : 0;
    for (int32_t i = 0; i < job->n_choices; i++) {
        const struct job_choice *c = &job->choices[i];
        if (c->in_engine &&
            estimate_ns(c->out.n, c->sampling.max_tokens, mean, et->step_ns) > left_ns)
            return false;
    }
    return true;
}

/* ---- parking ---- */

/* Takes every choice of the job off the engine and hands the job to the worker. False: one of them
 * has ended and is yet to be reported; then the job stays for the next look. */
static bool give_back(struct engine_thread *et, struct job *job)
{
    struct item item = {EVENT_UNDONE, job};
    struct finished cost;
    for (int32_t i = 0; i < job->n_choices; i++)
        if (job->choices[i].in_engine &&
            !engine_cost(et->opts.engine, (uint64_t)(uintptr_t)&job->choices[i], &cost))
            return false;
    for (int32_t i = 0; i < job->n_choices; i++) {
        struct job_choice *c = &job->choices[i];
        uint64_t tag = (uint64_t)(uintptr_t)c;
        if (!c->in_engine)
            continue;
        engine_cost(et->opts.engine, tag, &c->finished);
        CHECK(engine_park(et->opts.engine, tag));
        c->in_engine = false;
    }
    engine_thread_leave(et, job);
    if (et->current == job)
        et->current = NULL;
    atomic_fetch_sub(&et->opts.team->members[et->opts.member].held, 1);
    queue_push(et->opts.events, &item, 1);
    return true;
}

void engine_drain_pass(struct engine_thread *et, int64_t until_ns)
{
    int64_t now = clock_mono_ns(et->opts.clock);
    bool idle = engine_idle(et->opts.engine);
    if (now < until_ns && now - et->drain_pass_ns < PASS_NS && !idle)
        return;
    et->drain_pass_ns = now;
    for (struct job *job = et->running, *behind; job; job = behind) {
        behind = job->running_behind;
        /* The rest of one that is partly submitted would need a place. */
        if (now >= until_ns || job == et->current || !fits(et, job, until_ns - now))
            give_back(et, job);
    }
}

/* ---- cutting ---- */

void engine_drain_end_rest(struct engine_thread *et, struct job *job, int32_t from)
{
    for (int32_t i = from; i < job->n_choices; i++) {
        job->choices[i].finished = (struct finished){
            .end = {.reason = FINISH_CANCELLED, .stop_id = -1, .stop_string = -1}};
        job->n_left--;
    }
    if (job->n_left == 0)
        engine_thread_hand_on(et, job);
}

void engine_drain_mind_cuts(struct engine_thread *et)
{
    unsigned cuts = atomic_load(&et->cuts);
    if (cuts == et->cuts_seen)
        return;
    et->cuts_seen = cuts;
    for (struct job *job = et->running; job; job = job->running_behind)
        for (int32_t i = 0; atomic_load(&job->cut) && i < job->n_choices; i++)
            if (job->choices[i].in_engine)
                engine_cancel(et->opts.engine, (uint64_t)(uintptr_t)&job->choices[i]);
}
