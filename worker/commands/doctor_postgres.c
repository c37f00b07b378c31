/* doctor_postgres: whether rows can go to the PostgreSQL database of --db. */
#include "worker/commands/commands.h"
#include "worker/commands/doctor.h"
#include "worker/sink/sink_postgres.h"

bool doctor_postgres(struct doctor *d)
{
    struct postgres_opts o;
    struct sink *sink = NULL;
    struct err err = {0};
    postgres_opts_from_config(&o, d->config);
    if (!postgres_is_url(o.url))
        return false;
    o.connect_ns = 0; /* the question is whether it answers now */
    int rc = sink_postgres_open(&sink, &o, &err);
    if (rc == E_OK)
        doctor_report(d, VERDICT_OK, "database", NULL, "it answers, and its schema fits");
    else
        doctor_report(d, VERDICT_FAULT, "database",
                      rc == E_RETRY ? "start the server, or correct --db"
                                    : "correct --db, or run `tranche migrate` as the owner",
                      "%s", err.msg);
    sink_close(sink);
    return true;
}
