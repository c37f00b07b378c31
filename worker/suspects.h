/* suspects: jobs that were in flight when a process died, three times or more. One of them may be
 * what killed it; most stood beside. They run apart from the others, in groups that halve with each
 * further death, down to one: a group's limit is the wave (slots + ready queue) over
 * 2^(starts - 2), and never more than half of the suspects at hand. Pure: no clock, no database.
 *
 * What convicts: two deaths while alone on the engine whose cause is on record as the process's
 * own. A job is then given up; its deaths were at most 3 (as anybody) + log2(wave) (in groups, the
 * last one of these alone) + 1 <= 5 + log2(wave). Starts that nobody gave back or answered for (a
 * pod that was lost whole) count towards suspicion only: they make groups smaller and convict
 * nobody. */
#ifndef TRANCHE_WORKER_SUSPECTS_H
#define TRANCHE_WORKER_SUSPECTS_H

#include "engine/base.h"

struct job;

enum {
    SUSPECT_STARTS = 3,   /* starts without an end that make a suspect */
    SUSPECT_CONVICTS = 2, /* own deaths while alone that convict it */
    SUSPECT_LEVELS = 34   /* lists by starts; from the last on every group is one job */
};

/* starts: the attempts that the sink counted, before the one to come. */
bool suspect_is(int32_t starts);
bool suspect_convicted(int32_t starts, int32_t deaths);
/* Jobs that a group with such a suspect may have; 0: it is none, and runs as it likes. */
int64_t suspect_limit(int32_t starts, int64_t wave);

/* Those at hand: fewest starts first, then in order of arrival. Linked by job->next; the jobs stay
 * the caller's. */
struct suspects {
    struct {
        struct job *first, *last;
        int64_t n;
    } levels[SUSPECT_LEVELS];
    int64_t n;
};
void suspects_add(struct suspects *s, struct job *job); /* by job->attempts */
struct job *suspects_take(struct suspects *s);          /* NULL: none */
/* Jobs that the next group takes; 0: none at hand. */
int64_t suspects_group(const struct suspects *s, int64_t wave);

#endif
