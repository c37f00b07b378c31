/* ready_queue: jobs whose attempt is counted, on their way from the worker to the engines' threads;
 * the most urgent first (job_heap.h). Room for every job in flight is taken at open, so a push
 * never waits. */
#ifndef TRANCHE_WORKER_READY_QUEUE_H
#define TRANCHE_WORKER_READY_QUEUE_H

#include "worker/job_heap.h"

struct ready_queue;
int ready_queue_open(struct ready_queue **out, size_t cap, struct err *err) TR_MUSTCHECK;
void ready_queue_close(struct ready_queue *q); /* NULL is legal; jobs inside are forgotten */

void ready_queue_push(struct ready_queue *q, struct job *const *jobs, size_t n);
/* Waits up to timeout_ns (0: not at all) for a job; NULL: none came. */
struct job *ready_queue_pop(struct ready_queue *q, int64_t timeout_ns);
/* As job_heap_take. */
size_t ready_queue_take(struct ready_queue *q, bool (*wanted)(const struct job *),
                        struct job **out);
size_t ready_queue_length(struct ready_queue *q);

#endif
