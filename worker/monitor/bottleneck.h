/* bottleneck: the rule that names what keeps a worker from more rows a second at this moment. Pure.
 */
#ifndef TRANCHE_WORKER_MONITOR_BOTTLENECK_H
#define TRANCHE_WORKER_MONITOR_BOTTLENECK_H

#include "engine/base.h"

/* In the order of METRIC_BOTTLENECK's labels. */
enum bottleneck {
    BOTTLENECK_IDLE,    /* nothing is there to be done */
    BOTTLENECK_SOURCE,  /* slots are free, and what the queue has does not come */
    BOTTLENECK_PREPARE, /* slots are free, and jobs are on their way: tokenized, their starts
                           counted */
    BOTTLENECK_PAGES,   /* slots are free, and there is no room for keys and values */
    BOTTLENECK_ENGINE,  /* the slots are full: as it should be */
    BOTTLENECK_SINK,    /* the database is away */
    BOTTLENECKS
};
struct bottleneck_view {
    bool sink_away;
    int64_t slots, running;
    int64_t jobs;              /* claimed and without a row */
    int64_t pages, pages_used; /* of keys and values; pages 0: the engine has none */
    int64_t lag;               /* messages that are left; < 0: not known */
};
enum bottleneck bottleneck_of(const struct bottleneck_view *v);

#endif
