/* jinja_compare: ==, <, `in` and sorting with Python's rules. Content marks play no part. */
#ifndef TRANCHE_ENGINE_JINJA_COMPARE_H
#define TRANCHE_ENGINE_JINJA_COMPARE_H

#include "engine/jinja_value.h"

/* 1 equal, 0 not, negative: error (nested too deep). depth: 0 from outside. */
int jinja_equal(struct jinja_run *run, const struct jinja_value *a, const struct jinja_value *b,
                int depth) TR_MUSTCHECK;
/* *order is negative, 0 or positive. Fails for types that Python cannot order; `op` is for the
 * message. */
int jinja_order(struct jinja_run *run, const struct jinja_value *a, const struct jinja_value *b,
                const char *op, int *order) TR_MUSTCHECK;
/* 1 when `item` is in `box`, 0, or an error. Undefined holds nothing. */
int jinja_contains(struct jinja_run *run, const struct jinja_value *box,
                   const struct jinja_value *item) TR_MUSTCHECK;
/* Stable; sorts `items` by `keys` (both are permuted). */
int jinja_sort(struct jinja_run *run, struct jinja_value *items, struct jinja_value *keys, size_t n,
               bool descending) TR_MUSTCHECK;

#endif
