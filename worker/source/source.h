/* source: where messages come from. A source is owned by one thread, the worker's source thread:
 * every function below is called there and nowhere else. It never looks into a message.
 *
 * A claimed message stays claimed until it is acknowledged (its row is committed) or released
 * (somebody else may run it). Its `sequence` numbers are dense within a partition, so that the
 * worker can tell the watermark: the position before which every message has its row. */
#ifndef TRANCHE_WORKER_SOURCE_SOURCE_H
#define TRANCHE_WORKER_SOURCE_SOURCE_H

#include "worker/job/job.h"

/* Type of an E_FATAL that the next process would meet too: a right, a position, a protocol. (Not a
 * login: secrets are read anew; not a member that was fenced.) */
#define SOURCE_REFUSED "source_refused"
enum {
    SOURCE_CLAIM_MAX = 256,
    SOURCE_PARTITIONS_MAX = 256,
    SOURCE_GAPS_MAX = SOURCE_PARTITIONS_MAX
};

struct source_budget {
    int64_t rows, bytes; /* what may still be claimed; one message is always given where rows > 0 */
};
/* Messages that the broker no longer has: positions from..to-1 of a partition. */
struct source_gap {
    int32_t partition;
    int64_t from, to;
    const char *reason; /* static */
};
/* Where a partition begins of which the sink had nothing on record, or of which a gap goes before
 * it: a watermark in front of a gap on record would make the next gap begin where that one does. */
struct source_start {
    int32_t partition;
    int64_t position;
};
/* Partitions that changed hands since the last call. */
struct source_service {
    int32_t assigned[SOURCE_PARTITIONS_MAX], n_assigned; /* wait for `start` */
    int32_t revoked[SOURCE_PARTITIONS_MAX], n_revoked;   /* commit what is finished: `flushed` */
    int32_t lost[SOURCE_PARTITIONS_MAX], n_lost;         /* gone already: acks will be refused */
    struct source_gap gaps[SOURCE_GAPS_MAX];
    int32_t n_gaps;
    struct source_start started[SOURCE_PARTITIONS_MAX]; /* to be put on record, ahead of any row */
    int32_t n_started;
};
struct source_lag {
    int64_t messages; /* a queue's: not acknowledged; a file's: unread; -1: not known */
    int64_t bytes;    /* unread; -1: not known */
    int64_t bytes_total;
    int64_t pending;  /* claimed by any worker of the group and not acknowledged; -1: not known */
    int64_t retained; /* Kafka: least distance of such a message from its log's start; -1 */
    bool joined;      /* open, and for a group: a member of it */
};

struct source;
struct source_ops {
    const char *name;
    /* Up to cap (<= SOURCE_CLAIM_MAX) new messages; the jobs are the caller's. Waits at most
     * timeout_ns for the first. Returns their number; 0 with *drained: there will be none. E_RETRY:
     * the broker is away; E_FATAL. */
    int (*claim)(struct source *, const struct source_budget *, struct job **out, int cap,
                 int64_t timeout_ns, bool *drained, struct err *);
    /* Keeps leases, polls, notices rebalances. Called at least once a second. */
    int (*service)(struct source *, struct source_service *, struct err *);
    int (*ack)(struct source *, struct job *const *jobs, size_t n, struct err *);
    int (*release)(struct source *, struct job *const *jobs, size_t n, struct err *);
    /* Answers `assigned`: position is what the sink has on record, -1: nothing. Claims of this
     * partition begin here. NULL where a source never assigns. */
    int (*start)(struct source *, int32_t partition, int64_t position, struct err *);
    /* Answers `revoked`: what was finished is committed and acknowledged. NULL as above. */
    int (*flushed)(struct source *, struct err *);
    /* Position behind the last claimed message of a partition. */
    int64_t (*position)(const struct source *, int32_t partition);
    void (*lag)(const struct source *, struct source_lag *);
    /* Asks the broker, once claims and acks are over: messages of the whole group that are unread
     * or not acknowledged; -1: not known. NULL where a source knows its own end. */
    int64_t (*left)(struct source *);
    void (*close)(struct source *);
};
struct source {
    const struct source_ops *ops;
    char label[JOB_ORIGIN_MAX]; /* "jobs.jsonl", "kafka://host/topic": partition_progress.source */
    char stem[JOB_ORIGIN_MAX];  /* "jobs": the batch_id of messages that name none */
};
static inline void source_close(struct source *s)
{
    if (s)
        s->ops->close(s);
}

/* JSON lines from a file, or from standard input for "-". Any size in flat memory: a line is read
 * into a job of its own, and of a line longer than JOB_BYTES_MAX only the first KiB is kept. BOM,
 * CRLF and a missing last newline are legal; empty lines are skipped but counted. A position is the
 * byte behind the line; ack and release need do nothing, because the file keeps its lines.
 * E_USAGE naming the file when it cannot be read. */
int source_file_open(struct source **out, const char *path, const struct clock *clock,
                     struct err *err) TR_MUSTCHECK;

#endif
