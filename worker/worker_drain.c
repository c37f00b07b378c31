/* worker_drain: a stop signal, and the clock that runs from there. See worker.h, drain_budget. */
#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/worker_impl.h"

static const int64_t RESERVE_MAX_NS = 30000000000, EXIT_MIN_NS = 5000000000;

struct drain_budget drain_budget_of(int64_t grace_ns)
{
    int64_t reserve = TR_MIN(grace_ns / 4, RESERVE_MAX_NS);
    return (struct drain_budget){.work_ns = grace_ns - reserve,
                                 .sink_ns = grace_ns - reserve / 3,
                                 .exit_ns = TR_MAX(grace_ns - reserve / 6, EXIT_MIN_NS)};
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

void worker_mind_signals(struct worker *w)
{
    int signals = w->opts.stop_signal ? atomic_load(w->opts.stop_signal) : 0;
    if (signals && !w->draining) {
        worker_start_drain(w);
        worker_tell_stop(w);
    }
    if (!w->draining)
        return;
    if (signals > 1 && !w->parking.hurried) {
        w->parking.hurried = true;
        w->parking.sink_until_ns = 0;
        engine_group_drain(w->engine, 0);
        LOG(LOG_INFO, "drain_hurried", LOG_I("outstanding", w->out.n));
    }
    if (clock_mono_ns(w->opts.clock) >= w->parking.sink_until_ns)
        worker_give_up(w);
}
