/* query_sqlite: an operator's statements on a SQLite file. See query.h. */
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <unistd.h>

#include "worker/sink/query_impl.h"

enum { SCHEMA_VERSION = 2, APPLICATION_ID = 0x74726e63, BUSY_MS = 10000 };

struct query_sqlite {
    struct query query;
    sqlite3 *db;
    sqlite3_stmt *statement;
    const char *path;
};

static struct query_sqlite *of(struct query *q)
{
    return (struct query_sqlite *)q;
}

static int failed(struct query_sqlite *q, struct err *err)
{
    int code = sqlite3_errcode(q->db);
    bool busy = code == SQLITE_BUSY || code == SQLITE_LOCKED;
    return err_typed(err, busy ? E_RETRY : E_FATAL, "database", "%s: %s", q->path,
                     sqlite3_errmsg(q->db));
}

static int sqlite_start(struct query *query, const char *sql, const struct str *parameters, int n,
                        bool stream, struct err *err)
{
    struct query_sqlite *q = of(query);
    (void)stream; /* rows come one by one anyway */
    sqlite3_finalize(q->statement);
    q->statement = NULL;
    if (sqlite3_prepare_v2(q->db, sql, -1, &q->statement, NULL) != SQLITE_OK)
        return failed(q, err);
    for (int i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof name, "$%d", i + 1);
        int at = sqlite3_bind_parameter_index(q->statement, name);
        CHECK(at > 0); /* a parameter that the text does not use */
        int rc = parameters[i].ptr ? sqlite3_bind_text(q->statement, at, parameters[i].ptr,
                                                       (int)parameters[i].len, SQLITE_TRANSIENT)
                                   : sqlite3_bind_null(q->statement, at);
        if (rc != SQLITE_OK)
            return failed(q, err);
    }
    return E_OK;
}

static int sqlite_next(struct query *query, struct err *err)
{
    struct query_sqlite *q = of(query);
    CHECK(q->statement);
    int step = sqlite3_step(q->statement);
    if (step == SQLITE_ROW)
        return 1;
    int rc = step == SQLITE_DONE ? E_OK : failed(q, err);
    sqlite3_reset(q->statement); /* gives its locks back */
    return rc;
}

static struct str sqlite_text(const struct query *query, int column)
{
    const struct query_sqlite *q = (const struct query_sqlite *)query;
    const char *text = (const char *)sqlite3_column_text(q->statement, column);
    return (struct str){text, text ? (size_t)sqlite3_column_bytes(q->statement, column) : 0};
}

static bool sqlite_bytes(const struct query *query, int column, struct text *out)
{
    const struct query_sqlite *q = (const struct query_sqlite *)query;
    const void *bytes = sqlite3_column_blob(q->statement, column);
    text_add(out,
             (struct str){bytes, bytes ? (size_t)sqlite3_column_bytes(q->statement, column) : 0});
    return true;
}

static int64_t sqlite_changed(const struct query *query)
{
    return sqlite3_changes64(((const struct query_sqlite *)query)->db);
}

static int execute(struct query_sqlite *q, const char *sql, struct err *err)
{
    return sqlite3_exec(q->db, sql, NULL, NULL, NULL) == SQLITE_OK ? E_OK : failed(q, err);
}

static int sqlite_begin(struct query *query, struct err *err)
{
    return execute(of(query), "BEGIN IMMEDIATE", err);
}

static int sqlite_commit(struct query *query, struct err *err)
{
    return execute(of(query), "COMMIT", err);
}

static void sqlite_rollback(struct query *query)
{
    if (of(query)->statement)
        sqlite3_reset(of(query)->statement);
    sqlite3_exec(of(query)->db, "ROLLBACK", NULL, NULL, NULL);
}

static void sqlite_close(struct query *query)
{
    struct query_sqlite *q = of(query);
    sqlite3_finalize(q->statement);
    sqlite3_close(q->db);
    mem_free(q);
}

static int pragma(struct query_sqlite *q, const char *sql, int64_t *out, struct err *err)
{
    int rc = sqlite_start(&q->query, sql, NULL, 0, false, err);
    if (rc >= 0)
        rc = sqlite_next(&q->query, err);
    if (rc >= 0)
        *out = rc > 0 ? sqlite3_column_int64(q->statement, 0) : 0;
    return TR_MIN(rc, E_OK);
}

static int check_schema(struct query_sqlite *q, struct err *err)
{
    int64_t id = 0, version = 0;
    int rc = pragma(q, "PRAGMA application_id", &id, err);
    if (rc >= 0 && id != APPLICATION_ID)
        return err_set(err, E_FATAL, "%s: a SQLite database, but not one of tranche's", q->path);
    if (rc >= 0)
        rc = pragma(q, "SELECT max(version) FROM schema_migrations", &version, err);
    if (rc >= 0 && (version < 1 || version > SCHEMA_VERSION)) /* later ones only add */
        return err_set(err, E_FATAL, "%s: want schema 1 to %d, found %lld", q->path, SCHEMA_VERSION,
                       (long long)version);
    sqlite3_finalize(q->statement);
    q->statement = NULL;
    return rc;
}

int query_sqlite_open(struct query **out, const char *path, enum query_access mode, struct err *err)
{
    static const struct query_ops ops = {sqlite_start,  sqlite_next,     sqlite_text,
                                         sqlite_bytes,  sqlite_changed,  sqlite_begin,
                                         sqlite_commit, sqlite_rollback, sqlite_close};
    struct query_sqlite *q = mem_alloc(1, sizeof *q);
    if (!q)
        return err_set(err, E_FATAL, "database: no memory");
    q->query.ops = &ops;
    q->path = path;
    int rc = E_OK, flags = mode == QUERY_READ ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    if (access(path, R_OK) != 0)
        rc = err_errno(err, E_RETRY, "%s: cannot read", path);
    else if (sqlite3_open_v2(path, &q->db, flags, NULL) != SQLITE_OK)
        rc = failed(q, err);
    if (rc >= 0) {
        sqlite3_busy_timeout(q->db, BUSY_MS);
        rc = check_schema(q, err);
    }
    if (rc < 0) {
        sqlite_close(&q->query);
        return rc;
    }
    *out = &q->query;
    return E_OK;
}
