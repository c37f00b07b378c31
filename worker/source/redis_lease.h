/* redis_lease: which stream entries this process holds, and which acknowledgements it still owes.
 * Pure bookkeeping by stream id: no connection, no clock. One thread. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_LEASE_H
#define TRANCHE_WORKER_SOURCE_REDIS_LEASE_H

#include "worker/source/redis_reply.h"

enum lease_state {
    LEASE_NONE,
    LEASE_HELD, /* given to the worker, or about to be */
    LEASE_OWED, /* its row is committed; the server has not heard of it yet */
    LEASE_LOST, /* another consumer has it: swept by lease_sweep */
};
struct lease_slot {
    struct redis_id id;
    enum lease_state state;
};
struct lease_table {
    struct lease_slot *slots; /* [cap]: open addressing, linear probes; cap a power of two */
    size_t cap, n, held, owed;
};
int lease_open(struct lease_table *t, struct err *err) TR_MUSTCHECK;
void lease_close(struct lease_table *t);
/* Room for n more: at most half of the slots are ever taken, so probes stay short. */
int lease_reserve(struct lease_table *t, size_t n, struct err *err) TR_MUSTCHECK;

enum lease_state lease_find(const struct lease_table *t, struct redis_id id);
/* NONE removes; anything else enters or changes. Entering needs room from lease_reserve; without,
 * false and nothing is changed. */
bool lease_set(struct lease_table *t, struct redis_id id, enum lease_state state);
/* Up to cap ids in `state`, from slot *cursor on (start with 0; do not remove in between). Returns
 * their number; 0: through. */
size_t lease_list(const struct lease_table *t, enum lease_state state, size_t *cursor,
                  struct redis_id *out, size_t cap);
size_t lease_sweep(struct lease_table *t); /* removes what is LOST; their number */

#endif
