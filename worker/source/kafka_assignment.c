/* kafka_assignment: partitions that come and go, where they start, what is committed. See
 * source_kafka.h.
 *
 * The library calls kafka_rebalance and then waits until we assign or unassign, which may be later:
 * an assignment waits for the sink's watermarks, a revocation for the commit of finished rows. */
#include "engine/log.h"
#include "worker/source/source_kafka.h"

enum { ANSWER_MS = 5000 };
static const int64_t REVOKE_NS = 20000000000, AGAIN_NS = 1000000000;

static bool ours(const struct source_kafka *k, const rd_kafka_topic_partition_t *t)
{
    return t->partition >= 0 && t->partition < SOURCE_PARTITIONS_MAX &&
           strcmp(t->topic, k->topic) == 0;
}

rd_kafka_topic_partition_list_t *kafka_list_of(const struct source_kafka *k, int32_t partition,
                                               int64_t offset)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, k->topic, partition)->offset = offset;
    return list;
}

void kafka_pause(struct source_kafka *k, int32_t partition, bool pause)
{
    rd_kafka_topic_partition_list_t *list = kafka_list_of(k, partition, 0);
    k->partitions[partition].halted = pause;
    if (pause)
        rd_kafka_pause_partitions(k->rk, list);
    else
        rd_kafka_resume_partitions(k->rk, list);
    rd_kafka_topic_partition_list_destroy(list);
}

static void drop_held(struct source_kafka *k)
{
    const struct kafka_partition *p = k->held ? &k->partitions[k->held->partition] : NULL;
    if (p && (!p->owned || p->leaving)) {
        rd_kafka_message_destroy(k->held);
        k->held = NULL;
    }
}

static bool in_steps(const struct source_kafka *k)
{
    return k->opts.partition < 0 && strcmp(rd_kafka_rebalance_protocol(k->rk), "COOPERATIVE") == 0;
}

/* The library's side of taking or giving back, in the words of the protocol in use. */
static void tell_library(struct source_kafka *k, const rd_kafka_topic_partition_list_t *list,
                         bool take)
{
    rd_kafka_error_t *error = NULL;
    rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR_NO_ERROR;
    if (in_steps(k))
        error = take ? rd_kafka_incremental_assign(k->rk, list)
                     : rd_kafka_incremental_unassign(k->rk, list);
    else
        code = rd_kafka_assign(k->rk, take ? list : NULL);
    if (error || code != RD_KAFKA_RESP_ERR_NO_ERROR)
        LOG(LOG_WARN, "kafka_assign_failed",
            LOG_S("error", error ? rd_kafka_error_string(error) : rd_kafka_err2str(code)));
    if (error)
        rd_kafka_error_destroy(error);
}

/* ---- what the callback says ---- */

/* Each partition once: the worker hears of changes between two of its looks as one. */
static void note(int32_t *list, int32_t *n, int32_t partition)
{
    for (int32_t i = 0; i < *n; i++)
        if (list[i] == partition)
            return;
    list[(*n)++] = partition;
}

static void on_assign(struct source_kafka *k, const rd_kafka_topic_partition_list_t *list)
{
    k->assigned = k->joined = true;
    if (k->assigning)
        rd_kafka_topic_partition_list_destroy(k->assigning);
    k->assigning = rd_kafka_topic_partition_list_new(list->cnt);
    for (int i = 0; i < list->cnt; i++) {
        const rd_kafka_topic_partition_t *t = &list->elems[i];
        if (!ours(k, t))
            continue;
        struct kafka_partition *p = &k->partitions[t->partition];
        struct kafka_watermark kept = p->watermark;
        int64_t sequence = p->sequence;
        bool halted = p->halted;
        *p = (struct kafka_partition){.owned = true,
                                      .halted = halted,
                                      .watermark = kept,
                                      .sequence = sequence,
                                      .first_sequence = sequence,
                                      .start = -1,
                                      .sent = -1,
                                      .end = -1};
        kafka_watermark_start(&p->watermark, 0);
        rd_kafka_topic_partition_list_add(k->assigning, k->topic, t->partition);
        note(k->news.assigned, &k->news.n_assigned, t->partition);
    }
    if (k->assigning->cnt == 0) { /* more workers than partitions */
        tell_library(k, k->assigning, true);
        rd_kafka_topic_partition_list_destroy(k->assigning);
        k->assigning = NULL;
    }
}

static void forget(struct source_kafka *k, const rd_kafka_topic_partition_list_t *list)
{
    for (int i = 0; i < list->cnt; i++)
        if (ours(k, &list->elems[i]))
            k->partitions[list->elems[i].partition].owned =
                k->partitions[list->elems[i].partition].started = false;
    drop_held(k);
}

/* A partition whose start has not come yet: the worker knows nothing of it, so nothing is to be
 * flushed, and its late start will find it not ours. */
static void take_back(struct source_kafka *k, const rd_kafka_topic_partition_list_t *list,
                      int32_t *out, int32_t *n)
{
    for (int i = 0; i < list->cnt; i++)
        if (ours(k, &list->elems[i]))
            note(out, n, list->elems[i].partition);
    if (k->assigning)
        rd_kafka_topic_partition_list_destroy(k->assigning);
    k->assigning = NULL;
}

/* A flush that was asked for and comes late finds nothing to give back: what is assigned by then is
 * of a later day. */
static void stop_revoking(struct source_kafka *k)
{
    if (k->revoking)
        rd_kafka_topic_partition_list_destroy(k->revoking);
    k->revoking = NULL;
}

static void on_revoke(struct source_kafka *k, const rd_kafka_topic_partition_list_t *list)
{
    bool lost = rd_kafka_assignment_lost(k->rk) != 0;
    k->joined = k->joined && !lost;
    LOG(LOG_INFO, lost ? "partitions_lost" : "partitions_revoked", LOG_I("partitions", list->cnt));
    if (lost || k->closing || list->cnt == 0) {
        take_back(k, list, k->news.lost, &k->news.n_lost);
        forget(k, list);
        if (lost)
            stop_revoking(k);
        tell_library(k, list, false);
        return;
    }
    take_back(k, list, k->news.revoked, &k->news.n_revoked);
    for (int i = 0; i < list->cnt; i++) {
        if (!ours(k, &list->elems[i]))
            continue;
        if (k->partitions[list->elems[i].partition].started)
            kafka_pause(k, list->elems[i].partition, true);
        k->partitions[list->elems[i].partition].leaving = true;
    }
    drop_held(k);
    stop_revoking(k);
    k->revoking = rd_kafka_topic_partition_list_copy(list);
    k->revoke_until_ns = clock_mono_ns(k->clock) + REVOKE_NS;
}

void kafka_rebalance(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                     rd_kafka_topic_partition_list_t *list, void *opaque)
{
    struct source_kafka *k = opaque;
    (void)rk;
    if (code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
        on_assign(k, list);
    } else if (code == RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS) {
        on_revoke(k, list);
    } else { /* the join failed: nothing of ours is left, the library tries again */
        k->joined = false;
        kafka_note_error(k, code, "rebalance");
        take_back(k, list, k->news.lost, &k->news.n_lost);
        forget(k, list);
        stop_revoking(k);
        rd_kafka_assign(k->rk, NULL);
    }
}

/* ---- giving back ---- */

static void let_go(struct source_kafka *k, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = k->revoking;
    if (kafka_commit(k, true, err) < 0)
        LOG(LOG_WARN, "commit_failed", LOG_S("error", err->msg));
    k->revoking = NULL;
    forget(k, list);
    tell_library(k, list, false);
    rd_kafka_topic_partition_list_destroy(list);
}

int kafka_flushed(struct source *source, struct err *err)
{
    struct source_kafka *k = kafka_of(source);
    struct err ignored = {0};
    (void)err;
    if (k->revoking) /* else it took too long and is gone already */
        let_go(k, &ignored);
    return E_OK;
}

void kafka_mind_revocation(struct source_kafka *k)
{
    struct err err = {0};
    if (!k->revoking || clock_mono_ns(k->clock) < k->revoke_until_ns)
        return;
    LOG(LOG_WARN, "flush_late", LOG_F("seconds", (double)REVOKE_NS / 1e9));
    let_go(k, &err);
}

/* ---- where to start ---- */

/* One that goes on where the partition's last one ends is the same. */
static void add_gap(struct source_kafka *k, int32_t partition, int64_t from, int64_t to)
{
    struct source_gap gap = {partition, from, to, "retention"};
    for (int32_t i = 0; i < k->news.n_gaps; i++) {
        struct source_gap *g = &k->news.gaps[i];
        if (g->partition == partition && g->from <= from && from <= g->to) {
            g->to = TR_MAX(g->to, to);
            return;
        }
    }
    if (k->news.n_gaps < SOURCE_GAPS_MAX)
        k->news.gaps[k->news.n_gaps++] = gap;
    else
        LOG(LOG_ERROR, "messages_lost", LOG_I("partition", partition), LOG_I("from", from),
            LOG_I("to", to), LOG_S("reason", "retention; not on record, too many at once"));
}

/* Nothing on record, or a gap before it: where this begins is written down before anything is
 * acknowledged, so that a database restored to a time between the two does not take the group's
 * offset for its own, and that a gap is not met again, longer, under its old beginning. */
static void note_start(struct source_kafka *k, int32_t partition, int64_t position)
{
    struct source_start *started = k->news.started;
    int32_t i = 0;
    while (i < k->news.n_started && started[i].partition != partition)
        i++;
    if (i == k->news.n_started)
        k->news.n_started++;
    started[i] = (struct source_start){partition, position};
}

/* The watermark where there is one, else the group's offset, else the first message. A watermark
 * below the group's offset: the database went back in time, and the lost rows are done again; or
 * nothing but markers of transactions stand between the two, as the next message will tell. */
static void choose_start(struct source_kafka *k, int32_t partition, int64_t committed, int64_t low,
                         int64_t high)
{
    struct kafka_partition *p = &k->partitions[partition];
    int64_t at = p->start >= 0 ? p->start : committed >= 0 ? committed : low;
    p->ahead = p->start >= 0 && committed > p->start ? committed : -1;
    bool gap = at < low;
    if (gap) {
        add_gap(k, partition, at, low);
        at = low;
    }
    p->refused = at > high;
    if (p->refused)
        LOG(LOG_ERROR, "partition_refused", LOG_I("partition", partition), LOG_I("position", at),
            LOG_I("log_end", high), LOG_S("why", "the log is shorter than what was read of it"));
    p->end = high;
    p->sent = p->others = -1;
    p->own = TR_MAX(committed, (int64_t)-1);
    p->ended = false;
    k->idle_ns = k->claimed_ns = clock_mono_ns(k->clock); /* the questions took their time */
    kafka_watermark_start(&p->watermark, at);
    if ((p->start < 0 || gap) && !p->refused)
        note_start(k, partition, at);
    LOG(LOG_INFO, "partition_start", LOG_I("partition", partition), LOG_I("position", at),
        LOG_I("log_end", high));
}

/* A question that was not answered: again later. Who may not ask is told so once and for all. */
static int unanswered(struct source_kafka *k, rd_kafka_resp_err_t code, const char *what,
                      struct err *err)
{
    kafka_note_refusal(k, code, what);
    if (k->failed.code)
        return err_typed(err, k->failed.code, k->failed.type, "%s", k->failed.msg);
    return err_set(err, E_RETRY, "%s: %s: %s", k->source.label, what, rd_kafka_err2str(code));
}

/* All starts are there: asks the broker for the rest and lets the library fetch. */
static int assign_now(struct source_kafka *k, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = k->assigning, *go;
    rd_kafka_resp_err_t code = rd_kafka_committed(k->rk, list, ANSWER_MS);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return unanswered(k, code, "the group's offsets", err);
    int64_t low[SOURCE_PARTITIONS_MAX], high[SOURCE_PARTITIONS_MAX];
    for (int i = 0; i < list->cnt; i++) {
        code = rd_kafka_query_watermark_offsets(k->rk, k->topic, list->elems[i].partition, &low[i],
                                                &high[i], ANSWER_MS);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
            return unanswered(k, code, "the log's ends", err);
    }
    for (int i = 0; i < list->cnt; i++) /* once only: a gap is told once */
        choose_start(k, list->elems[i].partition, list->elems[i].offset, low[i], high[i]);
    go = rd_kafka_topic_partition_list_new(list->cnt);
    for (int i = 0; i < list->cnt; i++) {
        struct kafka_partition *p = &k->partitions[list->elems[i].partition];
        if (p->refused)
            continue;
        if (p->halted) /* when it was given back; ahead of the fetch's start this is safe */
            kafka_pause(k, list->elems[i].partition, false);
        rd_kafka_topic_partition_list_add(go, k->topic, list->elems[i].partition)->offset =
            p->watermark.position;
    }
    /* A pause right behind an assignment overtakes the fetch's start, which is then dropped as
     * outdated (2.0.2): what is new comes unpaused, and the rest joins it. */
    if (k->paused)
        kafka_pause_all(k, false);
    for (int i = 0; i < go->cnt; i++)
        k->partitions[go->elems[i].partition].started = true;
    tell_library(k, go, true);
    rd_kafka_topic_partition_list_destroy(go);
    rd_kafka_topic_partition_list_destroy(list);
    k->assigning = NULL;
    return E_OK;
}

static bool all_told(const struct source_kafka *k)
{
    for (int i = 0; i < k->assigning->cnt; i++)
        if (!k->partitions[k->assigning->elems[i].partition].told)
            return false;
    return true;
}

int kafka_start(struct source *source, int32_t partition, int64_t position, struct err *err)
{
    struct source_kafka *k = kafka_of(source);
    struct kafka_partition *p = &k->partitions[partition];
    if (p->owned && !p->started && k->assigning) {
        p->told = true;
        p->start = position;
        kafka_watermark_start(&p->watermark, TR_MAX(position, (int64_t)0));
    }
    return kafka_try_assign(k, err);
}

int kafka_try_assign(struct source_kafka *k, struct err *err)
{
    return k->assigning && all_told(k) ? assign_now(k, err) : E_OK;
}

/* A seek does not wake a partition whose fetch ended in an error: it is assigned anew. The eager
 * protocol knows whole assignments only, so there all go on from where they stand. */
static void fetch_again(struct source_kafka *k, int32_t partition)
{
    bool whole = !in_steps(k);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(k->n_partitions);
    for (int32_t i = 0; i < k->n_partitions; i++) {
        struct kafka_partition *p = &k->partitions[i];
        if (p->owned && p->started && !p->refused && (whole || i == partition))
            rd_kafka_topic_partition_list_add(list, k->topic, i)->offset = p->watermark.position;
    }
    if (k->paused)
        kafka_pause_all(k, false);
    if (!whole)
        tell_library(k, list, false);
    tell_library(k, list, true);
    rd_kafka_topic_partition_list_destroy(list);
}

int kafka_start_again(struct source_kafka *k, int32_t partition, struct err *err)
{
    struct kafka_partition *p = &k->partitions[partition];
    int64_t low, high;
    if (!p->owned || !p->started)
        return E_OK;
    rd_kafka_resp_err_t code =
        rd_kafka_query_watermark_offsets(k->rk, k->topic, partition, &low, &high, ANSWER_MS);
    p->again = code != RD_KAFKA_RESP_ERR_NO_ERROR; /* the library says it once only */
    k->again_ns = clock_mono_ns(k->clock);
    if (p->again)
        return unanswered(k, code, "the log's ends", err);
    int64_t at = p->watermark.position;
    if (at > high) {
        p->refused = true;
        p->end = high;
        LOG(LOG_ERROR, "partition_refused", LOG_I("partition", partition), LOG_I("position", at),
            LOG_I("log_end", high), LOG_S("why", "the log is shorter than what was read of it"));
        return E_OK;
    }
    if (at < low) {
        add_gap(k, partition, at, low);
        kafka_watermark_end(&p->watermark, low);
        if (p->watermark.n == 0) /* else the worker's own watermark moves with those rows */
            note_start(k, partition, low);
    }
    fetch_again(k, partition);
    return E_OK;
}

void kafka_mind_resets(struct source_kafka *k)
{
    struct err err = {0};
    if (clock_mono_ns(k->clock) - k->again_ns < AGAIN_NS)
        return;
    for (int32_t i = 0; i < k->n_partitions; i++) {
        if (!k->partitions[i].again || k->partitions[i].leaving)
            continue;
        if (kafka_start_again(k, i, &err) == E_RETRY) { /* the others wait: it took its time */
            LOG(LOG_WARN, "source_away", LOG_S("error", err.msg));
            return;
        }
    }
}
