/* through_sink: a sink that hands every call on to a real one. A test takes through_sink_ops and
 * puts its own faults in place of some. */
#ifndef TRANCHE_TESTS_THROUGH_SINK_H
#define TRANCHE_TESTS_THROUGH_SINK_H

#include "worker/sink/sink.h"

struct through_sink {
    struct sink sink;
    struct sink *real;
};

static inline struct sink *behind(struct sink *s)
{
    return ((struct through_sink *)s)->real;
}

static int through_lookup(struct sink *s, struct lookup *l, size_t n, struct err *err)
{
    return behind(s)->ops->lookup(behind(s), l, n, err);
}
static int through_count(struct sink *s, const struct key *k, const struct str *revisions, size_t n,
                         int what, int32_t *a, struct err *err)
{
    return behind(s)->ops->count_attempts(behind(s), k, revisions, n, what, a, err);
}
static int through_death(struct sink *s, struct death *d, struct err *err)
{
    return behind(s)->ops->record_death(behind(s), d, err);
}
static int through_commit(struct sink *s, const struct commit *c, struct commit_counts *counts,
                          struct err *err)
{
    return behind(s)->ops->commit(behind(s), c, counts, err);
}
static int through_park(struct sink *s, const struct parked *p, size_t n, struct err *err)
{
    return behind(s)->ops->park(behind(s), p, n, err);
}
static int through_unpark(struct sink *s, const struct key *k, size_t n, unpark_take *take,
                          void *ctx, struct err *err)
{
    return behind(s)->ops->unpark(behind(s), k, n, take, ctx, err);
}
static int through_cancelled(struct sink *s, const struct key *k, size_t n, bool *out,
                             struct err *err)
{
    return behind(s)->ops->cancelled(behind(s), k, n, out, err);
}
static int through_totals(struct sink *s, struct totals *t, struct err *err)
{
    return behind(s)->ops->totals(behind(s), t, err);
}

static const struct sink_ops through_sink_ops = {.name = "through",
                                                 .lookup = through_lookup,
                                                 .count_attempts = through_count,
                                                 .record_death = through_death,
                                                 .commit = through_commit,
                                                 .park = through_park,
                                                 .unpark = through_unpark,
                                                 .cancelled = through_cancelled,
                                                 .totals = through_totals};

#endif
