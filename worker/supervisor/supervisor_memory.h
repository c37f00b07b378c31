/* supervisor_memory: what the kernel says of a process's memory. Linux only, as the rest. */
#ifndef TRANCHE_WORKER_SUPERVISOR_SUPERVISOR_MEMORY_H
#define TRANCHE_WORKER_SUPERVISOR_SUPERVISOR_MEMORY_H

#include <sys/types.h>

#include "engine/base.h"

/* Bytes of a process that are resident; 0: not known. */
int64_t memory_resident(pid_t pid);
/* Processes of this control group that were killed for want of memory so far; 0: none, or not
 * known. */
int64_t memory_kills(void);

#endif
