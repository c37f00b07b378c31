/* producer: the other end of a queue: what the operator's commands need of a broker. One row of a
 * table in producer.c for each URL scheme. */
#ifndef TRANCHE_WORKER_SOURCE_PRODUCER_H
#define TRANCHE_WORKER_SOURCE_PRODUCER_H

#include "worker/source/source_open.h"

/* What init makes where it is missing; what is there stays as it is. */
struct queue_shape {
    int32_t partitions, replicas; /* of a topic */
    bool from_end;                /* a new group starts at the end, not at the first message */
};
struct producer_header {
    struct str name, value; /* a name holds no NUL */
};
enum { PRODUCER_HEADERS_MAX = 24 };
struct producer_message {
    struct str key, value;                 /* key.ptr NULL: none */
    const struct producer_header *headers; /* of a stream's entry: fields beside `job` */
    size_t n_headers;
};
struct producer;
struct producer_ops {
    const char *name;
    /* Hands one message over; waits for room. `key` decides which partition. E_RETRY: the broker
     * has taken nothing for its client's time limit; E_FATAL: it never will. */
    int (*send)(struct producer *, struct str key, struct str value, struct err *);
    /* The same with headers. E_FATAL with the type "too_large": this message alone is too much. */
    int (*put)(struct producer *, const struct producer_message *, struct err *);
    /* Messages, counted from the first, that the broker has confirmed without a hole. */
    int64_t (*confirmed)(struct producer *);
    /* Waits until everything is confirmed. Errors as send. */
    int (*flush)(struct producer *, struct err *);
    void (*close)(struct producer *); /* what is not confirmed may or may not arrive */
    bool headers_count;               /* its source takes a job's id and deadline from them */
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

/* Removes a stream's group with all that it has not done, so that it no longer holds the stream's
 * head. Of opts as queue_init. *dropped false: there was none. E_RETRY: somebody reads in it;
 * E_USAGE: a queue whose groups hold nothing. */
int queue_drop(const struct source_opts *opts, bool *dropped, struct err *err) TR_MUSTCHECK;

/* Where a group's position shall go, and what that means for each partition. */
enum seek_kind { SEEK_TO_EARLIEST, SEEK_TO_END, SEEK_TO_OFFSET, SEEK_TO_TIME };
struct seek_to {
    enum seek_kind kind;
    int64_t value; /* offset; wall clock ns: the first message that is as young */
};
struct seek_move {
    int32_t partition;
    int64_t low, high; /* ends of its log */
    int64_t committed; /* what the group has acknowledged; -1: nothing */
    int64_t to;
};
/* Of opts besides these: group, partition (< 0: all). apply false: fills in moves, room for
 * SOURCE_PARTITIONS_MAX, and label, the name in partition_progress.source. apply true: the broker's
 * side of these moves; E_FATAL while the group has members, or a worker with --partition is at
 * work: where one may be, this looks for up to 45 s. E_USAGE: out of the log, or a queue without
 * positions. */
int queue_seek(const struct source_opts *opts, const struct seek_to *to, bool apply,
               struct seek_move *moves, int *n, char label[JOB_ORIGIN_MAX],
               struct err *err) TR_MUSTCHECK;

/* A range of messages; SCAN_OPEN: from the first there is, to the last that is acknowledged. */
enum scan_kind { SCAN_OPEN, SCAN_OFFSET, SCAN_TIME };
struct scan_end {
    enum scan_kind kind;
    int64_t value; /* offset, or milliseconds of a stream's id; wall clock ns */
};
struct scan_range {
    struct scan_end from, to; /* `to` is not part of it */
};
/* Takes one message, as a source would hand it out; the job is its own. */
typedef int queue_scan_take(void *ctx, struct job *job, struct err *err);
/* Reads without claiming; of a stream what is pending for nobody. Of opts: as queue_seek. */
int queue_scan(const struct source_opts *opts, const struct scan_range *range,
               queue_scan_take *take, void *ctx, struct err *err) TR_MUSTCHECK;

/* What a group has not done yet. */
struct backlog {
    int64_t lag;     /* messages that it has not had (Kafka: not acknowledged) */
    int64_t pending; /* messages that it has and has not acknowledged; Kafka: 0, lag has them */
};
/* Of opts besides these: group. -1: the broker does not know. Changes nothing. */
int queue_backlog(const struct source_opts *opts, struct backlog *out,
                  struct err *err) TR_MUSTCHECK;

#endif
