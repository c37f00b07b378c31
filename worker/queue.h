/* queue: a bounded queue between threads, the only way a job passes from one to another. Items are
 * pointers with a kind. The room is taken at open. The worker sizes every queue to its admission
 * budget, so a push waits only where that budget is spent, and no ring of threads can wait for
 * itself. */
#ifndef TRANCHE_WORKER_QUEUE_H
#define TRANCHE_WORKER_QUEUE_H

#include "engine/base.h"

struct queue;
struct item {
    int kind; /* the owner's enum */
    void *ptr;
};

int queue_open(struct queue **out, size_t cap, struct err *err) TR_MUSTCHECK;
void queue_close(struct queue *q); /* NULL is legal; items inside are forgotten */

/* Waits for room, then takes all n items, in order. False: the queue has been shut; the items that
 * did not fit are the caller's still. */
bool queue_push(struct queue *q, const struct item *items, size_t n);
/* Up to cap items, oldest first. Waits until there is one, timeout_ns has passed (0: not at all;
 * < 0: for ever) or the queue is shut. Returns the number; 0: none came. */
size_t queue_pop(struct queue *q, struct item *items, size_t cap, int64_t timeout_ns);
/* Refuses pushes from here on and wakes every waiter; what is inside can still be popped. */
void queue_shut(struct queue *q);
bool queue_is_shut(struct queue *q);
size_t queue_length(struct queue *q);

#endif
