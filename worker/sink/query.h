/* query: what an operator's command asks of a database, SQLite or PostgreSQL: one statement at a
 * time, its parameters and cells as text. The sink (sink.h) is the workers' way in; this one is
 * for reading, and for what only people do. One thread. */
#ifndef TRANCHE_WORKER_SINK_QUERY_H
#define TRANCHE_WORKER_SINK_QUERY_H

#include "worker/job/text.h"
#include "worker/sink/postgres_connection.h"

enum query_access { QUERY_READ, QUERY_WRITE };

struct query;
/* opts->url: a postgres:// URL, tried for opts->connect_ns; or a SQLite file, which must be there.
 * Checks the schema's version. E_USAGE: no such URL; E_RETRY: no such file, no answer in time;
 * E_FATAL naming the database: rights, schema. */
int query_open(struct query **out, const struct postgres_opts *opts, enum query_access access,
               struct err *err) TR_MUSTCHECK;
void query_close(struct query *q); /* NULL is legal; an open transaction is undone */
bool query_is_postgres(const struct query *q);

/* Parameters stand in the text as $1, $2, ...; ptr NULL is NULL; at most QUERY_PARAMETERS_MAX.
 * Tables need no schema. Each function below ends the statement before. Errors: E_RETRY: the link
 * failed; E_FATAL with the database's own words. Outside of query_begin each is a transaction. */
enum { QUERY_PARAMETERS_MAX = 16 };
/* Starts a statement whose rows query_next gives one by one; they are few (PostgreSQL: in memory).
 */
int query_start(struct query *q, const char *sql, const struct str *parameters, int n,
                struct err *err) TR_MUSTCHECK;
/* The same for a SELECT of any number of rows, in flat memory. */
int query_stream(struct query *q, const char *sql, const struct str *parameters, int n,
                 struct err *err) TR_MUSTCHECK;
/* 1: there is a row; 0: that was all. */
int query_next(struct query *q, struct err *err) TR_MUSTCHECK;
/* Runs a statement that gives no rows; the number that it changed. */
int64_t query_run(struct query *q, const char *sql, const struct str *parameters, int n,
                  struct err *err) TR_MUSTCHECK;

/* Cells of the row at hand, columns from 0; memory of q until its next call. NULL: ptr NULL, 0. */
struct str query_text(const struct query *q, int column);
int64_t query_int(const struct query *q, int column);
double query_real(const struct query *q, int column);
/* A column of bytes. false: no memory. NULL: nothing. */
bool query_bytes(const struct query *q, int column, struct text *out);
/* A point in time as "2026-01-31T12:00:00.000Z"; "" for NULL. */
void query_time(const struct query *q, int column, char out[32]);

int query_begin(struct query *q, struct err *err) TR_MUSTCHECK;
int query_commit(struct query *q, struct err *err) TR_MUSTCHECK;
void query_rollback(struct query *q); /* nothing open: nothing done */

#endif
