/* migrate: see migrate.h. */
#include "worker/sink/migrate.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/log.h"
#include "schema_postgres.h"
#include "worker/sink/sink_postgres.h"

/* "tranche" as a number: whoever migrates any database of this server waits for it. */
#define ADVISORY_KEY "8390043731436168293"

static const struct migration {
    int version;
    const char *name, *sql;
} migrations[] = {{1, "001_init", schema_postgres_001}, {2, "002_config", schema_postgres_002}};

static int current_version(struct postgres *p, int *version, struct postgres_failure *f)
{
    PGresult *back = NULL;
    int rc = postgres_query(p, "SELECT to_regclass('tranche.schema_migrations') IS NOT NULL", NULL,
                            false, &back, f);
    bool there = rc >= 0 && PQgetvalue(back, 0, 0)[0] == 't';
    PQclear(back);
    *version = 0;
    if (rc < 0 || !there)
        return rc;
    rc = postgres_query(p, "SELECT coalesce(max(version), 0) FROM tranche.schema_migrations", NULL,
                        false, &back, f);
    if (rc >= 0)
        *version = atoi(PQgetvalue(back, 0, 0));
    PQclear(back);
    return rc;
}

/* Brings the schema up by one version, or finds that there is nothing to do: *found == *reached. */
static int one_step(struct postgres *p, int *found, int *reached, struct postgres_failure *f)
{
    const struct migration *next = NULL;
    int rc = postgres_connect(p, f);
    if (rc >= 0)
        rc = postgres_run(p,
                          "BEGIN; SET LOCAL lock_timeout=5000; SET LOCAL statement_timeout=0; "
                          "SET LOCAL idle_in_transaction_session_timeout=60000; "
                          "SELECT pg_advisory_xact_lock(" ADVISORY_KEY ")",
                          f);
    if (rc >= 0)
        rc = current_version(p, found, f);
    *reached = *found;
    for (size_t i = 0; rc >= 0 && i < TR_COUNT(migrations) && !next; i++)
        if (migrations[i].version == *found + 1)
            next = &migrations[i];
    if (rc >= 0 && next && (rc = postgres_run(p, next->sql, f)) >= 0)
        *reached = next->version;
    if (rc >= 0)
        rc = postgres_run(p, "COMMIT", f);
    postgres_rollback(p);
    return rc;
}

/* Whether waiting may help: the server is away, or somebody holds a lock. */
static bool is_passing(enum sql_action action)
{
    return action == SQL_WAIT || action == SQL_CONFLICT || action == SQL_WRONG_NODE;
}

static int step_up(struct postgres *p, const struct postgres_opts *o, int *found, int *reached,
                   struct err *err)
{
    struct retry retry;
    int64_t deadline = clock_mono_ns(o->clock) + o->connect_ns;
    retry_open(&retry, 100000000, 5000000000, (uint64_t)clock_wall_ns(o->clock));
    for (;;) {
        struct postgres_failure f;
        if (one_step(p, found, reached, &f) >= 0)
            return E_OK;
        int64_t wait_ns = retry_wait_ns(&retry);
        bool passing = is_passing(f.action);
        if (!passing || clock_mono_ns(o->clock) + wait_ns > deadline)
            return err_typed(err, passing ? E_RETRY : E_FATAL, "database", "%s: %s%s%s%s", p->label,
                             f.text, *f.code ? " (" : "", f.code, *f.code ? ")" : "");
        LOG(LOG_WARN, "migrate_waiting", LOG_S("sqlstate", f.code), LOG_S("text", f.text),
            LOG_F("seconds", (double)wait_ns / 1e9));
        clock_sleep_ns(o->clock, wait_ns);
    }
}

int migrate_run(const struct postgres_opts *o, int *from, int *to, struct err *err)
{
    struct postgres p;
    int found = 0, reached = 0;
    *from = -1;
    int rc = postgres_open(&p, o, err);
    while (rc >= 0) {
        rc = step_up(&p, o, &found, &reached, err);
        if (rc < 0 || found == reached)
            break;
        if (*from < 0)
            *from = found;
        LOG(LOG_INFO, "schema_migrated", LOG_S("database", p.label), LOG_I("from", found),
            LOG_I("to", reached));
    }
    *from = *from < 0 ? found : *from;
    *to = reached;
    if (rc >= 0 && reached > POSTGRES_SCHEMA_MAX)
        rc = err_set(err, E_FATAL, "%s: has schema %d, this build knows up to %d", p.label, reached,
                     POSTGRES_SCHEMA_MAX);
    postgres_close(&p);
    return rc;
}
