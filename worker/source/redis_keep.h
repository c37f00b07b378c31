/* redis_keep: the lease table told to the server: renewing, paying what is owed, letting go. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_KEEP_H
#define TRANCHE_WORKER_SOURCE_REDIS_KEEP_H

#include "worker/source/redis_group.h"
#include "worker/source/redis_lease.h"

/* One round of renewal over everything held. What is no longer ours leaves the table and goes on
 * running: its row is written, or is found there. E_OK, or the command's error. */
int redis_keep_renew(struct lease_table *t, struct redis_group *g, struct err *err) TR_MUSTCHECK;
/* Acknowledgements that did not get through before. */
int redis_keep_pay(struct lease_table *t, struct redis_group *g, struct err *err) TR_MUSTCHECK;
/* Hands these to whoever claims next, without waiting for the lease; n <= REDIS_IDS_MAX. */
int redis_keep_release(struct lease_table *t, struct redis_group *g, const struct redis_id *ids,
                       size_t n, struct err *err) TR_MUSTCHECK;
/* Pays, and releases all that is held. */
int redis_keep_leave(struct lease_table *t, struct redis_group *g, struct err *err) TR_MUSTCHECK;

#endif
