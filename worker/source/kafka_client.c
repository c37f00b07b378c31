/* kafka_client: see kafka_client.h. */
#include "worker/source/kafka_client.h"

#include <openssl/x509_vfy.h>
#include <pthread.h>
#include <stdio.h>

#include "engine/log.h"
#include "worker/source/kafka_config.h"

enum { ASK_MS = 2000, ANSWER_MS = 5000 };

static int set(void *ctx, const char *name, const char *value, struct err *err)
{
    char why[256];
    if (rd_kafka_conf_set(ctx, name, value, why, sizeof why) == RD_KAFKA_CONF_OK)
        return E_OK;
    /* The library's text may repeat the value, which may be a secret. */
    return err_set(err, E_USAGE, "%s: the Kafka client knows no such property or value", name);
}

int kafka_error_class(rd_kafka_resp_err_t code)
{
    switch ((int)code) {
    case RD_KAFKA_RESP_ERR__FATAL:
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
    case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION:
    case RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL:
        return E_FATAL;
    case RD_KAFKA_RESP_ERR__PARTITION_EOF:
    case RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION: /* a zombie's: its successor commits */
    case RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID:
    case RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS:
    case RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED: /* the library joins again by itself */
        return E_OK;
    default:
        return E_RETRY;
    }
}

/* Up to 2.6.0 the library repeats its own nonce in SCRAM's last message; brokers from 3.8.1 on
 * compare strictly (RFC 5802 section 5.1) and call the password wrong. */
static const int SCRAM_FROM = 0x020601ff;

void kafka_client_explain(rd_kafka_t *rk, rd_kafka_resp_err_t code, const char *detail, char *out,
                          size_t cap)
{
    char mechanism[64] = "";
    size_t size = sizeof mechanism;
    bool login = code == RD_KAFKA_RESP_ERR__AUTHENTICATION ||
                 code == RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED;
    const char *hint = "";
    if (login && rd_kafka_version() < SCRAM_FROM &&
        rd_kafka_conf_get(rd_kafka_conf(rk), "sasl.mechanism", mechanism, &size) ==
            RD_KAFKA_CONF_OK &&
        strncmp(mechanism, "SCRAM", 5) == 0)
        hint = "brokers from 3.8.1 on refuse SCRAM by this client library, want librdkafka 2.6.1, "
               "found ";
    snprintf(out, cap, "%s%s%s%s", hint, *hint ? rd_kafka_version_str() : "", *hint ? ": " : "",
             detail);
}

void kafka_client_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
    (void)rk;
    LOG(level <= 3 ? LOG_WARN : LOG_DEBUG, "kafka_client", LOG_S("facility", facility),
        LOG_S("text", text));
}

/* The library's own words for every such refusal are "verify that ssl.ca.location is correct". */
static struct {
    pthread_mutex_t mutex;
    char text[200]; /* the newest refusal of this process; "": none */
} certificate = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* Called for each certificate of a chain; what it answers is the library's verdict. */
static int on_certificate(rd_kafka_t *rk, const char *broker, int32_t id, int *fault, int depth,
                          const char *der, size_t size, char *why, size_t why_size, void *opaque)
{
    (void)rk, (void)id, (void)der, (void)size, (void)opaque;
    if (*fault == X509_V_OK)
        return 1;
    const char *words = X509_verify_cert_error_string(*fault);
    snprintf(why, why_size, "%s", words);
    pthread_mutex_lock(&certificate.mutex);
    snprintf(certificate.text, sizeof certificate.text, "%s: %s: %s", broker,
             depth ? "an authority's certificate" : "the broker's certificate", words);
    pthread_mutex_unlock(&certificate.mutex);
    return 0;
}

/* ": " and the newest refusal of a certificate, or nothing. */
static const char *certificate_fault(char out[208])
{
    pthread_mutex_lock(&certificate.mutex);
    snprintf(out, 208, "%s%s", certificate.text[0] ? ": " : "", certificate.text);
    pthread_mutex_unlock(&certificate.mutex);
    return out;
}

/* Plain text leaves the machine only where the operator said so. */
static int check_secure(const struct source_opts *opts, rd_kafka_conf_t *conf, struct str hosts,
                        struct err *err)
{
    char protocol[64] = "";
    size_t size = sizeof protocol;
    if (rd_kafka_conf_get(conf, "security.protocol", protocol, &size) == RD_KAFKA_CONF_OK &&
        strstr(protocol, "plaintext") && !opts->allow_insecure && !kafka_hosts_local(hosts))
        return err_set(err, E_USAGE,
                       "%s: jobs would travel in plain text: set security.protocol = ssl or "
                       "sasl_ssl in --broker-config, or give --allow-insecure",
                       opts->url);
    return E_OK;
}

char *kafka_client_copy(struct str s)
{
    char *copy = mem_alloc(s.len + 1, 1);
    if (copy && s.len)
        memcpy(copy, s.ptr, s.len);
    return copy;
}

int kafka_client_conf(rd_kafka_conf_t **out, const struct source_url *url,
                      const struct source_opts *opts, const char *const (*pairs)[2], size_t n,
                      struct err *err)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char *hosts = kafka_client_copy(url->hosts);
    int rc = hosts ? set(conf, "bootstrap.servers", hosts, err)
                   : err_set(err, E_FATAL, "kafka: no memory");
    mem_free(hosts);
    if (rc >= 0)
        rc = set(conf, "client.id", opts->client ? opts->client : "tranche", err);
    if (rc >= 0)
        rc = set(conf, "socket.keepalive.enable", "true", err);
    for (size_t i = 0; rc >= 0 && i < n; i++)
        rc = set(conf, pairs[i][0], pairs[i][1], err);
    if (rc >= 0 && opts->broker_config)
        rc = kafka_config_read(opts->broker_config, set, conf, err);
    if (rc >= 0)
        rc = check_secure(opts, conf, url->hosts, err);
    if (rc < 0) {
        rd_kafka_conf_destroy(conf);
        return rc;
    }
    rd_kafka_conf_set_log_cb(conf, kafka_client_log);
    (void)rd_kafka_conf_set_ssl_cert_verify_cb(conf, on_certificate); /* fails without TLS at all */
    *out = conf;
    return E_OK;
}

static bool unknown_topic(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
           code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
}

/* One question; topic NULL: only whether anybody answers. */
static rd_kafka_resp_err_t ask(rd_kafka_t *rk, rd_kafka_topic_t *topic, int timeout_ms,
                               int32_t *partitions)
{
    const struct rd_kafka_metadata *meta = NULL;
    rd_kafka_resp_err_t code = rd_kafka_metadata(rk, 0, topic, &meta, timeout_ms);
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR && topic)
        code = meta->topic_cnt == 1 ? meta->topics[0].err : RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR && topic && partitions)
        *partitions = meta->topics[0].partition_cnt;
    if (meta)
        rd_kafka_metadata_destroy(meta);
    return code;
}

/* Error callbacks are served between: a wrong password must not wait for the end. */
static rd_kafka_resp_err_t ask_until(rd_kafka_t *rk, rd_kafka_topic_t *topic, int64_t timeout_ns,
                                     const struct err *failed, int32_t *partitions)
{
    const struct clock *clock = clock_system();
    int64_t left_ms, until = clock_mono_ns(clock) + timeout_ns;
    rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR__TIMED_OUT;
    while ((left_ms = (until - clock_mono_ns(clock)) / 1000000) > 0) {
        code = ask(rk, topic, (int)TR_MIN(left_ms, (int64_t)ASK_MS), partitions);
        rd_kafka_poll(rk, 0);
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR || unknown_topic(code) ||
            kafka_error_class(code) != E_RETRY || (failed && failed->code))
            break;
        clock_sleep_ns(clock, 50000000);
    }
    return code;
}

int kafka_client_topic(rd_kafka_t *rk, const char *name, int64_t timeout_ns,
                       const struct err *failed, int32_t *partitions, struct err *err)
{
    char fault[208];
    rd_kafka_topic_t *topic = rd_kafka_topic_new(rk, name, NULL);
    if (!topic)
        return err_set(err, E_USAGE, "\"%s\" cannot name a topic", name);
    rd_kafka_resp_err_t code = ask_until(rk, topic, timeout_ns, failed, partitions);
    rd_kafka_topic_destroy(topic);
    if (failed && failed->code)
        return err_typed(err, failed->code, failed->type, "%s", failed->msg);
    if (unknown_topic(code))
        return err_set(err, E_FATAL, "the broker has no topic \"%s\"; `tranche init` makes it",
                       name);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, kafka_error_class(code) == E_FATAL ? E_FATAL : E_RETRY,
                       "topic \"%s\": %s%s", name, rd_kafka_err2str(code),
                       certificate_fault(fault));
    return E_OK;
}

int kafka_client_reach(rd_kafka_t *rk, int64_t timeout_ns, struct err *err)
{
    char fault[208];
    rd_kafka_resp_err_t code = ask_until(rk, NULL, timeout_ns, NULL, NULL);
    return code == RD_KAFKA_RESP_ERR_NO_ERROR
               ? E_OK
               : err_set(err, E_RETRY, "no broker: %s%s", rd_kafka_err2str(code),
                         certificate_fault(fault));
}

int64_t kafka_client_lag(rd_kafka_t *rk, const char *topic, int32_t partitions)
{
    int64_t lag = 0;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(partitions);
    for (int32_t p = 0; p < partitions; p++)
        rd_kafka_topic_partition_list_add(list, topic, p);
    if (rd_kafka_committed(rk, list, ANSWER_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
        lag = -1;
    for (int32_t p = 0; lag >= 0 && p < list->cnt; p++) {
        int64_t low, high, at = list->elems[p].offset;
        rd_kafka_resp_err_t code =
            rd_kafka_query_watermark_offsets(rk, topic, p, &low, &high, ANSWER_MS);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR || list->elems[p].err != RD_KAFKA_RESP_ERR_NO_ERROR)
            lag = -1;
        else
            lag += high - TR_MIN(TR_MAX(at, low), high);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return lag;
}
