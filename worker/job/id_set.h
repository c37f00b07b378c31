/* id_set: which ids were seen: 16 bytes each, a hash of the id, in open addressing. */
#ifndef TRANCHE_WORKER_JOB_ID_SET_H
#define TRANCHE_WORKER_JOB_ID_SET_H

#include "worker/job/text.h"

struct id_set {
    struct id_entry {
        uint64_t a, b; /* half of a SHA-256; both 0: free */
    } * entries;
    size_t cap, n;
};
/* 1: new; 0: seen before; E_FATAL: no memory. A zeroed set is empty. */
int id_set_add(struct id_set *set, struct str batch, struct str id, struct err *err) TR_MUSTCHECK;
void id_set_close(struct id_set *set);

#endif
