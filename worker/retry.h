/* retry: how long to wait before the next try of something that is down. Exponential with full
 * jitter: the wait is uniform between min and a bound that doubles, so that many clients of one
 * server that comes back do not arrive together (Brooker, "Exponential Backoff And Jitter", 2015).
 * Pure: it knows no clock, the caller sleeps. */
#ifndef TRANCHE_WORKER_RETRY_H
#define TRANCHE_WORKER_RETRY_H

#include "engine/base.h"

struct retry {
    int64_t min_ns, max_ns;
    uint64_t state; /* of the generator */
    int tries;      /* since the last success */
};
void retry_open(struct retry *r, int64_t min_ns, int64_t max_ns, uint64_t seed);
/* The wait before the next try, in [min_ns, max_ns]. */
int64_t retry_wait_ns(struct retry *r);
void retry_reset(struct retry *r); /* it worked */

#endif
