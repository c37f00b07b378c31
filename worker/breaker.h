/* breaker: stops intake when the model itself is broken. More than a share (a fifth) of the last
 * 200 jobs that an engine ended (at least 50) failed: nothing new is admitted, and what fails
 * meanwhile gets no row but waits, so that a broken model does not turn a whole queue into failed
 * rows. After a pause one job at a time is tried; the first that does not fail closes it. Pure:
 * time comes as an argument. */
#ifndef TRANCHE_WORKER_BREAKER_H
#define TRANCHE_WORKER_BREAKER_H

#include "engine/base.h"

enum { BREAKER_WINDOW = 200, BREAKER_LEAST = 50 };
enum breaker_state {
    BREAKER_CLOSED,
    BREAKER_OPEN,   /* until until_ns */
    BREAKER_PROBING /* one job is out */
};
enum breaker_change { BREAKER_SAME, BREAKER_TRIPPED, BREAKER_MENDED };

/* All zeros but the share is a closed one. */
struct breaker {
    double share; /* from 1 on it never trips */
    enum breaker_state state;
    bool failed[BREAKER_WINDOW];
    int n, at, n_failed;
    int64_t until_ns, pause_ns;
};
/* Jobs that may be admitted now: 0, 1 (a probe), or INT64_MAX. Asking changes nothing. */
int64_t breaker_room(const struct breaker *b, int64_t now_ns);
void breaker_probe(struct breaker *b); /* one has been admitted while it was not closed */
/* The probe left without an end that an engine gave it. */
void breaker_no_answer(struct breaker *b);
/* An engine has ended a job. */
enum breaker_change breaker_ended(struct breaker *b, bool failed, bool probe, int64_t now_ns);

#endif
