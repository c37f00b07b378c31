/* query_postgres: an operator's statements on PostgreSQL. See query.h. Every statement stands in a
 * transaction, because what it needs of a session (schema, zone, limits) may not outlive one behind
 * a pooler. A stream is a cursor that is fetched in small pieces. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/log.h"
#include "worker/sink/query_impl.h"
#include "worker/sink/sink_postgres.h"

/* People wait longer than workers: a whole table may be sorted or counted. */
static const int64_t ANSWER_NS = 600000000000;
/* The server gives up first, so that its answer says why; one that stands still says nothing. */
static const int64_t SILENT_NS = 5000000000;
#define SETTINGS                                                                                   \
    "SET LOCAL search_path=tranche; SET LOCAL timezone='UTC'; SET LOCAL datestyle='ISO'; "         \
    "SET LOCAL statement_timeout=%lld; SET LOCAL idle_in_transaction_session_timeout=600000"
#define FETCH "FETCH 64 FROM rows"

struct query_postgres {
    struct query query;
    struct postgres pg;
    int64_t answer_ns;
    PGresult *rows;
    int row;
    bool stream, own; /* own: the transaction is this statement's */
};

static struct query_postgres *of(struct query *q)
{
    return (struct query_postgres *)q;
}

static int failed(struct query_postgres *q, const struct postgres_failure *f, struct err *err)
{
    postgres_rollback(&q->pg);
    /* What has taken ten minutes takes them again; a short limit is for who asks again. */
    bool passing = f->action == SQL_WAIT || f->action == SQL_WRONG_NODE ||
                   f->action == SQL_CONFLICT ||
                   (f->action == SQL_TIMEOUT && q->answer_ns < ANSWER_NS);
    return err_typed(err, passing ? E_RETRY : E_FATAL,
                     f->action == SQL_CONFIG ? "database_config" : "database", "%s: %s%s%s%s",
                     q->pg.label, f->text, *f->code ? " (" : "", f->code, *f->code ? ")" : "");
}

static int begin(struct query_postgres *q, struct postgres_failure *f)
{
    char settings[sizeof SETTINGS + 20];
    int rc = postgres_begin(&q->pg, f);
    snprintf(settings, sizeof settings, SETTINGS, (long long)(q->answer_ns / 1000000));
    return rc < 0 ? rc : postgres_run(&q->pg, settings, f);
}

/* Ends the statement at hand, and its transaction where it is its own. */
static int finish(struct query_postgres *q, struct postgres_failure *f)
{
    int rc = E_OK;
    PQclear(q->rows);
    q->rows = NULL;
    if (q->own)
        rc = postgres_run(&q->pg, "COMMIT", f);
    else if (q->stream)
        rc = postgres_run(&q->pg, "CLOSE rows", f);
    q->stream = q->own = false;
    return rc;
}

static int start(struct query_postgres *q, const char *sql, const struct str *parameters, int n,
                 bool stream, struct postgres_failure *f)
{
    struct text declared = {0};
    int rc = finish(q, f);
    if (rc >= 0 && !q->query.transaction) {
        rc = begin(q, f);
        q->own = rc >= 0;
    }
    if (rc < 0)
        return rc;
    text_f(&declared, "%s%s", stream ? "DECLARE rows NO SCROLL CURSOR FOR " : "", sql);
    text_char(&declared, '\0');
    CHECK(!declared.failed);
    rc = postgres_query_text(&q->pg, declared.ptr, parameters, n, &q->rows, f);
    text_close(&declared);
    q->stream = rc >= 0 && stream;
    if (q->stream) {
        PQclear(q->rows);
        rc = postgres_query_text(&q->pg, FETCH, NULL, 0, &q->rows, f);
    }
    q->row = -1;
    return rc;
}

static int postgres_start(struct query *query, const char *sql, const struct str *parameters, int n,
                          bool stream, struct err *err)
{
    struct query_postgres *q = of(query);
    struct postgres_failure f;
    if (start(q, sql, parameters, n, stream, &f) >= 0)
        return E_OK;
    q->own = q->stream = false;
    return failed(q, &f, err);
}

static int postgres_next(struct query *query, struct err *err)
{
    struct query_postgres *q = of(query);
    struct postgres_failure f;
    int rc = E_OK;
    if (q->rows && ++q->row < PQntuples(q->rows))
        return 1;
    if (q->stream && q->rows && PQntuples(q->rows) > 0) {
        PQclear(q->rows);
        q->rows = NULL;
        q->row = 0;
        rc = postgres_query_text(&q->pg, FETCH, NULL, 0, &q->rows, &f);
        if (rc >= 0 && PQntuples(q->rows) > 0)
            return 1;
    }
    if (rc >= 0 && q->own) {
        rc = postgres_run(&q->pg, "COMMIT", &f);
        q->own = q->stream = false;
    }
    if (rc >= 0)
        return 0;
    q->own = q->stream = false;
    return failed(q, &f, err);
}

static struct str postgres_text(const struct query *query, int column)
{
    const struct query_postgres *q = (const struct query_postgres *)query;
    if (PQgetisnull(q->rows, q->row, column))
        return (struct str){NULL, 0};
    return (struct str){PQgetvalue(q->rows, q->row, column),
                        (size_t)PQgetlength(q->rows, q->row, column)};
}

static bool postgres_bytes(const struct query *query, int column, struct text *out)
{
    struct str hex = postgres_text(query, column);
    size_t n = 0;
    if (!hex.ptr)
        return true;
    unsigned char *bytes = PQunescapeBytea((const unsigned char *)hex.ptr, &n);
    text_add(out, (struct str){(const char *)bytes, n});
    PQfreemem(bytes);
    return bytes != NULL;
}

static int64_t postgres_changed(const struct query *query)
{
    const struct query_postgres *q = (const struct query_postgres *)query;
    return q->rows ? strtoll(PQcmdTuples(q->rows), NULL, 10) : 0;
}

static int query_postgres_begin(struct query *query, struct err *err)
{
    struct query_postgres *q = of(query);
    struct postgres_failure f;
    int rc = finish(q, &f);
    if (rc >= 0)
        rc = begin(q, &f);
    return rc < 0 ? failed(q, &f, err) : E_OK;
}

static int query_postgres_commit(struct query *query, struct err *err)
{
    struct query_postgres *q = of(query);
    struct postgres_failure f;
    int rc = finish(q, &f);
    if (rc >= 0)
        rc = postgres_run(&q->pg, "COMMIT", &f);
    return rc < 0 ? failed(q, &f, err) : E_OK;
}

static void query_postgres_rollback(struct query *query)
{
    struct query_postgres *q = of(query);
    PQclear(q->rows);
    q->rows = NULL;
    q->stream = q->own = false;
    postgres_rollback(&q->pg);
}

static void query_postgres_close(struct query *query)
{
    struct query_postgres *q = of(query);
    PQclear(q->rows);
    postgres_close(&q->pg);
    mem_free(q);
}

const struct query_ops query_postgres_ops = {
    postgres_start,        postgres_next,           postgres_text,
    postgres_bytes,        postgres_changed,        query_postgres_begin,
    query_postgres_commit, query_postgres_rollback, query_postgres_close};

static int connect_within(struct query_postgres *q, int64_t limit_ns, struct err *err)
{
    const struct clock *clock = q->pg.clock;
    int64_t deadline = clock_mono_ns(clock) + limit_ns;
    struct retry retry;
    retry_open(&retry, 100000000, 2000000000, (uint64_t)clock_wall_ns(clock));
    for (;;) {
        struct postgres_failure f;
        int64_t wait_ns = retry_wait_ns(&retry);
        if (postgres_connect(&q->pg, &f) >= 0)
            return E_OK;
        bool passing = f.action == SQL_WAIT || f.action == SQL_WRONG_NODE;
        if (!passing || clock_mono_ns(clock) + wait_ns > deadline)
            return failed(q, &f, err);
        LOG(LOG_WARN, "database_connecting", LOG_S("text", f.text),
            LOG_F("seconds", (double)wait_ns / 1e9));
        clock_sleep_ns(clock, wait_ns);
    }
}

static int check_schema(struct query_postgres *q, struct err *err)
{
    struct err why = {0};
    int rc = query_start(&q->query, "SELECT max(version) FROM schema_migrations", NULL, 0, &why);
    if (rc >= 0)
        rc = query_next(&q->query, &why);
    if (rc < 0)
        return err_typed(err, why.code, why.type,
                         "%s; has `tranche migrate` run, and may this "
                         "user read the tables?",
                         why.msg);
    int64_t version = query_int(&q->query, 0);
    if (version < POSTGRES_SCHEMA_MIN || version > POSTGRES_SCHEMA_MAX)
        return err_set(err, E_FATAL, "%s: want schema %d to %d, found %lld", q->pg.label,
                       POSTGRES_SCHEMA_MIN, POSTGRES_SCHEMA_MAX, (long long)version);
    return TR_MIN(query_next(&q->query, err), E_OK);
}

int query_postgres_open(struct query **out, const struct postgres_opts *opts, struct err *err)
{
    struct query_postgres *q = mem_alloc(1, sizeof *q);
    if (!q)
        return err_set(err, E_FATAL, "database: no memory");
    q->query.ops = &query_postgres_ops;
    int rc = postgres_open(&q->pg, opts, err);
    q->answer_ns = opts->answer_ns ? opts->answer_ns : ANSWER_NS;
    q->pg.statement_ns = q->answer_ns + SILENT_NS;
    if (rc >= 0)
        rc = connect_within(q, opts->connect_ns, err);
    if (rc >= 0)
        rc = check_schema(q, err);
    if (rc < 0) {
        query_postgres_close(&q->query);
        return rc;
    }
    *out = &q->query;
    return E_OK;
}
