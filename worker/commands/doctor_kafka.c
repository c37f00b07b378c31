/* doctor_kafka: broker, topic, the group's position on each partition, and the lag as a scaler
 * computes it beside the lag that is there. Joins no group, commits nothing. */
#include <stdatomic.h>
#include <stdio.h>

#include <openssl/x509.h>

#include "worker/commands/doctor_queue.h"
#include "worker/source/kafka_client.h"

enum { ANSWER_MS = 10000, READ_MS = 10000 };

struct seen {
    atomic_llong certificate_end; /* of the broker that ends first; 0: none was shown */
    struct err failed;            /* what the client library told first; a fatal one later */
};
struct look {
    struct doctor *d;
    rd_kafka_t *rk;
    const char *group;
    char *topic;
    int32_t partitions;
    struct seen seen;
};

static void on_error(rd_kafka_t *rk, int code, const char *detail, void *opaque)
{
    struct seen *seen = opaque;
    char why[200];
    int class = kafka_error_class((rd_kafka_resp_err_t)code);
    if (seen->failed.code && class != E_FATAL)
        return;
    kafka_client_explain(rk, (rd_kafka_resp_err_t)code, detail, why, sizeof why);
    seen->failed = (struct err){0};
    err_typed(&seen->failed, class ? class : E_RETRY, "kafka", "%s", why);
}

/* On a thread of the client library. It has its verdict already, and we leave it at that. */
static int on_certificate(rd_kafka_t *rk, const char *name, int32_t id, int *x509_error, int depth,
                          const char *bytes, size_t size, char *why, size_t cap, void *opaque)
{
    struct seen *seen = opaque;
    const unsigned char *at = (const unsigned char *)bytes;
    X509 *x = depth == 0 ? d2i_X509(NULL, &at, (long)size) : NULL;
    (void)rk, (void)name, (void)id, (void)why, (void)cap;
    if (x) {
        long long end = certificate_end(x), had = atomic_load(&seen->certificate_end);
        if (had == 0 || end < had)
            atomic_store(&seen->certificate_end, end);
        X509_free(x);
    }
    return *x509_error == 0;
}

/* Our own certificate and the authorities that we believe. */
static void look_at_files(struct doctor *d, const rd_kafka_conf_t *conf)
{
    static const char *const names[] = {"ssl.certificate.location", "ssl.ca.location"};
    for (size_t i = 0; i < TR_COUNT(names); i++) {
        char path[512] = "";
        size_t size = sizeof path;
        if (rd_kafka_conf_get(conf, names[i], path, &size) == RD_KAFKA_CONF_OK)
            doctor_certificate_file(d, path);
    }
}

static int look_open(struct look *l, const struct source_url *url, const struct source_opts *opts,
                     struct err *err)
{
    const char *const pairs[][2] = {{"group.id", opts->group},
                                    {"enable.auto.commit", "false"},
                                    {"enable.auto.offset.store", "false"},
                                    {"auto.offset.reset", "error"},
                                    {"enable.partition.eof", "true"},
                                    {"allow.auto.create.topics", "false"}};
    rd_kafka_conf_t *conf;
    char why[256];
    int rc = kafka_client_conf(&conf, url, opts, pairs, TR_COUNT(pairs), err);
    if (rc < 0)
        return rc;
    look_at_files(l->d, conf);
    rd_kafka_conf_set_opaque(conf, &l->seen);
    rd_kafka_conf_set_error_cb(conf, on_error);
    /* A client library without TLS has no such callback. */
    (void)rd_kafka_conf_set_ssl_cert_verify_cb(conf, on_certificate);
    l->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    if (!l->rk) {
        rd_kafka_conf_destroy(conf);
        return err_set(err, E_USAGE, STR_FMT ": %s", STR_ARG(url->name), why);
    }
    l->topic = kafka_client_copy(url->name);
    l->group = opts->group;
    return l->topic ? E_OK : err_set(err, E_FATAL, "kafka: no memory");
}

/* Any broker, then the topic: two answers, for two menders. */
static bool look_at_topic(struct look *l, const struct source_opts *opts)
{
    struct err why = {0};
    bool reached = kafka_client_reach(l->rk, opts->connect_timeout_ns, &why) == E_OK;
    rd_kafka_poll(l->rk, 0);
    if (!reached || l->seen.failed.code == E_FATAL) {
        const struct err *cause = l->seen.failed.code ? &l->seen.failed : &why;
        doctor_report(l->d, VERDICT_FAULT, "broker",
                      doctor_link_mend(cause, "start the broker, correct the hosts of --source, or "
                                              "let the network policy pass"),
                      "%s: %s", opts->url, cause->msg);
        return false;
    }
    doctor_report(l->d, VERDICT_OK, "broker", NULL, "%s answers", opts->url);
    if (kafka_client_topic(l->rk, l->topic, opts->connect_timeout_ns, NULL, &l->partitions, &why) <
        0) {
        doctor_report(l->d, VERDICT_FAULT, "topic",
                      doctor_link_mend(&why, "grant the user Describe on the topic"), "%s",
                      why.msg);
        return false;
    }
    doctor_report(l->d, VERDICT_OK, "topic", NULL,
                  "\"%s\": %d partitions, so at most as many workers have work", l->topic,
                  l->partitions);
    return true;
}

struct lag {
    int64_t there, scaler; /* messages; what KEDA makes of it with offsetResetPolicy earliest */
    int64_t gone;          /* removed before they were acknowledged */
    int32_t unset, ahead;  /* partitions without an offset; with one behind the log's end */
};

static rd_kafka_resp_err_t read_lag(struct look *l, struct lag *lag)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(l->partitions);
    for (int32_t p = 0; p < l->partitions; p++)
        rd_kafka_topic_partition_list_add(list, l->topic, p);
    rd_kafka_resp_err_t code = rd_kafka_committed(l->rk, list, ANSWER_MS);
    for (int32_t p = 0; code == RD_KAFKA_RESP_ERR_NO_ERROR && p < list->cnt; p++) {
        int64_t low, high, at = list->elems[p].offset;
        code = list->elems[p].err;
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
            code = rd_kafka_query_watermark_offsets(l->rk, l->topic, p, &low, &high, ANSWER_MS);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
            break;
        lag->unset += at < 0;
        lag->ahead += at > high;
        lag->gone += at >= 0 && at < low ? low - at : 0;
        lag->there += high - TR_MIN(TR_MAX(at, low), high);
        lag->scaler += high - TR_MIN(TR_MAX(at, (int64_t)0), high);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return code;
}

/* A group that may not be asked for lets the question run into its time; the reason comes as an
 * error to whoever polls. */
static rd_kafka_resp_err_t reason_of(struct look *l, rd_kafka_resp_err_t code)
{
    for (int i = 0; code == RD_KAFKA_RESP_ERR__TIMED_OUT && i < 20; i++) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(l->rk, 50);
        if (m && kafka_error_class(m->err) == E_FATAL)
            code = m->err;
        if (m)
            rd_kafka_message_destroy(m);
    }
    return code;
}

static void look_at_group(struct look *l)
{
    struct lag lag = {0};
    struct doctor *d = l->d;
    rd_kafka_resp_err_t code = reason_of(l, read_lag(l, &lag));
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR) {
        doctor_report(d, VERDICT_FAULT, "group", "grant the user Read and Describe on the group",
                      "\"%s\": %s", l->group, rd_kafka_err2str(code));
        return;
    }
    if (lag.unset)
        doctor_report(d, VERDICT_WARN, "group",
                      "run `tranche init`: a scaler misreads partitions without an offset",
                      "\"%s\" has no offset on %d of %d partitions", l->group, lag.unset,
                      l->partitions);
    else
        doctor_report(d, VERDICT_OK, "group", NULL, "\"%s\" has an offset on each partition",
                      l->group);
    if (lag.ahead)
        doctor_report(d, VERDICT_FAULT, "offsets",
                      "was the topic made anew? `tranche seek --to earliest` puts the group back",
                      "on %d partitions \"%s\" is behind the end of the log: they are refused",
                      lag.ahead, l->group);
    else if (lag.gone)
        doctor_report(d, VERDICT_FAULT, "offsets",
                      "raise the topic's retention.ms; workers record the gap in lost_ranges",
                      "retention has removed %lld messages that \"%s\" had not acknowledged",
                      (long long)lag.gone, l->group);
    if (lag.there == lag.scaler)
        doctor_report(d, VERDICT_OK, "lag", NULL, "%lld messages, and KEDA reads as many",
                      (long long)lag.there);
    else
        doctor_report(d, VERDICT_WARN, "lag",
                      lag.unset ? "run `tranche init`" : "start a worker: it moves the offset on",
                      "KEDA reads %lld messages, %lld are there", (long long)lag.scaler,
                      (long long)lag.there);
}

/* Whether messages may be read: from the end of a partition, so that none comes. */
static void look_at_reading(struct look *l)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR__TIMED_OUT;
    rd_kafka_topic_partition_list_add(list, l->topic, 0)->offset = RD_KAFKA_OFFSET_END;
    rd_kafka_assign(l->rk, list);
    int64_t until = clock_mono_ns(clock_system()) + READ_MS * 1000000LL;
    while (code == RD_KAFKA_RESP_ERR__TIMED_OUT && clock_mono_ns(clock_system()) < until) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(l->rk, 100);
        if (m &&
            (m->err == RD_KAFKA_RESP_ERR_NO_ERROR || m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF ||
             m->err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED))
            code = m->err;
        if (m)
            rd_kafka_message_destroy(m);
    }
    rd_kafka_assign(l->rk, NULL);
    rd_kafka_topic_partition_list_destroy(list);
    if (code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        doctor_report(l->d, VERDICT_FAULT, "rights", "grant the user Read on the topic",
                      "\"%s\": %s", l->topic, rd_kafka_err2str(code));
    else if (code == RD_KAFKA_RESP_ERR__TIMED_OUT)
        doctor_report(l->d, VERDICT_WARN, "rights", "look at the leaders: kcat -L -t TOPIC",
                      "\"%s\": no answer to a read of partition 0 in %d s", l->topic,
                      READ_MS / 1000);
    else
        doctor_report(l->d, VERDICT_OK, "rights", NULL, "messages of \"%s\" may be read", l->topic);
}

/* The error of a question for a broker's settings, which only the cluster's administrators have a
 * right to. */
static rd_kafka_resp_err_t ask_settings(struct look *l, const char *broker)
{
    rd_kafka_ConfigResource_t *resource =
        rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_BROKER, broker);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(l->rk);
    rd_kafka_DescribeConfigs(l->rk, &resource, 1, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, ANSWER_MS);
    rd_kafka_resp_err_t code = event ? rd_kafka_event_error(event) : RD_KAFKA_RESP_ERR__TIMED_OUT;
    size_t n = 0;
    const rd_kafka_ConfigResource_t **all =
        code == RD_KAFKA_RESP_ERR_NO_ERROR ? rd_kafka_DescribeConfigs_result_resources(
                                                 rd_kafka_event_DescribeConfigs_result(event), &n)
                                           : NULL;
    if (n)
        code = rd_kafka_ConfigResource_error(all[0]);
    if (event)
        rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_ConfigResource_destroy(resource);
    return code;
}

/* On a listener without users everybody may do everything, and nothing is said. */
static void look_at_privileges(struct look *l)
{
    char protocol[64] = "", broker[16];
    size_t size = sizeof protocol;
    const struct rd_kafka_metadata *meta = NULL;
    if (rd_kafka_conf_get(rd_kafka_conf(l->rk), "security.protocol", protocol, &size) !=
            RD_KAFKA_CONF_OK ||
        strcmp(protocol, "plaintext") == 0 ||
        rd_kafka_metadata(l->rk, 0, NULL, &meta, ANSWER_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return;
    rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR__TIMED_OUT;
    snprintf(broker, sizeof broker, "%d", meta->broker_cnt ? meta->brokers[0].id : -1);
    if (meta->broker_cnt)
        code = ask_settings(l, broker);
    rd_kafka_metadata_destroy(meta);
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        doctor_report(l->d, VERDICT_WARN, "rights",
                      "give the workers a user of their own (docs/kafka.md lists its rights)",
                      "this user may read the brokers' settings: more than a worker needs");
    else if (code == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED)
        doctor_report(l->d, VERDICT_OK, "rights", NULL, "the user has no rights on the cluster");
}

void doctor_kafka(struct doctor *d, const struct source_url *url, const struct source_opts *opts)
{
    struct look l = {.d = d};
    struct err err = {0};
    if (look_open(&l, url, opts, &err) < 0) {
        doctor_report(d, VERDICT_FAULT, "broker",
                      doctor_link_mend(&err, "correct --source or --broker-config"), "%s", err.msg);
    } else if (look_at_topic(&l, opts)) {
        look_at_group(&l);
        look_at_reading(&l);
        look_at_privileges(&l);
    }
    if (l.rk)
        rd_kafka_destroy(l.rk);
    int64_t end = atomic_load(&l.seen.certificate_end);
    if (end)
        doctor_certificate(d, "the broker's certificate", end);
    mem_free(l.topic);
}
