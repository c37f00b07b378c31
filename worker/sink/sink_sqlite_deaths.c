/* sink_sqlite_deaths: what the death of a process means for the starts that carry its name. See
 * sink.h. */
#include "worker/sink/sink_sqlite.h"

static int in_flight(struct sink_sqlite *s, struct death *d, struct err *err)
{
    sqlite3_stmt *st = s->statements[S_IN_FLIGHT];
    sqlite3_bind_text(st, 1, d->process.ptr, (int)d->process.len, SQLITE_STATIC);
    int rc = sqlite3_step(st) == SQLITE_ROW ? E_OK : sink_sqlite_error(s, "in flight", err);
    d->jobs = rc < 0 ? 0 : sqlite3_column_int64(st, 0);
    d->charged = d->jobs == 1 && death_is_own(d->cause) ? sqlite3_column_int64(st, 1) : 0;
    sqlite3_reset(st);
    return rc;
}

int sink_sqlite_record_death(struct sink *sink, struct death *d, struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    int rc = sink_sqlite_finish(s, s->statements[S_BEGIN], NULL, err);
    if (rc >= 0)
        rc = in_flight(s, d, err);
    if (rc >= 0 && d->jobs > 0) {
        sqlite3_stmt *st = s->statements[S_DEATH];
        sqlite3_bind_text(st, 1, d->process.ptr, (int)d->process.len, SQLITE_STATIC);
        sqlite3_bind_int(st, 2, d->cause == DEATH_OUTSIDE);
        sqlite3_bind_int64(st, 3, d->charged);
        if (death_is_own(d->cause))
            sqlite3_bind_text(st, 4, death_cause_name(d->cause), -1, SQLITE_STATIC);
        else
            sqlite3_bind_null(st, 4);
        rc = sink_sqlite_finish(s, st, NULL, err);
    }
    return sink_sqlite_end(s, rc, err);
}
