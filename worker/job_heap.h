/* job_heap: jobs that wait, the next one to go at the top: highest priority, then earliest arrival.
 * A binary heap of fixed room, owned by one thread. */
#ifndef TRANCHE_WORKER_JOB_HEAP_H
#define TRANCHE_WORKER_JOB_HEAP_H

#include "worker/job/job.h"

struct job_heap {
    struct job **jobs; /* [cap] */
    size_t n, cap;
};
int job_heap_open(struct job_heap *h, size_t cap, struct err *err) TR_MUSTCHECK;
void job_heap_close(struct job_heap *h); /* the jobs are forgotten; zeroed is legal */

void job_heap_push(struct job_heap *h, struct job *job); /* there must be room */
struct job *job_heap_pop(struct job_heap *h);            /* NULL: none */
/* Moves every job that `wanted` answers for to out[] (room for all n), in no order; their number.
 * One pass over the heap, however many they are. */
size_t job_heap_take(struct job_heap *h, bool (*wanted)(const struct job *), struct job **out);

#endif
