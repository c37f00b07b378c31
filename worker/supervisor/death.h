/* death: why a worker's process ended before its time, as it is recorded: by the process itself, or
 * by its supervising parent. Only a cause of its own making can ever speak against a job. */
#ifndef TRANCHE_WORKER_SUPERVISOR_DEATH_H
#define TRANCHE_WORKER_SUPERVISOR_DEATH_H

#include "engine/base.h"

enum death_cause {
    DEATH_NONE,    /* nothing is recorded */
    DEATH_OUTSIDE, /* killed by somebody else: counts for nothing */
    /* Its own, from here on. */
    DEATH_SIGABRT,
    DEATH_SIGBUS,
    DEATH_SIGFPE,
    DEATH_SIGILL,
    DEATH_SIGSEGV,
    DEATH_SIGSYS,
    DEATH_SIGTRAP,
    DEATH_HANG,   /* the engine's loop stood still longer than --watchdog */
    DEATH_MEMORY, /* it took more than --memory-limit, or than its control group has */
    DEATH_ENGINE, /* the engine failed for good: a lost device */
    DEATH_CAUSES
};
/* "SIGSEGV", "hang", ...: what job_attempts.cause and the row's error_detail say. */
const char *death_cause_name(enum death_cause cause);
enum death_cause death_cause_find(struct str name); /* DEATH_NONE: no such name */
/* The cause that a fatal signal is when nobody sent it; DEATH_OUTSIDE for all others. */
enum death_cause death_cause_of_signal(int number);
static inline bool death_is_own(enum death_cause cause)
{
    return cause > DEATH_OUTSIDE;
}

/* A process that died, and why. */
struct death {
    struct str process; /* struct sink's */
    enum death_cause cause;
    int64_t jobs, charged; /* out: in flight at it; of these, alone and so charged with it */
};

#endif
