/* source_redis: jobs from a Redis stream. See source.h.
 *
 * Where an entry can be: new in the stream -> pending for a consumer (claimed) -> acknowledged ->
 * trimmed. What is pending for us is in `leases`; whoever is silent for longer than the lease loses
 * its entries to XAUTOCLAIM of the others, so leases are renewed six times as often. A claim looks
 * first at what is pending for us but unknown here (a reply that was lost on the way, an earlier
 * process of this name), then at what dead consumers left, then at what is new.
 *
 * There is one partition, 0, and its position stays 0: entries of one stream are spread over all
 * workers, so no worker knows a place before which everything is done. The server knows. Only the
 * lost ranges have positions: milliseconds of ids, from the first lost entry to the last. */
#include "worker/source/source_redis.h"

#include <stdio.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/source/redis_job.h"
#include "worker/source/redis_keep.h"

enum { RENEWALS = 6 };
static const size_t REPLY_MAX = (size_t)64 << 20, REPLY_ONE_MAX = (size_t)640 << 20;
static const int64_t SECOND_NS = 1000000000, TRIM_NS = 10000000000, AWAY_NS = 100000000;

struct source_redis {
    struct source source;
    const struct clock *clock;
    struct redis_stream stream;
    struct lease_table leases;
    struct text stream_json; /* the stream's name as a JSON string */
    int64_t idle_exit_ns, idle_since_ns, sequence, epoch;
    int64_t renewed_ns, renew_ns, autoclaim_ns, trim_ns, info_ns, reap_ns; /* when next (mono) */
    int64_t present_ns;
    bool own, quiet; /* own: entries pending for us may be unknown here */
    struct redis_id own_behind, cursor;
    size_t count_max, entry_bytes; /* of one reply; mean size so far */
    redisReply *reply;             /* entries of it are still to be given out */
    const redisReply *entries;
    size_t entry;
    bool skip[SOURCE_CLAIM_MAX];
    struct redis_group_info info;
    int64_t gone, gone_told; /* entries whose data was trimmed away while they were pending */
    struct source_gap gap;   /* of these since the last service; reason NULL: none */
};

static struct source_redis *redis_of(struct source *s)
{
    return (struct source_redis *)s;
}

static int64_t now_ns(const struct source_redis *r)
{
    return clock_mono_ns(r->clock);
}

/* Entries of it that were not given out stay in the table: only on the way out, or behind unsee. */
static void drop_reply(struct source_redis *r)
{
    if (r->reply)
        freeReplyObject(r->reply);
    r->reply = NULL;
    r->entries = NULL;
    r->entry = 0;
}

/* ---- leases ---- */

/* One more of them; NULL: its id is not known. The span goes to `lost_ranges`. */
static void note_gone(struct source_redis *r, const struct redis_id *id)
{
    r->gone++;
    if (!id)
        return;
    int64_t ms = (int64_t)TR_MIN(id->ms, (uint64_t)INT64_MAX - 1);
    r->gap.from = r->gap.reason ? TR_MIN(r->gap.from, ms) : ms;
    r->gap.to = r->gap.reason ? TR_MAX(r->gap.to, ms + 1) : ms + 1;
    r->gap.reason = "trimmed";
}

/* Loud, because nothing can bring them back. */
static void tell_gone(struct source_redis *r)
{
    if (r->gone == r->gone_told)
        return;
    LOG(LOG_ERROR, "entries_lost", LOG_S("stream", r->stream.stream),
        LOG_I("entries", r->gone - r->gone_told), LOG_I("total", r->gone),
        LOG_S("why", "trimmed or deleted from the stream while they were pending"));
    r->gone_told = r->gone;
}

/* Connected, and told so. E_RETRY: not now; the connection has logged why. */
static int ensure(struct source_redis *r, struct err *err)
{
    int rc = redis_ready(r->stream.connection, err);
    if (rc < 0)
        return E_RETRY;
    if (r->epoch != redis_epoch(r->stream.connection)) {
        r->epoch = redis_epoch(r->stream.connection);
        r->own = true;
        r->own_behind = r->cursor = (struct redis_id){0};
        r->renew_ns = r->info_ns = 0;
    }
    return E_OK;
}

/* ---- claim ---- */

/* Enters the entries of the reply that came: those known here already are skipped. */
static int enter(struct source_redis *r, struct err *err)
{
    size_t n = r->entries ? r->entries->elements : 0, bytes = 0;
    memset(r->skip, true, sizeof r->skip);
    if (n > SOURCE_CLAIM_MAX)
        return err_set(err, E_RETRY, "redis: want at most %d entries, got %zu", SOURCE_CLAIM_MAX,
                       n);
    int rc = lease_reserve(&r->leases, n, err);
    for (size_t i = 0; rc == E_OK && i < n; i++) {
        struct redis_entry e;
        if (r->entries->element[i]->type == REDIS_REPLY_NIL) {
            note_gone(r, NULL); /* XAUTOCLAIM before 7.0 */
            continue;
        }
        rc = redis_entry_parse(r->entries->element[i], &e, err);
        if (rc < 0)
            break;
        bytes += e.bytes;
        if (r->own)
            r->own_behind = e.id;
        if (lease_find(&r->leases, e.id) != LEASE_NONE)
            continue;
        r->skip[i] = e.gone;
        if (e.gone)
            note_gone(r, &e.id);
        lease_set(&r->leases, e.id, e.gone ? LEASE_OWED : LEASE_HELD);
    }
    tell_gone(r);
    if (n > 0)
        r->entry_bytes = (r->entry_bytes * 3 + bytes / n) / 4;
    return rc;
}

/* What a reply that cannot be used has entered; it will be read again as pending for us. */
static void unsee(struct source_redis *r)
{
    for (size_t i = 0; r->entries && i < TR_MIN(r->entries->elements, TR_COUNT(r->skip)); i++) {
        struct redis_entry e;
        struct err ignored = {0};
        if (!r->skip[i] && redis_entry_parse(r->entries->element[i], &e, &ignored) == E_OK)
            lease_set(&r->leases, e.id, LEASE_NONE);
    }
    redis_disconnect(r->stream.connection);
}

static int read_autoclaimed(struct source_redis *r, size_t count, struct err *err)
{
    struct redis_autoclaim a = {0};
    int64_t lease = r->stream.settings.lease_ns;
    int rc = redis_group_autoclaim(&r->stream.group, &r->reply, r->cursor, count, lease, err);
    if (rc == E_OK)
        rc = redis_autoclaim_parse(r->reply, &a, err);
    if (rc < 0)
        return rc;
    r->entries = a.entries;
    r->cursor = a.cursor;
    for (size_t i = 0; a.deleted && i < a.deleted->elements; i++) {
        struct redis_id id;
        bool known = redis_id_parse(redis_text(a.deleted->element[i]), &id);
        note_gone(r, known ? &id : NULL);
    }
    if (a.cursor.ms == 0 && a.cursor.seq == 0)
        r->autoclaim_ns = now_ns(r) + TR_MIN(lease / 8, 5 * SECOND_NS);
    return E_OK;
}

/* The next reply with entries, from the first of the three places that is due. */
static int fetch(struct source_redis *r, size_t count, int64_t wait_ns, struct err *err)
{
    struct redis_group *g = &r->stream.group;
    const int64_t from = now_ns(r);
    bool own = r->own, fresh = false;
    int rc;
    redis_limit_reply(r->stream.connection, count == 1 ? REPLY_ONE_MAX : REPLY_MAX);
    if (own) {
        rc = redis_group_read(g, &r->reply, &r->own_behind, count, 0, err);
    } else if (now_ns(r) >= r->autoclaim_ns) {
        rc = read_autoclaimed(r, count, err);
    } else {
        fresh = true;
        rc = redis_group_read(g, &r->reply, NULL, count, wait_ns, err);
    }
    if (rc == E_OK && (own || fresh))
        rc = redis_read_entries(r->reply, &r->entries, err);
    if (rc == E_OK && (rc = enter(r, err)) < 0)
        unsee(r);
    if (rc < 0) {
        /* Too much for its limit, or for its time on a slow link: less is asked for. */
        if (strcmp(err->type, "redis_too_large") == 0 || strcmp(err->type, "redis_timeout") == 0)
            r->count_max = TR_MAX(count / 8, (size_t)1);
        return rc;
    }
    r->quiet = fresh && (!r->entries || r->entries->elements == 0);
    r->own = own && r->entries && r->entries->elements > 0;
    if (now_ns(r) - from < SECOND_NS)
        r->count_max = TR_MIN(r->count_max * 2, (size_t)SOURCE_CLAIM_MAX);
    return E_OK;
}

/* Jobs of the reply in hand, as far as the budget goes. */
static int give_out(struct source_redis *r, const struct source_budget *budget, struct job **out,
                    int cap)
{
    int n = 0;
    int64_t bytes = 0;
    size_t end = r->entries ? r->entries->elements : 0;
    for (; r->entry < end && n < cap && n < budget->rows; r->entry++) {
        struct redis_entry e;
        struct err ignored = {0};
        if (r->skip[r->entry])
            continue;
        CHECK(redis_entry_parse(r->entries->element[r->entry], &e, &ignored) == E_OK);
        if (n && bytes + (int64_t)e.job.len > budget->bytes)
            return n;
        out[n] = redis_job_open(&e, r->stream.stream, text_view(&r->stream_json),
                                clock_wall_ns(r->clock));
        if (!out[n]) {
            LOG(LOG_WARN, "memory_refused", LOG_STR("entry", e.id_text));
            return n;
        }
        bytes += (int64_t)e.job.len;
        out[n]->sequence = r->sequence++;
        n++;
    }
    while (r->entry < end && r->skip[r->entry])
        r->entry++;
    if (r->entry >= end)
        drop_reply(r);
    return n;
}

/* Stream or group vanished (FLUSHALL, an older backup): told loudly, made again, and everything
 * that is in the stream comes once more; rows that are there answer for it. */
static int recreate(struct source_redis *r, struct err *err)
{
    bool created;
    LOG(LOG_ERROR, "redis_group_missing", LOG_S("stream", r->stream.stream),
        LOG_S("group", r->stream.group_name), LOG_I("held", r->leases.held));
    return redis_group_create(&r->stream.group, false, &created, err);
}

/* Nothing has been left for idle_exit: not here, not with another consumer. */
static bool idle_enough(struct source_redis *r)
{
    bool idle = r->quiet && r->leases.held == 0 && r->leases.owed == 0 && !r->reply &&
                r->info.found && r->info.pending == 0 && r->info.lag <= 0;
    if (!idle) {
        r->idle_since_ns = 0;
        return false;
    }
    if (r->idle_since_ns == 0)
        r->idle_since_ns = now_ns(r);
    return r->idle_exit_ns > 0 && now_ns(r) - r->idle_since_ns >= r->idle_exit_ns;
}

static int redis_claim(struct source *source, const struct source_budget *budget, struct job **out,
                       int cap, int64_t timeout_ns, bool *drained, struct err *err)
{
    struct source_redis *r = redis_of(source);
    struct err away = {0};
    *drained = false;
    if (ensure(r, &away) < 0 ||
        (r->leases.held > 0 && now_ns(r) - r->renewed_ns > r->stream.settings.lease_ns / 2)) {
        clock_sleep_ns(r->clock, TR_MIN(timeout_ns, AWAY_NS));
        return 0;
    }
    int64_t rows = TR_MIN(TR_MIN(budget->rows, (int64_t)cap), (int64_t)SOURCE_CLAIM_MAX);
    int64_t fit = budget->bytes / (int64_t)TR_MAX(r->entry_bytes, (size_t)1);
    size_t count = (size_t)TR_MAX(TR_MIN(rows, fit), (int64_t)1);
    int n = 0;
    for (int tries = 0; n == 0 && tries < 3; tries++) {
        int rc = r->reply ? E_OK : fetch(r, TR_MIN(count, r->count_max), timeout_ns, err);
        if (rc < 0) {
            drop_reply(r);
            bool missing = redis_last_fault(r->stream.connection) == REDIS_FAULT_NOGROUP;
            return missing ? recreate(r, &away) : rc;
        }
        n = give_out(r, budget, out, cap);
        if (r->quiet)
            break;
    }
    *drained = n == 0 && idle_enough(r);
    return n;
}

/* ---- service ---- */

static int chores(struct source_redis *r, struct err *err)
{
    const struct redis_settings *s = &r->stream.settings;
    int64_t now = now_ns(r);
    int rc = redis_keep_pay(&r->leases, &r->stream.group, err);
    if (rc >= 0 && now >= r->renew_ns) {
        r->renew_ns = now + s->lease_ns / RENEWALS;
        FAILPOINT("redis.before_renew");
        rc = redis_keep_renew(&r->leases, &r->stream.group, err);
        FAILPOINT("redis.after_renew");
        if (rc >= 0)
            r->renewed_ns = now_ns(r);
        else /* soon again: five more attempts fit the lease */
            r->renew_ns = now + TR_MIN(SECOND_NS, s->lease_ns / RENEWALS);
    }
    if (rc >= 0 && now >= r->present_ns) {
        r->present_ns = now + TR_MIN(s->lease_ns / RENEWALS, (int64_t)REDIS_PRESENT_NS);
        rc = redis_group_present(&r->stream.group, err);
    }
    if (rc >= 0 && now >= r->info_ns) {
        r->info_ns = now + (r->idle_exit_ns ? TR_MIN(r->idle_exit_ns / 4, SECOND_NS) : SECOND_NS);
        rc = redis_group_info(&r->stream.group, &r->info, err);
    }
    if (rc >= 0 && now >= r->trim_ns && s->trim_keep_ns >= 0) {
        r->trim_ns = now + TR_MIN(TRIM_NS, TR_MAX(s->lease_ns, SECOND_NS));
        FAILPOINT("redis.before_trim");
        rc = redis_group_trim(&r->stream.group, s->trim_keep_ns, err);
        FAILPOINT("redis.after_trim");
        if (rc > 0)
            LOG(LOG_DEBUG, "stream_trimmed", LOG_I("entries", rc));
    }
    if (rc >= 0 && now >= r->reap_ns) {
        r->reap_ns = now + s->lease_ns;
        rc = redis_group_reap(&r->stream.group, 10 * s->lease_ns, false, err);
    }
    return TR_MIN(rc, E_OK);
}

static int redis_service(struct source *source, struct source_service *out, struct err *err)
{
    struct source_redis *r = redis_of(source);
    struct err away = {0}, why = {0};
    out->n_assigned = out->n_revoked = out->n_lost = out->n_gaps = out->n_started = 0;
    if (r->gap.reason)
        out->gaps[out->n_gaps++] = r->gap;
    r->gap = (struct source_gap){0};
    if (ensure(r, &away) < 0)
        return E_OK;
    int rc = chores(r, &why);
    enum redis_fault fault = redis_last_fault(r->stream.connection);
    if (rc < 0 && (fault == REDIS_FAULT_NOGROUP || strstr(why.msg, "no such key")))
        return E_OK; /* the next claim finds it too, and mends it */
    return rc < 0 ? err_typed(err, rc, why.type, "%s", why.msg) : E_OK;
}

static size_t ids_of(struct job *const *jobs, size_t n, struct redis_id *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = redis_job_id(jobs[i]);
    return n;
}

static int redis_ack(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct source_redis *r = redis_of(source);
    struct redis_id ids[REDIS_IDS_MAX];
    int rc = E_OK;
    for (size_t at = 0; at < n; at += REDIS_IDS_MAX) {
        size_t k = ids_of(jobs + at, TR_MIN(n - at, (size_t)REDIS_IDS_MAX), ids);
        if (rc >= 0)
            rc = redis_connected(r->stream.connection)
                     ? redis_group_ack(&r->stream.group, ids, k, err)
                     : err_set(err, E_RETRY, "redis: not connected; owed");
        /* What a peer has taken is in no table; it will find the row. */
        for (size_t i = 0; i < k; i++)
            if (lease_find(&r->leases, ids[i]) != LEASE_NONE)
                lease_set(&r->leases, ids[i], rc < 0 ? LEASE_OWED : LEASE_NONE);
    }
    return TR_MIN(rc, E_OK);
}

static int redis_release(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct source_redis *r = redis_of(source);
    struct redis_id ids[REDIS_IDS_MAX];
    int rc = ensure(r, err);
    for (size_t at = 0; rc == E_OK && at < n; at += REDIS_IDS_MAX) {
        size_t k = ids_of(jobs + at, TR_MIN(n - at, (size_t)REDIS_IDS_MAX), ids);
        rc = redis_keep_release(&r->leases, &r->stream.group, ids, k, err);
    }
    return rc;
}

static int64_t redis_position(const struct source *source, int32_t partition)
{
    (void)source;
    CHECK(partition == 0);
    return 0;
}

static void redis_lag(const struct source *source, struct source_lag *out)
{
    const struct source_redis *r = (const struct source_redis *)source;
    const struct redis_group_info *i = &r->info;
    out->messages = i->lag >= 0 && i->pending >= 0 ? i->lag + i->pending : -1;
    out->bytes = out->bytes_total = out->retained = -1;
    out->pending = i->pending;
    out->joined = i->found && redis_connected(r->stream.connection);
}

static int64_t redis_left(struct source *source)
{
    struct source_redis *r = redis_of(source);
    struct err err = {0};
    if (ensure(r, &err) < 0 || redis_group_info(&r->stream.group, &r->info, &err) < 0)
        return -1;
    return r->info.found && r->info.lag >= 0 && r->info.pending >= 0 ? r->info.lag + r->info.pending
                                                                     : -1;
}

/* What is still held goes to whoever asks next, without waiting for the lease. */
static void leave(struct source_redis *r)
{
    struct err err = {0};
    int rc = ensure(r, &err);
    if (rc == E_OK)
        rc = redis_keep_leave(&r->leases, &r->stream.group, &err);
    if (rc == E_OK)
        rc = redis_group_reap(&r->stream.group, 10 * r->stream.settings.lease_ns, true, &err);
    if (rc < 0)
        LOG(LOG_WARN, "leave_failed", LOG_S("error", err.msg), LOG_I("held", r->leases.held),
            LOG_I("owed", r->leases.owed));
}

static void redis_close(struct source *source)
{
    struct source_redis *r = redis_of(source);
    drop_reply(r);
    if (r->stream.connection && r->epoch > 0)
        leave(r);
    redis_stream_close(&r->stream);
    lease_close(&r->leases);
    text_close(&r->stream_json);
    mem_free(r);
}

static int find_group(struct source_redis *r, struct err *err)
{
    int rc = redis_group_info(&r->stream.group, &r->info, err);
    if (rc == E_OK && !r->info.found)
        rc = err_set(err, E_FATAL,
                     "redis: stream \"%.80s\" has no group \"%.80s\"; `tranche init` makes both",
                     r->stream.stream, r->stream.group_name);
    return rc;
}

int source_redis_open(struct source **out, const struct source_url *url,
                      const struct source_opts *opts, const struct clock *clock, struct err *err)
{
    static const struct source_ops ops = {.name = "redis",
                                          .claim = redis_claim,
                                          .service = redis_service,
                                          .ack = redis_ack,
                                          .release = redis_release,
                                          .position = redis_position,
                                          .lag = redis_lag,
                                          .left = redis_left,
                                          .close = redis_close};
    struct source_redis *r = mem_alloc(1, sizeof *r);
    if (!r)
        return err_set(err, E_FATAL, "redis: no memory");
    r->source.ops = &ops;
    r->clock = clock;
    r->idle_exit_ns = opts->idle_exit_ns;
    r->count_max = SOURCE_CLAIM_MAX;
    r->entry_bytes = 1024;
    int rc = lease_open(&r->leases, err);
    if (rc == E_OK)
        rc = redis_stream_open(&r->stream, url, opts, clock, err);
    if (rc == E_OK)
        rc = find_group(r, err);
    if (rc == E_OK) {
        snprintf(r->source.label, sizeof r->source.label, "%s", opts->url);
        snprintf(r->source.stem, sizeof r->source.stem, "%s", r->stream.stream);
        text_json_str(&r->stream_json, str_of(r->stream.stream));
        rc = r->stream_json.failed ? err_set(err, E_FATAL, "redis: no memory") : ensure(r, err);
        r->renewed_ns = now_ns(r);
    }
    if (rc < 0) {
        r->epoch = 0;
        redis_close(&r->source);
        return rc;
    }
    *out = &r->source;
    return E_OK;
}
