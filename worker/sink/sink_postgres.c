/* sink_postgres: see sink_postgres.h. Lookup, attempts, totals; open and close. The
 * transaction with the rows is in postgres_commit.c. Each call is one transaction. */
#include "worker/sink/sink_postgres.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/job/output_sum.h"
#include "worker/sink/postgres_sink.h"

#define KEYS     "unnest($1,$2,$3) WITH ORDINALITY AS k(run, batch_id, custom_id, i) "
#define SAME_KEY "j.run=k.run AND j.batch_id=k.batch_id AND j.custom_id=k.custom_id"

/* Subselects, not joins: each is one look into the primary key, also while the table's statistics
 * are those of an empty one. */
static const char lookup_sql[] =
    "SELECT (SELECT j.request_sha256 FROM tranche.results j WHERE " SAME_KEY "), "
    "(SELECT 1 FROM tranche.cancellations j WHERE j.run=k.run AND j.batch_id=k.batch_id AND "
    "j.custom_id IN (k.custom_id, '') LIMIT 1), "
    "(SELECT j.n::text || ' ' || j.deaths || ' ' || coalesce(j.config_revision, '-') || ' ' || "
    "coalesce(j.cause, '') FROM "
    "tranche.job_attempts j WHERE " SAME_KEY "), "
    "EXISTS (SELECT 1 FROM tranche.parked j WHERE " SAME_KEY ") FROM " KEYS "ORDER BY k.i";
static const char count_sql[] =
    "INSERT INTO tranche.job_attempts AS j (run, batch_id, custom_id, n, last_at, process, alone, "
    "config_revision) SELECT * FROM unnest($1,$2,$3,$4,$5,$6,$7,$8) ON CONFLICT (run, batch_id, "
    "custom_id) DO UPDATE "
    "SET n=j.n+EXCLUDED.n, last_at=EXCLUDED.last_at, process=EXCLUDED.process, "
    "alone=EXCLUDED.alone, config_revision=coalesce(j.config_revision, "
    "EXCLUDED.config_revision) RETURNING run, batch_id, custom_id, n";
/* What another process has counted since stays that one's. */
static const char uncount_sql[] =
    "UPDATE tranche.job_attempts j SET n=greatest(j.n-k.d, 0), last_at=k.t, "
    "alone=CASE WHEN j.process=k.p THEN 0 ELSE j.alone END, "
    "process=CASE WHEN j.process=k.p THEN NULL ELSE j.process END FROM "
    "unnest($1,$2,$3,$4,$5,$6,$7,$8) AS k(run, batch_id, custom_id, d, t, p, a, r) WHERE " SAME_KEY
    " RETURNING j.run, j.batch_id, j.custom_id, j.n";
static const char totals_sql[] =
    "SELECT j.rows_ok, j.rows_failed, j.rows_invalid, j.rows_expired, j.rows_cancelled, "
    "j.rows_dead, j.dead_letters, j.outputs_sha256 FROM tranche.batches j, unnest($1,$2) AS "
    "k(run, batch_id) WHERE j.run=k.run AND j.batch_id=k.batch_id";

struct str postgres_cell(const PGresult *r, int row, int column)
{
    if (PQgetisnull(r, row, column))
        return (struct str){NULL, 0};
    return (struct str){PQgetvalue(r, row, column), (size_t)PQgetlength(r, row, column)};
}

static int64_t cell_int(const PGresult *r, int row, int column)
{
    return PQgetisnull(r, row, column) ? 0 : strtoll(PQgetvalue(r, row, column), NULL, 10);
}

static char *copy_of(struct str v)
{
    char *made = mem_alloc(v.len + 1, 1);
    if (made && v.len)
        memcpy(made, v.ptr, v.len);
    return made;
}

void postgres_touch(struct sink_postgres *s, const struct key *key)
{
    struct touched_batch *t = &s->touched[s->newest_touched];
    if (s->n_touched && str_eq(key->run, str_of(t->run)) &&
        str_eq(key->batch_id, str_of(t->batch_id)))
        return;
    for (size_t i = 0; i < s->n_touched; i++) {
        t = &s->touched[i];
        if (str_eq(key->run, str_of(t->run)) && str_eq(key->batch_id, str_of(t->batch_id))) {
            s->newest_touched = i;
            return;
        }
    }
    if (s->n_touched == TOUCHED_MAX) /* a queue's worker meets any number; totals speak of these */
        return;
    t = &s->touched[s->n_touched];
    *t = (struct touched_batch){copy_of(key->run), copy_of(key->batch_id)};
    if (t->run && t->batch_id)
        s->newest_touched = s->n_touched++;
}

/* ---- failures ---- */

int postgres_failed(struct sink_postgres *s, const char *what, const struct postgres_failure *f,
                    bool *bisect, struct err *err)
{
    static const char *const steps[] = {"again", "smaller", "bisect", "later", "give_up"};
    int64_t wait_ns;
    postgres_rollback(&s->pg);
    enum sql_step step =
        sql_policy_failed(&s->policy, f->action, clock_mono_ns(s->pg.clock), &wait_ns);
    /* Configuration too: the next connect reads the password again. */
    if (f->action == SQL_WAIT || f->action == SQL_WRONG_NODE || f->action == SQL_CONFIG)
        postgres_disconnect(&s->pg);
    bool alert = f->action == SQL_CONFIG || (f->action == SQL_UNKNOWN && step == SQL_LATER);
    LOG(alert ? LOG_ERROR : LOG_WARN, "database_failed", LOG_S("what", what),
        LOG_S("sqlstate", f->code), LOG_S("class", sql_action_name(f->action)),
        LOG_S("step", steps[step]), LOG_F("seconds", (double)wait_ns / 1e9),
        LOG_S("text", f->text));
    *bisect = step == SQL_BISECT;
    if (step != SQL_LATER && step != SQL_GIVE_UP)
        return E_OK;
    s->sink.retry_ns = wait_ns;
    return err_typed(err, step == SQL_LATER ? E_RETRY : E_FATAL,
                     f->action == SQL_CONFIG ? "database_config" : "database", "%s: %s: %s%s%s%s",
                     s->pg.label, what, f->text, *f->code ? " (" : "", f->code,
                     *f->code ? ")" : "");
}

void postgres_succeeded(struct sink_postgres *s)
{
    sql_policy_succeeded(&s->policy);
    s->sink.retry_ns = 0;
}

/* One statement in a transaction of its own, until it goes through or the world is down. */
int postgres_transact(struct sink_postgres *s, const char *what, const char *sql, bool binary,
                      PGresult **out, struct err *err)
{
    for (;;) {
        struct postgres_failure f;
        PGresult *done = NULL;
        bool bisect;
        int rc = postgres_begin(&s->pg, &f);
        if (rc >= 0)
            rc = postgres_query(&s->pg, sql, &s->arrays, binary, out, &f);
        FAILPOINT("sink.before_commit");
        if (rc >= 0 && (rc = postgres_query(&s->pg, "COMMIT", NULL, false, &done, &f)) < 0) {
            PQclear(*out);
            *out = NULL;
        }
        PQclear(done);
        if (rc >= 0) {
            postgres_succeeded(s);
            return E_OK;
        }
        if (f.action == SQL_DATA) /* no row of ours can be left out here */
            f.action = SQL_UNKNOWN;
        if (f.action == SQL_TIMEOUT) /* and there are no smaller pieces */
            f.action = SQL_WAIT;
        rc = postgres_failed(s, what, &f, &bisect, err);
        if (rc < 0)
            return rc;
    }
}

static void put_key(struct postgres_arrays *a, const struct key *key)
{
    arrays_str(a, key->run);
    arrays_str(a, key->batch_id);
    arrays_str(a, key->custom_id);
}

/* ---- lookup and attempts ---- */

/* "7 1 0123456789abcdef SIGSEGV": one cell, so that it is one look into the table. */
static void read_attempts(struct lookup *l, struct str text)
{
    char *end;
    l->attempts = (int32_t)strtol(text.ptr, &end, 10);
    l->deaths = (int32_t)strtol(end, &end, 10);
    const char *revision = *end == ' ' ? end + 1 : end;
    int n = (int)strcspn(revision, " ");
    if (*revision != '-')
        snprintf(l->config_revision, sizeof l->config_revision, "%.*s", n, revision);
    l->cause = revision[n] == ' ' ? death_cause_find(str_of(revision + n + 1)) : DEATH_NONE;
}

static int postgres_lookup(struct sink *sink, struct lookup *lookups, size_t n, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    if (n == 0)
        return E_OK;
    arrays_begin(&s->arrays, "ttt");
    for (size_t i = 0; i < n; i++) {
        postgres_touch(s, &lookups[i].key);
        put_key(&s->arrays, &lookups[i].key);
    }
    int rc = postgres_transact(s, "lookup", lookup_sql, false, &back, err);
    if (rc < 0)
        return rc;
    CHECK(PQntuples(back) == (int)n);
    for (int i = 0; i < (int)n; i++) {
        struct lookup *l = &lookups[i];
        struct str there = postgres_cell(back, i, 0);
        char hex[65];
        sha256_hex(l->sha256, hex);
        l->attempts = l->deaths = 0;
        l->cause = DEATH_NONE;
        l->parked = false;
        l->config_revision[0] = '\0';
        if (there.ptr) {
            l->state = str_eq(there, str_of(hex)) ? LOOKUP_SAME : LOOKUP_CONFLICT;
            continue;
        }
        l->state = PQgetisnull(back, i, 1) ? LOOKUP_ABSENT : LOOKUP_CANCELLED;
        if (l->state == LOOKUP_ABSENT && !PQgetisnull(back, i, 2))
            read_attempts(l, postgres_cell(back, i, 2));
        l->parked = l->state == LOOKUP_ABSENT && str_eq(postgres_cell(back, i, 3), STR("t"));
    }
    PQclear(back);
    return E_OK;
}

struct counted {
    const struct key *key;
    size_t at;
};
static int counted_compare(const void *a, const void *b)
{
    const struct counted *x = a, *y = b;
    return postgres_key_compare(x->key, y->key);
}

/* A key that is given several times counts as often, in one row: a statement may not meet a row
 * twice. */
static void put_counts(struct sink_postgres *s, const struct counted *sorted,
                       const struct str *revisions, size_t n, int what)
{
    int64_t now_ns = clock_wall_ns(s->pg.clock);
    arrays_begin(&s->arrays, "tttiwtit");
    for (size_t i = 0, same = 1; i < n; i += same, same = 1) {
        while (i + same < n && postgres_key_compare(sorted[i].key, sorted[i + same].key) == 0)
            same++;
        put_key(&s->arrays, sorted[i].key);
        arrays_int(&s->arrays, (int64_t)same);
        arrays_time(&s->arrays, now_ns);
        arrays_str(&s->arrays, s->sink.process);
        arrays_int(&s->arrays, what == COUNT_ALONE);
        arrays_str(&s->arrays, revisions ? revisions[sorted[i].at] : (struct str){NULL, 0});
    }
}

/* Where the outcome of a COMMIT was not known, a start may be counted twice: that makes a suspect
 * one crash early, and convicts nobody. */
static int postgres_count_attempts(struct sink *sink, const struct key *keys,
                                   const struct str *revisions, size_t n, int what,
                                   int32_t *attempts, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    if (n == 0)
        return E_OK;
    struct counted *sorted = mem_alloc(n, sizeof *sorted);
    if (!sorted)
        return err_set(err, E_RETRY, "database: no memory");
    for (size_t i = 0; i < n; i++)
        sorted[i] = (struct counted){&keys[i], i};
    qsort(sorted, n, sizeof *sorted, counted_compare);
    put_counts(s, sorted, revisions, n, what);
    int rc = postgres_transact(s, "count attempts", what == COUNT_BACK ? uncount_sql : count_sql,
                               false, &back, err);
    if (attempts)
        memset(attempts, 0, n * sizeof *attempts);
    for (int row = 0; rc >= 0 && attempts && row < PQntuples(back); row++) {
        struct key key = {postgres_cell(back, row, 0), postgres_cell(back, row, 1),
                          postgres_cell(back, row, 2)};
        struct counted wanted = {&key, 0},
                       *hit = bsearch(&wanted, sorted, n, sizeof *sorted, counted_compare);
        while (hit && hit > sorted && postgres_key_compare(hit[-1].key, &key) == 0)
            hit--;
        for (; hit && hit < sorted + n && postgres_key_compare(hit->key, &key) == 0; hit++)
            attempts[hit->at] = (int32_t)cell_int(back, row, 3);
    }
    PQclear(back);
    mem_free(sorted);
    return rc;
}

/* ---- totals ---- */

static int postgres_totals(struct sink *sink, struct totals *out, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    *out = (struct totals){0};
    arrays_begin(&s->arrays, "tt");
    for (size_t i = 0; i < s->n_touched; i++) {
        arrays_str(&s->arrays, str_of(s->touched[i].run));
        arrays_str(&s->arrays, str_of(s->touched[i].batch_id));
    }
    int rc = postgres_transact(s, "totals", totals_sql, false, &back, err);
    for (int row = 0; rc >= 0 && row < PQntuples(back); row++) {
        uint8_t sum[32];
        for (int i = 0; i < RESULT_STATUSES; i++)
            out->rows[i] += cell_int(back, row, i);
        out->dead_letters += cell_int(back, row, RESULT_STATUSES);
        output_sum_parse(postgres_cell(back, row, RESULT_STATUSES + 1), sum);
        output_sum_add(out->outputs_sha256, sum);
    }
    PQclear(back);
    return rc;
}

/* ---- open, close ---- */

static void postgres_sink_close(struct sink *sink)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    postgres_close(&s->pg);
    arrays_close(&s->arrays);
    for (size_t i = 0; i < s->n_touched; i++) {
        mem_free(s->touched[i].run);
        mem_free(s->touched[i].batch_id);
    }
    mem_free(s->tallies);
    mem_free(s->outgoing);
    mem_free((void *)s->dead_letters);
    mem_free(s);
}

static int check_schema(struct sink_postgres *s, struct err *err)
{
    struct postgres_failure f;
    PGresult *back = NULL;
    const char *encoding = PQparameterStatus(s->pg.conn, "server_encoding");
    if (encoding && strcmp(encoding, "UTF8") != 0)
        return err_set(err, E_FATAL, "%s: want a database in UTF8, found %s", s->pg.label,
                       encoding);
    int rc = postgres_query(&s->pg, "SELECT max(version) FROM tranche.schema_migrations", NULL,
                            false, &back, &f);
    if (rc < 0 && f.action == SQL_WAIT)
        return err_typed(err, E_RETRY, "database", "%s: %s", s->pg.label, f.text);
    if (rc < 0)
        return err_typed(err, E_FATAL, "database_config",
                         "%s: %s (%s); has `tranche migrate` run, "
                         "and is the user a member of tranche_worker?",
                         s->pg.label, f.text, f.code);
    int64_t version = cell_int(back, 0, 0);
    PQclear(back);
    if (version < POSTGRES_SCHEMA_MIN || version > POSTGRES_SCHEMA_MAX)
        return err_typed(
            err, E_FATAL, "database_config", "%s: want schema %d to %d, found %lld; %s",
            s->pg.label, POSTGRES_SCHEMA_MIN, POSTGRES_SCHEMA_MAX, (long long)version,
            version < POSTGRES_SCHEMA_MIN ? "run `tranche migrate`" : "a newer build made it");
    return E_OK;
}

static int open_once(struct sink_postgres *s, struct err *err)
{
    struct postgres_failure f;
    if (postgres_connect(&s->pg, &f) >= 0)
        return check_schema(s, err);
    bool passing = f.action == SQL_WAIT || f.action == SQL_WRONG_NODE;
    return err_typed(err, passing ? E_RETRY : E_FATAL, "database", "%s: %s", s->pg.label, f.text);
}

/* Tries until it answers or the time is over. What time does not mend is said at once. */
static int open_within(struct sink_postgres *s, int64_t limit_ns, struct err *err)
{
    const struct clock *clock = s->pg.clock;
    int64_t deadline = clock_mono_ns(clock) + limit_ns;
    for (;;) {
        struct err why = {0};
        int64_t wait_ns = retry_wait_ns(&s->policy.retry);
        int rc = open_once(s, &why);
        if (rc >= 0)
            return E_OK;
        if (rc != E_RETRY || clock_mono_ns(clock) + wait_ns > deadline)
            return err_typed(err, rc, why.type, "%s", why.msg);
        LOG(LOG_WARN, "database_connecting", LOG_S("text", why.msg),
            LOG_F("seconds", (double)wait_ns / 1e9));
        postgres_disconnect(&s->pg);
        clock_sleep_ns(clock, wait_ns);
    }
}

static const char progress_read_sql[] =
    "SELECT j.position, j.messages FROM unnest($1,$2,$3,$4) WITH ORDINALITY AS k(r, g, s, p, n) "
    "LEFT JOIN tranche.partition_progress j ON j.run=k.r AND j.consumer_group=k.g AND "
    "j.source=k.s AND j.partition=k.p ORDER BY k.n";

static int postgres_progress_read(struct sink *sink, struct progress *p, size_t n, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    int rc = postgres_forget_settled(s, err);
    if (rc < 0 || n == 0)
        return rc;
    arrays_begin(&s->arrays, "ttti");
    for (size_t i = 0; i < n; i++) {
        arrays_str(&s->arrays, p[i].run);
        arrays_str(&s->arrays, p[i].group);
        arrays_str(&s->arrays, p[i].source);
        arrays_int(&s->arrays, p[i].partition);
    }
    rc = postgres_transact(s, "progress_read", progress_read_sql, false, &back, err);
    if (rc < 0)
        return rc;
    CHECK(PQntuples(back) == (int)n);
    for (int i = 0; i < (int)n; i++) {
        p[i].position = PQgetisnull(back, i, 0) ? -1 : cell_int(back, i, 0);
        p[i].messages = cell_int(back, i, 1);
    }
    PQclear(back);
    return E_OK;
}

int sink_postgres_open(struct sink **out, const struct postgres_opts *opts, struct err *err)
{
    static const struct sink_ops ops = {
        .name = "postgres",
        .lookup = postgres_lookup,
        .count_attempts = postgres_count_attempts,
        .record_death = postgres_record_death,
        .commit = postgres_commit,
        .progress_read = postgres_progress_read,
        .park = postgres_park,
        .unpark = postgres_unpark,
        .cancelled = postgres_cancelled,
        .config_write = postgres_config_write,
        .config_read = postgres_config_read,
        .totals = postgres_totals,
        .close = postgres_sink_close,
    };
    struct sink_postgres *s = mem_alloc(1, sizeof *s);
    if (!s)
        return err_set(err, E_FATAL, "database: no memory");
    s->sink.ops = &ops;
    sql_policy_open(&s->policy, PIECE_ROWS_MAX, (uint64_t)clock_wall_ns(opts->clock));
    int rc = postgres_open(&s->pg, opts, err);
    s->pg.until_ns = &s->sink.until_ns;
    if (rc >= 0)
        rc = open_within(s, opts->connect_ns, err);
    if (rc < 0) {
        postgres_sink_close(&s->sink);
        return rc;
    }
    postgres_succeeded(s);
    s->sink.schema = POSTGRES_SCHEMA;
    snprintf(s->sink.database, sizeof s->sink.database, "postgres:%.70s", PQdb(s->pg.conn));
    *out = &s->sink;
    return E_OK;
}
