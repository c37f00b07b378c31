/* outstanding: the jobs that are claimed and not yet settled. By arrival (the pool returns them out
 * of order), by key (a repeated id meets the one in flight), by partition in the source's order
 * (the watermark), and by priority (who goes to the engine next). One thread; sized at open. */
#ifndef TRANCHE_WORKER_OUTSTANDING_H
#define TRANCHE_WORKER_OUTSTANDING_H

#include "worker/job_heap.h"
#include "worker/source/source.h"

struct partition {
    struct job *first, *last;   /* in the source's order, by job->before and job->behind */
    int64_t position, messages; /* behind the newest job that was entered */
    int32_t epoch;              /* times that it was taken away, as the source's thread counts */
    int32_t epoch_next;         /* once `revoked` is dealt with */
    bool used;
    bool revoked, wants_start; /* the worker's: see worker_partitions.c */
    bool held;                 /* a job was given back: no watermark passes it */
    int64_t held_sequence, held_position;
};
struct outstanding {
    size_t cap, n;
    struct job **ring; /* [cap]: arrived out of order, at arrival % cap */
    int64_t next_arrival;
    struct job **buckets; /* [n_buckets], a power of two */
    size_t n_buckets;
    struct job_heap waiting; /* [cap] */
    struct partition partitions[SOURCE_PARTITIONS_MAX];
    struct partition orphans; /* jobs of partitions that were taken away since */
};
int outstanding_open(struct outstanding *o, size_t cap, struct err *err) TR_MUSTCHECK;
void outstanding_close(struct outstanding *o); /* frees every job that is still inside */

/* Takes a job from the pool; at most cap may be between here and outstanding_leave. */
void outstanding_arrive(struct outstanding *o, struct job *job);
/* The next job in order of arrival, entered into its partition; NULL: it has not arrived yet. */
struct job *outstanding_next(struct outstanding *o);
/* The job in flight with this job's key, or NULL. */
struct job *outstanding_find(const struct outstanding *o, const struct job *job);
struct job *outstanding_find_key(const struct outstanding *o, const struct key *key);
void outstanding_enter_key(struct outstanding *o, struct job *job);
void outstanding_leave_key(struct outstanding *o, struct job *job); /* harmless when not entered */
/* The job is settled: out of its partition. */
void outstanding_leave(struct outstanding *o, struct job *job);
/* The partition was taken away: its jobs go on as orphans, which no watermark counts. Its next job,
 * of `epoch`, begins a new watermark. */
void outstanding_disown(struct outstanding *o, int32_t partition, int32_t epoch);
/* Whether nobody waits for this job here: it and its twins are orphans. */
bool outstanding_orphaned(const struct outstanding *o, const struct job *job);

/* The job goes back to its source without a row: before outstanding_leave, so that the partition's
 * watermark stays in front of it. */
void outstanding_hold(struct outstanding *o, const struct job *job);

/* Every job inside, orphans and twins too. `visit` may let the job that it is given leave. */
void outstanding_each(struct outstanding *o, void (*visit)(void *ctx, struct job *job), void *ctx);

/* The position before which every message of the partition is settled or in stage `committing`;
 * *messages: their number. */
int64_t partition_watermark(const struct partition *p, int committing, int64_t *messages);

#endif
