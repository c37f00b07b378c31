/* redis_keep: see redis_keep.h. */
#include "worker/source/redis_keep.h"

#include "engine/log.h"

enum { AWAY_IDLE_MS = 999999999 };

int redis_keep_renew(struct lease_table *t, struct redis_group *g, struct err *err)
{
    struct redis_id ids[REDIS_IDS_MAX], lost[REDIS_IDS_MAX];
    size_t n, cursor = 0;
    while ((n = lease_list(t, LEASE_HELD, &cursor, ids, REDIS_IDS_MAX)) > 0) {
        int gone = redis_group_touch(g, ids, n, 0, lost, err);
        if (gone < 0)
            return gone;
        for (int i = 0; i < gone; i++)
            lease_set(t, lost[i], LEASE_LOST);
    }
    size_t taken = lease_sweep(t);
    if (taken > 0)
        LOG(LOG_WARN, "leases_lost", LOG_I("entries", taken), LOG_I("held", t->held));
    return E_OK;
}

int redis_keep_pay(struct lease_table *t, struct redis_group *g, struct err *err)
{
    struct redis_id ids[REDIS_IDS_MAX];
    while (t->owed > 0) {
        size_t cursor = 0, n = lease_list(t, LEASE_OWED, &cursor, ids, REDIS_IDS_MAX);
        int rc = redis_group_ack(g, ids, n, err);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < n; i++)
            lease_set(t, ids[i], LEASE_NONE);
    }
    return E_OK;
}

int redis_keep_release(struct lease_table *t, struct redis_group *g, const struct redis_id *ids,
                       size_t n, struct err *err)
{
    struct redis_id lost[REDIS_IDS_MAX];
    int rc = redis_group_touch(g, ids, n, AWAY_IDLE_MS, lost, err);
    for (size_t i = 0; rc >= 0 && i < n; i++)
        lease_set(t, ids[i], LEASE_NONE);
    return TR_MIN(rc, E_OK);
}

int redis_keep_leave(struct lease_table *t, struct redis_group *g, struct err *err)
{
    struct redis_id ids[REDIS_IDS_MAX];
    size_t released = t->held;
    int rc = redis_keep_pay(t, g, err);
    while (rc == E_OK && t->held > 0) {
        size_t cursor = 0, n = lease_list(t, LEASE_HELD, &cursor, ids, REDIS_IDS_MAX);
        rc = redis_keep_release(t, g, ids, n, err);
    }
    if (rc == E_OK && released)
        LOG(LOG_INFO, "entries_released", LOG_I("entries", released));
    return rc;
}
