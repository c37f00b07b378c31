/* refused_memory: memory that is refused on demand, under mem_alloc. For one test program: it takes
 * aligned_alloc's place. */
#ifndef TRANCHE_TESTS_REFUSED_MEMORY_H
#define TRANCHE_TESTS_REFUSED_MEMORY_H

#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of the requests of refuse_low to refuse_high bytes, refuse_n are refused, behind refuse_from. */
static size_t refuse_low = SIZE_MAX, refuse_high;
static int refuse_from, refuse_n;
static atomic_int refuse_seen; /* such requests so far */

void *aligned_alloc(size_t align, size_t size)
{
    int seen = size < refuse_low || size > refuse_high ? -1 : atomic_fetch_add(&refuse_seen, 1);
    bool refused = seen >= refuse_from && seen - refuse_from < refuse_n;
    return refused ? NULL : memalign(align, size);
}

static inline void refuse(size_t low, size_t high, int from, int n)
{
    refuse_from = from;
    refuse_n = n;
    refuse_low = low;
    refuse_high = high;
    atomic_store(&refuse_seen, 0);
}

#endif
