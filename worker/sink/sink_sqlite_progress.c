/* sink_sqlite_progress: how far each partition has come, and what was lost on the way. See sink.h.
 */
#include "worker/sink/sink_sqlite.h"

static void bind(sqlite3_stmt *st, int at, struct str v)
{
    sqlite3_bind_text(st, at, v.ptr ? v.ptr : "", (int)v.len, SQLITE_STATIC);
}

static void bind_time(sqlite3_stmt *st, int at, int64_t wall_ns)
{
    char text[32];
    wall_text(wall_ns, text);
    sqlite3_bind_text(st, at, text, -1, SQLITE_TRANSIENT);
}

static sqlite3_stmt *with_partition(struct sink_sqlite *s, enum statement id, struct str run,
                                    struct str group, struct str source, int32_t partition)
{
    sqlite3_stmt *st = s->statements[id];
    sqlite3_reset(st);
    bind(st, 1, run);
    bind(st, 2, group);
    bind(st, 3, source);
    sqlite3_bind_int(st, 4, partition);
    return st;
}

int sink_sqlite_put_lost_range(struct sink_sqlite *s, const struct lost_range *l, int64_t now_ns,
                               struct err *err)
{
    sqlite3_stmt *st = with_partition(s, S_LOST_RANGE, l->run, l->group, l->source, l->partition);
    sqlite3_bind_int64(st, 5, l->from);
    sqlite3_bind_int64(st, 6, l->to);
    bind(st, 7, l->reason);
    bind_time(st, 8, now_ns);
    return sink_sqlite_finish(s, st, NULL, err);
}

/* Asked first: a statement that writes waits for every other writer, also for nothing. */
static int forget_settled(struct sink_sqlite *s, struct err *err)
{
    int rc = sink_sqlite_finish(s, s->statements[S_ANY_SETTLED], NULL, err);
    return rc > 0 ? sink_sqlite_finish(s, s->statements[S_FORGET_SETTLED], NULL, err) : rc;
}

int sink_sqlite_progress_read(struct sink *sink, struct progress *p, size_t n, struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    int settled = forget_settled(s, err);
    if (settled < 0)
        return settled;
    for (size_t i = 0; i < n; i++) {
        sqlite3_stmt *st =
            with_partition(s, S_PROGRESS_READ, p[i].run, p[i].group, p[i].source, p[i].partition);
        int rc = sqlite3_step(st);
        p[i].position = rc == SQLITE_ROW ? sqlite3_column_int64(st, 0) : -1;
        p[i].messages = rc == SQLITE_ROW ? sqlite3_column_int64(st, 1) : 0;
        int failed =
            rc == SQLITE_ROW || rc == SQLITE_DONE ? E_OK : sink_sqlite_error(s, "progress", err);
        sqlite3_reset(st);
        if (failed < 0)
            return failed;
    }
    return E_OK;
}

int sink_sqlite_put_progress(struct sink_sqlite *s, const struct progress *p, int64_t now_ns,
                             struct err *err)
{
    sqlite3_stmt *st = with_partition(s, S_PROGRESS, p->run, p->group, p->source, p->partition);
    sqlite3_bind_int64(st, 5, p->position);
    sqlite3_bind_int64(st, 6, p->messages);
    bind_time(st, 7, now_ns);
    return sink_sqlite_finish(s, st, NULL, err);
}
