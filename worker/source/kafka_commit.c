/* kafka_commit: what the group has acknowledged. See source_kafka.h. The offset that is committed
 * is the next one to read: past transaction markers too, so that an emptied topic has no lag. */
#include <stdio.h>
#include <string.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/source/source_kafka.h"

static void on_partition(struct source_kafka *k, const rd_kafka_topic_partition_t *t)
{
    if (t->err == RD_KAFKA_RESP_ERR_NO_ERROR || t->partition < 0 ||
        t->partition >= SOURCE_PARTITIONS_MAX)
        return;
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

static const int64_t SECOND_NS = 1000000000;
static const char sign[] = "tranche --partition ";

bool kafka_sign(const void *metadata, size_t size)
{
    return metadata && size >= sizeof sign && memcmp(metadata, sign, sizeof sign - 1) == 0;
}

/* The library frees it with the list. */
static void add_sign(struct source_kafka *k, rd_kafka_topic_partition_t *t)
{
    char text[sizeof sign + 32];
    int n =
        snprintf(text, sizeof text, "%s%016llx %u", sign, (unsigned long long)k->name, ++k->signs);
    t->metadata = rd_kafka_mem_malloc(k->rk, (size_t)n);
    t->metadata_size = t->metadata ? (size_t)n : 0;
    if (t->metadata)
        memcpy(t->metadata, text, (size_t)n);
}

int kafka_commit(struct source_kafka *k, bool sync, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(8);
    int rc = E_OK;
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
        t->offset = p->sent = value;
        if (k->alone)
            add_sign(k, t);
    }
    if (list->cnt)
        k->signed_ns = k->alone ? now : 0;
    if (list->cnt) {
        FAILPOINT("kafka.before_offsets");
        rd_kafka_resp_err_t code = rd_kafka_commit(k->rk, list, !sync);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR) {
            kafka_on_commit(k->rk, code, list, k);
            rc = err_set(err, E_RETRY, "%s: commit: %s", k->source.label, rd_kafka_err2str(code));
        }
        FAILPOINT("kafka.after_offsets");
    }
    rd_kafka_topic_partition_list_destroy(list);
    return rc;
}
