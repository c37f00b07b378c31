/* postgres_rows: the sink over a real server, whose URL stands in TRANCHE_TEST_POSTGRES
 * (tests/run/postgres_server.py starts one; tests/run/test_postgres.py runs these there). Without
 * it each case is skipped. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_POSTGRES_ROWS_H
#define TRANCHE_TESTS_POSTGRES_ROWS_H

#include <stdio.h>
#include <stdlib.h>

#include "worker/sink/migrate.h"
#include "worker/sink/sink_postgres.h"

static struct postgres_opts opts;
static PGconn *direct;
static const int64_t now = 1769860800123000000;

static int group_up(void **state)
{
    (void)state;
    struct err err = {0};
    int from, to;
    opts = (struct postgres_opts){
        .url = getenv("TRANCHE_TEST_POSTGRES"), .connect_ns = 5000000000, .clock = clock_system()};
    if (!opts.url)
        return 0;
    if (migrate_run(&opts, &from, &to, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    direct = PQconnectdb(opts.url);
    return PQstatus(direct) != CONNECTION_OK;
}

static int group_down(void **state)
{
    (void)state;
    PQfinish(direct);
    return 0;
}

static void run_sql(const char *sql)
{
    PGresult *r = PQexec(direct, sql);
    if (PQresultStatus(r) != PGRES_COMMAND_OK && PQresultStatus(r) != PGRES_TUPLES_OK)
        fail_msg("%s: %s", sql, PQerrorMessage(direct));
    PQclear(r);
}

static struct sink *fresh(void)
{
    struct sink *s = NULL;
    struct err err = {0};
    if (!opts.url)
        skip();
    run_sql("TRUNCATE tranche.results, tranche.batches, tranche.dead_letters, tranche.parked, "
            "tranche.job_attempts, tranche.partition_progress, tranche.cancellations");
    if (sink_postgres_open(&s, &opts, &err) < 0)
        fail_msg("%s", err.msg);
    return s;
}

static int64_t ask(const char *sql)
{
    PGresult *r = PQexec(direct, sql);
    if (PQresultStatus(r) != PGRES_TUPLES_OK || PQntuples(r) != 1)
        fail_msg("%s: %s", sql, PQerrorMessage(direct));
    int64_t n = strtoll(PQgetvalue(r, 0, 0), NULL, 10);
    PQclear(r);
    return n;
}

static struct result make_result(const char *id, struct str answer, enum result_status status)
{
    struct result r = {.key = {STR("main"), STR("b"), str_of(id)},
                       .status = status,
                       .answer = answer,
                       .correct = -1,
                       .attempts = 1,
                       .finished_ns = now};
    sha256_of(answer, r.request_sha256);
    sha256_of(str_of(id), r.output_sha256);
    return r;
}

static struct commit_counts commit_all(struct sink *s, const struct result *rows, size_t n,
                                       const struct dead_letter *letters, size_t n_letters)
{
    const struct result *list[64];
    struct commit_counts counts;
    struct err err = {0};
    for (size_t i = 0; i < n; i++)
        list[i] = &rows[i];
    struct commit c = {.results = list,
                       .n_results = n,
                       .dead_letters = letters,
                       .n_dead_letters = n_letters,
                       .now_ns = now};
    if (s->ops->commit(s, &c, &counts, &err) < 0)
        fail_msg("%s", err.msg);
    return counts;
}

#endif
