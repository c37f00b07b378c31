/* sink_sqlite_open: opening the SQLite sink: journal, schema, statements. See sink_sqlite.c. */
#include <stdio.h>

#include "schema_sqlite.h"
#include "worker/sink/sink_sqlite.h"

enum { SCHEMA_VERSION = 2, APPLICATION_ID = 0x74726e63 };

#define KEY "run=?1 AND batch_id=?2 AND custom_id=?3"
static const char *const sql[STATEMENTS] = {
    [S_BEGIN] = "BEGIN IMMEDIATE",
    [S_COMMIT] = "COMMIT",
    [S_ROLLBACK] = "ROLLBACK",
    [S_LOOKUP] = "SELECT request_sha256 FROM results WHERE " KEY,
    [S_ANY_CANCELLED] = "SELECT 1 FROM cancellations LIMIT 1",
    [S_CANCELLED] = "SELECT 1 FROM cancellations WHERE run=?1 AND batch_id=?2 AND custom_id "
                    "IN (?3, '') LIMIT 1",
    [S_ANY_ATTEMPTS] = "SELECT 1 FROM job_attempts LIMIT 1",
    [S_ATTEMPTS] = "SELECT n, deaths, cause, config_revision FROM job_attempts WHERE " KEY,
    [S_COUNT] = "INSERT INTO job_attempts (run, batch_id, custom_id, n, last_at, process, alone, "
                "config_revision) VALUES (?1,?2,?3,1,?4,?5,?6,?7) ON CONFLICT DO UPDATE "
                "SET n=n+1, last_at=?4, process=?5, alone=?6, "
                "config_revision=coalesce(config_revision,?7) RETURNING n",
    /* What another process has counted since stays that one's. */
    [S_UNCOUNT] = "UPDATE job_attempts SET n=max(n-1,0), last_at=?4, "
                  "alone=CASE WHEN process=?5 THEN 0 ELSE alone END, "
                  "process=CASE WHEN process=?5 THEN NULL ELSE process END "
                  "WHERE " KEY " RETURNING n",
    [S_FORGET] = "DELETE FROM job_attempts WHERE " KEY,
    [S_ANY_SETTLED] = "SELECT 1 FROM job_attempts JOIN results USING (run, batch_id, custom_id) "
                      "LIMIT 1",
    [S_FORGET_SETTLED] = "DELETE FROM job_attempts WHERE EXISTS (SELECT 1 FROM results r WHERE "
                         "r.run=job_attempts.run AND r.batch_id=job_attempts.batch_id AND "
                         "r.custom_id=job_attempts.custom_id)",
    [S_RESULT] = "INSERT INTO results VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,"
                 "?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
    [S_DEAD] = "INSERT INTO dead_letters (source_key, run, batch_id, custom_id, reason, detail, "
               "payload, sha256, source, attempts, first_seen, last_seen, worker, queue, "
               "message_key) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?11,?12,?13,?14) ON "
               "CONFLICT DO NOTHING RETURNING 1",
    [S_DEAD_AGAIN] = "UPDATE dead_letters SET last_seen=?2 WHERE source_key=?1 AND last_seen<?2",
    [S_PROGRESS] = "INSERT INTO partition_progress VALUES (?1,?2,?3,?4,?5,?6,?7) ON CONFLICT DO "
                   "UPDATE SET position=CASE WHEN ?2='file' THEN ?5 ELSE max(position, ?5) END, "
                   "messages=?6, updated_at=?7",
    [S_PROGRESS_READ] = "SELECT position, messages FROM partition_progress WHERE run=?1 AND "
                        "consumer_group=?2 AND source=?3 AND partition=?4",
    [S_LOST_RANGE] = "INSERT INTO lost_ranges VALUES (?1,?2,?3,?4,?5,?6,?7,?8) "
                     "ON CONFLICT DO NOTHING",
    [S_TOUCH] = "INSERT INTO temp.touched VALUES (?1,?2) ON CONFLICT DO NOTHING",
    [S_BATCH_READ] = "SELECT outputs_sha256 FROM batches WHERE run=?1 AND batch_id=?2",
    [S_BATCH_WRITE] =
        "INSERT INTO batches (run, batch_id, source, config_revision, rows_ok, rows_failed, "
        "rows_invalid, rows_expired, rows_cancelled, rows_dead, dead_letters, outputs_sha256, "
        "created_at, updated_at) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?13) "
        "ON CONFLICT DO UPDATE SET config_revision=coalesce(?4,config_revision), "
        "rows_ok=rows_ok+?5, rows_failed=rows_failed+?6, rows_invalid=rows_invalid+?7, "
        "rows_expired=rows_expired+?8, rows_cancelled=rows_cancelled+?9, rows_dead=rows_dead+?10, "
        "dead_letters=dead_letters+?11, outputs_sha256=?12, updated_at=?13",
    [S_ANY_PARKED] = "SELECT 1 FROM parked LIMIT 1",
    [S_PARKED] = "SELECT 1 FROM parked WHERE " KEY " LIMIT 1",
    [S_PARK] = "INSERT INTO parked SELECT ?1,?2,?3,?4,?5,?6,?7,?8,?9 WHERE NOT EXISTS (SELECT 1 "
               "FROM results WHERE " KEY ") ON CONFLICT DO UPDATE SET n=?5, state=?6, "
               "config_revision=?7, worker=?8, parked_at=?9",
    [S_UNPARK] = "SELECT choice, n, state, config_revision, worker FROM parked WHERE " KEY,
    [S_FORGET_PARKED] = "DELETE FROM parked WHERE " KEY,
    [S_TOTALS] = "SELECT b.rows_ok, b.rows_failed, b.rows_invalid, b.rows_expired, "
                 "b.rows_cancelled, b.rows_dead, b.dead_letters, b.outputs_sha256 "
                 "FROM temp.touched t JOIN batches b USING (run, batch_id)",
    [S_IN_FLIGHT] = "SELECT count(*), sum(alone) FROM job_attempts WHERE process=?1",
    [S_DEATH] = "UPDATE job_attempts SET n=max(n-?2,0), deaths=deaths+?3, "
                "cause=coalesce(?4,cause), process=NULL, alone=0 WHERE process=?1",
    [S_CONFIG_WRITE] = "INSERT INTO config_revisions VALUES (?1,?2,?3) ON CONFLICT DO NOTHING",
    [S_CONFIG_READ] = "SELECT content FROM config_revisions WHERE revision=?1",
};

void sink_sqlite_close(struct sink *sink)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    for (int i = 0; i < STATEMENTS; i++)
        sqlite3_finalize(s->statements[i]);
    sqlite3_close(s->db);
    mem_free(s);
}

static int execute(struct sink_sqlite *s, const char *text, struct err *err)
{
    if (sqlite3_exec(s->db, text, NULL, NULL, NULL) != SQLITE_OK)
        return sink_sqlite_error(s, "schema", err);
    return E_OK;
}

static int query_int(struct sink_sqlite *s, const char *text, int64_t *out, struct err *err)
{
    sqlite3_stmt *st;
    if (sqlite3_prepare_v2(s->db, text, -1, &st, NULL) != SQLITE_OK)
        return sink_sqlite_error(s, "schema", err);
    int rc = sink_sqlite_finish(s, st, out, err);
    sqlite3_finalize(st);
    return rc;
}

static const char *const migrations[SCHEMA_VERSION] = {schema_sqlite_001, schema_sqlite_002};

/* Two processes may open a new file at once: the look and the work are one transaction. */
static int migrate(struct sink_sqlite *s, const char *path, struct err *err)
{
    int64_t id = 0, tables = 0, version = 0;
    char stamp[64];
    int rc = execute(s, "BEGIN IMMEDIATE", err);
    if (rc >= 0)
        rc = query_int(s, "PRAGMA application_id", &id, err);
    if (rc >= 0)
        rc = query_int(s, "SELECT count(*) FROM sqlite_master", &tables, err);
    if (rc >= 0 && tables > 0 && id != APPLICATION_ID)
        rc = err_set(err, E_FATAL, "%s: a SQLite database, but not one of tranche's", path);
    if (rc >= 0 && tables > 0)
        rc = query_int(s, "SELECT max(version) FROM schema_migrations", &version, err);
    if (rc >= 0 && version > SCHEMA_VERSION)
        rc = err_set(err, E_FATAL, "%s: has schema %lld, this build knows up to %d", path,
                     (long long)version, SCHEMA_VERSION);
    if (rc >= 0 && version < 1) {
        snprintf(stamp, sizeof stamp, "PRAGMA application_id = %d", APPLICATION_ID);
        rc = execute(s, stamp, err);
    }
    for (int64_t next = TR_MAX(version, (int64_t)0); rc >= 0 && next < SCHEMA_VERSION; next++)
        rc = execute(s, migrations[next], err);
    if (rc >= 0)
        return execute(s, "COMMIT", err);
    sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

static int prepare_all(struct sink_sqlite *s, struct err *err)
{
    int rc = execute(s,
                     "CREATE TEMP TABLE touched (run TEXT, batch_id TEXT, "
                     "PRIMARY KEY (run, batch_id)) WITHOUT ROWID",
                     err);
    for (int i = 0; rc >= 0 && i < STATEMENTS; i++)
        if (sqlite3_prepare_v3(s->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &s->statements[i],
                               NULL) != SQLITE_OK)
            rc = sink_sqlite_error(s, sql[i], err);
    return rc;
}

int sink_sqlite_open(struct sink **out, const struct sqlite_opts *opts, struct err *err)
{
    struct sink_sqlite *s = mem_alloc(1, sizeof *s);
    if (!s)
        return err_set(err, E_FATAL, "database: no memory");
    s->sink.ops = &sink_sqlite_ops;
    int rc = E_OK;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(opts->path, &s->db, flags, NULL) != SQLITE_OK)
        rc = err_typed(err, E_RETRY, "database", "%s: cannot open: %s", opts->path,
                       s->db ? sqlite3_errmsg(s->db) : "no memory");
    if (rc >= 0) {
        sqlite3_busy_timeout(s->db, (int)((opts->busy_ns ? opts->busy_ns : 10000000000) / 1000000));
        /* 64 MiB of WAL between checkpoints: a checkpoint syncs twice. */
        rc = execute(s,
                     opts->full_sync ? "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL"
                                     : "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
                     err);
    }
    if (rc >= 0)
        rc = execute(s,
                     "PRAGMA wal_autocheckpoint=16384; PRAGMA cache_size=-32768; "
                     "PRAGMA temp_store=MEMORY",
                     err);
    if (rc >= 0)
        rc = migrate(s, opts->path, err);
    if (rc >= 0)
        rc = prepare_all(s, err);
    if (rc < 0) {
        sink_sqlite_close(&s->sink);
        return rc;
    }
    const char *slash = strrchr(opts->path, '/');
    s->sink.schema = SCHEMA_VERSION;
    snprintf(s->sink.database, sizeof s->sink.database, "sqlite:%.70s",
             slash ? slash + 1 : opts->path);
    *out = &s->sink;
    return E_OK;
}
