/* source_redis: jobs from a Redis stream, as one consumer of a group. See source_redis.c. */
#ifndef TRANCHE_WORKER_SOURCE_SOURCE_REDIS_H
#define TRANCHE_WORKER_SOURCE_SOURCE_REDIS_H

#include "worker/source/redis_group.h"
#include "worker/source/source_open.h"

/* What a URL and the options say about a server, a stream and a group; what init, submit and the
 * source have in common. Open connects, within opts->connect_timeout_ns. */
struct redis_stream {
    struct redis_settings settings;
    struct redis_connection *connection;
    struct redis_group group;
    char stream[JOB_ORIGIN_MAX], group_name[JOB_ORIGIN_MAX], consumer[REDIS_NAME_MAX];
};
/* E_USAGE: options; E_RETRY: not reached in time. Close in either case; zeroed is legal. */
int redis_stream_open(struct redis_stream *s, const struct source_url *url,
                      const struct source_opts *opts, const struct clock *clock,
                      struct err *err) TR_MUSTCHECK;
void redis_stream_close(struct redis_stream *s);

/* E_FATAL also where stream or group do not exist: a slip of the pen must not start a new queue. */
int source_redis_open(struct source **out, const struct source_url *url,
                      const struct source_opts *opts, const struct clock *clock,
                      struct err *err) TR_MUSTCHECK;

#endif
