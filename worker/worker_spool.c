/* worker_spool: the time without a database. Nothing new is claimed; what is counted goes through
 * the engine, into the spool and out of memory; nothing is acknowledged before the replay. A full
 * spool stops the refill of the slots too: what could be saved nowhere is not begun.
 *
 * In a replay the first row stays, and other workers have had an outage's time to write theirs. So
 * what was replayed is looked up once more: where the row is another request's, the job becomes a
 * dead letter, as its own commit would have made it. */
#include "engine/log.h"
#include "worker/monitor/metrics.h"
#include "worker/worker_impl.h"

void worker_sink_state(struct worker *w, enum sink_state state)
{
    static const char *const names[] = {"well", "away", "away_full"};
    LOG(state == SINK_WELL ? LOG_INFO : LOG_WARN, "sink_state", LOG_S("state", names[state]),
        LOG_I("outstanding", w->out.n), LOG_I("spooled", w->spooled.n));
    w->sink_state = state;
    intake_hold(w->intake, state != SINK_WELL);
    engine_group_hold(w->engine, state == SINK_AWAY_FULL);
}

void worker_after_spool(struct worker *w)
{
    for (size_t i = 0; i < w->n_committing; i++) {
        struct job *job = w->committing[i];
        worker_tally(w, job);
        for (struct job *twin = job; twin; twin = twin->same)
            twin->stage = STAGE_SPOOLED; /* the watermark waits for them */
        job_drop_result(job);
        list_add(&w->spooled, job);
    }
    w->n_committing = 0;
    for (struct job *job; (job = list_take(&w->passing));)
        worker_present(w, job);
    if (!w->progress_ns) /* a spool holds none */
        w->progress_ns = clock_mono_ns(w->opts.clock);
}

void worker_after_replay(struct worker *w)
{
    struct commit_counts counts;
    sink_thread_replayed(w->sink, &counts);
    w->summary->dead_letters += counts.dead_letters;
    metric_add(METRIC_INSERTED, 0, counts.inserted);
    for (struct job *job; (job = list_take(&w->spooled));)
        list_add(&w->replayed, job);
}

void worker_found_replayed(struct worker *w, struct job *job, enum lookup_state state)
{
    if (state == LOOKUP_CONFLICT) {
        outstanding_leave_key(&w->out, job);
        worker_conflict(w, job);
    } else { /* also where no row has its key: a key that cannot be stored has a dead letter */
        worker_present(w, job);
    }
}

void worker_give_up(struct worker *w)
{
    sink_thread_give_up(w->sink);
    w->gave_up = true;
}

bool worker_rows_owed(const struct worker *w)
{
    bool lost_hope = w->gave_up && w->sink_state != SINK_WELL;
    return (w->progress_ns || w->spooled.n || w->replayed.n) && !lost_hope;
}

void worker_spool_rest(struct worker *w)
{
    struct err why = {0};
    while (w->opts.spool && w->n_committing + w->to_commit.n > 0 && why.code == 0) {
        if (w->n_committing == 0) /* else what the sink has refused */
            worker_fill_commit(w);
        if (w->n_committing == 0) /* memory is refused: they come again */
            break;
        if (spool_append(w->opts.spool, &w->commit.commit, &why) < 0)
            LOG(LOG_WARN, "spool_refused", LOG_S("error", why.msg),
                LOG_I("rows", w->n_committing + w->to_commit.n));
        else
            w->summary->spooled += (int64_t)w->n_committing;
        w->n_committing = 0;
    }
    w->summary->spooled += (int64_t)w->spooled.n;
    if (w->summary->spooled)
        LOG(LOG_WARN, "rows_left_in_spool", LOG_I("rows", w->summary->spooled));
}
