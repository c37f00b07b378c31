/* query: see query.h. What both databases have in common. */
#include <stdio.h>
#include <stdlib.h>

#include "worker/sink/query_impl.h"

int query_open(struct query **out, const struct postgres_opts *opts, enum query_access access,
               struct err *err)
{
    *out = NULL;
    return postgres_is_url(opts->url) ? query_postgres_open(out, opts, err)
                                      : query_sqlite_open(out, opts->url, access, err);
}

void query_close(struct query *q)
{
    if (!q)
        return;
    query_rollback(q);
    q->ops->close(q);
}

bool query_is_postgres(const struct query *q)
{
    return q->ops == &query_postgres_ops;
}

int query_start(struct query *q, const char *sql, const struct str *parameters, int n,
                struct err *err)
{
    CHECK(n >= 0 && n <= QUERY_PARAMETERS_MAX);
    return q->ops->start(q, sql, parameters, n, false, err);
}

int query_stream(struct query *q, const char *sql, const struct str *parameters, int n,
                 struct err *err)
{
    CHECK(n >= 0 && n <= QUERY_PARAMETERS_MAX);
    return q->ops->start(q, sql, parameters, n, true, err);
}

int query_next(struct query *q, struct err *err)
{
    return q->ops->next(q, err);
}

int64_t query_run(struct query *q, const char *sql, const struct str *parameters, int n,
                  struct err *err)
{
    int rc = query_start(q, sql, parameters, n, err);
    while (rc >= 0 && (rc = query_next(q, err)) > 0)
        continue;
    return rc < 0 ? rc : q->ops->changed(q);
}

struct str query_text(const struct query *q, int column)
{
    return q->ops->text(q, column);
}

/* A cell's text with an end. */
static const char *number_text(const struct query *q, int column, char buf[64])
{
    struct str text = query_text(q, column);
    size_t n = TR_MIN(text.len, (size_t)63);
    if (n)
        memcpy(buf, text.ptr, n);
    buf[n] = '\0';
    return buf;
}

int64_t query_int(const struct query *q, int column)
{
    char buf[64];
    return strtoll(number_text(q, column, buf), NULL, 10);
}

double query_real(const struct query *q, int column)
{
    char buf[64];
    return strtod(number_text(q, column, buf), NULL);
}

bool query_bytes(const struct query *q, int column, struct text *out)
{
    text_reset(out);
    return q->ops->bytes(q, column, out) && !out->failed;
}

/* SQLite keeps our own form; PostgreSQL writes "2026-01-31 12:00:00.12+00" (the session's zone is
 * UTC). */
void query_time(const struct query *q, int column, char out[32])
{
    char buf[64];
    const char *text = number_text(q, column, buf);
    size_t n = strcspn(text, "+Z");
    out[0] = '\0';
    if (n < 19)
        return;
    int ms = 0, scale = 100;
    for (const char *p = text + 20; text[19] == '.' && p < text + n && scale; p++, scale /= 10)
        ms += (*p - '0') * scale;
    snprintf(out, 32, "%.10sT%.8s.%03dZ", text, text + 11, ms);
}

int query_begin(struct query *q, struct err *err)
{
    CHECK(!q->transaction);
    int rc = q->ops->begin(q, err);
    q->transaction = rc >= 0;
    return rc;
}

int query_commit(struct query *q, struct err *err)
{
    CHECK(q->transaction);
    q->transaction = false;
    int rc = q->ops->commit(q, err);
    if (rc < 0)
        q->ops->rollback(q);
    return rc;
}

void query_rollback(struct query *q)
{
    if (q->transaction)
        q->ops->rollback(q);
    q->transaction = false;
}
