/* migrate: `tranche migrate`: brings a PostgreSQL database to this build's schema. Run by the
 * owner, over a direct connection, before the workers: they only check the version. */
#ifndef TRANCHE_WORKER_SINK_MIGRATE_H
#define TRANCHE_WORKER_SINK_MIGRATE_H

#include "worker/sink/postgres_connection.h"

/* Tries for up to opts->connect_ns to connect, and as long again for locks that others hold. Each
 * migration is one transaction under an advisory lock, so any number may run at once, and again.
 * *from, *to: the schema before and after; 0: none. Errors: E_USAGE (the URL), E_RETRY (no answer,
 * locks), E_FATAL (role, rights, a newer schema). */
int migrate_run(const struct postgres_opts *opts, int *from, int *to, struct err *err) TR_MUSTCHECK;

#endif
