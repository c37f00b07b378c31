/* kafka_admin: see kafka_admin.h. */
#include "worker/source/kafka_admin.h"

#include "engine/log.h"
#include "worker/source/source_kafka.h"

enum { ANSWER_MS = 10000 };

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

/* ---- workers with --partition ---- */

static bool is_signed(const rd_kafka_topic_partition_t *t)
{
    return kafka_sign(t->metadata, t->metadata_size);
}

/* The list is there, and the caller's, where E_OK is returned. */
static int read_signs(const struct kafka_admin *a, const struct seek_move *moves, int n,
                      rd_kafka_topic_partition_list_t **out, struct err *err)
{
    *out = rd_kafka_topic_partition_list_new(n);
    for (int i = 0; i < n; i++)
        rd_kafka_topic_partition_list_add(*out, a->topic, moves[i].partition);
    rd_kafka_resp_err_t code = rd_kafka_committed(a->rk, *out, ANSWER_MS);
    for (int i = 0; i < n && code == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
        code = (*out)->elems[i].err; /* no answer is no sign */
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        return E_OK;
    rd_kafka_topic_partition_list_destroy(*out);
    return err_set(err, kafka_error_class(code) == E_FATAL ? E_FATAL : E_RETRY,
                   "topic \"%s\": the group's offsets: %s", a->topic, rd_kafka_err2str(code));
}

/* How many partitions bear in both the same sign; E_FATAL: one bears another now. */
static int same_signs(const struct kafka_admin *a, const rd_kafka_topic_partition_list_t *before,
                      const rd_kafka_topic_partition_list_t *now, struct err *err)
{
    int same = 0;
    for (int i = 0; i < now->cnt; i++) {
        const rd_kafka_topic_partition_t *b = &before->elems[i], *t = &now->elems[i];
        if (!is_signed(t))
            continue;
        if (b->metadata_size != t->metadata_size ||
            memcmp(b->metadata, t->metadata, t->metadata_size) != 0)
            return err_set(err, E_FATAL,
                           "topic \"%s\": a worker with --partition %d is at work: stop it first",
                           a->topic, t->partition);
        same++;
    }
    return same;
}

/* Two looks, by the clock of this machine alone. A time in the sign would be by the clock of the
 * worker's: the two apart, a worker at work would pass for dead, or a dead one for alive. */
int kafka_admin_alone(const struct kafka_admin *a, const struct seek_move *moves, int n,
                      const struct clock *clock, struct err *err)
{
    rd_kafka_topic_partition_list_t *before, *now;
    int64_t until = clock_mono_ns(clock) + (int64_t)KAFKA_SIGN_LOST_SECONDS * 1000000000;
    int same = read_signs(a, moves, n, &before, err);
    if (same < 0)
        return same;
    same = same_signs(a, before, before, err);
    if (same > 0)
        LOG(LOG_INFO, "seek_waits", LOG_S("for", "a worker with --partition, which may be dead"),
            LOG_I("seconds", KAFKA_SIGN_LOST_SECONDS));
    while (same > 0 && clock_mono_ns(clock) < until) {
        clock_sleep_ns(clock, 1000000000);
        same = read_signs(a, moves, n, &now, err);
        if (same < 0)
            break;
        same = same_signs(a, before, now, err);
        rd_kafka_topic_partition_list_destroy(now);
    }
    rd_kafka_topic_partition_list_destroy(before);
    return TR_MIN(same, E_OK);
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
