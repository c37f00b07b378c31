/* redis_lease: see redis_lease.h. */
#include "worker/source/redis_lease.h"

enum { SLOTS_MIN = 2048 };

int lease_open(struct lease_table *t, struct err *err)
{
    *t = (struct lease_table){.cap = SLOTS_MIN};
    t->slots = mem_alloc(t->cap, sizeof *t->slots);
    return t->slots ? E_OK : err_set(err, E_FATAL, "redis: no memory for the lease table");
}

void lease_close(struct lease_table *t)
{
    mem_free(t->slots);
    *t = (struct lease_table){0};
}

static size_t home_of(const struct lease_table *t, struct redis_id id)
{
    return (size_t)hash_bytes(&id, sizeof id, 0) & (t->cap - 1);
}

/* The slot of this id, or the free one where it would go. */
static size_t slot_of(const struct lease_table *t, struct redis_id id)
{
    size_t at = home_of(t, id);
    while (t->slots[at].state != LEASE_NONE && !redis_id_eq(t->slots[at].id, id))
        at = (at + 1) & (t->cap - 1);
    return at;
}

int lease_reserve(struct lease_table *t, size_t n, struct err *err)
{
    struct lease_table grown = *t;
    while (grown.cap / 2 < t->n + n)
        grown.cap *= 2;
    if (grown.cap == t->cap)
        return E_OK;
    grown.slots = mem_alloc(grown.cap, sizeof *grown.slots);
    if (!grown.slots)
        return err_set(err, E_RETRY, "redis: no memory for %zu leases", t->n + n);
    for (size_t i = 0; i < t->cap; i++)
        if (t->slots[i].state != LEASE_NONE)
            grown.slots[slot_of(&grown, t->slots[i].id)] = t->slots[i];
    mem_free(t->slots);
    *t = grown;
    return E_OK;
}

enum lease_state lease_find(const struct lease_table *t, struct redis_id id)
{
    return t->slots[slot_of(t, id)].state;
}

static void count(struct lease_table *t, enum lease_state state, bool in)
{
    size_t *which = state == LEASE_HELD ? &t->held : state == LEASE_OWED ? &t->owed : NULL;
    if (which)
        *which = in ? *which + 1 : *which - 1;
}

/* Closes the gap: what was pushed past `at` by a collision moves back (Knuth 6.4, algorithm R). */
static void remove_at(struct lease_table *t, size_t at)
{
    size_t mask = t->cap - 1, probe = at;
    for (;;) {
        probe = (probe + 1) & mask;
        if (t->slots[probe].state == LEASE_NONE)
            break;
        size_t home = home_of(t, t->slots[probe].id);
        if (((probe - home) & mask) < ((probe - at) & mask))
            continue; /* its home lies behind the gap */
        t->slots[at] = t->slots[probe];
        at = probe;
    }
    t->slots[at].state = LEASE_NONE;
    t->n--;
}

bool lease_set(struct lease_table *t, struct redis_id id, enum lease_state state)
{
    size_t at = slot_of(t, id);
    struct lease_slot *slot = &t->slots[at];
    if (slot->state == LEASE_NONE && state == LEASE_NONE)
        return true;
    if (slot->state == LEASE_NONE && t->n >= t->cap / 2)
        return false;
    t->n += slot->state == LEASE_NONE;
    count(t, slot->state, false);
    count(t, state, true);
    if (state == LEASE_NONE)
        remove_at(t, at);
    else
        *slot = (struct lease_slot){id, state};
    return true;
}

size_t lease_list(const struct lease_table *t, enum lease_state state, size_t *cursor,
                  struct redis_id *out, size_t cap)
{
    size_t n = 0;
    for (; *cursor < t->cap && n < cap; ++*cursor)
        if (t->slots[*cursor].state == state)
            out[n++] = t->slots[*cursor].id;
    return n;
}

size_t lease_sweep(struct lease_table *t)
{
    size_t removed = 0;
    for (size_t at = 0; at < t->cap;) {
        if (t->slots[at].state == LEASE_LOST) {
            remove_at(t, at); /* another may have moved in here */
            removed++;
        } else {
            at++;
        }
    }
    return removed;
}
