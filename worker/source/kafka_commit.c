/* kafka_commit: what the group has acknowledged. See source_kafka.h. The offset that is committed
 * is the next one to read: past transaction markers too, so that an emptied topic has no lag. */
#include <stdio.h>
#include <string.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/source/source_kafka.h"

static void on_partition(struct source_kafka *k, const rd_kafka_topic_partition_t *t)
{
    if (t->partition < 0 || t->partition >= SOURCE_PARTITIONS_MAX)
        return;
    if (t->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        k->partitions[t->partition].own = t->offset;
        return;
    }
    LOG(LOG_WARN, "commit_refused", LOG_I("partition", t->partition), LOG_I("offset", t->offset),
        LOG_S("code", rd_kafka_err2name(t->err)));
    k->partitions[t->partition].sent = -1; /* again with the next */
    kafka_note_refusal(k, t->err, "commit");
}

void kafka_on_commit(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                     rd_kafka_topic_partition_list_t *list, void *opaque)
{
    (void)rk;
    for (int i = 0; list && i < list->cnt; i++) {
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR && list->elems[i].err == RD_KAFKA_RESP_ERR_NO_ERROR)
            list->elems[i].err = code;
        on_partition(opaque, &list->elems[i]);
    }
}

enum { ASK_MS = 2000, CLOSING_MS = 5000 };
static const int64_t SECOND_NS = 1000000000;
/* The metadata of a worker's commits: with --partition, while it is at work; else. */
static const char sign[] = "tranche --partition ", mark[] = "tranche worker";

bool kafka_sign(const void *metadata, size_t size)
{
    return metadata && size >= sizeof sign && memcmp(metadata, sign, sizeof sign - 1) == 0;
}

/* The library frees it with the list. */
static void add_mark(struct source_kafka *k, rd_kafka_topic_partition_t *t)
{
    char text[sizeof sign + 32];
    int n = k->alone ? snprintf(text, sizeof text, "%s%016llx %u", sign,
                                (unsigned long long)k->name, ++k->signs)
                     : snprintf(text, sizeof text, "%s", mark);
    t->metadata = rd_kafka_mem_malloc(k->rk, (size_t)n);
    t->metadata_size = t->metadata ? (size_t)n : 0;
    if (t->metadata)
        memcpy(t->metadata, text, (size_t)n);
}

/* By the name in its sign: whether a commit was confirmed does not matter. */
static bool is_ours(const struct source_kafka *k, const rd_kafka_topic_partition_t *t)
{
    char text[sizeof sign + 32];
    size_t n = (size_t)snprintf(text, sizeof text, "%s%016llx ", sign, (unsigned long long)k->name);
    return t->metadata && t->metadata_size > n && memcmp(t->metadata, text, n) == 0;
}

/* A worker's own: neither a seek nor another tool's reset. */
static bool is_progress(const rd_kafka_topic_partition_t *t)
{
    return kafka_sign(t->metadata, t->metadata_size) ||
           (t->metadata && t->metadata_size == sizeof mark - 1 &&
            memcmp(t->metadata, mark, sizeof mark - 1) == 0);
}

/* The broker takes from one partition's worker whatever it says, so that looks first: what a seek
 * or a reset has put there since stays, or a worker that stands still, and only repeats its sign of
 * life, would undo it. Of another worker's progress nothing is taken back, but what is done beyond
 * that is said: the other may be gone. What comes between this look and the commit is not seen:
 * Kafka has no commit on a condition. E_RETRY: no answer. */
static int mind_others(struct source_kafka *k, int64_t value, bool sync, bool *moved,
                       struct err *err)
{
    struct kafka_partition *p = &k->partitions[k->opts.partition];
    rd_kafka_topic_partition_list_t *list =
        kafka_list_of(k, k->opts.partition, RD_KAFKA_OFFSET_INVALID);
    rd_kafka_topic_partition_t *t = &list->elems[0];
    rd_kafka_resp_err_t code = rd_kafka_committed(k->rk, list, sync ? CLOSING_MS : ASK_MS);
    int rc = E_OK;
    code = code == RD_KAFKA_RESP_ERR_NO_ERROR ? t->err : code;
    *moved = false;
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR) {
        kafka_note_refusal(k, code, "the group's offsets");
        rc = err_set(err, E_RETRY, "%s: the group's offsets: %s", k->source.label,
                     rd_kafka_err2str(code));
    } else if (is_ours(k, t)) {
        p->own = t->offset;
    } else if (t->offset >= 0 && t->offset != p->own && (t->offset > value || !is_progress(t))) {
        *moved = true;
        if (t->offset != p->others)
            LOG(LOG_WARN, "offset_moved", LOG_I("partition", t->partition),
                LOG_I("offset", t->offset), LOG_I("ours", p->own),
                LOG_S("action", "left where it is"));
        p->others = t->offset;
    }
    rd_kafka_topic_partition_list_destroy(list);
    return rc;
}

static int send_offsets(struct source_kafka *k, rd_kafka_topic_partition_list_t *list, bool sync,
                        struct err *err)
{
    FAILPOINT("kafka.before_offsets");
    rd_kafka_resp_err_t code = rd_kafka_commit(k->rk, list, !sync);
    if (sync || code != RD_KAFKA_RESP_ERR_NO_ERROR)
        kafka_on_commit(k->rk, code, list, k);
    FAILPOINT("kafka.after_offsets");
    return code == RD_KAFKA_RESP_ERR_NO_ERROR
               ? E_OK
               : err_set(err, E_RETRY, "%s: commit: %s", k->source.label, rd_kafka_err2str(code));
}

int kafka_commit(struct source_kafka *k, bool sync, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(8);
    int rc = E_OK;
    bool moved = false;
    int64_t now = k->committed_ns = clock_mono_ns(k->clock);
    bool again =
        k->signed_ns && (!k->alone || now - k->signed_ns >= KAFKA_SIGN_SECONDS * SECOND_NS);
    for (int32_t i = 0; i < SOURCE_PARTITIONS_MAX; i++) {
        struct kafka_partition *p = &k->partitions[i];
        if (!p->owned || !p->started)
            continue;
        int64_t value = kafka_watermark_value(&p->watermark);
        if (value == p->sent && !again)
            continue;
        rd_kafka_topic_partition_t *t = rd_kafka_topic_partition_list_add(list, k->topic, i);
        t->offset = value;
        add_mark(k, t);
    }
    if (list->cnt && k->opts.partition >= 0) {
        rc = mind_others(k, list->elems[0].offset, sync, &moved, err);
        k->committed_ns = clock_mono_ns(k->clock); /* the question took its time */
    }
    if (list->cnt && rc >= 0) {
        k->signed_ns = k->alone ? now : 0;
        for (int i = 0; i < list->cnt; i++)
            k->partitions[list->elems[i].partition].sent = list->elems[i].offset;
        rc = moved ? E_OK : send_offsets(k, list, sync, err);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return rc;
}
