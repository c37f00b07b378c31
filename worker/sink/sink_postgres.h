/* sink_postgres: the sink that is a PostgreSQL database which `tranche migrate` has prepared. */
#ifndef TRANCHE_WORKER_SINK_SINK_POSTGRES_H
#define TRANCHE_WORKER_SINK_SINK_POSTGRES_H

#include "worker/sink/postgres_connection.h"
#include "worker/sink/sink.h"

/* Schemas that this build writes to. Migrations only add, so the next one is fine too: workers of
 * two builds run side by side while one replaces the other. */
enum { POSTGRES_SCHEMA = 2, POSTGRES_SCHEMA_MIN = 2, POSTGRES_SCHEMA_MAX = POSTGRES_SCHEMA + 1 };

/* Connects, for up to opts->connect_ns, and checks the schema's version. Errors: E_USAGE (the URL),
 * E_RETRY (no answer in time), E_FATAL naming role, database, encoding or schema. Strings of opts
 * are borrowed until close. */
int sink_postgres_open(struct sink **out, const struct postgres_opts *opts,
                       struct err *err) TR_MUSTCHECK;

#endif
