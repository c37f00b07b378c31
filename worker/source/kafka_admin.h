/* kafka_admin: what an operator asks of a topic and a group without joining it. See producer.h. */
#ifndef TRANCHE_WORKER_SOURCE_KAFKA_ADMIN_H
#define TRANCHE_WORKER_SOURCE_KAFKA_ADMIN_H

#include "worker/source/kafka_client.h"
#include "worker/source/producer.h"

struct kafka_admin {
    rd_kafka_t *rk; /* a consumer of opts->group that has not subscribed */
    char *topic;
    int32_t n_partitions;
    struct err failed;    /* what an error callback said */
    bool skip_tombstones; /* a scan's: messages without a value are no jobs */
};
/* Errors as kafka_client_topic. Close it in either case; it may not move meanwhile. */
int kafka_admin_open(struct kafka_admin *a, const struct source_url *url,
                     const struct source_opts *opts, struct err *err) TR_MUSTCHECK;
void kafka_admin_close(struct kafka_admin *a);
/* Of the partitions of `moves`: E_FATAL: a worker with --partition reads one. Returns at once where
 * none has left its sign; else looks on until one changes, or for KAFKA_SIGN_LOST_SECONDS of
 * `clock`. E_RETRY: the broker gave no answer. */
int kafka_admin_alone(const struct kafka_admin *a, const struct seek_move *moves, int n,
                      const struct clock *clock, struct err *err) TR_MUSTCHECK;

int kafka_queue_seek(const struct source_url *url, const struct source_opts *opts,
                     const struct seek_to *to, bool apply, struct seek_move *moves, int *n,
                     char label[JOB_ORIGIN_MAX], struct err *err) TR_MUSTCHECK;
int kafka_queue_scan(const struct source_url *url, const struct source_opts *opts,
                     const struct scan_range *range, queue_scan_take *take, void *ctx,
                     struct err *err) TR_MUSTCHECK;
int kafka_queue_backlog(const struct source_url *url, const struct source_opts *opts,
                        struct backlog *out, struct err *err) TR_MUSTCHECK;

#endif
