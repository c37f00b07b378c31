/* worker_progress: what the worker tells the operator: see progress.h. */
#include "worker/worker_impl.h"

/* Jobs in flight: what has its result and waits for the transaction is done, for the reader. */
struct flight {
    int64_t unfinished, unfinished_bytes, rows, failed;
};

static void add_job(void *ctx, struct job *job)
{
    struct flight *f = ctx;
    if (job->stage < STAGE_DONE) {
        f->unfinished++;
        f->unfinished_bytes += job->position - job->from_position;
    } else if (job->result && job->stage != STAGE_SPOOLED) { /* spooled rows are in the summary */
        f->rows++;
        f->failed += job->result->status != RESULT_OK;
    }
}

void worker_show_progress(struct worker *w)
{
    struct engine_stats stats;
    struct source_lag lag;
    struct flight f = {0};
    const struct worker_summary *s = w->summary;
    int64_t now = clock_mono_ns(w->opts.clock);
    if (!w->opts.progress || !progress_due(w->opts.progress, now))
        return;
    engine_group_stats(w->engine, &stats);
    intake_lag(w->intake, &lag);
    outstanding_each(&w->out, add_job, &f);
    struct progress_view v = {.rows = s->present + s->repeated + f.rows,
                              .present = s->present,
                              .failed = f.failed,
                              .done_bytes = w->out.partitions[0].position - f.unfinished_bytes,
                              .present_bytes = w->present_bytes,
                              /* A drain does not end at the input's end. */
                              .total_bytes = w->draining ? -1 : lag.bytes_total,
                              .running = stats.running,
                              .waiting = TR_MAX(f.unfinished - stats.running, (int64_t)0),
                              .tokens_out = stats.sampled,
                              .begun_ns = w->begun_ns ? w->begun_ns : w->start_ns};
    for (int i = 0; i < RESULT_STATUSES; i++) {
        v.rows += s->rows[i];
        v.failed += i == RESULT_OK ? 0 : s->rows[i];
    }
    /* A dead row has a dead letter too. */
    v.failed += TR_MAX(s->dead_letters - s->rows[RESULT_DEAD], (int64_t)0);
    progress_show(w->opts.progress, &v, now);
}

void worker_tell_stop(struct worker *w)
{
    struct engine_stats stats;
    char text[160], grace[32];
    if (!w->opts.progress || !w->opts.tell_stop)
        return;
    engine_group_stats(w->engine, &stats);
    progress_duration(grace, sizeof grace, (double)w->opts.grace_ns / 1e9);
    snprintf(text, sizeof text,
             "tranche run: stopping within %s (--grace): %d sequences run; a second Ctrl-C parks "
             "them and leaves now",
             grace, (int)stats.running);
    progress_tell(w->opts.progress, text);
}
