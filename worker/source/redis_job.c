/* redis_job: see redis_job.h. */
#include "worker/source/redis_job.h"

enum { LONG_KEPT = 1024 };

/* So that the outbox can tell a message that goes in circles. */
static int add_copies(struct job *job, struct str copies)
{
    struct str place = job->place;
    if (copies.len != 1 || copies.ptr[0] < '0' || copies.ptr[0] > '9')
        return E_OK;
    return job_printf(job, &job->place, STR_FMT ",\"copies\":" STR_FMT, STR_ARG(place),
                      STR_ARG(copies));
}

struct job *redis_job_open(const struct redis_entry *e, const char *stream, struct str stream_json,
                           int64_t wall_ns)
{
    size_t len = e->job.len > JOB_BYTES_MAX ? LONG_KEPT : e->job.len;
    struct job *job = job_open(len);
    if (!job)
        return NULL;
    if (len)
        memcpy((char *)(uintptr_t)job->message.ptr, e->job.ptr, len);
    job->message_full = e->job.len;
    job->queued_ns = wall_ns;
    /* Ids that the server made are milliseconds of its clock; a producer may have made others. */
    if (e->id.ms > 1000000000000 && e->id.ms < (uint64_t)wall_ns / 1000000)
        job->queued_ns = (int64_t)e->id.ms * 1000000;
    if (job_printf(job, &job->origin, "%s/" STR_FMT, stream, STR_ARG(e->id_text)) < 0 ||
        job_printf(job, &job->place, "\"stream\":" STR_FMT ",\"id\":\"" STR_FMT "\"",
                   STR_ARG(stream_json), STR_ARG(e->id_text)) < 0 ||
        add_copies(job, e->copies) < 0) {
        job_close(job);
        return NULL;
    }
    if (!e->job.ptr)
        job_fail(job, "missing_field", "the stream entry has no field \"job\"");
    return job;
}

struct redis_id redis_job_id(const struct job *job)
{
    struct redis_id id;
    struct str o = job->origin;
    const char *slash = memrchr(o.ptr, '/', o.len);
    CHECK(slash);
    CHECK(redis_id_parse((struct str){slash + 1, o.len - (size_t)(slash + 1 - o.ptr)}, &id));
    return id;
}
