/* health: what the probes ask. Written by the worker's own thread (and by commands.c before it),
 * read by the HTTP thread; atomics, of the process like metrics.h.
 *
 * Alive: the worker's loop and each engine's loop went round within `watchdog`. Neither broker nor
 * database nor progress plays a part: a restart would mend none of these. Before the loop begins
 * and behind it the process counts as alive; loading and leaving have limits of their own.
 *
 * Ready: nothing below holds. */
#ifndef TRANCHE_WORKER_MONITOR_HEALTH_H
#define TRANCHE_WORKER_MONITOR_HEALTH_H

#include "worker/job/text.h"

enum health_want {
    HEALTH_START,    /* model, source and database are not open yet */
    HEALTH_SOURCE,   /* not a member of its group yet, or cast out, or not connected (Redis) */
    HEALTH_SINK,     /* the database did not answer the last call */
    HEALTH_BREAKER,  /* is open */
    HEALTH_ENGINE,   /* was lost */
    HEALTH_PROOF,    /* no engine has ended anything well in this process yet */
    HEALTH_STOPPING, /* drains, or has ended */
    HEALTH_WANTS
};
/* Not ready, alive. watchdog_ns 0: alive as long as it answers. */
void health_begin(int64_t watchdog_ns);
void health_set(enum health_want want, bool holds);
void health_beat(int64_t now_ns);                 /* the worker's loop went round (mono) */
void health_engine(int engine, int64_t since_ns); /* when its loop last did; 0: it is not in it */
void health_rest(void);                           /* the loop has ended */

/* Whether it is alive, or ready; why not is appended to `why`, a line each. */
bool health_alive(int64_t now_ns, struct text *why);
bool health_ready(struct text *why);

#endif
