/* sink_sqlite: the sink that is one SQLite file. See sink.h for the contract and schemas/sqlite for
 * the tables.
 *
 * Journal: WAL. A transaction reaches the kernel before commit returns, so it survives kill -9
 * whatever `synchronous` is. Power cut: FULL loses nothing that was committed; NORMAL may lose the
 * newest transactions but never tears one, and a file source then runs these jobs again. Each call
 * is one transaction; one connection, one thread. Opening is in sink_sqlite_open.c. */
#include "worker/sink/sink_sqlite.h"

#include <stdio.h>

#include "worker/job/output_sum.h"

const char *result_status_name(enum result_status status)
{
    static const char *const names[RESULT_STATUSES] = {"ok",      "failed",    "invalid",
                                                       "expired", "cancelled", "dead"};
    CHECK(status < RESULT_STATUSES);
    return names[status];
}

/* Civil date from days since 1970: Howard Hinnant's algorithm, without the C library's locks. */
void wall_text(int64_t wall_ns, char out[32])
{
    int64_t ms = wall_ns / 1000000, day = ms / 86400000, left = ms % 86400000;
    int64_t z = day + 719468, era = z / 146097, doe = z % 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    int64_t month = mp < 10 ? mp + 3 : mp - 9;
    int64_t parts[7] = {yoe + era * 400 + (month <= 2),
                        month,
                        doy - (153 * mp + 2) / 5 + 1,
                        left / 3600000,
                        left / 60000 % 60,
                        left / 1000 % 60,
                        left % 1000};
    static const char between[] = "--T::.Z";
    static const int widths[7] = {4, 2, 2, 2, 2, 2, 3};
    char *at = out;
    for (int i = 0; i < 7; i++) {
        for (int k = widths[i] - 1; k >= 0; k--, parts[i] /= 10)
            at[k] = (char)('0' + parts[i] % 10);
        at += widths[i];
        *at++ = between[i];
    }
    *at = '\0';
}

int sink_sqlite_error(struct sink_sqlite *s, const char *what, struct err *err)
{
    int bind = s->bind_rc, rc = bind ? bind : sqlite3_errcode(s->db) & 0xFF;
    s->bind_rc = SQLITE_OK;
    bool passing = rc == SQLITE_BUSY || rc == SQLITE_LOCKED || rc == SQLITE_IOERR ||
                   rc == SQLITE_FULL || rc == SQLITE_NOMEM || rc == SQLITE_CANTOPEN ||
                   rc == SQLITE_PROTOCOL;
    return err_typed(err, passing ? E_RETRY : E_FATAL,
                     rc == SQLITE_TOOBIG ? "too_large" : "database", "database: %s: %s", what,
                     bind ? sqlite3_errstr(bind) : sqlite3_errmsg(s->db));
}

int sink_sqlite_finish(struct sink_sqlite *s, sqlite3_stmt *st, int64_t *first, struct err *err)
{
    int rc = s->bind_rc, rows = 0;
    while (rc == SQLITE_OK || rc == SQLITE_ROW)
        if ((rc = sqlite3_step(st)) == SQLITE_ROW && rows++ == 0 && first)
            *first = sqlite3_column_int64(st, 0);
    int out = rc == SQLITE_DONE ? rows : sink_sqlite_error(s, sqlite3_sql(st), err);
    sqlite3_reset(st);
    return out;
}

static int simple(struct sink_sqlite *s, enum statement id, struct err *err)
{
    return sink_sqlite_finish(s, s->statements[id], NULL, err);
}

/* Ends the transaction; a failure that is on record already undoes it. */
int sink_sqlite_end(struct sink_sqlite *s, int rc, struct err *err)
{
    if (rc >= 0)
        rc = simple(s, S_COMMIT, err);
    if (rc < 0 && !sqlite3_get_autocommit(s->db)) {
        struct err ignored = {0}; /* the first failure is the one to tell */
        (void)simple(s, S_ROLLBACK, &ignored);
    }
    return rc < 0 ? rc : E_OK;
}

/* ---- lookup and attempts ---- */

static int touch(struct sink_sqlite *s, const struct key *key, struct err *err)
{
    if (str_eq(key->run, s->touched_run) && str_eq(key->batch_id, s->touched_batch))
        return E_OK;
    sqlite3_stmt *st = s->statements[S_TOUCH];
    sqlite_bind_str(s, st, 1, key->run);
    sqlite_bind_str(s, st, 2, key->batch_id);
    int rc = sink_sqlite_finish(s, st, NULL, err);
    if (rc < 0 || key->run.len > sizeof s->touched[0] || key->batch_id.len > sizeof s->touched[1])
        return rc;
    memcpy(s->touched[0], key->run.ptr, key->run.len);
    memcpy(s->touched[1], key->batch_id.ptr, key->batch_id.len);
    s->touched_run = (struct str){s->touched[0], key->run.len};
    s->touched_batch = (struct str){s->touched[1], key->batch_id.len};
    return E_OK;
}

static int lookup_attempts(struct sink_sqlite *s, struct lookup *l, struct err *err)
{
    sqlite3_stmt *st = sqlite_with_key(s, S_ATTEMPTS, &l->key);
    int rc = sqlite3_step(st);
    if (rc == SQLITE_ROW) {
        l->attempts = sqlite3_column_int(st, 0);
        l->deaths = sqlite3_column_int(st, 1);
        l->cause = death_cause_find(str_of((const char *)sqlite3_column_text(st, 2)));
        const char *revision = (const char *)sqlite3_column_text(st, 3);
        snprintf(l->config_revision, sizeof l->config_revision, "%s", revision ? revision : "");
    }
    rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? E_OK : sink_sqlite_error(s, "attempts", err);
    sqlite3_reset(st);
    return rc;
}

static int lookup_one(struct sink_sqlite *s, struct lookup *l, bool cancelled, bool attempts,
                      struct err *err)
{
    char hex[65];
    int rc = touch(s, &l->key, err);
    if (rc < 0)
        return rc;
    sqlite3_stmt *st = sqlite_with_key(s, S_LOOKUP, &l->key);
    rc = sqlite3_step(st);
    l->state = LOOKUP_ABSENT;
    l->attempts = l->deaths = 0;
    l->cause = DEATH_NONE;
    l->parked = false;
    l->config_revision[0] = '\0';
    if (rc == SQLITE_ROW) {
        sha256_hex(l->sha256, hex);
        const char *there = (const char *)sqlite3_column_text(st, 0);
        l->state = there && strcmp(there, hex) == 0 ? LOOKUP_SAME : LOOKUP_CONFLICT;
    } else if (rc != SQLITE_DONE) {
        rc = sink_sqlite_error(s, "lookup", err);
        sqlite3_reset(st);
        return rc;
    }
    sqlite3_reset(st);
    if (cancelled && l->state == LOOKUP_ABSENT) {
        rc = sink_sqlite_finish(s, sqlite_with_key(s, S_CANCELLED, &l->key), NULL, err);
        if (rc > 0)
            l->state = LOOKUP_CANCELLED;
        if (rc < 0)
            return rc;
    }
    if (attempts && l->state == LOOKUP_ABSENT)
        rc = lookup_attempts(s, l, err);
    if (rc >= 0 && s->any_parked && l->state == LOOKUP_ABSENT) {
        rc = sink_sqlite_finish(s, sqlite_with_key(s, S_PARKED, &l->key), NULL, err);
        l->parked = rc > 0;
    }
    return rc < 0 ? rc : E_OK;
}

static int sqlite_lookup(struct sink *sink, struct lookup *lookups, size_t n, struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    int rc = simple(s, S_BEGIN, err); /* one snapshot, and no lock per row */
    if (rc < 0)
        return rc;
    int cancelled = rc = simple(s, S_ANY_CANCELLED, err);
    int attempts = rc < 0 ? rc : (rc = simple(s, S_ANY_ATTEMPTS, err));
    if (rc >= 0)
        s->any_parked = (rc = simple(s, S_ANY_PARKED, err)) > 0;
    for (size_t i = 0; rc >= 0 && i < n; i++)
        rc = lookup_one(s, &lookups[i], cancelled > 0, attempts > 0, err);
    return sink_sqlite_end(s, rc, err);
}

static int sqlite_count_attempts(struct sink *sink, const struct key *keys,
                                 const struct str *revisions, size_t n, int what, int32_t *attempts,
                                 struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    char now[32];
    wall_text(clock_wall_ns(clock_system()), now);
    int rc = simple(s, S_BEGIN, err);
    for (size_t i = 0; rc >= 0 && i < n; i++) {
        int64_t count = 0;
        sqlite3_stmt *st = sqlite_with_key(s, what == COUNT_BACK ? S_UNCOUNT : S_COUNT, &keys[i]);
        sqlite3_bind_text(st, 4, now, -1, SQLITE_STATIC);
        sqlite_bind_str(s, st, 5, sink->process);
        if (what != COUNT_BACK) {
            sqlite3_bind_int(st, 6, what == COUNT_ALONE);
            sqlite_bind_str(s, st, 7, revisions ? revisions[i] : (struct str){NULL, 0});
        }
        rc = sink_sqlite_finish(s, st, &count, err);
        if (attempts)
            attempts[i] = (int32_t)count;
    }
    return sink_sqlite_end(s, rc, err);
}

/* ---- commit ---- */

static int tally_write(struct sink_sqlite *s, int64_t now_ns, struct err *err)
{
    struct tally *t = &s->tally;
    uint8_t sum[32] = {0};
    if (!t->used)
        return E_OK;
    sqlite3_stmt *st = s->statements[S_BATCH_READ];
    sqlite_bind_str(s, st, 1, t->run);
    sqlite_bind_str(s, st, 2, t->batch_id);
    if (sqlite3_step(st) == SQLITE_ROW)
        output_sum_parse(str_of((const char *)sqlite3_column_text(st, 0)), sum);
    sqlite3_reset(st);
    output_sum_add(sum, t->outputs);
    st = s->statements[S_BATCH_WRITE];
    sqlite_bind_str(s, st, 1, t->run);
    sqlite_bind_str(s, st, 2, t->batch_id);
    sqlite_bind_str(s, st, 3, t->source);
    sqlite_bind_str(s, st, 4, t->config_revision);
    for (int i = 0; i < RESULT_STATUSES; i++)
        sqlite3_bind_int64(st, 5 + i, t->rows[i]);
    sqlite3_bind_int64(st, 11, t->dead_letters);
    sqlite_bind_hash(s, st, 12, sum);
    sqlite_bind_time(s, st, 13, now_ns);
    int rc = sink_sqlite_finish(s, st, NULL, err);
    *t = (struct tally){0};
    return rc;
}

int sink_sqlite_tally(struct sink_sqlite *s, const struct key *key, int64_t now_ns, struct err *err)
{
    struct tally *t = &s->tally;
    int rc = touch(s, key, err);
    if (rc >= 0 && !(t->used && str_eq(t->run, key->run) && str_eq(t->batch_id, key->batch_id))) {
        rc = tally_write(s, now_ns, err);
        t->used = true;
        t->run = key->run;
        t->batch_id = key->batch_id;
    }
    return rc;
}

/* One that is there already leaves its row but for last_seen, and counts no more. */
static int put_dead_letter(struct sink_sqlite *s, const struct dead_letter *d, int64_t now_ns,
                           struct commit_counts *counts, struct err *err)
{
    int rc = sink_sqlite_tally(s, &d->key, now_ns, err);
    if (rc < 0)
        return rc;
    int64_t fresh = 0;
    sqlite3_stmt *st = s->statements[S_DEAD];
    sqlite_bind_str(s, st, 1, d->source_key);
    sqlite_bind_str(s, st, 2, d->key.run);
    sqlite_bind_str(s, st, 3, d->key.batch_id);
    sqlite_bind_str(s, st, 4, d->key.custom_id);
    sqlite_bind_str(s, st, 5, d->reason);
    sqlite_bind_str(s, st, 6, d->detail);
    sqlite_bind_blob(s, st, 7, d->payload);
    sqlite_bind_hash(s, st, 8, d->sha256);
    sqlite_bind_str(s, st, 9, d->source);
    sqlite3_bind_int(st, 10, d->attempts);
    sqlite_bind_time(s, st, 11, d->seen_ns);
    sqlite_bind_str(s, st, 12, d->worker);
    sqlite_bind_str(s, st, 13, s->sink.queue);
    sqlite_bind_blob(s, st, 14, d->message_key);
    rc = sink_sqlite_finish(s, st, &fresh, err);
    counts->dead_letters += fresh;
    s->tally.dead_letters += fresh;
    if (rc < 0 || fresh)
        return rc;
    st = s->statements[S_DEAD_AGAIN];
    sqlite_bind_str(s, st, 1, d->source_key);
    sqlite_bind_time(s, st, 2, d->seen_ns);
    return sink_sqlite_finish(s, st, NULL, err);
}

static int sqlite_commit(struct sink *sink, const struct commit *c, struct commit_counts *counts,
                         struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    *counts = (struct commit_counts){0};
    s->tally = (struct tally){0};
    int rc = simple(s, S_BEGIN, err);
    if (rc >= 0)
        s->any_parked = (rc = simple(s, S_ANY_PARKED, err)) > 0;
    bool conflict = false;
    for (size_t i = 0; rc >= 0 && i < c->n_results; i++) {
        bool *ask = c->conflicts ? &c->conflicts[i] : NULL;
        rc = sink_sqlite_put_result(s, c->results[i], c->now_ns, counts, ask, err);
        conflict = conflict || (rc >= 0 && ask && *ask);
    }
    if (rc >= 0 && conflict)
        return (rc = simple(s, S_ROLLBACK, err)) < 0 ? rc : SINK_CONFLICT;
    for (size_t i = 0; rc >= 0 && i < c->n_dead_letters; i++)
        rc = put_dead_letter(s, &c->dead_letters[i], c->now_ns, counts, err);
    if (rc >= 0)
        rc = tally_write(s, c->now_ns, err);
    for (size_t i = 0; rc >= 0 && i < c->n_progress; i++)
        rc = sink_sqlite_put_progress(s, &c->progress[i], c->now_ns, err);
    for (size_t i = 0; rc >= 0 && i < c->n_lost_ranges; i++)
        rc = sink_sqlite_put_lost_range(s, &c->lost_ranges[i], c->now_ns, err);
    return sink_sqlite_end(s, rc, err);
}

/* ---- totals ---- */

static int sqlite_totals(struct sink *sink, struct totals *out, struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    sqlite3_stmt *st = s->statements[S_TOTALS];
    int rc;
    *out = (struct totals){0};
    while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
        uint8_t sum[32];
        for (int i = 0; i < RESULT_STATUSES; i++)
            out->rows[i] += sqlite3_column_int64(st, i);
        out->dead_letters += sqlite3_column_int64(st, 6);
        output_sum_parse(str_of((const char *)sqlite3_column_text(st, 7)), sum);
        output_sum_add(out->outputs_sha256, sum);
    }
    rc = rc == SQLITE_DONE ? E_OK : sink_sqlite_error(s, "totals", err);
    sqlite3_reset(st);
    return rc;
}

const struct sink_ops sink_sqlite_ops = {.name = "sqlite",
                                         .lookup = sqlite_lookup,
                                         .count_attempts = sqlite_count_attempts,
                                         .record_death = sink_sqlite_record_death,
                                         .commit = sqlite_commit,
                                         .progress_read = sink_sqlite_progress_read,
                                         .park = sink_sqlite_park,
                                         .unpark = sink_sqlite_unpark,
                                         .cancelled = sink_sqlite_cancelled,
                                         .config_write = sink_sqlite_config_write,
                                         .config_read = sink_sqlite_config_read,
                                         .totals = sqlite_totals,
                                         .close = sink_sqlite_close};
