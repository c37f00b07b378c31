/* kv: who holds which KV page, and which pages hold the ids of a shared prefix. Page numbers only;
 * the bytes are the backend's.
 *
 * A registered page is known by its exact prefix: its parent page and its own ids. A child's
 * holders all hold its parent too, so a parent never goes before its children and equal (parent,
 * ids) means equal whole prefixes: nothing rests on a hash alone.
 *
 * A page is filled by one owner. Whoever needs ids that an owner is still computing waits for them
 * (kv_match says for what); when the owner goes, the next one goes on where it stopped. Registered
 * pages that nobody holds stay findable until their room is needed, least recently used first. */
#ifndef TRANCHE_ENGINE_KV_H
#define TRANCHE_ENGINE_KV_H

#include "engine/base.h"
#include "kernels/kernels.h"

enum {
    KV_TAIL_MIN = 16, /* fewest ids of a page worth a copy, or a step's wait */
};

/* Ids 0 .. n-1 of a sequence: its prompt, then its generated ids. */
struct kv_ids {
    const int32_t *prompt, *output;
    int32_t n_prompt, n;
};
static inline int32_t kv_id(const struct kv_ids *s, int32_t i)
{
    return i < s->n_prompt ? s->prompt[i] : s->output[i - s->n_prompt];
}
static inline int32_t kv_pages_of(int32_t n_tokens)
{
    return (n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

struct kv_wait {
    int32_t page; /* -1: none */
    int32_t fill; /* ids it must hold */
    uint32_t serial;
};
/* What a sequence would take over instead of computing. */
struct kv_match {
    int32_t n_shared;          /* whole pages; the last may be unfinished: then it is taken over */
    int32_t copy_from, n_copy; /* the first n_copy ids of page copy_from, or n_copy 0 */
    int32_t n_known;           /* ids that need not be computed: always fewer than n */
    int32_t n_pages;           /* pages that leave kv_available when it is taken */
    struct kv_wait wait;       /* page >= 0: wait for it instead */
};

struct kv;
/* E_FATAL when memory is refused. `sharing` false: every sequence computes everything. */
int kv_open(struct kv **out, int32_t n_pages, bool sharing, struct err *err) TR_MUSTCHECK;
void kv_close(struct kv *kv); /* NULL is legal */
int64_t kv_bytes(const struct kv *kv);
int32_t kv_available(const struct kv *kv); /* pages that can be taken: free or held by nobody */

/* Fills `match` and table [n_shared] with the shared pages. Changes nothing. */
void kv_match(const struct kv *kv, const struct kv_ids *ids, struct kv_match *match,
              int32_t *table);
/* Gives up the copy of a match: the page copied from may be the one that is lacking. */
void kv_match_no_copy(const struct kv *kv, struct kv_match *match);
/* The match of a sequence that must compute all its ids itself. */
void kv_match_none(const struct kv_ids *ids, struct kv_match *match);
/* False while what `wait` waits for is still being computed. */
bool kv_wait_over(const struct kv *kv, const struct kv_wait *wait);
/* Takes the match just made and new pages for the rest of the ids into table [kv_pages_of(n)], and
 * registers the new ones with `owner` (>= 0) as the one that computes them. */
void kv_take(struct kv *kv, const struct kv_ids *ids, const struct kv_match *match, int32_t owner,
             int32_t *table);
/* One page more, never shared. kv_available must be > 0. */
int32_t kv_grow(struct kv *kv);
/* Ids from .. to-1 of the sequence now stand in its pages. */
void kv_computed(struct kv *kv, const int32_t *table, int32_t owner, int32_t from, int32_t to);
/* Keeps a page that is copied from in place until kv_unpin. */
void kv_pin(struct kv *kv, int32_t page);
void kv_unpin(struct kv *kv, int32_t page);
/* Lets go of table [n]. `forget`: nothing of it is findable afterwards, but for pages that others
 * hold. */
void kv_release(struct kv *kv, const int32_t *table, int32_t n, int32_t owner, bool forget);
/* Every invariant, O(pages): for tests; CHECKs. */
void kv_check(const struct kv *kv);

#endif
