/* sample_inner: the passes over a whole row of logits, for one vector unit. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

enum { SUM_CHUNK = 4096 }; /* elements whose fp32 sum goes to the double total at once */

/* The last n < 16 elements; missing lanes read as -infinity. */
VEC_INLINE v16 logits_tail(const float *x, int64_t n)
{
    v16 v = v16_load_some(x, n);
    return v16_pick((1u << n) - 1, v, v16_set1(-INFINITY));
}
VEC_INLINE v16 logits_load(const float *x, int64_t i, int64_t v)
{
    return i + 16 <= v ? v16_load(x + i) : logits_tail(x + i, v - i);
}

static float sample_max(const float *x, int64_t v, bool *good)
{
    v16 top = v16_set1(-INFINITY);
    unsigned ordered = 0xffff;
    for (int64_t i = 0; i < v; i += 16) {
        v16 in = logits_load(x, i, v);
        top = v16_max(in, top);
        ordered &= v16_eq(in, in);
    }
    float max = v16_top(top);
    if (ordered != 0xffff || max == INFINITY)
        *good = false;
    return max;
}

static double sample_sum(const float *x, int64_t v, float max)
{
    const v16 m = v16_set1(max);
    double total = 0;
    for (int64_t from = 0; from < v; from += SUM_CHUNK) {
        int64_t to = from + SUM_CHUNK < v ? from + SUM_CHUNK : v;
        v16 sum = v16_set1(0.0f);
        for (int64_t i = from; i < to; i += 16)
            sum = v16_add(sum, v16_exp(v16_sub(logits_load(x, i, v), m)));
        total += (double)v16_sum(sum);
    }
    return total;
}

static void sample_weights(float *p, const float *x, int64_t v, float max, float inverse_t,
                           float least)
{
    const v16 m = v16_set1(max), by = v16_set1(inverse_t), floor = v16_set1(least);
    const v16 zero = v16_set1(0.0f);
    int64_t i = 0;
    for (; i < v; i += 16) {
        v16 e = v16_exp(v16_mul(v16_sub(logits_load(x, i, v), m), by));
        v16_store(p + i, v16_pick(v16_gt(floor, e), zero, e));
    }
    for (; i % 64; i += 16)
        v16_store(p + i, zero);
}

static int32_t sample_find(const float *x, int64_t v, float value)
{
    const v16 want = v16_set1(value);
    for (int64_t i = 0; i < v; i += 16) {
        unsigned hit = v16_eq(logits_load(x, i, v), want);
        if (v - i < 16)
            hit &= (1u << (v - i)) - 1;
        if (hit)
            return (int32_t)i + __builtin_ctz(hit);
    }
    return -1;
}

static void sample_tally(const float *p, const float *logits, int64_t v, const float at[3],
                         struct tally *tally)
{
    const v16 zero = v16_set1(0.0f);
    v16m sum[3] = {v16m_zero(), v16m_zero(), v16m_zero()};
    uint64_t count[3] = {0};
    for (int64_t i = 0; i < v; i += 16) {
        v16 weight = v16_load(p + i), in = logits_load(logits, i, v);
        unsigned some = v16_gt(weight, zero);
        if (!some)
            continue;
        v16m mass = v16_mass(weight);
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++) {
            unsigned bits = some & ~v16_gt(v16_set1(at[j]), in);
            sum[j] = v16m_add(sum[j], mass, bits);
            count[j] += (unsigned)__builtin_popcount(bits);
        }
    }
    for (int j = 0; j < 3; j++) {
        tally->mass[j] = v16m_sum(sum[j]);
        tally->count[j] = count[j];
    }
}

static int32_t sample_range(int32_t *ids, const float *p, const float *logits, int64_t v, float lo,
                            float hi)
{
    const v16 zero = v16_set1(0.0f), low = v16_set1(lo), high = v16_set1(hi);
    int32_t n = 0;
    for (int64_t i = 0; i < v; i += 16) {
        v16 in = logits_load(logits, i, v);
        unsigned hit = v16_gt(v16_load(p + i), zero) & ~v16_gt(low, in) & v16_gt(high, in);
        for (; hit; hit &= hit - 1)
            ids[n++] = (int32_t)i + __builtin_ctz(hit);
    }
    return n;
}

static void sample_keep(float *p, const float *logits, int64_t v, float cut, int32_t last)
{
    const v16 at = v16_set1(cut), zero = v16_set1(0.0f);
    for (int64_t i = 0; i < v; i += 16) {
        v16 in = logits_load(logits, i, v);
        unsigned ties = last >= i + 15 ? 0xffff : last < i ? 0 : (2u << (last - i)) - 1;
        unsigned kept = v16_gt(in, at) | (v16_eq(in, at) & ties);
        if (kept != 0xffff)
            v16_store(p + i, v16_pick(kept, v16_load(p + i), zero));
    }
}

/* q ~ Exp(1) from 32 random bits r: -log(1 - u), u = (r + 1/2) / 2^32, exact to fp32 at both ends.
 * Its least value is 2^-33, its greatest 22.9. */
VEC_INLINE v16 exponential(v16i r)
{
    const v16 step = v16_set1(0x1p-32f), half = v16_set1(0.5f);
    v16i not = v16i_xor(r, v16i_set1(-1));
    v16 part[2];
    v16i word[2] = {r, not };
    for (int i = 0; i < 2; i++) {
        v16i high = v16i_srl(word[i], 8), low = v16i_sub(word[i], v16i_sll(high, 8));
        v16 sum = v16_fma(v16_of_int(high), v16_set1(256.0f), v16_add(v16_of_int(low), half));
        part[i] = v16_mul(sum, step);
    }
    /* Small u: log1p of -u itself; else the logarithm of 1 - u, which is small and exact. */
    unsigned small = v16_gt(v16_set1(0.29f), part[0]);
    v16i bits = v16_bits(part[1]);
    v16i e = v16i_sra(v16i_sub(bits, v16i_set1(0x3f3504f3)), 23);
    v16 f = v16_sub(v16_of_bits(v16i_sub(bits, v16i_sll(e, 23))), v16_set1(1.0f));
    const v16 zero = v16_set1(0.0f);
    f = v16_pick(small, v16_sub(zero, part[0]), f);
    v16 n = v16_pick(small, zero, v16_of_int(e));
    return v16_sub(zero, v16_fma(n, v16_set1(0x1.62e430p-1f), v16_log1p_core(f)));
}

struct draw {
    v16i position, choice;
    uint64_t key;
    float best;
    int32_t id;
};

/* The four vectors of ids 64 g .. 64 g + 63: word w of block 16 g + lane belongs to id
 * 64 g + 16 w + lane. A strictly greater p / q wins, so ties stay with the lowest id. */
static void draw_group(struct draw *draw, const float *p, int64_t g)
{
    v16i c[4] = {v16i_add(v16i_set1((int32_t)(16 * g)), v16i_iota()), draw->position, draw->choice,
                 v16i_set1(0)};
    v16_philox(c, draw->key);
    for (int w = 0; w < 4; w++) {
        float lane[16];
        v16 score = v16_div(v16_load(p + 64 * g + 16 * w), exponential(c[w]));
        unsigned hit = v16_gt(score, v16_set1(draw->best));
        if (!hit)
            continue;
        v16_store(lane, score);
        for (; hit; hit &= hit - 1) {
            int i = __builtin_ctz(hit);
            if (lane[i] > draw->best) {
                draw->best = lane[i];
                draw->id = (int32_t)(64 * g) + 16 * w + i;
            }
        }
    }
}

static int32_t sample_draw(const float *p, int64_t v, uint64_t key, uint32_t position,
                           uint32_t choice)
{
    struct draw draw = {v16i_set1((int32_t)position), v16i_set1((int32_t)choice), key, 0.0f, -1};
    struct draw first = draw;
    /* The likeliest token sets a floor at once; a group that cannot reach it even with the least q
     * is skipped. */
    int32_t likely = sample_find(p, v, 1.0f);
    if (likely >= 0)
        draw_group(&first, p, likely / 64);
    for (int64_t g = 0; g < (v + 63) / 64; g++) {
        const float *at = p + 64 * g;
        v16 top = v16_max(v16_max(v16_load(at), v16_load(at + 16)),
                          v16_max(v16_load(at + 32), v16_load(at + 48)));
        float need = draw.best > first.best ? draw.best : first.best;
        if (v16_gt(top, v16_set1(0.0f)) == 0 ||
            (v16_eq(v16_mul(top, v16_set1(0x1p33f)), v16_set1(need)) |
             v16_gt(v16_mul(top, v16_set1(0x1p33f)), v16_set1(need))) == 0)
            continue;
        draw_group(&draw, p, g);
    }
    return draw.id;
}

static int32_t sample_best(const float *x, int64_t v, int32_t n, int32_t *ids, float *values)
{
    int32_t have = 0;
    for (int64_t i = 0; i < v && n > 0; i += 16) {
        v16 in = logits_load(x, i, v);
        unsigned hit = v16_gt(in, v16_set1(have < n ? -INFINITY : values[n - 1]));
        if (!hit)
            continue;
        float lane[16];
        v16_store(lane, in);
        for (; hit; hit &= hit - 1) {
            int bit = __builtin_ctz(hit);
            if (have == n && !(lane[bit] > values[n - 1]))
                continue;
            int32_t at = have < n ? have++ : n - 1;
            for (; at > 0 && values[at - 1] < lane[bit]; at--) {
                values[at] = values[at - 1];
                ids[at] = ids[at - 1];
            }
            values[at] = lane[bit];
            ids[at] = (int32_t)i + bit;
        }
    }
    return have;
}

static float log_of(float x)
{
    return v16_first(v16_log(v16_set1(x)));
}

static void map_lanes(float *out, const float *x, int64_t n, char which)
{
    for (int64_t i = 0; i < n; i += 16) {
        v16 v = v16_load_some(x + i, n - i);
        v = which == 'e' ? v16_exp(v) : which == 'l' ? v16_log(v) : v16_silu(v);
        v16_store_some(out + i, v, n - i);
    }
}

static void philox_lanes(uint32_t out[4][16], const uint32_t in[4][16], uint64_t key)
{
    v16i c[4];
    memcpy(c, in, sizeof c);
    v16_philox(c, key);
    memcpy(out, c, sizeof c);
}
