/* doctor_postgres: whether rows can go to the PostgreSQL database of --db: the server, its schema,
 * what the user may do and should not, its certificate, its clock, and how long a drain would take
 * to it. Reads only. */
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/commands/commands.h"
#include "worker/commands/doctor.h"
#include "worker/sink/sink_postgres.h"

enum { PROBE_BYTES = 1 << 20, PARK_TRANSACTION = 4 << 20, PARK_QUESTIONS = 5 };

/* What schemas/postgres/001_init.sql grants to tranche_worker, a table at a time. */
static const char missing_sql[] =
    "SELECT string_agg(t || ' ' || p, ', ') FROM (VALUES ('results', 'INSERT'), "
    "('dead_letters', 'INSERT'), ('batches', 'SELECT'), ('batches', 'INSERT'), "
    "('batches', 'UPDATE'), ('partition_progress', 'SELECT'), ('partition_progress', 'INSERT'), "
    "('partition_progress', 'UPDATE'), ('job_attempts', 'SELECT'), ('job_attempts', 'INSERT'), "
    "('job_attempts', 'UPDATE'), ('job_attempts', 'DELETE'), ('parked', 'SELECT'), "
    "('parked', 'INSERT'), ('parked', 'UPDATE'), ('parked', 'DELETE'), ('lost_ranges', 'SELECT'), "
    "('lost_ranges', 'INSERT'), ('cancellations', 'SELECT'), ('schema_migrations', 'SELECT')) "
    "AS need(t, p) WHERE NOT has_table_privilege('tranche.' || t, p)";
static const char excess_sql[] =
    "SELECT CASE WHEN r.rolsuper THEN 'is a superuser' "
    "WHEN pg_has_role('tranche_owner', 'MEMBER') THEN 'is a member of tranche_owner' "
    "WHEN r.rolcreaterole OR r.rolcreatedb THEN 'may create roles or databases' "
    "WHEN has_table_privilege('tranche.results', 'DELETE') OR "
    "has_table_privilege('tranche.results', 'UPDATE') THEN 'may change rows that are written' "
    "END FROM pg_roles r WHERE r.rolname = current_user";
static const char schema_sql[] =
    "SELECT max(version), current_user, current_database() FROM tranche.schema_migrations";
static const char clock_sql[] = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/* The one row's first cell, "" for NULL; the caller's result. NULL: refused, and told. */
static const char *ask(struct doctor *d, struct postgres *p, const char *sql, PGresult **r)
{
    struct postgres_failure f;
    if (postgres_query_text(p, sql, NULL, 0, r, &f) < 0 || PQntuples(*r) != 1) {
        doctor_report(d, VERDICT_FAULT, "roles", "grant tranche_worker to the user of --db",
                      "a question was refused: %s", *r ? "no row" : f.text);
        return NULL;
    }
    return PQgetvalue(*r, 0, 0);
}

static void look_at_roles(struct doctor *d, struct postgres *p)
{
    PGresult *missing = NULL, *excess = NULL;
    const char *lacks = ask(d, p, missing_sql, &missing);
    const char *more = lacks ? ask(d, p, excess_sql, &excess) : NULL;
    if (lacks && *lacks)
        doctor_report(d, VERDICT_FAULT, "roles", "GRANT tranche_worker TO the user of --db",
                      "the user lacks: %s", lacks);
    else if (more && *more)
        doctor_report(d, VERDICT_WARN, "roles",
                      "let workers log in as a user with tranche_worker alone",
                      "the user %s: more than a worker needs", more);
    else if (more)
        doctor_report(d, VERDICT_OK, "roles", NULL, "the user may do what a worker does, not more");
    PQclear(missing);
    PQclear(excess);
}

static void look_at_schema(struct doctor *d, struct postgres *p)
{
    PGresult *r = NULL;
    const char *version = ask(d, p, schema_sql, &r);
    if (version)
        doctor_report(d, VERDICT_OK, "database", NULL, "%s answers; schema %s, user %s", p->label,
                      version, PQgetvalue(r, 0, 1));
    PQclear(r);
}

static void look_at_clock(struct doctor *d, struct postgres *p)
{
    PGresult *r = NULL;
    int64_t before = clock_wall_ns(clock_system());
    const char *theirs = ask(d, p, clock_sql, &r);
    if (theirs)
        doctor_skew(d, "the database server", strtoll(theirs, NULL, 10) * 1000, before,
                    clock_wall_ns(clock_system()));
    PQclear(r);
}

static void look_at_certificates(struct doctor *d, struct postgres *p)
{
    static const char *const files[] = {"sslcert", "sslrootcert"};
    for (size_t i = 0; i < TR_COUNT(files); i++)
        for (const PQconninfoOption *o = p->parsed; o && o->keyword; o++)
            if (strcmp(o->keyword, files[i]) == 0)
                doctor_certificate_file(d, o->val);
    SSL *ssl = PQsslStruct(p->conn, "OpenSSL");
    X509 *x = ssl ? SSL_get_peer_certificate(ssl) : NULL;
    if (x)
        doctor_certificate(d, "the database server's certificate", certificate_end(x));
    X509_free(x);
}

/* Measures the link with a question of PROBE_BYTES and one of none, and holds what a drain writes
 * at most against the quarter of --grace that is kept for it. */
static void look_at_parking(struct doctor *d, struct postgres *p)
{
    const struct clock *clock = clock_system();
    int64_t grace = config_int(d->config, "grace"), at[3];
    struct postgres_failure f;
    PGresult *r = NULL;
    char *bytes = mem_alloc(PROBE_BYTES, 1);
    if (!bytes)
        return;
    memset(bytes, 'x', PROBE_BYTES);
    struct str probe = {bytes, PROBE_BYTES};
    at[0] = clock_mono_ns(clock);
    int rc = postgres_query_text(p, "SELECT 1", NULL, 0, &r, &f);
    PQclear(r);
    at[1] = clock_mono_ns(clock);
    if (rc >= 0)
        rc = postgres_query_text(p, "SELECT octet_length($1::text)", &probe, 1, &r, &f);
    at[2] = clock_mono_ns(clock);
    PQclear(r);
    mem_free(bytes);
    if (rc < 0 || d->park_bytes == 0)
        return;
    double trip = (double)(at[1] - at[0]) / 1e9, probed = (double)(at[2] - at[1]) / 1e9;
    double transactions = (double)(d->park_bytes / PARK_TRANSACTION + 1);
    double needs = transactions * PARK_QUESTIONS * trip +
                   (double)d->park_bytes / PROBE_BYTES * TR_MAX(probed - trip, 0.0);
    double has = (double)grace / 4e9;
    doctor_report(d, needs > has ? VERDICT_WARN : VERDICT_OK, "grace",
                  needs > has ? "raise --grace (and terminationGracePeriodSeconds above it): what "
                                "is not parked in time begins anew"
                              : NULL,
                  "to park every slot's longest row (%.1f MiB) takes about %.1f s over this link, "
                  "a quarter of --grace is %.1f s",
                  (double)d->park_bytes / 1048576, needs, has);
}

static const char *mend_of(int rc, const struct err *err)
{
    if (strstr(err->msg, "certificate") || strstr(err->msg, "SSL"))
        return "renew or correct the certificates: chain, name, end (docs/postgres.md)";
    if (strstr(err->msg, "permission denied"))
        return "GRANT tranche_worker TO the user of --db";
    if (strstr(err->msg, "password"))
        return "correct the user of --db, or --db-password-file";
    return rc == E_RETRY ? "start the server, or correct --db"
                         : "correct --db, or run `tranche migrate` as the owner";
}

bool doctor_postgres(struct doctor *d)
{
    struct postgres_opts o;
    struct postgres p = {0};
    struct postgres_failure f;
    struct sink *sink = NULL;
    struct err err = {0};
    postgres_opts_from_config(&o, d->config);
    if (!postgres_is_url(o.url))
        return false;
    o.connect_ns = 0; /* the question is whether it answers now */
    int rc = sink_postgres_open(&sink, &o, &err);
    sink_close(sink);
    if (rc >= 0)
        rc = postgres_open(&p, &o, &err);
    if (rc >= 0 && postgres_connect(&p, &f) < 0)
        rc = err_set(&err, E_RETRY, "%s: %s", p.label, f.text);
    if (rc < 0) {
        doctor_report(d, VERDICT_FAULT, "database", mend_of(rc, &err), "%s", err.msg);
    } else {
        look_at_schema(d, &p);
        look_at_roles(d, &p);
        look_at_clock(d, &p);
        look_at_certificates(d, &p);
        look_at_parking(d, &p);
    }
    postgres_close(&p);
    return true;
}
