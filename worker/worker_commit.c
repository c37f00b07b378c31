/* worker_commit: the transaction and what follows it. See worker.h: the ack comes behind the
 * COMMIT, here and nowhere else. */
#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/monitor/metrics.h"
#include "worker/worker_impl.h"

static void part(struct worker *w, struct job *job, int task)
{
    outstanding_leave_key(&w->out, job);
    while (job) {
        struct job *same = job->same;
        struct item item = {task, job};
        outstanding_leave(&w->out, job);
        queue_push(w->returns, &item, 1);
        job = same;
    }
}

void worker_present(struct worker *w, struct job *job)
{
    for (struct job *twin = job; twin; twin = twin->same)
        twin->stage = STAGE_DONE;
    list_add(&w->present, job);
    if (!w->progress_ns) /* it may be all that comes: the watermark must not wait for a row */
        w->progress_ns = clock_mono_ns(w->opts.clock);
}

/* The row is committed: acknowledges the job and its twins. Those that came after the transaction
 * had been sent are not below its watermark yet. */
static void settle(struct worker *w, struct job *job)
{
    struct job *late = NULL;
    for (struct job **at = &job->same; *at;) {
        struct job *twin = *at;
        if (twin->stage == STAGE_COMMITTING) {
            at = &twin->same;
            continue;
        }
        *at = twin->same;
        twin->same = late;
        late = twin;
    }
    part(w, job, TASK_ACK);
    if (late)
        worker_present(w, late);
}

void worker_release(struct worker *w, struct job *job)
{
    part(w, job, TASK_RELEASE);
}

void worker_to_commit(struct worker *w, struct job *job)
{
    job->stage = STAGE_DONE;
    if (w->to_commit.n == 0)
        w->oldest_ns = clock_mono_ns(w->opts.clock);
    list_add(&w->to_commit, job);
}

/* False: memory is refused. An origin alone does not name a message for ever: a file is rewritten,
 * or has a namesake in another folder, and a topic is made anew. */
static bool add_dead_letter(struct worker *w, struct dead_letter *d, struct job *job)
{
    struct str key, place;
    uint8_t sha[32];
    char hex[65];
    sha256_of(job->message, sha);
    sha256_hex(sha, hex);
    if (job_printf(job, &key, STR_FMT "/" STR_FMT "/" STR_FMT "/%.16s", STR_ARG(job->run),
                   STR_ARG(job->batch_id), STR_ARG(job->origin), hex) < 0 ||
        job_printf(job, &place, "{" STR_FMT "}", STR_ARG(job->place)) < 0)
        return false;
    *d = (struct dead_letter){.source_key = key,
                              .key = {job->run, job->batch_id, job->custom_id},
                              .reason = str_of(job->err.type),
                              .detail = str_of(job->err.msg),
                              .payload = job->message,
                              .source = place,
                              .message_key = job->message_key,
                              .attempts = job->attempts,
                              .seen_ns = clock_wall_ns(w->opts.clock),
                              .worker = str_of(w->opts.result->worker)};
    memcpy(d->sha256, job->sha256, sizeof d->sha256);
    return true;
}

static void fill_progress(struct worker *w)
{
    struct commit *c = &w->commit.commit;
    c->n_progress = 0;
    c->progress = w->progress;
    for (int32_t p = 0; p < SOURCE_PARTITIONS_MAX; p++) {
        const struct partition *part = &w->out.partitions[p];
        if (!part->used)
            continue;
        struct progress *to = &w->progress[c->n_progress++];
        *to = worker_progress_of(w, p);
        to->position = partition_watermark(part, STAGE_COMMITTING, &to->messages);
    }
}

bool worker_last_rows(const struct worker *w)
{
    return w->draining ? w->engine_gone && engine_group_finished(w->engine) == w->rendered
                       : w->drained && w->out.next_arrival == intake_claimed(w->intake) &&
                             w->to_look_up.n == 0 && !w->lookup.busy && !w->count.busy &&
                             worker_none_left(w) && w->with_engine == w->rendered;
}

static bool commit_due(const struct worker *w, int64_t now)
{
    bool rows = w->to_commit.n > 0;
    if (w->commit.busy || !(rows || w->progress_ns))
        return false;
    if (!rows && w->sink_state != SINK_WELL && w->flush != FLUSH_ASKED)
        return !w->gave_up && now - w->progress_ns >= w->opts.flush_ns; /* a knock at its door */
    return w->to_commit.n + w->present.n >= (size_t)w->opts.flush_rows || w->flush == FLUSH_ASKED ||
           (rows && now - w->oldest_ns >= w->opts.flush_ns) ||
           (rows && w->settle && w->with_engine == w->rendered) ||
           (w->progress_ns && now - w->progress_ns >= w->opts.flush_ns) || worker_last_rows(w);
}

static void set_committing(struct job *job)
{
    for (; job; job = job->same)
        job->stage = STAGE_COMMITTING;
}

void worker_fill_commit(struct worker *w)
{
    size_t n = 0, results = 0, dead = 0;
    for (struct job *job; n < w->commit_max && (job = list_take(&w->to_commit)); n++) {
        bool letter = !job->result || job->result->status == RESULT_DEAD;
        if (letter && !add_dead_letter(w, &w->dead[dead], job)) {
            LOG(LOG_WARN, "memory_refused", LOG_STR("dead_letter", job->origin));
            list_add(&w->to_commit, job); /* with the next commit, or the one behind it */
            break;
        }
        dead += letter;
        w->committing[n] = job;
        set_committing(job);
        if (job->result)
            w->results[results++] = job->result;
    }
    for (struct job *job; (job = list_take(&w->present));) {
        set_committing(job);
        list_add(&w->passing, job);
    }
    w->n_committing = n;
    w->commit.commit = (struct commit){.results = w->results,
                                       .n_results = results,
                                       .dead_letters = w->dead,
                                       .n_dead_letters = dead,
                                       .lost_ranges = w->sent_gaps,
                                       .n_lost_ranges = w->n_gaps,
                                       .conflicts = w->conflicts,
                                       .now_ns = clock_wall_ns(w->opts.clock)};
    memset(w->conflicts, 0, results * sizeof *w->conflicts);
    memcpy(w->sent_gaps, w->gaps, w->n_gaps * sizeof *w->gaps);
    w->n_gaps = 0;
}

void worker_send_commit(struct worker *w)
{
    int64_t now = clock_mono_ns(w->opts.clock);
    if (!commit_due(w, now))
        return;
    worker_fill_commit(w);
    fill_progress(w);
    w->oldest_ns = now;
    w->progress_ns = 0;
    if (w->flush == FLUSH_ASKED)
        w->flush = FLUSH_SENT;
    FAILPOINT("s7.before_begin");
    worker_call_sink(w, &w->commit, SINK_COMMIT);
}

/* Two workers had one id with two requests in flight: the row is the other one's. What was sent is
 * as before the commit, so that its watermark passes these jobs with their letters. */
void worker_after_conflict(struct worker *w)
{
    size_t n = w->n_committing, result = 0, gaps = w->commit.commit.n_lost_ranges;
    int64_t now = clock_mono_ns(w->opts.clock);
    w->n_committing = 0;
    for (size_t i = 0; i < n; i++) {
        struct job *job = w->committing[i];
        bool conflict = job->result && w->conflicts[result];
        result += job->result != NULL;
        if (conflict) {
            outstanding_leave_key(&w->out, job);
            worker_conflict(w, job);
            continue;
        }
        for (struct job *twin = job; twin; twin = twin->same)
            twin->stage = STAGE_DONE;
        list_add(&w->to_commit, job);
    }
    for (struct job *job; (job = list_take(&w->passing));)
        worker_present(w, job);
    for (size_t i = 0; i < gaps && w->n_gaps < SOURCE_GAPS_MAX; i++)
        w->gaps[w->n_gaps++] = w->sent_gaps[i];
    w->oldest_ns = w->progress_ns = now - w->opts.flush_ns; /* due at once */
    if (w->flush == FLUSH_SENT)
        w->flush = FLUSH_ASKED;
}

void worker_tally(struct worker *w, const struct job *job)
{
    struct worker_summary *s = w->summary;
    const struct result *r = job->result;
    if (!r)
        return;
    worker_metrics_row(w, r);
    s->rows[r->status]++;
    s->prompt_tokens += r->prompt_tokens;
    s->completion_tokens += r->completion_tokens;
    s->device_seconds += r->device_seconds;
    if (w->opts.self)
        atomic_fetch_add(&w->opts.self->rows, 1);
}

void worker_after_commit(struct worker *w)
{
    FAILPOINT("s7.known");
    w->summary->dead_letters += w->commit.counts.dead_letters;
    w->summary->present += w->commit.counts.already;
    metric_add(METRIC_INSERTED, 0, w->commit.counts.inserted);
    for (size_t i = 0; i < w->n_committing; i++) {
        worker_tally(w, w->committing[i]);
        settle(w, w->committing[i]);
    }
    w->n_committing = 0;
    for (struct job *job; (job = list_take(&w->passing));)
        settle(w, job);
}
