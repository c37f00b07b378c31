/* redis_admin: see redis_admin.h. */
#include "worker/source/redis_admin.h"

int redis_admin_open(struct redis_stream **out, const struct source_url *url,
                     const struct source_opts *opts, struct redis_group_info *info, struct err *err)
{
    struct redis_stream *s = mem_alloc(1, sizeof *s); /* too large for a stack */
    *out = NULL;
    if (!s)
        return err_set(err, E_FATAL, "redis: no memory");
    int rc = redis_stream_open(s, url, opts, clock_system(), err);
    if (rc == E_OK)
        rc = redis_group_info(&s->group, info, err);
    if (rc == E_OK && !info->found)
        rc = err_set(err, E_FATAL, "redis:%s: there is no such stream, or no group \"%s\" of it",
                     s->stream, s->group_name);
    if (rc < 0)
        redis_admin_close(s);
    else
        *out = s;
    return rc;
}

void redis_admin_close(struct redis_stream *s)
{
    if (!s)
        return;
    redis_stream_close(s);
    mem_free(s);
}

int redis_queue_drop(const struct source_url *url, const struct source_opts *opts, bool *dropped,
                     struct err *err)
{
    struct redis_stream *s = mem_alloc(1, sizeof *s); /* too large for a stack */
    *dropped = false;
    if (!s)
        return err_set(err, E_FATAL, "redis: no memory");
    int rc = redis_stream_open(s, url, opts, clock_system(), err);
    if (rc == E_OK)
        rc = redis_group_drop(&s->group, s->settings.lease_ns, dropped, err);
    redis_admin_close(s);
    return rc;
}

int redis_queue_backlog(const struct source_url *url, const struct source_opts *opts,
                        struct backlog *out, struct err *err)
{
    struct redis_stream *s;
    struct redis_group_info info = {0};
    int rc = redis_admin_open(&s, url, opts, &info, err);
    *out = (struct backlog){info.lag, info.pending};
    redis_admin_close(s);
    return rc;
}
