/* sink_sqlite_config: the contents that config revisions name. See sink.h. */
#include "worker/sink/sink_sqlite.h"

int sink_sqlite_config_write(struct sink *sink, struct str revision, struct str content,
                             struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    sqlite3_stmt *st = s->statements[S_CONFIG_WRITE];
    char now[32];
    wall_text(clock_wall_ns(clock_system()), now);
    sqlite3_reset(st);
    sqlite3_bind_text(st, 1, revision.ptr, (int)revision.len, SQLITE_STATIC);
    sqlite3_bind_text(st, 2, content.ptr, (int)content.len, SQLITE_STATIC);
    sqlite3_bind_text(st, 3, now, -1, SQLITE_STATIC);
    return TR_MIN(sink_sqlite_finish(s, st, NULL, err), E_OK);
}

int sink_sqlite_config_read(struct sink *sink, struct str revision, struct text *out,
                            struct err *err)
{
    struct sink_sqlite *s = (struct sink_sqlite *)sink;
    sqlite3_stmt *st = s->statements[S_CONFIG_READ];
    text_reset(out);
    sqlite3_reset(st);
    sqlite3_bind_text(st, 1, revision.ptr, (int)revision.len, SQLITE_STATIC);
    int rc = sqlite3_step(st);
    if (rc == SQLITE_ROW)
        text_add(out, (struct str){(const char *)sqlite3_column_text(st, 0),
                                   (size_t)sqlite3_column_bytes(st, 0)});
    rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? E_OK : sink_sqlite_error(s, "config", err);
    sqlite3_reset(st);
    return rc >= 0 && out->failed ? err_set(err, E_RETRY, "database: no memory") : rc;
}
