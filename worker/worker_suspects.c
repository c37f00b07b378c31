/* worker_suspects: who goes to the engine next. Suspects run apart (suspects.h): a group begins
 * when nothing else is in flight, all of it rows, and nothing joins it. They wait while others
 * wait, so that most work is done by the time that a process dies of one; but no longer than
 * TURN_NS, and then for as long the others wait, so that neither starves on an endless queue. */
#include <stdio.h>

#include "worker/worker_impl.h"

static const int64_t TURN_NS = 60000000000;
/* Rows without memory, above which it is this machine that has none, rather than a few rows that
 * are too large for it: whatever were begun would end without its texts too. */
enum { UNRENDERED_MAX = 16 };

void worker_wait(struct worker *w, struct job *job)
{
    job->stage = STAGE_WAITING;
    if (suspect_is(job->attempts))
        suspects_add(&w->suspects, job);
    else
        job_heap_push(&w->out.waiting, job);
}

bool worker_none_waits(const struct worker *w)
{
    return w->out.waiting.n == 0 && w->suspects.n == 0;
}

bool worker_none_left(const struct worker *w)
{
    return worker_none_waits(w) && w->failed.n == 0 && w->held.n == 0 && worker_config_empty(w);
}

static bool suspects_turn(struct worker *w)
{
    int64_t now = clock_mono_ns(w->opts.clock);
    if (w->suspects.n == 0) {
        w->turn_ns = 0;
        w->suspects_next = false;
    }
    if (w->suspects.n == 0 || w->out.waiting.n == 0)
        return w->suspects.n > 0;
    if (!w->turn_ns)
        w->turn_ns = now;
    if (now - w->turn_ns >= TURN_NS) {
        w->turn_ns = now;
        w->suspects_next = !w->suspects_next;
    }
    return w->suspects_next;
}

bool worker_settled(const struct worker *w)
{
    return w->with_engine == w->rendered && w->to_commit.n == 0 && !w->commit.busy &&
           w->spooled.n == 0;
}

int64_t worker_room(struct worker *w)
{
    int64_t through = worker_breaker_room(w);
    bool turn = suspects_turn(w);
    w->settle = (turn || w->group) && !worker_settled(w);
    if (w->settle)
        return 0;
    if (turn && !w->proven) {
        worker_canary_send(w);
        return 0;
    }
    w->group = turn;
    if (turn)
        return TR_MIN(suspects_group(&w->suspects, w->wave), through);
    if (pool_unrendered(w->pool) > UNRENDERED_MAX)
        return 0;
    int64_t room = w->ready_cap - (int64_t)ready_queue_length(w->ready);
    return room < TR_MIN(w->ready_cap / 4, 64) ? 0 : TR_MIN(room, through);
}

struct job *worker_next(struct worker *w)
{
    return w->group ? suspects_take(&w->suspects) : job_heap_pop(&w->out.waiting);
}

int worker_count_kind(struct worker *w, size_t counted)
{
    worker_breaker_counted(w, w->counted[0]);
    return w->group && counted == 1 ? COUNT_ALONE : COUNT_START;
}

void worker_convict(struct job *job, const struct lookup *l, char *why, size_t cap)
{
    snprintf(why, cap, "its process died %d times while it was alone on the engine (%s), %d starts",
             l->deaths, death_cause_name(l->cause), l->attempts);
    job->err = (struct err){0};
    err_typed(&job->err, E_JOB, "crashed", "%s", why);
}
