/* source_kafka: claims, acknowledgements and the calls between them. See source_kafka.h and
 * source.h. */
#include "worker/source/source_kafka.h"

#include "engine/log.h"

static const int64_t STARVED_NS = 500000000, COMMIT_NS = 1000000000, ASK_NS = 1000000000;

/* ---- messages that are news ---- */

/* The log's end: whatever follows the last message is transaction markers. One partition alone is
 * read to an end of its own: what stands behind that was never handed out. */
static void at_end(struct source_kafka *k, const rd_kafka_message_t *m)
{
    struct kafka_partition *p = &k->partitions[m->partition];
    if (p->owned && p->started && !p->leaving) {
        kafka_watermark_end(&p->watermark, k->until >= 0 ? TR_MIN(m->offset, k->until) : m->offset);
        p->ended = true;
    }
}

/* Takes an error or end that came in a message's place. E_FATAL ends the source. */
static int take_news(struct source_kafka *k, const rd_kafka_message_t *m, struct err *err)
{
    bool placed = m->partition >= 0 && m->partition < SOURCE_PARTITIONS_MAX;
    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF && placed) {
        at_end(k, m);
        return E_OK;
    }
    if ((m->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET ||
         m->err == RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE) &&
        placed) {
        int rc = kafka_start_again(k, m->partition, err);
        if (rc == E_RETRY) /* the broker is away as well: kafka_mind_resets asks again */
            LOG(LOG_WARN, "source_away", LOG_S("error", err->msg));
        return E_OK;
    }
    kafka_note_error(k, m->err, rd_kafka_message_errstr(m));
    if (k->failed.code)
        return err_typed(err, k->failed.code, k->failed.type, "%s", k->failed.msg);
    return E_OK;
}

/* ---- pause and resume ---- */

/* Of every partition that is read. A pause throws the prefetch away and costs about a second before
 * messages flow again, so there is a wide band between the two. */
void kafka_pause_all(struct source_kafka *k, bool pause)
{
    for (int32_t i = 0; i < k->n_partitions; i++) {
        struct kafka_partition *p = &k->partitions[i];
        if (p->owned && p->started && !p->leaving && !p->full)
            kafka_pause(k, i, pause);
    }
    k->paused = pause;
}

static bool may_resume(const struct source_kafka *k, const struct source_budget *budget)
{
    return budget->rows * 2 >= k->rows_max && budget->bytes * 2 >= k->bytes_max;
}

/* One slow message must not let the list behind it grow for ever. */
static void mind_windows(struct source_kafka *k)
{
    for (int32_t i = 0; i < k->n_partitions; i++) {
        struct kafka_partition *p = &k->partitions[i];
        bool full = p->watermark.n >= (p->full ? KAFKA_WINDOW_MAX / 2 : KAFKA_WINDOW_MAX);
        if (!p->owned || !p->started || p->leaving || full == p->full)
            continue;
        p->full = full;
        if (!k->paused)
            kafka_pause(k, i, full);
    }
}

/* ---- claim ---- */

/* The next message that is ours to hand out; NULL: none within the time, or *rc says why. */
static rd_kafka_message_t *next_message(struct source_kafka *k, int64_t timeout_ns, int *rc,
                                        struct err *err)
{
    int64_t until = clock_mono_ns(k->clock) + timeout_ns;
    *rc = E_OK;
    for (;;) {
        int64_t left = TR_MAX(until - clock_mono_ns(k->clock), (int64_t)0);
        rd_kafka_message_t *m = k->held;
        k->held = NULL;
        if (!m)
            m = rd_kafka_consumer_poll(k->rk, (int)(left / 1000000));
        if (!m)
            return NULL;
        if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            const struct kafka_partition *p = &k->partitions[m->partition];
            bool ours = p->owned && p->started && !p->leaving && m->offset >= p->watermark.position;
            if (ours && k->until >= 0 && m->offset >= k->until)
                kafka_watermark_end(&k->partitions[m->partition].watermark, k->until);
            else if (ours)
                return m;
        } else {
            *rc = take_news(k, m, err);
        }
        rd_kafka_message_destroy(m);
        if (*rc < 0)
            return NULL;
    }
}

/* A log that is shorter than what was read of it will never come to its end: E_FATAL. */
static bool cannot_end(struct source_kafka *k, int32_t partition, struct err *err)
{
    const struct kafka_partition *p = &k->partitions[partition];
    err_typed(&k->failed, E_FATAL, SOURCE_REFUSED,
              "%s: partition %d: the log ends at %lld, before the stored position %lld; `tranche "
              "seek` moves that",
              k->source.label, partition, (long long)p->end, (long long)p->watermark.position);
    err_typed(err, k->failed.code, k->failed.type, "%s", k->failed.msg);
    return false;
}

/* The one partition is through to the end that it had at open, and the broker has it on record. */
static bool one_done(struct source_kafka *k, struct err *err)
{
    struct err away = {0};
    const struct kafka_partition *p = &k->partitions[k->opts.partition];
    if (p->refused)
        return cannot_end(k, k->opts.partition, err);
    return p->started && p->watermark.position >= k->until && kafka_commit(k, true, &away) == E_OK;
}

/* Nothing came and nothing is in hand: whether this is the end. */
static bool all_done(struct source_kafka *k, struct err *err)
{
    int64_t now = clock_mono_ns(k->clock);
    struct err away = {0};
    int32_t refused = -1;
    if (k->open > 0 || k->assigning || k->revoking)
        return false;
    if (k->until >= 0)
        return one_done(k, err);
    /* The questions below wait behind a fetch, so they are not asked while messages may come. */
    for (int32_t i = 0; i < k->n_partitions; i++) {
        const struct kafka_partition *p = &k->partitions[i];
        if (p->owned && p->refused)
            refused = i;
        else if (p->owned && (!p->ended || p->again))
            return false;
    }
    if (!k->opts.idle_exit_ns || now - k->idle_ns < k->opts.idle_exit_ns ||
        now - k->asked_ns < ASK_NS)
        return false;
    k->asked_ns = now;
    if (kafka_commit(k, true, &away) < 0)
        return false;
    /* The group's lag holds what nobody can read: two workers with such a partition each would wait
     * for one another for ever. */
    if (refused >= 0)
        return cannot_end(k, refused, err);
    return kafka_client_lag(k->rk, k->topic, k->n_partitions) == 0;
}

/* The first message behind the stored position: the group had it acknowledged, its row is gone. */
static void mind_progress(struct kafka_partition *p, const rd_kafka_message_t *m)
{
    if (m->offset < p->ahead)
        LOG(LOG_WARN, "progress_behind_group", LOG_I("partition", m->partition),
            LOG_I("progress", p->start), LOG_I("committed", p->ahead));
    p->ahead = -1;
}

/* Takes one message into a job. 1; 0: the budget is spent; an error. */
static int take(struct source_kafka *k, rd_kafka_message_t *m, struct job **out, bool first,
                int64_t *bytes_left, struct err *err)
{
    struct kafka_partition *p = &k->partitions[m->partition];
    int64_t bytes = m->payload ? (int64_t)m->len : 0;
    if (!first && bytes > *bytes_left) {
        k->held = m;
        return 0;
    }
    int64_t from = p->watermark.position;
    struct job *job = kafka_job(k->topic, m, k->clock);
    int rc = job ? kafka_watermark_deliver(&p->watermark, m->offset, err)
                 : err_set(err, E_FATAL, "%s: no memory for a message of %zu bytes",
                           k->source.label, m->len);
    if (rc < 0) { /* it is the next again: passed over, it would be committed past */
        job_close(job);
        k->held = m;
        return rc;
    }
    *bytes_left -= bytes;
    mind_progress(p, m);
    job->tombstone = k->opts.tombstone_cancels && m->key && !m->payload;
    job->from_position = from;
    job->sequence = p->sequence++;
    p->ended = false;
    *out = job;
    rd_kafka_message_destroy(m);
    return 1;
}

static int kafka_claim(struct source *source, const struct source_budget *budget, struct job **out,
                       int cap, int64_t timeout_ns, bool *drained, struct err *err)
{
    struct source_kafka *k = kafka_of(source);
    int64_t bytes_left = budget->bytes;
    int n = 0, rc = E_OK;
    *drained = false;
    if (k->failed.code)
        return err_typed(err, k->failed.code, k->failed.type, "%s", k->failed.msg);
    k->rows_max = TR_MAX(k->rows_max, budget->rows);
    k->bytes_max = TR_MAX(k->bytes_max, budget->bytes);
    k->claimed_ns = clock_mono_ns(k->clock);
    if (k->paused && may_resume(k, budget))
        kafka_pause_all(k, false);
    while (n < cap && n < budget->rows) {
        rd_kafka_message_t *m = next_message(k, n ? 0 : timeout_ns, &rc, err);
        if (!m)
            break;
        rc = take(k, m, &out[n], n == 0, &bytes_left, err);
        if (rc <= 0)
            break;
        n++;
        k->open++;
    }
    if (n) /* an error behind them comes again with the next call */
        k->idle_ns = clock_mono_ns(k->clock);
    mind_windows(k);
    if (n == 0 && rc >= 0)
        *drained = all_done(k, err);
    k->claimed_ns = clock_mono_ns(k->clock);
    return n ? n : TR_MIN(TR_MIN(rc, 0), k->failed.code);
}

/* ---- the rest of the interface ---- */

/* Without a claim for a while there is no room: the partitions are paused, and the poll goes on for
 * the sake of rebalances and the broker's patience. */
static int serve(struct source_kafka *k, struct err *err)
{
    int rc = E_OK;
    if (clock_mono_ns(k->clock) - k->claimed_ns < STARVED_NS)
        return E_OK;
    if (!k->paused)
        kafka_pause_all(k, true);
    if (!k->held)
        k->held = next_message(k, 0, &rc, err);
    return rc;
}

static int kafka_service(struct source *source, struct source_service *out, struct err *err)
{
    struct source_kafka *k = kafka_of(source);
    struct err ignored = {0};
    bool start_over = k->to_classic || (!k->assigned && atomic_load(&k->no_such_request));
    int rc = start_over ? kafka_go_classic(k, err) : E_OK;
    if (rc >= 0)
        rc = serve(k, err);
    kafka_mind_revocation(k);
    if (rc >= 0)
        rc = kafka_try_assign(k, err);
    kafka_mind_resets(k);
    if (clock_mono_ns(k->clock) - k->committed_ns >= COMMIT_NS)
        (void)kafka_commit(k, false, &ignored); /* logged, and sent again */
    *out = k->news;
    k->news = (struct source_service){0};
    return rc;
}

static int kafka_ack(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct source_kafka *k = kafka_of(source);
    (void)err;
    for (size_t i = 0; i < n; i++) {
        struct kafka_partition *p = &k->partitions[jobs[i]->partition];
        /* Of an assignment that has gone, the next one will find the row: an ack of that message
         * here could pass the stored watermark, which counts the ones that came again. */
        if (p->owned && p->started && jobs[i]->sequence >= p->first_sequence)
            (void)kafka_watermark_done(&p->watermark, jobs[i]->position - 1);
    }
    k->open -= (int64_t)n;
    k->idle_ns = clock_mono_ns(k->clock);
    return E_OK;
}

/* Nothing to give back: what was not committed is read again by whoever has the partition. */
static int kafka_release(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct source_kafka *k = kafka_of(source);
    (void)jobs;
    (void)err;
    k->open -= (int64_t)n;
    return E_OK;
}

static int64_t kafka_position(const struct source *source, int32_t partition)
{
    return ((const struct source_kafka *)source)->partitions[partition].watermark.position;
}

/* As a scaler counts: what was claimed and is not done is not behind us. A refused partition has no
 * place in its log, so the sum is that of the others; with none other it is not known. */
static void kafka_lag(const struct source *source, struct source_lag *out)
{
    const struct source_kafka *k = (const struct source_kafka *)source;
    *out = (struct source_lag){.messages = -1,
                               .bytes = -1,
                               .bytes_total = -1,
                               .pending = -1,
                               .retained = -1,
                               .joined = k->joined};
    int64_t lag = 0, retained = INT64_MAX;
    bool refused = false, counted = false;
    if (!k->joined)
        return;
    for (int32_t i = 0; i < k->n_partitions; i++) {
        const struct kafka_partition *p = &k->partitions[i];
        int64_t low, high;
        refused = refused || (p->owned && p->refused);
        if (!p->owned || p->refused)
            continue;
        if (!p->started ||
            rd_kafka_get_watermark_offsets(k->rk, k->topic, i, &low, &high) !=
                RD_KAFKA_RESP_ERR_NO_ERROR ||
            high < 0)
            return;
        int64_t done = kafka_watermark_value(&p->watermark);
        lag += TR_MAX(high - done, (int64_t)0);
        counted = true;
        if (low >= 0 && high > done)
            retained = TR_MIN(retained, TR_MAX(done - low, (int64_t)0));
    }
    out->messages = refused && !counted ? -1 : lag;
    out->retained = retained == INT64_MAX ? -1 : retained;
}

static int64_t kafka_left(struct source *source)
{
    struct source_kafka *k = kafka_of(source);
    struct err err = {0};
    return kafka_commit(k, true, &err) == E_OK ? kafka_client_lag(k->rk, k->topic, k->n_partitions)
                                               : -1;
}

const struct source_ops source_kafka_ops = {.name = "kafka",
                                            .claim = kafka_claim,
                                            .service = kafka_service,
                                            .ack = kafka_ack,
                                            .release = kafka_release,
                                            .start = kafka_start,
                                            .flushed = kafka_flushed,
                                            .position = kafka_position,
                                            .lag = kafka_lag,
                                            .left = kafka_left,
                                            .close = source_kafka_close};
