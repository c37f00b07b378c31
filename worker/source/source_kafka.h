/* source_kafka: what the files of the Kafka source share: its state. kafka_client.c opens and
 * closes the library's handle, kafka_assignment.c deals with partitions that come and go,
 * kafka_message.c makes a job of a message, source_kafka.c claims, acknowledges and commits. Nobody
 * else includes this but their tests.
 *
 * One thread owns all of it, the worker's source thread. It never works longer than a broker takes
 * to answer, so it is also the poll thread: the library's own threads send the heartbeats. */
#ifndef TRANCHE_WORKER_SOURCE_SOURCE_KAFKA_H
#define TRANCHE_WORKER_SOURCE_SOURCE_KAFKA_H

#include "worker/source/kafka_client.h"
#include "worker/source/kafka_watermark.h"

enum { KAFKA_WINDOW_MAX = 65536 }; /* delivered offsets of a partition from its watermark on */

struct kafka_partition {
    bool owned;    /* assigned to us and not taken back */
    bool told;     /* the worker knows that it wants a start */
    bool started;  /* the library fetches it */
    bool leaving;  /* waits in `revoking`: acks count, nothing of it is handed out any more */
    bool refused;  /* its position makes no sense: not read, see kafka_assignment.c */
    bool full;     /* paused: its window is */
    bool halted;   /* what kafka_pause said last: the library keeps it across assignments */
    bool ended;    /* its end came behind the last message */
    bool again;    /* kafka_start_again had no answer: kafka_service asks on */
    int64_t start; /* as the sink has it; -1: nothing on record */
    int64_t ahead; /* the group's offset, where it stood above start and no message has come yet */
    struct kafka_watermark watermark;
    int64_t sequence;
    int64_t first_sequence; /* of this assignment: earlier messages are of another one */
    int64_t sent;           /* last offset that was sent to be committed; -1: none, or it failed */
    int64_t end;            /* log end as last seen; -1: not known */
    /* One partition alone: the offset that is not somebody else's: what it found, then what the
     * broker confirmed; -1: none. And what somebody else has put there since; -1: nothing. */
    int64_t own, others;
};

struct source_kafka {
    struct source source;
    struct source_opts opts;
    const struct clock *clock;
    rd_kafka_t *rk;
    char *topic;
    int32_t n_partitions;
    bool cooperative, closing;
    bool by_broker; /* the broker assigns (KIP-848); else members do, in steps where cooperative */
    bool assigned;  /* it has worked once: no going back */
    bool joined;    /* the group has told us our part, which may be nothing, and not cast us out */
    atomic_bool no_such_request; /* the broker is older than KIP-848; set by the library's thread */
    bool to_classic; /* the group or its broker cannot: the next service call starts over */
    struct kafka_partition partitions[SOURCE_PARTITIONS_MAX];

    rd_kafka_topic_partition_list_t *assigning; /* waits for starts, then goes to the library */
    rd_kafka_topic_partition_list_t *revoking;  /* waits for the flush */
    int64_t revoke_until_ns;
    struct source_service news; /* for the next service call */

    rd_kafka_message_t *held; /* polled, but did not fit the budget */
    bool paused;
    int64_t rows_max, bytes_max; /* the largest budget seen: all of it */
    int64_t claimed_ns, committed_ns, idle_ns, asked_ns, again_ns;
    int64_t open;      /* claimed and neither acknowledged nor released */
    int64_t until;     /* one partition alone: its end when we opened; -1: none */
    bool alone;        /* at work without the group's leave: commits say so */
    int64_t signed_ns; /* when one said so; 0: none, or it was taken back */
    uint64_t name;     /* ours in these signs: a random number */
    uint32_t signs;    /* so far */
    struct err failed; /* a callback's E_FATAL, for the next call that can tell it */
};

static inline struct source_kafka *kafka_of(struct source *s)
{
    return (struct source_kafka *)s;
}

/* ---- kafka_consumer.c ---- */

/* Notes an error of the client as a whole: logs it, and keeps it where it is E_FATAL. */
void kafka_note_error(struct source_kafka *k, rd_kafka_resp_err_t code, const char *detail);
/* The same for the answer to a question of ours, where it is a refusal that will not end. */
void kafka_note_refusal(struct source_kafka *k, rd_kafka_resp_err_t code, const char *what);
/* A new handle under the classic group protocol in place of one that the broker refused. */
int kafka_go_classic(struct source_kafka *k, struct err *err);

/* ---- kafka_assignment.c ---- */

void kafka_rebalance(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                     rd_kafka_topic_partition_list_t *list, void *opaque);
int kafka_start(struct source *source, int32_t partition, int64_t position, struct err *err);
/* Assigns what waits, once every start is known. E_RETRY: the broker gave no answer; again. */
int kafka_try_assign(struct source_kafka *k, struct err *err);
int kafka_flushed(struct source *source, struct err *err);
/* Gives up waiting for a flush whose time is over. */
void kafka_mind_revocation(struct source_kafka *k);
/* The position of a partition is not in the log any more: on to its first message that is. E_RETRY:
 * the broker gave no answer; the partition is marked `again`. */
int kafka_start_again(struct source_kafka *k, int32_t partition, struct err *err);
/* The same for each partition that is marked, once a second. */
void kafka_mind_resets(struct source_kafka *k);

/* ---- kafka_commit.c ---- */

/* Everything that may be committed and is not yet, marked as a worker's; waits for the answer where
 * sync. */
int kafka_commit(struct source_kafka *k, bool sync, struct err *err);
/* A worker with --partition is no member of its group, so the broker would let a `seek` pass: a
 * sign of life goes with its commits, another one every 15 s, and is taken back when it leaves. It
 * names the worker and counts; there is no time in it, because whoever reads it has another clock:
 * one that stays as it is for three times as long is of a worker that was killed. */
enum { KAFKA_SIGN_SECONDS = 15, KAFKA_SIGN_LOST_SECONDS = 3 * KAFKA_SIGN_SECONDS };
/* Whether a commit's metadata is such a sign. Pure. */
bool kafka_sign(const void *metadata, size_t size);
void kafka_on_commit(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                     rd_kafka_topic_partition_list_t *list, void *opaque);
/* A list of one. */
rd_kafka_topic_partition_list_t *kafka_list_of(const struct source_kafka *k, int32_t partition,
                                               int64_t offset);
void kafka_pause(struct source_kafka *k, int32_t partition, bool pause);

/* ---- kafka_message.c ---- */

enum { KAFKA_HEADERS_MAX = 64 };
struct kafka_header {
    struct str name, value; /* value.ptr NULL: null */
};
/* A message in pieces that are borrowed; ptr NULL: null. */
struct kafka_record {
    int32_t partition;
    int64_t offset, ms; /* wall clock; 0: not known */
    struct str key, value;
    struct kafka_header headers[KAFKA_HEADERS_MAX];
    size_t n_headers, n_all; /* n_all: that the message had */
};
/* Pure but for the clock, which counts where ms is not known; fuzzed. NULL: no memory. */
struct job *kafka_record_job(const char *topic, const struct kafka_record *r,
                             const struct clock *clock);
/* The caller sets sequence. NULL: no memory. */
struct job *kafka_job(const char *topic, const rd_kafka_message_t *message,
                      const struct clock *clock);

/* ---- source_kafka.c ---- */

void kafka_pause_all(struct source_kafka *k, bool pause);
extern const struct source_ops source_kafka_ops;
int source_kafka_open(struct source **out, const struct source_url *url,
                      const struct source_opts *opts, const struct clock *clock,
                      struct err *err) TR_MUSTCHECK;
void source_kafka_close(struct source *source);

#endif
