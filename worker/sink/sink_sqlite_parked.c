/* sink_sqlite_parked: parked sequences and cancellations in SQLite. See sink.h. */
#include "worker/sink/sink_sqlite.h"

static int put_state(struct sink_sqlite *s, const struct parked *p, struct err *err)
{
    sqlite3_stmt *st = sqlite_with_key(s, S_PARK, &p->key);
    sqlite3_bind_int(st, 4, p->choice);
    sqlite3_bind_int(st, 5, p->n);
    sqlite_bind_blob(s, st, 6, p->state);
    sqlite_bind_str(s, st, 7, p->config_revision);
    sqlite_bind_str(s, st, 8, p->worker);
    sqlite_bind_time(s, st, 9, p->parked_ns);
    return sink_sqlite_finish(s, st, NULL, err);
}

int sink_sqlite_park(struct sink *sink, const struct parked *parked, size_t n, struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    int rc = sink_sqlite_finish(s, s->statements[S_BEGIN], NULL, err);
    for (size_t i = 0; rc >= 0 && i < n; i++)
        rc = put_state(s, &parked[i], err);
    return sink_sqlite_end(s, rc, err);
}

int sink_sqlite_unpark(struct sink *sink, const struct key *keys, size_t n, unpark_take *take,
                       void *ctx, struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    for (size_t i = 0; i < n; i++) {
        sqlite3_stmt *st = sqlite_with_key(s, S_UNPARK, &keys[i]);
        int rc;
        while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
            struct parked p = {
                .key = keys[i],
                .choice = sqlite3_column_int(st, 0),
                .n = sqlite3_column_int(st, 1),
                .state = {sqlite3_column_blob(st, 2), (size_t)sqlite3_column_bytes(st, 2)},
                .config_revision = str_of((const char *)sqlite3_column_text(st, 3)),
                .worker = str_of((const char *)sqlite3_column_text(st, 4))};
            take(ctx, i, &p);
        }
        rc = rc == SQLITE_DONE ? E_OK : sink_sqlite_error(s, "unpark", err);
        sqlite3_reset(st);
        if (rc < 0)
            return rc;
    }
    return E_OK;
}

int sink_sqlite_cancelled(struct sink *sink, const struct key *keys, size_t n, bool *out,
                          struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    memset(out, 0, n * sizeof *out);
    int rc = sink_sqlite_finish(s, s->statements[S_ANY_CANCELLED], NULL, err);
    if (rc <= 0)
        return rc;
    for (size_t i = 0; rc >= 0 && i < n; i++) {
        rc = sink_sqlite_finish(s, sqlite_with_key(s, S_CANCELLED, &keys[i]), NULL, err);
        out[i] = rc > 0;
    }
    return rc < 0 ? rc : E_OK;
}
