/* retry: see retry.h. */
#include "worker/retry.h"

void retry_open(struct retry *r, int64_t min_ns, int64_t max_ns, uint64_t seed)
{
    CHECK(min_ns > 0 && min_ns <= max_ns);
    *r = (struct retry){.min_ns = min_ns, .max_ns = max_ns, .state = seed};
}

int64_t retry_wait_ns(struct retry *r)
{
    int64_t bound = r->min_ns;
    for (int i = 0; i <= r->tries && bound < r->max_ns; i++)
        bound = bound > r->max_ns / 2 ? r->max_ns : bound * 2;
    if (r->tries < 62)
        r->tries++;
    r->state = hash_bytes(&r->state, sizeof r->state, 1);
    return r->min_ns + (int64_t)(r->state % (uint64_t)(bound - r->min_ns + 1));
}

void retry_reset(struct retry *r)
{
    r->tries = 0;
}
