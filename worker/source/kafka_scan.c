/* kafka_scan: an operator's look at a topic: where a seek would go, and a range of its messages.
 * Nothing here joins the group. See producer.h. */
#include <stdio.h>

#include "worker/source/kafka_admin.h"
#include "worker/source/source_kafka.h"

enum { ANSWER_MS = 10000, QUIET_MS = 10000 };

static int no_answer(const struct kafka_admin *a, rd_kafka_resp_err_t code, const char *what,
                     struct err *err)
{
    return err_set(err, kafka_error_class(code) == E_FATAL ? E_FATAL : E_RETRY,
                   "topic \"%s\": %s: %s", a->topic, what, rd_kafka_err2str(code));
}

/* The partitions asked for, each with `offset`. */
static rd_kafka_topic_partition_list_t *partitions_of(const struct kafka_admin *a, int32_t one,
                                                      int64_t offset)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(a->n_partitions);
    for (int32_t p = one >= 0 ? one : 0; p < (one >= 0 ? one + 1 : a->n_partitions); p++)
        rd_kafka_topic_partition_list_add(list, a->topic, p)->offset = offset;
    return list;
}

static int check_partition(const struct kafka_admin *a, int32_t one, struct err *err)
{
    if (a->n_partitions > SOURCE_PARTITIONS_MAX)
        return err_set(err, E_FATAL, "topic \"%s\": want at most %d partitions, found %d", a->topic,
                       SOURCE_PARTITIONS_MAX, a->n_partitions);
    if (one >= a->n_partitions)
        return err_set(err, E_USAGE, "--partition: want 0 to %d, which topic \"%s\" has, found %d",
                       a->n_partitions - 1, a->topic, one);
    return E_OK;
}

/* Fills in moves: ends and what the group has acknowledged. */
static int read_ends(const struct kafka_admin *a, int32_t one, struct seek_move *moves, int *n,
                     struct err *err)
{
    rd_kafka_topic_partition_list_t *list = partitions_of(a, one, RD_KAFKA_OFFSET_INVALID);
    rd_kafka_resp_err_t code = rd_kafka_committed(a->rk, list, ANSWER_MS);
    int rc =
        code == RD_KAFKA_RESP_ERR_NO_ERROR ? E_OK : no_answer(a, code, "the group's offsets", err);
    *n = list->cnt;
    for (int i = 0; rc >= 0 && i < list->cnt; i++) {
        struct seek_move *m = &moves[i];
        *m = (struct seek_move){.partition = list->elems[i].partition,
                                .committed = TR_MAX(list->elems[i].offset, (int64_t)-1)};
        code = rd_kafka_query_watermark_offsets(a->rk, a->topic, m->partition, &m->low, &m->high,
                                                ANSWER_MS);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
            rc = no_answer(a, code, "the log's ends", err);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return rc;
}

/* The first offsets whose messages are as young as wall_ns; past the last one: the log's end. */
static int offsets_at(const struct kafka_admin *a, int64_t wall_ns, const struct seek_move *moves,
                      int n, int64_t *out, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);
    for (int i = 0; i < n; i++)
        rd_kafka_topic_partition_list_add(list, a->topic, moves[i].partition)->offset =
            wall_ns / 1000000;
    rd_kafka_resp_err_t code = rd_kafka_offsets_for_times(a->rk, list, ANSWER_MS);
    for (int i = 0; i < n; i++)
        out[i] = list->elems[i].offset >= 0 ? list->elems[i].offset : moves[i].high;
    rd_kafka_topic_partition_list_destroy(list);
    return code == RD_KAFKA_RESP_ERR_NO_ERROR ? E_OK : no_answer(a, code, "offsets of a time", err);
}

/* ---- seek ---- */

static int choose(const struct kafka_admin *a, const struct seek_to *to, struct seek_move *moves,
                  int n, struct err *err)
{
    int64_t at[SOURCE_PARTITIONS_MAX];
    int rc = to->kind == SEEK_TO_TIME ? offsets_at(a, to->value, moves, n, at, err) : E_OK;
    for (int i = 0; rc >= 0 && i < n; i++) {
        struct seek_move *m = &moves[i];
        m->to = to->kind == SEEK_TO_EARLIEST ? m->low
                : to->kind == SEEK_TO_END    ? m->high
                : to->kind == SEEK_TO_TIME   ? at[i]
                                             : to->value;
        if (m->to < m->low || m->to > m->high)
            rc = err_set(err, E_USAGE, "--to: partition %d: want %lld to %lld, found %lld",
                         m->partition, (long long)m->low, (long long)m->high, (long long)m->to);
    }
    return rc;
}

/* Refused by the broker where the group has members: they would go on from where they are. */
static int commit(const struct kafka_admin *a, const struct seek_move *moves, int n,
                  struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);
    for (int i = 0; i < n; i++)
        rd_kafka_topic_partition_list_add(list, a->topic, moves[i].partition)->offset = moves[i].to;
    rd_kafka_resp_err_t code = rd_kafka_commit(a->rk, list, 0);
    rd_kafka_topic_partition_list_destroy(list);
    if (code == RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID ||
        code == RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION ||
        code == RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS)
        return err_set(err, E_FATAL, "topic \"%s\": the group has running workers: stop them first",
                       a->topic);
    return code == RD_KAFKA_RESP_ERR_NO_ERROR ? E_OK : no_answer(a, code, "commit", err);
}

int kafka_queue_seek(const struct source_url *url, const struct source_opts *opts,
                     const struct seek_to *to, bool apply, struct seek_move *moves, int *n,
                     char label[JOB_ORIGIN_MAX], struct err *err)
{
    struct kafka_admin a;
    snprintf(label, JOB_ORIGIN_MAX, "kafka:" STR_FMT, STR_ARG(url->name));
    int rc = kafka_admin_open(&a, url, opts, err);
    if (rc >= 0)
        rc = check_partition(&a, opts->partition, err);
    if (rc >= 0 && !apply)
        rc = read_ends(&a, opts->partition, moves, n, err);
    if (rc >= 0 && !apply)
        rc = choose(&a, to, moves, *n, err);
    if (rc >= 0 && apply)
        rc = kafka_admin_alone(&a, moves, *n, clock_system(), err);
    if (rc >= 0 && apply)
        rc = commit(&a, moves, *n, err);
    kafka_admin_close(&a);
    return rc;
}

/* ---- scan ---- */

/* From and to of each partition, into committed and to. */
static int choose_range(const struct kafka_admin *a, const struct scan_range *r,
                        struct seek_move *moves, int n, struct err *err)
{
    int64_t from[SOURCE_PARTITIONS_MAX], to[SOURCE_PARTITIONS_MAX];
    int rc = E_OK;
    if (r->from.kind == SCAN_TIME)
        rc = offsets_at(a, r->from.value, moves, n, from, err);
    if (rc >= 0 && r->to.kind == SCAN_TIME)
        rc = offsets_at(a, r->to.value, moves, n, to, err);
    for (int i = 0; rc >= 0 && i < n; i++) {
        struct seek_move *m = &moves[i];
        int64_t begin = r->from.kind == SCAN_TIME     ? from[i]
                        : r->from.kind == SCAN_OFFSET ? r->from.value
                                                      : m->low;
        int64_t end = r->to.kind == SCAN_TIME     ? to[i]
                      : r->to.kind == SCAN_OFFSET ? r->to.value
                                                  : TR_MAX(m->committed, m->low);
        m->to = TR_MIN(end, m->high);
        m->committed = TR_MAX(begin, m->low);
    }
    return rc;
}

/* Reads [committed, to) of one partition. */
static int scan_partition(const struct kafka_admin *a, const struct seek_move *m,
                          queue_scan_take *take, void *ctx, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, a->topic, m->partition)->offset = m->committed;
    rd_kafka_assign(a->rk, list);
    rd_kafka_topic_partition_list_destroy(list);
    int rc = E_OK;
    for (int64_t at = m->committed; rc >= 0 && at < m->to;) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(a->rk, QUIET_MS);
        struct job *job = NULL;
        if (!message)
            return no_answer(a, RD_KAFKA_RESP_ERR__TIMED_OUT, "messages", err);
        at = message->err ? at : message->offset + 1;
        if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
            at = m->to; /* markers of transactions stand before it */
        else if (message->err && kafka_error_class(message->err) != E_OK)
            rc = no_answer(a, message->err, "messages", err);
        else if (!message->err && message->offset < m->to &&
                 !(a->skip_tombstones && !message->payload) &&
                 !(job = kafka_job(a->topic, message, clock_system())))
            rc = err_set(err, E_FATAL, "kafka: no memory for a message");
        rd_kafka_message_destroy(message);
        if (job)
            rc = take(ctx, job, err);
    }
    return rc;
}

int kafka_queue_scan(const struct source_url *url, const struct source_opts *opts,
                     const struct scan_range *range, queue_scan_take *take, void *ctx,
                     struct err *err)
{
    struct seek_move moves[SOURCE_PARTITIONS_MAX];
    struct kafka_admin a;
    int n = 0, rc = kafka_admin_open(&a, url, opts, err);
    a.skip_tombstones = opts->tombstone_cancels;
    if (rc >= 0)
        rc = check_partition(&a, opts->partition, err);
    if (rc >= 0)
        rc = read_ends(&a, opts->partition, moves, &n, err);
    if (rc >= 0)
        rc = choose_range(&a, range, moves, n, err);
    for (int i = 0; rc >= 0 && i < n; i++)
        if (moves[i].committed < moves[i].to)
            rc = scan_partition(&a, &moves[i], take, ctx, err);
    kafka_admin_close(&a);
    return rc;
}
