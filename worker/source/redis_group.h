/* redis_group: what one consumer does with one group of one stream, a function a command. It keeps
 * no leases and never looks into an entry; see source_redis.c for when each is called.
 *
 * Ownership is checked inside the server, in scripts sent as text (so a SCRIPT FLUSH is no event):
 * a plain XCLAIM by a consumer that slept past its lease would take entries back from who has them
 * now. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_GROUP_H
#define TRANCHE_WORKER_SOURCE_REDIS_GROUP_H

#include "worker/source/redis_connection.h"

enum { REDIS_IDS_MAX = 512 }; /* of one command */
/* A worker is heard of this often whatever its lease, so whoever was silent for long is gone to one
 * that does not know its lease. */
#define REDIS_PRESENT_NS 5000000000LL
#define REDIS_GONE_NS    30000000000LL

struct redis_group {
    struct redis_connection *connection;
    struct str stream, group, consumer; /* borrowed */
    struct redis_args args;
};

/* Stream and group, from the stream's beginning or its end; both may exist. *created: the group did
 * not. */
int redis_group_create(struct redis_group *g, bool from_end, bool *created,
                       struct err *err) TR_MUSTCHECK;
/* Removes the group with all that is pending in it; the stream and its other groups stay. E_RETRY
 * naming the consumer: one was heard of in the last idle_ns (of less than REDIS_GONE_NS: in that),
 * and would make the group anew. *dropped false: there was none. */
int redis_group_drop(struct redis_group *g, int64_t idle_ns, bool *dropped,
                     struct err *err) TR_MUSTCHECK;
int redis_group_info(struct redis_group *g, struct redis_group_info *out,
                     struct err *err) TR_MUSTCHECK;

/* Is heard of: before 7.2 the server's `idle` of a consumer is the time since it last got entries,
 * so one that waits at a quiet stream would look gone. Moves nothing. */
int redis_group_present(struct redis_group *g, struct err *err) TR_MUSTCHECK;
/* Entries that no consumer has had: `from` NULL; or those pending for us behind id *from. Waits
 * block_ns for the first (0: not at all). */
int redis_group_read(struct redis_group *g, redisReply **out, const struct redis_id *from,
                     size_t count, int64_t block_ns, struct err *err) TR_MUSTCHECK;
/* Takes entries that were idle for longer than idle_ns, scanning from `cursor`. */
int redis_group_autoclaim(struct redis_group *g, redisReply **out, struct redis_id cursor,
                          size_t count, int64_t idle_ns, struct err *err) TR_MUSTCHECK;
int redis_group_ack(struct redis_group *g, const struct redis_id *ids, size_t n,
                    struct err *err) TR_MUSTCHECK;
/* Of these ids (at most REDIS_IDS_MAX) sets the idle time of those that are ours: 0 renews their
 * lease, a long one hands them to whoever claims next. Delivery counts stay. lost gets the ids that
 * are not ours (room for n); returns their number. */
int redis_group_touch(struct redis_group *g, const struct redis_id *ids, size_t n, int64_t idle_ms,
                      struct redis_id *lost, struct err *err) TR_MUSTCHECK;
/* Removes the head of the stream up to the oldest entry that any group still needs, and nothing
 * younger than keep_ns by the server's clock. Returns the number of entries removed. */
int redis_group_trim(struct redis_group *g, int64_t keep_ns, struct err *err) TR_MUSTCHECK;
/* Removes consumers without pending entries that were silent for idle_ns; our own whatever its
 * silence when `ours`. One with pending entries is never removed: they would be lost. */
int redis_group_reap(struct redis_group *g, int64_t idle_ns, bool ours,
                     struct err *err) TR_MUSTCHECK;

#endif
