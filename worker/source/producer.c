/* producer: see producer.h. */
#include "worker/source/producer.h"

#include "worker/source/kafka_admin.h"
#include "worker/source/kafka_producer.h"
#include "worker/source/redis_admin.h"
#include "worker/source/redis_producer.h"

static const struct scheme {
    const char *name;
    int (*open)(struct producer **, const struct source_url *, const struct source_opts *,
                struct err *);
    int (*init)(const struct source_url *, const struct source_opts *, const struct queue_shape *,
                bool *, struct err *);
    int (*backlog)(const struct source_url *, const struct source_opts *, struct backlog *,
                   struct err *);
    int (*seek)(const struct source_url *, const struct source_opts *, const struct seek_to *, bool,
                struct seek_move *, int *, char[JOB_ORIGIN_MAX], struct err *);
    int (*scan)(const struct source_url *, const struct source_opts *, const struct scan_range *,
                queue_scan_take *, void *, struct err *);
    int (*drop)(const struct source_url *, const struct source_opts *, bool *, struct err *);
} schemes[] = {
    {"kafka", kafka_producer_open, kafka_queue_init, kafka_queue_backlog, kafka_queue_seek,
     kafka_queue_scan, NULL},
    {"redis", redis_producer_open, redis_queue_init, redis_queue_backlog, redis_queue_seek,
     redis_queue_scan, redis_queue_drop},
    {"rediss", redis_producer_open, redis_queue_init, redis_queue_backlog, redis_queue_seek,
     redis_queue_scan, redis_queue_drop},
    {"redis-sentinel", redis_producer_open, redis_queue_init, redis_queue_backlog, redis_queue_seek,
     redis_queue_scan, redis_queue_drop},
    {"rediss-sentinel", redis_producer_open, redis_queue_init, redis_queue_backlog,
     redis_queue_seek, redis_queue_scan, redis_queue_drop},
};

static int find(const struct scheme **out, struct source_url *url, const struct source_opts *opts,
                struct err *err)
{
    *out = NULL;
    int rc = source_url_parse(url, str_of(opts->url ? opts->url : ""), err);
    for (size_t i = 0; rc >= 0 && i < TR_COUNT(schemes); i++)
        if (str_eq(url->scheme, str_of(schemes[i].name))) {
            *out = &schemes[i];
            return E_OK;
        }
    return rc < 0
               ? rc
               : err_set(err, E_USAGE, "\"" STR_FMT "\": want the URL of a queue, as in %s://...",
                         STR_ARG(url->scheme), schemes[0].name);
}

int producer_open(struct producer **out, const struct source_opts *opts, struct err *err)
{
    const struct scheme *scheme;
    struct source_url url;
    int rc = find(&scheme, &url, opts, err);
    return rc < 0 ? rc : scheme->open(out, &url, opts, err);
}

int queue_init(const struct source_opts *opts, const struct queue_shape *shape, bool *made,
               struct err *err)
{
    const struct scheme *scheme;
    struct source_url url;
    int rc = find(&scheme, &url, opts, err);
    return rc < 0 ? rc : scheme->init(&url, opts, shape, made, err);
}

int queue_drop(const struct source_opts *opts, bool *dropped, struct err *err)
{
    const struct scheme *scheme;
    struct source_url url;
    int rc = find(&scheme, &url, opts, err);
    if (rc == E_OK && !scheme->drop)
        rc = err_set(
            err, E_USAGE,
            "--drop-group: want a Redis stream, found \"%s\": a topic's group holds nothing "
            "back, and its broker forgets it by itself",
            opts->url);
    return rc < 0 ? rc : scheme->drop(&url, opts, dropped, err);
}

int queue_backlog(const struct source_opts *opts, struct backlog *out, struct err *err)
{
    const struct scheme *scheme;
    struct source_url url;
    int rc = find(&scheme, &url, opts, err);
    return rc < 0 ? rc : scheme->backlog(&url, opts, out, err);
}

int queue_seek(const struct source_opts *opts, const struct seek_to *to, bool apply,
               struct seek_move *moves, int *n, char label[JOB_ORIGIN_MAX], struct err *err)
{
    const struct scheme *scheme;
    struct source_url url;
    int rc = find(&scheme, &url, opts, err);
    return rc < 0 ? rc : scheme->seek(&url, opts, to, apply, moves, n, label, err);
}

int queue_scan(const struct source_opts *opts, const struct scan_range *range,
               queue_scan_take *take, void *ctx, struct err *err)
{
    const struct scheme *scheme;
    struct source_url url;
    int rc = find(&scheme, &url, opts, err);
    return rc < 0 ? rc : scheme->scan(&url, opts, range, take, ctx, err);
}
