/* redis_scan: a range of a stream's entries, those that the group has acknowledged. See producer.h.
 */
#include "worker/source/redis_admin.h"
#include "worker/source/redis_job.h"

enum { PAGE = 256, PENDING_MAX = 100000 };
static const int64_t REPLY_NS = 30000000000;

struct redis_scan {
    struct redis_stream *stream;
    struct redis_id next, last; /* both included */
    struct text stream_json;
    queue_scan_take *take;
    void *ctx;
};

static bool less(struct redis_id a, struct redis_id b)
{
    return a.ms != b.ms ? a.ms < b.ms : a.seq < b.seq;
}

/* XRANGE or XPENDING over [from, to]. */
static int ask(struct redis_scan *s, redisReply **out, bool pending, struct redis_id from,
               struct redis_id to, struct err *err)
{
    struct redis_group *g = &s->stream->group;
    redis_args_start(&g->args, pending ? "XPENDING" : "XRANGE");
    redis_args_add(&g->args, g->stream);
    if (pending)
        redis_args_add(&g->args, g->group);
    redis_args_id(&g->args, from);
    redis_args_id(&g->args, to);
    if (!pending)
        redis_args_text(&g->args, "COUNT");
    redis_args_int(&g->args, pending ? PENDING_MAX : PAGE);
    int rc = redis_command(g->connection, out, &g->args, REPLY_NS, err);
    if (rc >= 0 && (*out)->type != REDIS_REPLY_ARRAY) {
        freeReplyObject(*out);
        *out = NULL;
        rc = err_set(err, E_RETRY, "redis: want an array of entries");
    }
    return rc;
}

/* Both lists ascend, so `at` only moves on. */
static bool is_pending(const redisReply *pending, size_t *at, struct redis_id id)
{
    for (; *at < pending->elements; (*at)++) {
        const redisReply *p = pending->element[*at];
        struct redis_id have;
        bool known = p->type == REDIS_REPLY_ARRAY && p->elements > 0 &&
                     redis_id_parse(redis_text(p->element[0]), &have);
        if (known && !less(have, id))
            return redis_id_eq(have, id);
    }
    return false;
}

static int give(struct redis_scan *s, const redisReply *page, const redisReply *pending,
                struct err *err)
{
    size_t at = 0;
    int rc = E_OK;
    for (size_t i = 0; rc >= 0 && i < page->elements; i++) {
        struct redis_entry e;
        struct job *job;
        rc = redis_entry_parse(page->element[i], &e, err);
        if (rc < 0 || is_pending(pending, &at, e.id))
            continue;
        job = redis_job_open(&e, s->stream->stream, text_view(&s->stream_json),
                             clock_wall_ns(clock_system()));
        rc = job ? s->take(s->ctx, job, err)
                 : err_set(err, E_FATAL, "redis: no memory for an entry");
    }
    return rc;
}

/* The next page; the number of its entries. */
static int scan_page(struct redis_scan *s, struct err *err)
{
    redisReply *page = NULL, *pending = NULL;
    struct redis_entry end = {0};
    int rc = ask(s, &page, false, s->next, s->last, err);
    size_t n = rc >= 0 ? page->elements : 0;
    if (n)
        rc = redis_entry_parse(page->element[n - 1], &end, err);
    if (rc >= 0 && n)
        rc = ask(s, &pending, true, s->next, end.id, err);
    if (rc >= 0 && n)
        rc = give(s, page, pending, err);
    s->next = end.id;
    if (++s->next.seq == 0)
        s->next.ms++;
    if (page)
        freeReplyObject(page);
    if (pending)
        freeReplyObject(pending);
    return rc < 0 ? rc : (int)n;
}

/* Milliseconds of an id. */
static uint64_t ms_of(const struct scan_end *e)
{
    return (uint64_t)(e->kind == SCAN_TIME ? e->value / 1000000 : e->value);
}

int redis_queue_scan(const struct source_url *url, const struct source_opts *opts,
                     const struct scan_range *range, queue_scan_take *take, void *ctx,
                     struct err *err)
{
    struct redis_scan s = {.take = take, .ctx = ctx};
    struct redis_group_info info = {0};
    int n, rc = redis_admin_open(&s.stream, url, opts, &info, err);
    if (rc < 0)
        return rc;
    s.last = info.last;
    if (range->from.kind != SCAN_OPEN)
        s.next.ms = ms_of(&range->from);
    if (range->to.kind != SCAN_OPEN && ms_of(&range->to) <= s.last.ms)
        s.last = (struct redis_id){ms_of(&range->to) - 1, UINT64_MAX};
    text_json_str(&s.stream_json, str_of(s.stream->stream));
    bool empty = range->to.kind != SCAN_OPEN && ms_of(&range->to) == 0;
    while (rc >= 0 && !empty && !less(s.last, s.next) && (n = scan_page(&s, err)) != 0)
        rc = TR_MIN(n, E_OK);
    redis_admin_close(s.stream);
    text_close(&s.stream_json);
    return rc;
}

int redis_queue_seek(const struct source_url *url, const struct source_opts *opts,
                     const struct seek_to *to, bool apply, struct seek_move *moves, int *n,
                     char label[JOB_ORIGIN_MAX], struct err *err)
{
    (void)opts, (void)to, (void)apply, (void)moves, (void)n, (void)label;
    return err_set(err, E_USAGE,
                   "redis:" STR_FMT ": a stream has no stored position: the group's own, which "
                   "XGROUP SETID moves, is all there is",
                   STR_ARG(url->name));
}
