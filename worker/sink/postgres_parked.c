/* postgres_parked: parked sequences and cancellations in PostgreSQL. See sink.h. */
#include "worker/sink/postgres_sink.h"

#define SAME_KEY "j.run=k.run AND j.batch_id=k.batch_id AND j.custom_id=k.custom_id"

/* A job that has its row by now (a peer was faster) leaves no state behind. */
static const char park_sql[] =
    "INSERT INTO tranche.parked (run, batch_id, custom_id, choice, n, state, config_revision, "
    "worker, parked_at) SELECT k.* FROM unnest($1,$2,$3,$4,$5,$6,$7,$8,$9) AS k(run, batch_id, "
    "custom_id, choice, n, state, revision, worker, at) WHERE NOT EXISTS (SELECT 1 FROM "
    "tranche.results j WHERE " SAME_KEY ") "
    "ON CONFLICT (run, batch_id, custom_id, choice) DO UPDATE SET n=EXCLUDED.n, "
    "state=EXCLUDED.state, config_revision=EXCLUDED.config_revision, worker=EXCLUDED.worker, "
    "parked_at=EXCLUDED.parked_at";
static const char unpark_sql[] =
    "SELECT k.i, j.choice, j.n, j.state, j.config_revision, j.worker FROM unnest($1,$2,$3) WITH "
    "ORDINALITY AS k(run, batch_id, custom_id, i) JOIN tranche.parked j ON " SAME_KEY;
/* As a worker asks every few seconds about everything that it has: one look into the key each. */
static const char cancelled_sql[] =
    "SELECT k.i FROM unnest($1,$2,$3) WITH ORDINALITY AS k(run, batch_id, custom_id, i) WHERE "
    "EXISTS (SELECT 1 FROM tranche.cancellations j WHERE j.run=k.run AND j.batch_id=k.batch_id "
    "AND j.custom_id IN (k.custom_id, ''))";

static void put_key(struct postgres_arrays *a, const struct key *key)
{
    arrays_str(a, key->run);
    arrays_str(a, key->batch_id);
    arrays_str(a, key->custom_id);
}

int postgres_park(struct sink *sink, const struct parked *parked, size_t n, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    if (n == 0)
        return E_OK;
    arrays_begin(&s->arrays, "tttiibttw");
    for (size_t i = 0; i < n; i++) {
        put_key(&s->arrays, &parked[i].key);
        arrays_int(&s->arrays, parked[i].choice);
        arrays_int(&s->arrays, parked[i].n);
        arrays_str(&s->arrays, parked[i].state);
        arrays_str(&s->arrays, parked[i].config_revision);
        arrays_str(&s->arrays, parked[i].worker);
        arrays_time(&s->arrays, parked[i].parked_ns);
    }
    int rc = postgres_transact(s, "park", park_sql, false, &back, err);
    PQclear(back);
    return rc;
}

static int64_t big_endian(struct str cell)
{
    uint64_t v = 0;
    for (size_t i = 0; i < cell.len; i++)
        v = v << 8 | (uint8_t)cell.ptr[i];
    return (int64_t)v;
}

static int ask_about(struct sink_postgres *s, const char *what, const char *sql,
                     const struct key *keys, size_t n, PGresult **back, struct err *err)
{
    arrays_begin(&s->arrays, "ttt");
    for (size_t i = 0; i < n; i++)
        put_key(&s->arrays, &keys[i]);
    return postgres_transact(s, what, sql, true, back, err);
}

/* The ordinality of a row as an index into the caller's keys. */
static size_t place_of(const PGresult *back, int row, size_t n)
{
    struct str cell = postgres_cell(back, row, 0);
    int64_t at = big_endian(cell) - 1;
    CHECK(cell.len == 8 && at >= 0 && (size_t)at < n);
    return (size_t)at;
}

int postgres_unpark(struct sink *sink, const struct key *keys, size_t n, unpark_take *take,
                    void *ctx, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    if (n == 0)
        return E_OK;
    int rc = ask_about(s, "unpark", unpark_sql, keys, n, &back, err);
    for (int row = 0; rc >= 0 && row < PQntuples(back); row++) {
        size_t at = place_of(back, row, n);
        struct parked p = {.key = keys[at],
                           .choice = (int32_t)big_endian(postgres_cell(back, row, 1)),
                           .n = (int32_t)big_endian(postgres_cell(back, row, 2)),
                           .state = postgres_cell(back, row, 3),
                           .config_revision = postgres_cell(back, row, 4),
                           .worker = postgres_cell(back, row, 5)};
        take(ctx, at, &p);
    }
    PQclear(back);
    return rc;
}

int postgres_cancelled(struct sink *sink, const struct key *keys, size_t n, bool *out,
                       struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    if (n == 0)
        return E_OK;
    memset(out, 0, n * sizeof *out);
    int rc = ask_about(s, "cancellations", cancelled_sql, keys, n, &back, err);
    for (int row = 0; rc >= 0 && row < PQntuples(back); row++)
        out[place_of(back, row, n)] = true;
    PQclear(back);
    return rc;
}
