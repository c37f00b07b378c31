/* worker_partitions: partitions that a broker gives and takes. A new one starts where the sink says
 * that its rows end; one that is taken away is committed as far as it is finished, and its jobs go
 * on as orphans: what the engine has begun is finished and written, the rest is released. */
#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/worker_impl.h"

struct progress worker_progress_of(const struct worker *w, int32_t partition)
{
    return (struct progress){.run = w->opts.prepare->defaults.run,
                             .group = str_of(w->opts.group),
                             .source = str_of(w->opts.source->label),
                             .partition = partition};
}

static void add_gap(struct worker *w, struct source_gap *gap)
{
    struct progress at = worker_progress_of(w, gap->partition);
    LOG(LOG_ERROR, "messages_lost", LOG_I("partition", gap->partition), LOG_I("from", gap->from),
        LOG_I("to", gap->to), LOG_S("reason", gap->reason));
    if (w->n_gaps < SOURCE_GAPS_MAX)
        w->gaps[w->n_gaps++] = (struct lost_range){.run = at.run,
                                                   .group = at.group,
                                                   .source = at.source,
                                                   .reason = str_of(gap->reason),
                                                   .partition = gap->partition,
                                                   .from = gap->from,
                                                   .to = gap->to};
    if (!w->progress_ns)
        w->progress_ns = clock_mono_ns(w->opts.clock);
    mem_free(gap);
}

/* Goes on record with the next transaction, and its first ack comes behind that. The source has
 * nothing of the partition outstanding before it, so a position that stands lower moves up. */
static void add_start(struct worker *w, struct source_start *start)
{
    struct partition *part = &w->out.partitions[start->partition];
    if (!part->used || (!part->first && !part->held && part->position < start->position)) {
        part->used = true;
        part->position = start->position;
        if (!w->progress_ns)
            w->progress_ns = clock_mono_ns(w->opts.clock);
    }
    mem_free(start);
}

void worker_partition_event(struct worker *w, const struct item *item)
{
    if (item->kind == EVENT_GAP) {
        add_gap(w, item->ptr);
        return;
    }
    if (item->kind == EVENT_STARTED) {
        add_start(w, item->ptr);
        return;
    }
    int32_t p = item_partition(item);
    if (item->kind == EVENT_ASSIGNED) {
        w->out.partitions[p].wants_start = true;
    } else if (item->kind == EVENT_REVOKED) {
        w->out.partitions[p].revoked = true;
        w->out.partitions[p].epoch_next = item_epoch(item);
        w->flush = FLUSH_ASKED;
    } else {
        outstanding_disown(&w->out, p, item_epoch(item));
    }
}

void worker_partition_starts(struct worker *w)
{
    if (w->start.busy)
        return;
    w->n_starts = 0;
    for (int32_t p = 0; p < SOURCE_PARTITIONS_MAX; p++) {
        struct partition *part = &w->out.partitions[p];
        if (!part->wants_start || part->revoked)
            continue;
        part->wants_start = false;
        w->starts[w->n_starts++] = worker_progress_of(w, p);
    }
    if (w->n_starts == 0)
        return;
    w->start.progress = w->starts;
    w->start.n = w->n_starts;
    FAILPOINT("kafka.before_start");
    worker_call_sink(w, &w->start, SINK_PROGRESS);
}

/* The same question without a partition, for what it has the sink forget. A file's is not asked. */
void worker_partition_first(struct worker *w)
{
    const struct source_ops *ops = w->opts.source->ops;
    if (ops->start || !ops->left)
        return;
    w->start.n = 0;
    worker_call_sink(w, &w->start, SINK_PROGRESS);
}

void worker_partition_after_starts(struct worker *w)
{
    FAILPOINT("kafka.after_start");
    for (size_t i = 0; i < w->n_starts; i++) {
        struct item item = {TASK_START, mem_alloc(1, sizeof(struct start))};
        if (!item.ptr) {
            w->rc = err_set(w->err, E_FATAL, "worker: no memory for a partition's start");
            w->stop = true;
            return;
        }
        *(struct start *)item.ptr = (struct start){w->starts[i].partition, w->starts[i].position};
        if (!queue_push(w->returns, &item, 1))
            mem_free(item.ptr);
    }
}

void worker_partition_flush(struct worker *w)
{
    struct item item = {TASK_FLUSHED, NULL};
    bool nothing = w->flush == FLUSH_ASKED && w->to_commit.n == 0 && !w->progress_ns;
    if (w->commit.busy || !(w->flush == FLUSH_SENT || nothing))
        return;
    for (int32_t p = 0; p < SOURCE_PARTITIONS_MAX; p++)
        if (w->out.partitions[p].revoked) {
            bool wants = w->out.partitions[p].wants_start;
            outstanding_disown(&w->out, p, w->out.partitions[p].epoch_next);
            w->out.partitions[p].wants_start = wants;
        }
    FAILPOINT("kafka.flushed");
    w->flush = FLUSH_NONE;
    queue_push(w->returns, &item, 1);
}
