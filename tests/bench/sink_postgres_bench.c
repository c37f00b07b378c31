/* Rows a second into PostgreSQL: the sink's whole commit, beside a bare libpq loop that sends the
 * same statement with parameters made beforehand (BEGIN, INSERT .. unnest, COMMIT) and keeps no
 * counters. Takes turns, so that a busy machine is busy for both. Needs a server:
 * TRANCHE_TEST_POSTGRES, as in tests/run/postgres_server.py build/release/sink_postgres_bench */
#include <stdio.h>
#include <stdlib.h>

#include "worker/sink/migrate.h"
#include "worker/sink/postgres_sink.h"

enum { ROWS = 512, ROUNDS = 24, TEXT_BYTES = 1000 };

static char ids[ROWS][48], answer[TEXT_BYTES];
static struct result rows[ROWS];
static const struct result *list[ROWS];

/* Texts that pack about as badly as prose; keys no round has used. */
static void make_rows(const char *batch, int round)
{
    for (int i = 0; i < ROWS; i++) {
        snprintf(ids[i], sizeof ids[i], "job-%06d-%04d", round, i);
        rows[i] = (struct result){.key = {STR("main"), str_of(batch), str_of(ids[i])},
                                  .status = RESULT_OK,
                                  .answer = {answer, TEXT_BYTES},
                                  .correct = -1,
                                  .attempts = 1,
                                  .finished_ns = 1769860800000000000 + round};
        list[i] = &rows[i];
    }
    for (int i = 0; i < TEXT_BYTES; i++)
        answer[i] = (char)('a' + rand() % 26);
}

static void check(PGconn *c, PGresult *r)
{
    if (PQresultStatus(r) != PGRES_COMMAND_OK && PQresultStatus(r) != PGRES_TUPLES_OK) {
        fprintf(stderr, "%s\n", PQerrorMessage(c));
        exit(1);
    }
    PQclear(r);
}

/* The statement alone: its parameters are made before the clock starts. Returns seconds. */
static double bare_round(PGconn *c, struct postgres_arrays *a, const struct clock *clock)
{
    const char *values[ARRAYS_MAX];
    int lengths[ARRAYS_MAX], formats[ARRAYS_MAX];
    unsigned types[ARRAYS_MAX];
    struct err err = {0};
    arrays_begin(a, postgres_results_layout);
    for (int i = 0; i < ROWS; i++)
        postgres_put_result(a, &rows[i]);
    if (arrays_end(a, values, lengths, formats, types, &err) < 0)
        exit(1);
    int64_t start = clock_mono_ns(clock);
    check(c, PQexec(c, "BEGIN"));
    check(c,
          PQexecParams(c, postgres_results_sql, a->n_columns, types, values, lengths, formats, 0));
    check(c, PQexec(c, "COMMIT"));
    return (double)(clock_mono_ns(clock) - start) / 1e9;
}

int main(void)
{
    struct postgres_opts opts = {
        .url = getenv("TRANCHE_TEST_POSTGRES"), .connect_ns = 5000000000, .clock = clock_system()};
    struct sink *sink = NULL;
    struct err err = {0};
    int from, to;
    double best[2] = {1e9, 1e9}, sum[2] = {0};
    if (!opts.url) {
        printf("sink_postgres: TRANCHE_TEST_POSTGRES is not set: nothing measured\n");
        return 0;
    }
    if (migrate_run(&opts, &from, &to, &err) < 0 || sink_postgres_open(&sink, &opts, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    PGconn *c = PQconnectdb(opts.url);
    struct postgres_arrays arrays = {0};
    for (int round = 0; round < 2 * ROUNDS; round++) {
        struct commit_counts counts;
        struct commit commit = {.results = list, .n_results = ROWS, .now_ns = 1};
        int which = round & 1;
        make_rows(which ? "bare" : "sink", round);
        int64_t start = clock_mono_ns(opts.clock);
        double seconds = which ? bare_round(c, &arrays, opts.clock) : 0;
        if (!which &&
            (sink->ops->commit(sink, &commit, &counts, &err) < 0 || counts.inserted != ROWS))
            return 1;
        if (!which)
            seconds = (double)(clock_mono_ns(opts.clock) - start) / 1e9;
        best[which] = TR_MIN(best[which], seconds);
        sum[which] += seconds;
    }
    printf("sink_postgres: 512 rows of 1 kB: sink %.0f rows/s (best %.0f), bare libpq %.0f (best "
           "%.0f), "
           "share %.2f (best %.2f)\n",
           ROUNDS * ROWS / sum[0], ROWS / best[0], ROUNDS * ROWS / sum[1], ROWS / best[1],
           sum[1] / sum[0], best[1] / best[0]);
    arrays_close(&arrays);
    PQfinish(c);
    sink_close(sink);
    return 0;
}
