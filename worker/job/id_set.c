/* id_set: see id_set.h. */
#include "worker/job/id_set.h"

enum { FIRST = 4096 };

static struct id_entry *slot_of(const struct id_set *set, struct id_entry e)
{
    size_t at = (size_t)e.a & (set->cap - 1);
    while ((set->entries[at].a || set->entries[at].b) &&
           !(set->entries[at].a == e.a && set->entries[at].b == e.b))
        at = (at + 1) & (set->cap - 1);
    return &set->entries[at];
}

static int grow(struct id_set *set, struct err *err)
{
    struct id_set next = {.cap = set->cap ? set->cap * 2 : FIRST, .n = set->n};
    next.entries = mem_alloc(next.cap, sizeof *next.entries);
    if (!next.entries)
        return err_set(err, E_FATAL, "no memory for %zu ids", next.cap);
    for (size_t i = 0; i < set->cap; i++)
        if (set->entries[i].a || set->entries[i].b)
            *slot_of(&next, set->entries[i]) = set->entries[i];
    mem_free(set->entries);
    *set = next;
    return E_OK;
}

int id_set_add(struct id_set *set, struct str batch, struct str id, struct err *err)
{
    uint8_t hashes[2][32];
    struct id_entry e;
    sha256_of(batch, hashes[0]);
    sha256_of(id, hashes[1]);
    memcpy(&e, hashes[0], sizeof e);
    struct id_entry more;
    memcpy(&more, hashes[1], sizeof more);
    e.a ^= more.a;
    e.b ^= more.b;
    e.a |= !(e.a || e.b);
    if (set->n * 2 >= set->cap) {
        int rc = grow(set, err);
        if (rc < 0)
            return rc;
    }
    struct id_entry *slot = slot_of(set, e);
    if (slot->a || slot->b)
        return 0;
    *slot = e;
    set->n++;
    return 1;
}

void id_set_close(struct id_set *set)
{
    mem_free(set->entries);
    *set = (struct id_set){0};
}
