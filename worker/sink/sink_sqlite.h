/* sink_sqlite: what the files of the SQLite sink share: its statements and its state. Nobody
 * else includes this. */
#ifndef TRANCHE_WORKER_SINK_SINK_SQLITE_H
#define TRANCHE_WORKER_SINK_SINK_SQLITE_H

#include <sqlite3.h>

#include "worker/sink/sink.h"

enum statement {
    S_BEGIN,
    S_COMMIT,
    S_ROLLBACK,
    S_LOOKUP,
    S_ANY_CANCELLED,
    S_CANCELLED,
    S_ANY_ATTEMPTS,
    S_ATTEMPTS,
    S_COUNT,
    S_UNCOUNT,
    S_FORGET,
    S_ANY_SETTLED,
    S_FORGET_SETTLED,
    S_RESULT,
    S_DEAD,
    S_DEAD_AGAIN,
    S_PROGRESS,
    S_PROGRESS_READ,
    S_LOST_RANGE,
    S_TOUCH,
    S_BATCH_READ,
    S_BATCH_WRITE,
    S_ANY_PARKED,
    S_PARKED,
    S_PARK,
    S_UNPARK,
    S_FORGET_PARKED,
    S_TOTALS,
    S_IN_FLIGHT,
    S_DEATH,
    S_CONFIG_WRITE,
    S_CONFIG_READ,
    STATEMENTS
};
/* What one transaction adds to one row of `batches`. */
struct tally {
    struct str run, batch_id, source, config_revision;
    int64_t rows[RESULT_STATUSES], dead_letters;
    uint8_t outputs[32];
    bool used;
};
struct sink_sqlite {
    struct sink sink;
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENTS];
    struct str touched_run, touched_batch; /* newest in temp.touched; own copies */
    char touched[2][520];
    struct tally tally;
    bool any_parked; /* in this transaction's snapshot */
    int bind_rc;     /* SQLite's, of the first bind refused since the last statement; 0: none */
};

extern const struct sink_ops sink_sqlite_ops;

/* E_RETRY or E_FATAL by what SQLite says of the newest call; err->type "too_large": a value or a
 * row passes its limit. */
int sink_sqlite_error(struct sink_sqlite *s, const char *what, struct err *err);
/* Runs a bound statement to its end and resets it; the number of rows. An error, and the statement
 * does not run, where one of the binds below was refused. first != NULL: the first
 * column of the first row, if any. */
int sink_sqlite_finish(struct sink_sqlite *s, sqlite3_stmt *st, int64_t *first, struct err *err);
/* Ends a transaction: COMMIT, or ROLLBACK where rc is an error. */
int sink_sqlite_end(struct sink_sqlite *s, int rc, struct err *err);
void sink_sqlite_close(struct sink *sink);

/* The tally of this key's batch; the one before is written out first. */
int sink_sqlite_tally(struct sink_sqlite *s, const struct key *key, int64_t now_ns,
                      struct err *err);

/* sink_sqlite_result.c: ptr NULL and times up to 0 are NULL; texts and blobs are borrowed. */
void sqlite_bind_str(struct sink_sqlite *s, sqlite3_stmt *st, int at, struct str v);
void sqlite_bind_blob(struct sink_sqlite *s, sqlite3_stmt *st, int at, struct str v);
void sqlite_bind_time(struct sink_sqlite *s, sqlite3_stmt *st, int at, int64_t wall_ns);
void sqlite_bind_hash(struct sink_sqlite *s, sqlite3_stmt *st, int at, const uint8_t sha256[32]);
/* The statement with the key as its first three parameters. */
sqlite3_stmt *sqlite_with_key(struct sink_sqlite *s, enum statement id, const struct key *key);
/* A row that SQLite finds too large becomes `unstorable`. *conflict, where not NULL: whether the
 * row that is there is another request's. */
int sink_sqlite_put_result(struct sink_sqlite *s, const struct result *r, int64_t now_ns,
                           struct commit_counts *counts, bool *conflict, struct err *err);

/* sink_sqlite_deaths.c */
int sink_sqlite_record_death(struct sink *sink, struct death *death, struct err *err);

/* sink_sqlite_parked.c */
int sink_sqlite_park(struct sink *sink, const struct parked *parked, size_t n, struct err *err);
int sink_sqlite_unpark(struct sink *sink, const struct key *keys, size_t n, unpark_take *take,
                       void *ctx, struct err *err);
int sink_sqlite_cancelled(struct sink *sink, const struct key *keys, size_t n, bool *out,
                          struct err *err);
/* sink_sqlite_config.c */
int sink_sqlite_config_write(struct sink *sink, struct str revision, struct str content,
                             struct err *err);
int sink_sqlite_config_read(struct sink *sink, struct str revision, struct text *out,
                            struct err *err);
/* sink_sqlite_progress.c */
int sink_sqlite_put_progress(struct sink_sqlite *s, const struct progress *p, int64_t now_ns,
                             struct err *err);
int sink_sqlite_put_lost_range(struct sink_sqlite *s, const struct lost_range *l, int64_t now_ns,
                               struct err *err);
int sink_sqlite_progress_read(struct sink *sink, struct progress *p, size_t n, struct err *err);

#endif
