/* share: a canary's part of the jobs. */
#ifndef TRANCHE_WORKER_JOB_SHARE_H
#define TRANCHE_WORKER_JOB_SHARE_H

#include "engine/base.h"

/* Whether a job is among the first `share` (0..1) of all by the hash of its id. Pure: the same jobs
 * in every process, run and batch, and those of a smaller share are among those of a larger one. */
bool share_takes(struct str custom_id, double share);

#endif
