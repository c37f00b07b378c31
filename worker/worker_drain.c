/* worker_drain: a stop signal, and the clock that runs from there. See worker.h, drain_budget. */
#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/worker_impl.h"

static const int64_t RESERVE_MAX_NS = 30000000000, EXIT_MIN_NS = 5000000000;
/* Of one that is hurried, from there on. */
static const int64_t HURRIED_ANSWER_NS = 5000000000, HURRIED_BACK_NS = 8000000000;

struct drain_budget drain_budget_of(int64_t grace_ns)
{
    int64_t reserve = TR_MIN(grace_ns / 4, RESERVE_MAX_NS);
    int64_t sink = grace_ns - reserve / 3, gone = TR_MAX(grace_ns - reserve / 6, EXIT_MIN_NS);
    return (struct drain_budget){.work_ns = grace_ns - reserve,
                                 .sink_ns = sink,
                                 .answer_ns = sink + (gone - sink) / 3,
                                 .back_ns = sink + (gone - sink) / 3 * 2,
                                 .exit_ns = gone};
}

void worker_start_drain(struct worker *w)
{
    if (w->draining)
        return;
    struct drain_budget budget = drain_budget_of(w->opts.grace_ns);
    w->draining = true;
    w->cut_short = !w->drained;
    w->drain_ns = clock_mono_ns(w->opts.clock);
    w->parking.work_until_ns = w->drain_ns + budget.work_ns;
    w->parking.sink_until_ns = w->drain_ns + budget.sink_ns;
    FAILPOINT("drain.started");
    intake_stop(w->intake);
    engine_group_drain(w->engine, w->parking.work_until_ns);
    LOG(LOG_INFO, "drain", LOG_I("outstanding", w->out.n),
        LOG_F("grace_seconds", (double)w->opts.grace_ns / 1e9),
        LOG_F("work_seconds", (double)budget.work_ns / 1e9));
}

/* Only behind a signal: nothing else ends the process at exit_ns. */
static void set_ends(struct worker *w, int64_t answer_ns, int64_t back_ns)
{
    w->parking.back_until_ns = back_ns;
    atomic_store(&w->opts.sink->until_ns, answer_ns);
}

static void signalled(struct worker *w)
{
    struct drain_budget budget = drain_budget_of(w->opts.grace_ns);
    int64_t now = clock_mono_ns(w->opts.clock);
    set_ends(w, now + budget.answer_ns, now + budget.back_ns);
    if (w->draining) /* of itself, an engine having failed */
        return;
    worker_start_drain(w);
    worker_tell_stop(w);
}

/* A server that is well still takes what is there. */
static void hurry(struct worker *w)
{
    int64_t now = clock_mono_ns(w->opts.clock);
    int64_t answer_ns = atomic_load(&w->opts.sink->until_ns);
    w->parking.hurried = true;
    w->parking.sink_until_ns = 0;
    set_ends(w, TR_MIN(answer_ns, now + HURRIED_ANSWER_NS),
             TR_MIN(w->parking.back_until_ns, now + HURRIED_BACK_NS));
    engine_group_drain(w->engine, 0);
    LOG(LOG_INFO, "drain_hurried", LOG_I("outstanding", w->out.n));
}

void worker_mind_signals(struct worker *w)
{
    int signals = w->opts.stop_signal ? atomic_load(w->opts.stop_signal) : 0;
    if (signals && !w->parking.back_until_ns)
        signalled(w);
    if (!w->draining)
        return;
    if (signals > 1 && !w->parking.hurried)
        hurry(w);
    if (clock_mono_ns(w->opts.clock) >= w->parking.sink_until_ns)
        worker_give_up(w);
}
