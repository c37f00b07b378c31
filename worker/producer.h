/* producer: the other end of a queue: what the operator's commands need of a broker. One row of a
 * table in producer.c for each URL scheme. */
#ifndef TRANCHE_WORKER_PRODUCER_H
#define TRANCHE_WORKER_PRODUCER_H

#include "worker/source_open.h"

/* What init makes where it is missing; what is there stays as it is. */
struct queue_shape {
    int32_t partitions, replicas; /* of a topic */
    bool from_end;                /* a new group starts at the end, not at the first message */
};
struct producer;
struct producer_ops {
    const char *name;
    /* Hands one message over; waits for room. `key` decides which partition. E_RETRY: the broker
     * has taken nothing for its client's time limit; E_FATAL: it never will. */
    int (*send)(struct producer *, struct str key, struct str value, struct err *);
    /* Messages, counted from the first, that the broker has confirmed without a hole. */
    int64_t (*confirmed)(struct producer *);
    /* Waits until everything is confirmed. Errors as send. */
    int (*flush)(struct producer *, struct err *);
    void (*close)(struct producer *); /* what is not confirmed may or may not arrive */
};
struct producer {
    const struct producer_ops *ops;
};
static inline void producer_close(struct producer *p)
{
    if (p)
        p->ops->close(p);
}

/* Of opts: url, broker_config, allow_insecure, client, connect_timeout_ns. Errors as source_open.
 */
int producer_open(struct producer **out, const struct source_opts *opts,
                  struct err *err) TR_MUSTCHECK;
/* Of opts besides these: group. Idempotent. *made: the queue was not there. */
int queue_init(const struct source_opts *opts, const struct queue_shape *shape, bool *made,
               struct err *err) TR_MUSTCHECK;

/* What a group has not done yet. */
struct backlog {
    int64_t lag;     /* messages that it has not had (Kafka: not acknowledged) */
    int64_t pending; /* messages that it has and has not acknowledged; Kafka: 0, lag has them */
};
/* Of opts besides these: group. -1: the broker does not know. Changes nothing. */
int queue_backlog(const struct source_opts *opts, struct backlog *out,
                  struct err *err) TR_MUSTCHECK;

#endif
