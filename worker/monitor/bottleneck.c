/* bottleneck: see bottleneck.h. */
#include "worker/monitor/bottleneck.h"

/* A slot that is refilled between two steps is not free. */
static const double FULL = 0.9;

enum bottleneck bottleneck_of(const struct bottleneck_view *v)
{
    if (v->sink_away)
        return BOTTLENECK_SINK;
    if (v->running > 0 && (double)v->running >= FULL * (double)v->slots)
        return BOTTLENECK_ENGINE;
    if (v->jobs > v->running) {
        bool tight = v->pages > 0 && (double)v->pages_used >= FULL * (double)v->pages;
        return tight ? BOTTLENECK_PAGES : BOTTLENECK_PREPARE;
    }
    /* All that is here runs. What runs and is not acknowledged stands in the lag as well. */
    return v->lag > v->jobs ? BOTTLENECK_SOURCE
           : v->running > 0 ? BOTTLENECK_ENGINE
                            : BOTTLENECK_IDLE;
}
