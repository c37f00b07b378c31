/* failpoint: named places where a test build can be told to die, stop, sleep or fail. They stand at
 * every boundary of the durable steps (tests/faults); a build without -DTRANCHE_FAILPOINTS=ON holds
 * no trace of them. What to do comes from the environment:
 *
 *   TRANCHE_FAIL=NAME:ACTION[=VALUE][@N[+]][,NAME:...]
 *
 * at the Nth time that the process comes by (1 when none is given; N+: from the Nth on). Actions:
 * kill (SIGKILL), pod (SIGKILL to the process group, its supervising parent included), segv
 * (SIGSEGV), stop (SIGSTOP to the whole process), exit[=STATUS] (70), sleep=MS, error (only where
 * the place can fail: E_RETRY). Each one says so on standard error first. */
#ifndef TRANCHE_WORKER_FAILPOINT_H
#define TRANCHE_WORKER_FAILPOINT_H

#include "engine/base.h"

#ifdef TRANCHE_FAILPOINTS
/* E_OK, or E_RETRY with a message where an `error` is due. A malformed TRANCHE_FAIL ends the
 * process with status 64. Any thread. */
int failpoint_hit(const char *name, struct err *err);
#define FAILPOINT(name)            ((void)failpoint_hit((name), NULL))
#define FAILPOINT_ERROR(name, err) failpoint_hit((name), (err))
#else
#define FAILPOINT(name)            ((void)0)
#define FAILPOINT_ERROR(name, err) E_OK
#endif

#endif
