/* kafka_consumer: the source's handle from open to close. See source_kafka.h. */
#include <pthread.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#include "engine/log.h"
#include "worker/source/source_kafka.h"

enum { CLOSE_SECONDS = 10, COMMIT_MS = 5000 };
/* Below 2.10.1 a commit during a cooperative rebalance can lose the assignment. */
static const int COOPERATIVE_FROM = 0x020a01ff;
/* The broker assigns (KIP-848). Below 2.15.0 a poll that comes late ends such a member for good. */
static const int BY_BROKER_FROM = 0x020f00ff;

/* What a group answers that cannot have such a member: a broker that does not know the protocol or
 * has it switched off, or members of the other kind that it may not mix with. */
static bool wants_classic(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION ||
           code == RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE ||
           code == RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL ||
           code == RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND;
}

void kafka_note_error(struct source_kafka *k, rd_kafka_resp_err_t code, const char *detail)
{
    char why[256];
    rd_kafka_resp_err_t cause = code;
    snprintf(why, sizeof why, "%s", detail ? detail : "");
    if (code == RD_KAFKA_RESP_ERR__FATAL && k->rk)
        cause = rd_kafka_fatal_error(k->rk, why, sizeof why);
    if (k->by_broker && !k->assigned && wants_classic(cause)) {
        k->to_classic = true;
        LOG(LOG_INFO, "kafka_classic_group", LOG_S("code", rd_kafka_err2name(cause)),
            LOG_S("detail", why));
        return;
    }
    LOG(LOG_WARN, "kafka_error", LOG_S("code", rd_kafka_err2name(code)), LOG_S("detail", why));
    bool again = code == RD_KAFKA_RESP_ERR__FATAL || code == RD_KAFKA_RESP_ERR__AUTHENTICATION ||
                 code == RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED;
    if (kafka_error_class(code) == E_FATAL && !k->failed.code)
        err_typed(&k->failed, E_FATAL, again ? "kafka" : SOURCE_REFUSED, "%s: %s: %s",
                  k->source.label, rd_kafka_err2name(code), why);
}

void kafka_note_refusal(struct source_kafka *k, rd_kafka_resp_err_t code, const char *what)
{
    if (kafka_error_class(code) == E_FATAL)
        kafka_note_error(k, code, what);
}

static void on_error(rd_kafka_t *rk, int code, const char *detail, void *opaque)
{
    char why[256];
    kafka_client_explain(rk, (rd_kafka_resp_err_t)code, detail, why, sizeof why);
    kafka_note_error(opaque, (rd_kafka_resp_err_t)code, why);
}

/* Of a broker that does not know the request of such members at all, the library tells only its log
 * (2.16.0), and asks for the coordinator for ever. */
static void on_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
    struct source_kafka *k = rd_kafka_opaque(rk);
    if (strcmp(facility, "COORD") == 0 &&
        strstr(text, "ConsumerGroupHeartbeatRequest not supported by broker"))
        atomic_store(&k->no_such_request, true);
    kafka_client_log(rk, level, facility, text);
}

static const char *assignor(const struct source_kafka *k)
{
    return k->by_broker ? "consumer" : k->cooperative ? "cooperative-sticky" : "roundrobin";
}

/* What the protocol stands on. The file's properties come behind and cannot name most of these. */
static int make_handle(struct source_kafka *k, const struct source_url *url, struct err *err)
{
    const char *const pairs[][2] = {
        {"group.id", k->opts.group},
        {"enable.auto.commit", "false"}, /* an ack follows the row's COMMIT */
        {"enable.auto.offset.store", "false"},
        {"auto.offset.reset", "error"}, /* else lost messages pass in silence */
        {"enable.partition.eof", "true"},
        /* How often it asks where each log begins: what retention has left (kafka_lag). */
        {"statistics.interval.ms", "30000"},
        {k->by_broker ? "group.protocol" : "partition.assignment.strategy", assignor(k)},
        {"max.poll.interval.ms", "300000"},
        {"queued.max.messages.kbytes", "16384"}, /* a pause throws the prefetch away */
        {"queued.min.messages", "2000"},
        {"fetch.wait.max.ms", "100"}, /* other questions wait behind a fetch */
        {"check.crcs", "true"},
        {"allow.auto.create.topics", "false"}, /* a slip of the pen must fail */
        {"debug", "cgrp"},                     /* of a broker's members alone: see on_log */
    };
    rd_kafka_conf_t *conf;
    char why[256];
    int rc = kafka_client_conf(&conf, url, &k->opts, pairs, TR_COUNT(pairs) - !k->by_broker, err);
    if (rc < 0)
        return rc;
    if (k->by_broker)
        rd_kafka_conf_set_log_cb(conf, on_log);
    rd_kafka_conf_set_opaque(conf, k);
    rd_kafka_conf_set_error_cb(conf, on_error);
    rd_kafka_conf_set_rebalance_cb(conf, kafka_rebalance);
    rd_kafka_conf_set_offset_commit_cb(conf, kafka_on_commit);
    k->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    if (!k->rk) {
        rd_kafka_conf_destroy(conf);
        return err_set(err, E_USAGE, "%s: %s", k->source.label, why);
    }
    rd_kafka_poll_set_consumer(k->rk);
    return E_OK;
}

/* A property of the classic protocol in the operator's file (session.timeout.ms, say) asks for it.
 */
static int make_either(struct source_kafka *k, const struct source_url *url, struct err *err)
{
    struct err refused = {0};
    k->by_broker = rd_kafka_version() >= BY_BROKER_FROM && k->opts.partition < 0;
    if (k->by_broker) {
        int rc = make_handle(k, url, &refused);
        if (rc != E_USAGE)
            return rc < 0 ? err_typed(err, rc, refused.type, "%s", refused.msg) : rc;
        k->by_broker = false;
    }
    return make_handle(k, url, err);
}

/* One partition, without the group's leave: it is read to the end that it has now. */
static int take_one(struct source_kafka *k, struct err *err)
{
    int64_t low, high;
    int32_t p = k->opts.partition;
    if (p >= k->n_partitions)
        return err_set(err, E_USAGE, "--partition: want 0 to %d, which %s has, found %d",
                       k->n_partitions - 1, k->source.label, p);
    rd_kafka_resp_err_t code =
        rd_kafka_query_watermark_offsets(k->rk, k->topic, p, &low, &high, COMMIT_MS);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, kafka_error_class(code) == E_FATAL ? E_FATAL : E_RETRY, "%s: %s",
                       k->source.label, rd_kafka_err2str(code));
    k->until = high;
    k->assigning = kafka_list_of(k, p, RD_KAFKA_OFFSET_INVALID);
    k->partitions[p] = (struct kafka_partition){.owned = true, .start = -1, .sent = -1, .end = -1};
    k->news.assigned[k->news.n_assigned++] = p;
    if (getrandom(&k->name, sizeof k->name, 0) != (ssize_t)sizeof k->name)
        return err_errno(err, E_FATAL, "%s: no random number", k->source.label);
    k->joined = k->alone = true; /* no group has a say in it */
    return E_OK;
}

static int subscribe(struct source_kafka *k, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = kafka_list_of(k, RD_KAFKA_PARTITION_UA, 0);
    rd_kafka_resp_err_t code = rd_kafka_subscribe(k->rk, list);
    rd_kafka_topic_partition_list_destroy(list);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, E_FATAL, "%s: cannot subscribe: %s", k->source.label,
                       rd_kafka_err2str(code));
    return E_OK;
}

int kafka_go_classic(struct source_kafka *k, struct err *err)
{
    struct source_url url;
    int rc = source_url_parse(&url, str_of(k->opts.url), err);
    k->to_classic = k->by_broker = false;
    if (k->held)
        rd_kafka_message_destroy(k->held);
    k->held = NULL;
    rd_kafka_destroy_flags(k->rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE); /* it is no member */
    k->rk = NULL;
    atomic_store(&k->no_such_request, false); /* the old handle is silent now */
    if (rc >= 0)
        rc = make_handle(k, &url, err);
    return rc < 0 ? rc : subscribe(k, err);
}

int source_kafka_open(struct source **out, const struct source_url *url,
                      const struct source_opts *opts, const struct clock *clock, struct err *err)
{
    struct source_kafka *k = mem_alloc(1, sizeof *k);
    int rc = E_OK;
    if (!k)
        return err_set(err, E_FATAL, "kafka: no memory");
    k->source.ops = &source_kafka_ops;
    k->opts = *opts;
    k->clock = clock;
    k->until = -1;
    k->idle_ns = k->claimed_ns = clock_mono_ns(clock);
    k->cooperative = rd_kafka_version() >= COOPERATIVE_FROM;
    k->topic = kafka_client_copy(url->name);
    /* Without the hosts: a broker that moves is the same source. */
    snprintf(k->source.label, sizeof k->source.label, "kafka:" STR_FMT, STR_ARG(url->name));
    snprintf(k->source.stem, sizeof k->source.stem, STR_FMT, STR_ARG(url->name));
    if (!opts->group || !*opts->group)
        rc = err_set(err, E_USAGE, "--group: want a name, found none");
    if (rc >= 0 && !k->topic)
        rc = err_set(err, E_FATAL, "kafka: no memory");
    if (rc >= 0)
        rc = make_either(k, url, err);
    if (rc >= 0)
        rc = kafka_client_topic(k->rk, k->topic, opts->connect_timeout_ns, &k->failed,
                                &k->n_partitions, err);
    if (rc >= 0 && k->n_partitions > SOURCE_PARTITIONS_MAX)
        rc = err_set(err, E_FATAL, "%s: want at most %d partitions, the topic has %d",
                     k->source.label, SOURCE_PARTITIONS_MAX, k->n_partitions);
    if (rc >= 0)
        rc = opts->partition >= 0 ? take_one(k, err) : subscribe(k, err);
    if (rc < 0) {
        source_kafka_close(&k->source);
        return rc;
    }
    LOG(LOG_INFO, "kafka_open", LOG_S("source", k->source.label), LOG_S("group", opts->group),
        LOG_I("partitions", k->n_partitions), LOG_S("library", rd_kafka_version_str()),
        LOG_S("assignor", assignor(k)));
    *out = &k->source;
    return E_OK;
}

/* Leaving can wait for a broker for ever, so it has a thread of its own and a deadline. */
static void *leave(void *arg)
{
    struct source_kafka *k = arg;
    struct err err = {0};
    k->alone = false;
    if (kafka_commit(k, true, &err) < 0)
        LOG(LOG_WARN, "commit_failed", LOG_S("error", err.msg));
    k->closing = true;
    rd_kafka_consumer_close(k->rk);
    rd_kafka_destroy(k->rk);
    return NULL;
}

void source_kafka_close(struct source *source)
{
    struct source_kafka *k = kafka_of(source);
    struct timespec until;
    pthread_t thread;
    if (k->held)
        rd_kafka_message_destroy(k->held);
    k->held = NULL;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += CLOSE_SECONDS;
    bool started = k->rk && pthread_create(&thread, NULL, leave, k) == 0;
    if (k->rk && !started)
        leave(k);
    if (started && pthread_timedjoin_np(thread, NULL, &until) != 0) {
        LOG(LOG_WARN, "kafka_close_late", LOG_I("seconds", CLOSE_SECONDS));
        pthread_detach(thread);
        return; /* the thread still uses all of it; the process is about to end */
    }
    if (k->assigning)
        rd_kafka_topic_partition_list_destroy(k->assigning);
    if (k->revoking)
        rd_kafka_topic_partition_list_destroy(k->revoking);
    for (int32_t p = 0; p < SOURCE_PARTITIONS_MAX; p++)
        kafka_watermark_close(&k->partitions[p].watermark);
    mem_free(k->topic);
    mem_free(k);
}
