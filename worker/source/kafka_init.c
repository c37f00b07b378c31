/* kafka_init: `tranche init` for Kafka: the topic, and an offset of the group on every partition.
 * Without an offset a scaler sees no lag, and a topic that nobody has read looks empty. See
 * producer.h. */
#include <stdio.h>

#include "engine/log.h"
#include "worker/source/kafka_client.h"
#include "worker/source/kafka_producer.h"

enum { ANSWER_MS = 10000, SETTLE_TRIES = 100 };

/* A broker looks at the right to make a topic before it looks whether the topic is there: the
 * refusal goes to *refused, and counts where the topic is not there. */
static int make_topic(rd_kafka_t *rk, const char *topic, const struct queue_shape *shape,
                      bool *made, struct err *refused, struct err *err)
{
    char why[256] = "";
    rd_kafka_NewTopic_t *new =
        rd_kafka_NewTopic_new(topic, shape->partitions, shape->replicas, why, sizeof why);
    if (!new)
        return err_set(err, E_USAGE, "topic \"%s\": %s", topic, why);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_CreateTopics(rk, &new, 1, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, ANSWER_MS);
    rd_kafka_resp_err_t code = event ? rd_kafka_event_error(event) : RD_KAFKA_RESP_ERR__TIMED_OUT;
    const char *text = event ? rd_kafka_event_error_string(event) : "no answer";
    if (event && code == RD_KAFKA_RESP_ERR_NO_ERROR) {
        size_t n;
        const rd_kafka_topic_result_t **results =
            rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
        code = rd_kafka_topic_result_error(results[0]);
        text = rd_kafka_topic_result_error_string(results[0]);
    }
    *made = code == RD_KAFKA_RESP_ERR_NO_ERROR;
    bool no_right = code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
                    code == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    int rc = E_OK;
    if (no_right)
        err_set(refused, kafka_error_class(code), "%s", rd_kafka_err2str(code));
    else if (code != RD_KAFKA_RESP_ERR_NO_ERROR && code != RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
        rc = err_set(err, kafka_error_class(code), "topic \"%s\": %s", topic,
                     text ? text : rd_kafka_err2str(code));
    if (event)
        rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_NewTopic_destroy(new);
    return rc;
}

/* The group has been here: what it has no offset of now has been added since. */
static bool begun(const rd_kafka_topic_partition_list_t *all)
{
    for (int i = 0; i < all->cnt; i++)
        if (all->elems[i].offset >= 0)
            return true;
    return false;
}

/* Only where the group has none: init may run again beside running workers. The end is for a group
 * that begins; what stands in a partition that was added later nobody has passed over yet. */
static int make_offsets(rd_kafka_t *rk, const char *topic, int32_t n, bool from_end,
                        struct err *err)
{
    rd_kafka_topic_partition_list_t *all = rd_kafka_topic_partition_list_new(n);
    rd_kafka_topic_partition_list_t *missing = rd_kafka_topic_partition_list_new(n);
    for (int32_t p = 0; p < n; p++)
        rd_kafka_topic_partition_list_add(all, topic, p);
    rd_kafka_resp_err_t code = rd_kafka_committed(rk, all, ANSWER_MS);
    for (int i = 0; code == RD_KAFKA_RESP_ERR_NO_ERROR && i < all->cnt; i++)
        code = all->elems[i].err;
    from_end = from_end && !begun(all);
    for (int i = 0; code == RD_KAFKA_RESP_ERR_NO_ERROR && i < all->cnt; i++) {
        int64_t low, high;
        if (all->elems[i].offset >= 0)
            continue;
        code = rd_kafka_query_watermark_offsets(rk, topic, i, &low, &high, ANSWER_MS);
        rd_kafka_topic_partition_list_add(missing, topic, i)->offset = from_end ? high : low;
    }
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR && missing->cnt)
        code = rd_kafka_commit(rk, missing, 0);
    if (code == RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID ||
        code == RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION) {
        /* Only members may commit while there are any. A worker commits each start at once. */
        LOG(LOG_WARN, "offsets_left", LOG_S("topic", topic), LOG_I("partitions", missing->cnt),
            LOG_S("why", "the group has members now, of this topic or of another"));
        code = RD_KAFKA_RESP_ERR_NO_ERROR;
    }
    rd_kafka_topic_partition_list_destroy(all);
    rd_kafka_topic_partition_list_destroy(missing);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, kafka_error_class(code) == E_FATAL ? E_FATAL : E_RETRY,
                       "topic \"%s\": offsets of the group: %s", topic, rd_kafka_err2str(code));
    return E_OK;
}

/* A new topic takes a moment to be known everywhere and to have leaders. */
static int settle(rd_kafka_t *rk, const char *topic, const struct source_opts *opts,
                  const struct queue_shape *shape, bool made, const struct err *refused,
                  struct err *err)
{
    int32_t partitions = 0;
    for (int tries = 0;; tries++) {
        struct err why = {0};
        int rc = kafka_client_topic(rk, topic, opts->connect_timeout_ns, NULL, &partitions, &why);
        bool unknown = rc == E_FATAL && made;
        if (rc == E_FATAL && refused->code)
            return err_set(err, rc, "topic \"%s\": to make it: %s; to find it: %s", topic,
                           refused->msg, why.msg);
        if (rc >= 0)
            rc = make_offsets(rk, topic, partitions, shape->from_end, &why);
        if (rc >= 0 || !(rc == E_RETRY || unknown) || tries == SETTLE_TRIES)
            return rc < 0 ? err_set(err, why.code, "%s", why.msg) : rc;
        clock_sleep_ns(clock_system(), 100000000);
    }
}

int kafka_queue_init(const struct source_url *url, const struct source_opts *opts,
                     const struct queue_shape *shape, bool *made, struct err *err)
{
    const char *const pairs[][2] = {{"group.id", opts->group},
                                    {"enable.auto.commit", "false"},
                                    {"allow.auto.create.topics", "false"}};
    rd_kafka_conf_t *conf;
    char why[256];
    int rc = kafka_client_conf(&conf, url, opts, pairs, TR_COUNT(pairs), err);
    if (rc < 0)
        return rc;
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    char *topic = kafka_client_copy(url->name);
    if (!rk) {
        rd_kafka_conf_destroy(conf);
        rc = err_set(err, E_USAGE, STR_FMT ": %s", STR_ARG(url->name), why);
    } else if (!topic) {
        rc = err_set(err, E_FATAL, "kafka: no memory");
    }
    *made = false;
    struct err refused = {0};
    if (rc >= 0)
        rc = kafka_client_reach(rk, opts->connect_timeout_ns, err);
    if (rc >= 0)
        rc = make_topic(rk, topic, shape, made, &refused, err);
    if (rc >= 0)
        rc = settle(rk, topic, opts, shape, *made, &refused, err);
    if (rk)
        rd_kafka_destroy(rk);
    mem_free(topic);
    return rc;
}
