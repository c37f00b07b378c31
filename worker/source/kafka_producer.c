/* kafka_producer: messages out, each confirmed by all in-sync replicas. See producer.h. The client
 * is idempotent: what it sends twice arrives once, in order. */
#include "worker/source/kafka_producer.h"

#include <stdio.h>

#include "engine/log.h"
#include "worker/source/kafka_client.h"

enum { WAIT_MS = 200, WINDOW = 1 << 16 };

struct kafka_producer {
    struct producer producer;
    rd_kafka_t *rk;
    char *topic;
    char label[JOB_ORIGIN_MAX];
    int64_t sent, low;    /* `low`: everything before it is confirmed */
    uint8_t done[WINDOW]; /* of low .. low + WINDOW - 1 */
    struct err failed;
};

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
    struct kafka_producer *p = opaque;
    (void)rk;
    if (m->err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        int class = kafka_error_class(m->err) == E_FATAL ? E_FATAL : E_RETRY;
        if (m->err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE)
            class = E_FATAL;
        if (!p->failed.code)
            err_typed(&p->failed, class,
                      m->err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE ? "too_large" : "kafka",
                      "%s: message %lld: %s", p->label, (long long)(intptr_t)m->_private,
                      rd_kafka_err2str(m->err));
        return;
    }
    p->done[(intptr_t)m->_private % WINDOW] = 1;
    while (p->done[p->low % WINDOW]) {
        p->done[p->low % WINDOW] = 0;
        p->low++;
    }
}

static void on_error(rd_kafka_t *rk, int code, const char *detail, void *opaque)
{
    struct kafka_producer *p = opaque;
    char why[256];
    kafka_client_explain(rk, (rd_kafka_resp_err_t)code, detail, why, sizeof why);
    LOG(LOG_WARN, "kafka_error", LOG_S("code", rd_kafka_err2name((rd_kafka_resp_err_t)code)),
        LOG_S("detail", why));
    if (kafka_error_class((rd_kafka_resp_err_t)code) == E_FATAL && !p->failed.code)
        err_typed(&p->failed, E_FATAL, "kafka", "%s: %s", p->label, why);
}

static int told(const struct kafka_producer *p, struct err *err)
{
    return p->failed.code ? err_typed(err, p->failed.code, p->failed.type, "%s", p->failed.msg)
                          : E_OK;
}

/* NULL: none, or no memory. */
static rd_kafka_headers_t *headers_of(const struct producer_message *m)
{
    rd_kafka_headers_t *made = m->n_headers ? rd_kafka_headers_new(m->n_headers) : NULL;
    for (size_t i = 0; made && i < m->n_headers; i++)
        rd_kafka_header_add(made, m->headers[i].name.ptr, (ssize_t)m->headers[i].name.len,
                            m->headers[i].value.ptr, (ssize_t)m->headers[i].value.len);
    return made;
}

/* The client library's queue has room; the headers are its own then. */
static rd_kafka_resp_err_t produce(struct kafka_producer *p, const struct producer_message *m)
{
    rd_kafka_headers_t *headers = headers_of(m);
    rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR__QUEUE_FULL; /* no memory: later */
    if (headers)
        code = rd_kafka_producev(
            p->rk, RD_KAFKA_V_TOPIC(p->topic), RD_KAFKA_V_KEY(m->key.ptr, m->key.len),
            RD_KAFKA_V_VALUE((void *)(uintptr_t)m->value.ptr, m->value.len),
            RD_KAFKA_V_HEADERS(headers), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
            RD_KAFKA_V_OPAQUE((void *)(intptr_t)p->sent), RD_KAFKA_V_END);
    else if (m->n_headers == 0)
        code = rd_kafka_producev(p->rk, RD_KAFKA_V_TOPIC(p->topic),
                                 RD_KAFKA_V_KEY(m->key.ptr, m->key.len),
                                 RD_KAFKA_V_VALUE((void *)(uintptr_t)m->value.ptr, m->value.len),
                                 RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                 RD_KAFKA_V_OPAQUE((void *)(intptr_t)p->sent), RD_KAFKA_V_END);
    if (headers && code != RD_KAFKA_RESP_ERR_NO_ERROR)
        rd_kafka_headers_destroy(headers);
    return code;
}

static int kafka_put(struct producer *producer, const struct producer_message *m, struct err *err)
{
    struct kafka_producer *p = (struct kafka_producer *)producer;
    for (;;) {
        rd_kafka_poll(p->rk, 0);
        if (p->failed.code)
            return told(p, err);
        if (p->sent - p->low >= WINDOW) {
            rd_kafka_poll(p->rk, WAIT_MS);
            continue;
        }
        rd_kafka_resp_err_t code = produce(p, m);
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR) {
            p->sent++;
            return E_OK;
        }
        if (code != RD_KAFKA_RESP_ERR__QUEUE_FULL)
            return err_typed(
                err, E_FATAL, code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE ? "too_large" : "kafka",
                "%s: message %lld: %s", p->label, (long long)p->sent, rd_kafka_err2str(code));
        rd_kafka_poll(p->rk, WAIT_MS);
    }
}

static int kafka_send(struct producer *producer, struct str key, struct str value, struct err *err)
{
    struct producer_message m = {.key = key, .value = value};
    return kafka_put(producer, &m, err);
}

static int64_t kafka_confirmed(struct producer *producer)
{
    struct kafka_producer *p = (struct kafka_producer *)producer;
    rd_kafka_poll(p->rk, 0);
    return p->low;
}

static int kafka_flush(struct producer *producer, struct err *err)
{
    struct kafka_producer *p = (struct kafka_producer *)producer;
    while (p->low < p->sent && !p->failed.code) /* each message has its own time limit */
        rd_kafka_flush(p->rk, WAIT_MS);
    return told(p, err);
}

static void kafka_close(struct producer *producer)
{
    struct kafka_producer *p = (struct kafka_producer *)producer;
    if (p->rk) {
        rd_kafka_purge(p->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_destroy(p->rk);
    }
    mem_free(p->topic);
    mem_free(p);
}

static int open_handle(struct kafka_producer *p, const struct source_url *url,
                       const struct source_opts *opts, struct err *err)
{
    static const char *const pairs[][2] = {
        {"enable.idempotence", "true"},
        {"acks", "all"},
        {"linger.ms", "20"},
        {"compression.type", "lz4"},
        {"message.timeout.ms", "120000"},
        {"message.max.bytes", "8388608"},
        {"partitioner", "murmur2_random"},
        {"allow.auto.create.topics", "false"},
    };
    rd_kafka_conf_t *conf;
    char why[256];
    int rc = kafka_client_conf(&conf, url, opts, pairs, TR_COUNT(pairs), err);
    if (rc < 0)
        return rc;
    rd_kafka_conf_set_opaque(conf, p);
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_conf_set_error_cb(conf, on_error);
    p->rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    if (p->rk)
        return kafka_client_topic(p->rk, p->topic, opts->connect_timeout_ns, &p->failed, NULL, err);
    rd_kafka_conf_destroy(conf);
    return err_set(err, E_USAGE, "%s: %s", p->label, why);
}

int kafka_producer_open(struct producer **out, const struct source_url *url,
                        const struct source_opts *opts, struct err *err)
{
    static const struct producer_ops ops = {"kafka",     kafka_send,  kafka_put, kafka_confirmed,
                                            kafka_flush, kafka_close, true};
    struct kafka_producer *p = mem_alloc(1, sizeof *p);
    if (!p)
        return err_set(err, E_FATAL, "kafka: no memory");
    p->producer.ops = &ops;
    snprintf(p->label, sizeof p->label, "kafka:" STR_FMT, STR_ARG(url->name));
    p->topic = kafka_client_copy(url->name);
    int rc = p->topic ? open_handle(p, url, opts, err) : err_set(err, E_FATAL, "kafka: no memory");
    if (rc < 0)
        kafka_close(&p->producer);
    else
        *out = &p->producer;
    return rc;
}
