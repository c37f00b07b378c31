/* schedule: which tokens run in the next step: pure functions of lengths, pages and budget. No
 * model, no clock, no memory of its own. kv.h owns the pages, the engine the sequences.
 *
 * Policy: running sequences decode one token each, oldest first; what is left of the token budget
 * goes to prefill chunks, oldest first; what is left then admits waiting sequences, oldest first,
 * into free slots. A sequence is admitted with the pages of all its known ids, and only above a
 * reserve, so later steps of the running ones seldom lack a page. When they do, the youngest
 * running sequence is evicted and waits in its old place of the line (its bytes do not change: it
 * is recomputed).
 *
 * Why every step makes progress: the oldest running sequence always gets a row, and is never
 * evicted; with nothing running the first sequence of the line needs no reserve, and one sequence
 * of the greatest length fits in the pages (checked at open). */
#ifndef TRANCHE_ENGINE_SCHEDULE_H
#define TRANCHE_ENGINE_SCHEDULE_H

#include "engine/base.h"

/* One running sequence. Those given to the scheduler stand oldest first. */
struct schedule_seq {
    int32_t n_tokens;   /* ids known or being sampled: prompt + generated */
    int32_t n_computed; /* ids whose KV stands in pages, < n_tokens */
    int32_t n_pages;    /* pages held; they hold at least all ids but the last */
    bool held;          /* takes no part in this step: its next rule needs a token still on the
                           device */
};
struct schedule_limits {
    int32_t step_tokens;  /* most rows of a step */
    int32_t chunk_tokens; /* most rows of one sequence in a step */
    int32_t slots;        /* most running sequences */
    int32_t n_pages;      /* of the whole arena: sets the reserve */
};
struct schedule_pick {
    int32_t seq;          /* index into the running sequences; those admitted follow behind */
    int32_t start, count; /* rows: ids start .. start+count-1 */
    bool new_page;        /* one more page must be taken first */
};
struct schedule_plan {
    struct schedule_pick *picks; /* [slots], caller's memory */
    int32_t n_picks, n_rows;
    int32_t n_running;  /* sequences in slots, those admitted by this plan included */
    int32_t pages_left; /* pages that can still be taken */
};

/* Plans the running sequences seqs [n]. Returns -1 and the plan, or the index of the sequence that
 * must be evicted first: the caller evicts it, counts the free pages again and calls again. */
int32_t schedule_running(const struct schedule_seq *seqs, int32_t n,
                         const struct schedule_limits *limits, int32_t pages_free,
                         struct schedule_plan *plan) TR_MUSTCHECK;
/* True while a slot and a row are left for a waiting sequence. */
bool schedule_room(const struct schedule_plan *plan, const struct schedule_limits *limits);
/* Admits one waiting sequence that needs `pages` more pages, if they are there: adds its pick to
 * the plan and returns its rows; 0 when it must wait. */
int32_t schedule_admit(struct schedule_plan *plan, const struct schedule_limits *limits,
                       int32_t n_tokens, int32_t n_computed, int32_t pages) TR_MUSTCHECK;

#endif
