/* select: top_k and top_p without sorting.
 *
 * Passes over the whole row narrow the logit at which the kept prefix (in falling order) ends down
 * to an interval with few ids; three rounds of histograms over their keys (11, 11, 10 bits of a
 * 32-bit integer of the same order) find it exactly. Probability mass is counted in integer units
 * of 2^-40 of the greatest weight, cut off: sums are then exact, whatever their order, so every
 * variant and backend cuts at the same token. */
#include "kernels/cpu/cpu.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/convert.h"

enum {
    BINS = 2048,
    FEW = 2048, /* ids that the histograms take over without more narrowing */
    PASSES = 6, /* each divides the interval by four; masses of equal logits never get few */
};

static uint32_t key_of(float logit)
{
    uint32_t u = bits_of_float(logit + 0.0f); /* -0 and +0 are one key */
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
static float logit_of(uint32_t key)
{
    return float_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
static uint64_t mass_of(float p)
{
    return (uint64_t)(p * 0x1p40f);
}

/* The edge of the prefix lies between: ids from hi on are in it, those below lo are not. */
struct bracket {
    float lo, hi;
    uint64_t above;              /* what the ids from hi on give */
    uint64_t count_lo, count_hi; /* ids from lo on, from hi on */
};

/* Narrows the bracket to where, among at[3] (rising), the sum crosses want. */
static void bracket_narrow(struct bracket *b, const float at[3], const struct tally *tally,
                           uint64_t want, bool by_mass)
{
    for (int j = 2; j >= 0; j--) {
        uint64_t sum = by_mass ? tally->mass[j] : tally->count[j];
        if (sum >= want) {
            b->lo = at[j];
            b->count_lo = tally->count[j];
            return;
        }
        b->hi = at[j];
        b->above = sum;
        b->count_hi = tally->count[j];
    }
}

/* Among row->ids [n] (rising), all in the bracket: the logit and the last id of the prefix whose
 * sum, in falling order, reaches want >= 1; the total reaches it. Without by_mass all ties stay. */
static void edge_find(const struct select *row, int32_t n, uint64_t want, bool by_mass,
                      float *logit, int32_t *last)
{
    static const int shifts[3] = {21, 10, 0};
    uint64_t sum[BINS];
    uint32_t key = 0;
    for (int round = 0; round < 3; round++) {
        const int shift = shifts[round];
        const uint32_t mask = round == 2 ? 1023 : BINS - 1;
        memset(sum, 0, sizeof sum);
        for (int32_t i = 0; i < n; i++) {
            int32_t id = row->ids[i];
            sum[key_of(row->logits[id]) >> shift & mask] += by_mass ? mass_of(row->p[id]) : 1;
        }
        uint32_t bin = mask;
        for (; bin > 0 && sum[bin] < want; bin--)
            want -= sum[bin];
        key |= bin << shift;
        int32_t kept = 0;
        for (int32_t i = 0; i < n; i++)
            if ((key_of(row->logits[row->ids[i]]) >> shift & mask) == bin)
                row->ids[kept++] = row->ids[i];
        n = kept;
    }
    /* What is left has one logit, so one weight: as many as it takes, the lowest ids first. */
    uint64_t each = by_mass ? mass_of(row->p[row->ids[0]]) : 1, ties = (want + each - 1) / each;
    *logit = logit_of(key);
    *last = by_mass && ties < (uint64_t)n ? row->ids[ties - 1] : INT32_MAX;
}

/* Cuts to the first `most` ids, or to the share of the mass, in falling order. */
static void prefix_keep(const struct cpu_ops *ops, const struct select *row, uint64_t most,
                        double share)
{
    const bool by_mass = most == 0;
    float at[3] = {-FLT_MAX, row->max - 8 * row->t, row->max - 2 * row->t};
    struct tally tally;
    ops->sample_tally(row->p, row->logits, row->v, at, &tally);
    const double mass = ceil(share * (double)tally.mass[0]);
    uint64_t want = !by_mass ? most : mass < 1 ? 1 : (uint64_t)mass;
    want = by_mass && want > tally.mass[0] ? tally.mass[0] : want;
    if (tally.count[0] <= 1 || (!by_mass && most >= tally.count[0]))
        return;
    struct bracket b = {.lo = at[0], .hi = INFINITY, .count_lo = tally.count[0]};
    bracket_narrow(&b, at, &tally, want, by_mass);
    for (int pass = 0; pass < PASSES && b.count_lo - b.count_hi > FEW; pass++) {
        /* No weight above 2^-40 lies 28.5 temperatures below the greatest. */
        const float lo = fmaxf(b.lo, row->max - 28.5f * row->t), hi = fminf(b.hi, row->max);
        for (int j = 0; j < 3; j++)
            at[j] = lo + (hi - lo) * 0.25f * (float)(j + 1);
        if (!(lo < at[0] && at[0] < at[1] && at[1] < at[2] && at[2] < hi))
            break;
        ops->sample_tally(row->p, row->logits, row->v, at, &tally);
        bracket_narrow(&b, at, &tally, want, by_mass);
    }
    float logit;
    int32_t last, n = ops->sample_range(row->ids, row->p, row->logits, row->v, b.lo, b.hi);
    edge_find(row, n, want - b.above, by_mass, &logit, &last);
    ops->sample_keep(row->p, row->logits, row->v, logit, last);
}

void select_cut(const struct cpu_ops *ops, const struct select *row, int32_t top_k, float top_p)
{
    if (top_k > 0)
        prefix_keep(ops, row, (uint64_t)top_k, 0);
    if (top_p < 1.0f)
        prefix_keep(ops, row, 0, (double)top_p);
}
