/* kafka_admin: see kafka_admin.h. */
#include "worker/source/kafka_admin.h"

#include "engine/log.h"

static void on_error(rd_kafka_t *rk, int code, const char *detail, void *opaque)
{
    struct err *failed = opaque;
    char why[256];
    kafka_client_explain(rk, (rd_kafka_resp_err_t)code, detail, why, sizeof why);
    LOG(LOG_WARN, "kafka_error", LOG_S("code", rd_kafka_err2name((rd_kafka_resp_err_t)code)),
        LOG_S("detail", why));
    if (kafka_error_class((rd_kafka_resp_err_t)code) == E_FATAL && !failed->code)
        err_typed(failed, E_FATAL, "kafka", "%s", why);
}

int kafka_admin_open(struct kafka_admin *a, const struct source_url *url,
                     const struct source_opts *opts, struct err *err)
{
    const char *const pairs[][2] = {{"group.id", opts->group},
                                    {"enable.auto.commit", "false"},
                                    {"enable.auto.offset.store", "false"},
                                    {"auto.offset.reset", "error"},
                                    {"enable.partition.eof", "true"},
                                    {"fetch.wait.max.ms", "100"}, /* questions wait behind it */
                                    {"allow.auto.create.topics", "false"}};
    rd_kafka_conf_t *conf;
    char why[256];
    *a = (struct kafka_admin){0};
    int rc = kafka_client_conf(&conf, url, opts, pairs, TR_COUNT(pairs), err);
    if (rc < 0)
        return rc;
    rd_kafka_conf_set_opaque(conf, &a->failed);
    rd_kafka_conf_set_error_cb(conf, on_error);
    a->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    if (!a->rk) {
        rd_kafka_conf_destroy(conf);
        return err_set(err, E_USAGE, STR_FMT ": %s", STR_ARG(url->name), why);
    }
    a->topic = kafka_client_copy(url->name);
    if (!a->topic)
        return err_set(err, E_FATAL, "kafka: no memory");
    return kafka_client_topic(a->rk, a->topic, opts->connect_timeout_ns, &a->failed,
                              &a->n_partitions, err);
}

void kafka_admin_close(struct kafka_admin *a)
{
    if (a->rk)
        rd_kafka_destroy(a->rk);
    mem_free(a->topic);
    *a = (struct kafka_admin){0};
}

int kafka_queue_backlog(const struct source_url *url, const struct source_opts *opts,
                        struct backlog *out, struct err *err)
{
    struct kafka_admin a;
    int rc = kafka_admin_open(&a, url, opts, err);
    *out = (struct backlog){.lag = -1};
    if (rc >= 0)
        out->lag = kafka_client_lag(a.rk, a.topic, a.n_partitions);
    kafka_admin_close(&a);
    return rc;
}
