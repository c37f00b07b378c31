/* redis_job: a stream entry as a job, and a job's entry again. Pure but for memory. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_JOB_H
#define TRANCHE_WORKER_SOURCE_REDIS_JOB_H

#include "worker/job/job.h"
#include "worker/source/redis_reply.h"

/* The entry's field `job` is the message; without one the row will be invalid and say so. Origin
 * "STREAM/ID". `stream_json` is the stream's name as a JSON string. A message beyond JOB_BYTES_MAX
 * is cut to its first KiB. NULL: no memory. The caller sets sequence. */
struct job *redis_job_open(const struct redis_entry *e, const char *stream, struct str stream_json,
                           int64_t wall_ns);
/* The entry that a job came from. */
struct redis_id redis_job_id(const struct job *job);

#endif
