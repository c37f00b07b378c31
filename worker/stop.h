/* stop: what Ctrl-C and SIGTERM do to a process that works. The first one asks for a drain and
 * starts the clock; the second asks it to leave now; the third, or the end of the grace period,
 * leaves from within the handler, whatever still blocks. A signal within 100 ms of the one before
 * is the same one: a terminal and a parent process may both pass it on. */
#ifndef TRANCHE_WORKER_STOP_H
#define TRANCHE_WORKER_STOP_H

#include <stdatomic.h>
#include <stdint.h>

/* Takes SIGINT and SIGTERM over: while the process opens what it needs, either ends it with 128 +
 * its number. One at a time in a process. */
void stop_catch(void);
/* It works from here on, and signals are counted. exit_ns: from the first one to the end. */
void stop_begin(int64_t exit_ns);
void stop_release(void); /* as it was before; the clock is stopped */
/* How many signals have come: for worker_opts.stop_signal. */
const atomic_int *stop_count(void);
int stop_number(void); /* the first one's number; 0: none came */

#endif
