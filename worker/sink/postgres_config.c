/* postgres_config: the contents that config revisions name. See sink.h. */
#include "worker/sink/postgres_sink.h"

int postgres_config_write(struct sink *sink, struct str revision, struct str content,
                          struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    arrays_begin(&s->arrays, "ttw");
    arrays_str(&s->arrays, revision);
    arrays_str(&s->arrays, content);
    arrays_time(&s->arrays, clock_wall_ns(s->pg.clock));
    int rc = postgres_transact(s, "config write",
                               "INSERT INTO tranche.config_revisions (revision, content, "
                               "created_at) SELECT * FROM unnest($1,$2,$3) ON CONFLICT DO NOTHING",
                               false, &back, err);
    PQclear(back);
    return rc;
}

int postgres_config_read(struct sink *sink, struct str revision, struct text *out, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    text_reset(out);
    arrays_begin(&s->arrays, "t");
    arrays_str(&s->arrays, revision);
    int rc = postgres_transact(s, "config read",
                               "SELECT j.content FROM tranche.config_revisions j, unnest($1) AS "
                               "k(revision) WHERE j.revision=k.revision",
                               false, &back, err);
    if (rc >= 0 && PQntuples(back) > 0)
        text_add(out, postgres_cell(back, 0, 0));
    PQclear(back);
    return rc >= 0 && out->failed ? err_set(err, E_RETRY, "database: no memory") : rc;
}
