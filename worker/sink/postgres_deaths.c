/* postgres_deaths: what the death of a process means for the starts that carry its name, and the
 * starts that outlived their job. See sink.h. */
#include <stdlib.h>

#include "worker/sink/postgres_sink.h"

/* d: the process, whether its death was from outside, the cause. Both parts see one snapshot, so
 * that `there` counts what `gone` changes. */
static const char death_sql[] =
    "WITH d AS (SELECT * FROM unnest($1,$2,$3) AS d(process, outside, cause)), "
    "there AS (SELECT count(*) AS jobs, CASE WHEN count(*)=1 AND max(d.outside)=0 THEN "
    "max(j.alone) ELSE 0 END AS charged FROM tranche.job_attempts j JOIN d USING (process)), "
    "gone AS (UPDATE tranche.job_attempts j SET n=greatest(j.n-d.outside, 0), "
    "deaths=j.deaths+there.charged, cause=coalesce(d.cause, j.cause), process=NULL, alone=0 "
    "FROM d, there WHERE j.process=d.process) "
    "SELECT jobs, charged FROM there";

/* What a transaction of another worker holds is that one's to forget, and is not waited for. */
static const char settled_sql[] =
    "DELETE FROM tranche.job_attempts j USING (SELECT a.run, a.batch_id, a.custom_id FROM "
    "tranche.job_attempts a WHERE EXISTS (SELECT 1 FROM tranche.results r WHERE r.run=a.run AND "
    "r.batch_id=a.batch_id AND r.custom_id=a.custom_id) FOR UPDATE OF a SKIP LOCKED) k "
    "WHERE j.run=k.run AND j.batch_id=k.batch_id AND j.custom_id=k.custom_id";

int postgres_forget_settled(struct sink_postgres *s, struct err *err)
{
    PGresult *none = NULL;
    arrays_begin(&s->arrays, "");
    int rc = postgres_transact(s, "forget settled", settled_sql, false, &none, err);
    PQclear(none);
    return rc;
}

int postgres_record_death(struct sink *sink, struct death *d, struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    PGresult *back = NULL;
    bool own = death_is_own(d->cause);
    arrays_begin(&s->arrays, "tit");
    arrays_str(&s->arrays, d->process);
    arrays_int(&s->arrays, d->cause == DEATH_OUTSIDE);
    arrays_str(&s->arrays, own ? str_of(death_cause_name(d->cause)) : (struct str){NULL, 0});
    int rc = postgres_transact(s, "record death", death_sql, false, &back, err);
    if (rc >= 0 && PQntuples(back) == 1) {
        d->jobs = strtoll(PQgetvalue(back, 0, 0), NULL, 10);
        d->charged = strtoll(PQgetvalue(back, 0, 1), NULL, 10);
    }
    PQclear(back);
    return rc;
}
