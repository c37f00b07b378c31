/* sample_draw: the passes over a row: greatest value, sums of weights, the draw.
 *
 * The draw: the largest p / q, q ~ Exp(1) from 32 bits of Philox4x32-10 (Salmon et al. 2011),
 * counter (block, n_output, choice, 0), key rng_key; id 64 g + 16 w + i takes word w of block 16 g
 * + i: the CPU's rule (kernels/cpu/sample.c). */
#ifndef TRANCHE_KERNELS_CUDA_SAMPLE_DRAW_CUH
#define TRANCHE_KERNELS_CUDA_SAMPLE_DRAW_CUH

#include "sample.cuh"

#define LOG2_E 1.4426950408889634f

DEVICE uint4 philox(uint4 counter, uint2 key)
{
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * counter.x, b = (uint64_t)0xCD9E8D57u * counter.z;
        counter = make_uint4((uint32_t)(b >> 32) ^ counter.y ^ key.x, (uint32_t)b,
                             (uint32_t)(a >> 32) ^ counter.w ^ key.y, (uint32_t)a);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

/* q ~ Exp(1) from 32 bits: -log(1 - u), u = (r + 1/2) / 2^32. */
DEVICE float exponential(uint32_t r)
{
    const float u =
        __fmul_rn(__fmaf_rn((float)(r >> 8), 256.f, (float)(r & 255u) + 0.5f), 0x1p-32f);
    const uint32_t rest = ~r;
    const float w =
        __fmul_rn(__fmaf_rn((float)(rest >> 8), 256.f, (float)(rest & 255u) + 0.5f), 0x1p-32f);
    return u < 0.29f ? -log1pf(-u) : -logf(w);
}

DEVICE float exp2_of(float x) /* results below 2^-126 are 0 */
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* The greatest of the warp's values; NaN counts as above all. */
DEVICE float warp_greatest(float v)
{
    const int bits = __float_as_int(v);
    const unsigned key =
        __reduce_max_sync(0xffffffffu, (unsigned)bits ^ ((unsigned)(bits >> 31) | 0x80000000u));
    return __int_as_float((int)(key ^ ((unsigned)((int)~key >> 31) | 0x80000000u)));
}

DEVICE uint4 words_of(int block, const rule &r)
{
    return philox(make_uint4((uint32_t)block, r.n_output, r.choice, 0u), r.key);
}

/* Four ids of one block, 16 apart, with weights p: the best of them and b. A weight below
 * floor * u cannot win, as q >= u, and needs no logarithm; floor is some id's score. */
DEVICE best block_draw(const float (&p)[4], int g, int e, best b, float floor, const rule &r)
{
    const uint4 random = words_of(16 * g + 4 * (threadIdx.x & 3) + e, r);
    const uint32_t words[4] = {random.x, random.y, random.z, random.w};
    const float least = __fmul_rn(floor, 0.999999f);
    bool hit[4];
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const float one_and_u = __uint_as_float((words[w] >> 9) | 0x3f800000u);
        hit[w] = p[w] > __fmaf_rn(one_and_u, least, -least);
    }
    if (!(hit[0] || hit[1] || hit[2] || hit[3]))
        return b;
    unsigned hits = hit[0] | hit[1] << 1 | hit[2] << 2 | hit[3] << 3;
    for (; hits; hits &= hits - 1) {
        const int w = __ffs((int)hits) - 1;
        const uint32_t word = w == 0 ? words[0] : w == 1 ? words[1] : w == 2 ? words[2] : words[3];
        const float weight = w == 0 ? p[0] : w == 1 ? p[1] : w == 2 ? p[2] : p[3];
        b = better(b, {__fdividef(weight, exponential(word)), quad_id(g, 4 * w + e)});
    }
    return b;
}

/* One id's score. */
DEVICE float score_of(float weight, int id, const rule &r)
{
    const uint4 random = words_of(16 * (id / GROUP) + id % 16, r);
    const int w = id / 16 % 4;
    return __fdividef(weight, exponential(w == 0   ? random.x
                                          : w == 1 ? random.y
                                          : w == 2 ? random.z
                                                   : random.w));
}

/* A warp's sums so far hang on the greatest value that it has met, `from`, and move with it. */
struct scan_state {
    float from, own, sum, total, above, floor;
    int own_group;
    best b;
    bool nan;
};

template <bool RAW, bool DRAW> DEVICE void scan_move(scan_state &s, float high, const rule &r)
{
    if (RAW)
        s.sum = __fmul_rn(s.sum, exp2_of((s.from - high) * LOG2_E));
    if (DRAW) {
        const float less = exp2_of((s.from - high) * r.scale);
        s.total = __fmul_rn(s.total, less);
        s.above = __fmul_rn(s.above, less);
        s.b.value = __fmul_rn(s.b.value, less);
        s.floor = __fmul_rn(s.floor, less);
    }
    s.from = high;
}

/* The draw's part of one quad. Its weights are those of value - s.from. */
DEVICE void scan_draw(scan_state &s, int g, float (&p)[QUAD], float greatest, const rule &r)
{
    /* No q lies below 2^-33. */
    if (greatest >= __fmul_rn(s.floor, 0x1p-34f)) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float four[4] = {p[e], p[4 + e], p[8 + e], p[12 + e]};
            s.b = block_draw(four, g, e, s.b, fmaxf(s.floor, s.b.value), r);
        }
    }
    s.floor = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(s.b.value)));
}

/* The greatest value and its lowest id: threads know theirs and the quad where they met it. */
DEVICE best row_top_of(const float *x, int v, const scan_state &s)
{
    const best top = block_best({s.own, 0});
    int id = NO_ID;
    if (s.own == top.value) {
        float value[QUAD];
        quad_load(x, v, s.own_group, value);
#pragma unroll
        for (int k = 0; k < QUAD; k++)
            if (value[k] == s.own)
                id = min(id, quad_id(s.own_group, k));
    }
    return {top.value, block_best({0.f, id}).id};
}

/* One pass over the whole row, into sh.row: RAW asks for the sum, DRAW for the rest. Returns the
 * thread's own greatest value. */
template <bool RAW, bool DRAW> PASS float row_scan(const float *x, int v)
{
    const rule r = sh.draw;
    scan_state s = {-3e38f, -INFINITY, 0.f, 0.f, 0.f, 0.f, 0, {0.f, NO_ID}, false};
    row_quads(x, v, [&](int g, float(&value)[QUAD]) {
        float high = value[0];
#pragma unroll
        for (int k = 1; k < QUAD; k++)
            high = fmaxf(high, value[k]);
        if (high > s.own) {
            s.own = high;
            s.own_group = g;
        }
        if (!RAW && !DRAW)
#pragma unroll
            for (int k = 0; k < QUAD; k++)
                s.nan |= value[k] != value[k];
        if (RAW || DRAW) {
            const float warp_high = warp_greatest(high);
            if (warp_high > s.from)
                scan_move<RAW, DRAW>(s, warp_high, r);
        }
#pragma unroll
        for (int k = 0; k < QUAD; k++) {
            const float d = __fsub_rn(value[k], s.from);
            if (RAW)
                s.sum = __fadd_rn(s.sum, exp2_of(__fmul_rn(d, LOG2_E)));
            if (DRAW) {
                const float p = exp2_of(__fmul_rn(d, r.scale));
                s.total = __fadd_rn(s.total, p);
                if (value[k] > r.hint)
                    s.above = __fadd_rn(s.above, p);
                value[k] = p;
            }
        }
        if (DRAW)
            scan_draw(s, g, value, exp2_of(__fmul_rn(__fsub_rn(high, s.from), r.scale)), r);
    });
    const best top = row_top_of(x, v, s);
    float sum = 1.f, total = 1.f, above = 0.f;
    best drawn = {0.f, NO_ID};
    if (RAW)
        sum = block_sum(__fmul_rn(s.sum, exp2_of((s.from - top.value) * LOG2_E)));
    if (DRAW) {
        const float less = exp2_of((s.from - top.value) * r.scale);
        total = block_sum(__fmul_rn(s.total, less));
        above = block_sum(__fmul_rn(s.above, less));
        drawn = block_best({__fmul_rn(s.b.value, less), s.b.id});
    }
    const bool sound = !__syncthreads_or(s.nan) && sum > 0.f && total > 0.f &&
                       top.value > -INFINITY && top.value < INFINITY;
    if (threadIdx.x == 0)
        sh.row = {top, sum, total, above, drawn, sound};
    __syncthreads();
    return s.own;
}

/* Draws among what keeps(last) keeps of a scanned row, into sh.row, its weight as total. */
PASS void row_draw(const float *x, int v, best last)
{
    const rule r = sh.draw;
    const float top = sh.row.top.value;
    scan_state s = {top, -INFINITY, 0.f, 0.f, 0.f, 0.f, 0, {0.f, NO_ID}, false};
    const edge end(last);
    row_quads(x, v, [&](int g, float(&value)[QUAD]) {
        const float least = end.least(g);
        float greatest = 0.f;
#pragma unroll
        for (int k = 0; k < QUAD; k++) {
            const bool in =
                g == end.group ? keeps(last, value[k], quad_id(g, k)) : value[k] > least;
            value[k] = in ? exp2_of(__fmul_rn(__fsub_rn(value[k], top), r.scale)) : 0.f;
            s.total = __fadd_rn(s.total, value[k]);
            greatest = fmaxf(greatest, value[k]);
        }
        scan_draw(s, g, value, greatest, r);
    });
    const float total = block_sum(s.total);
    const best drawn = block_best(s.b);
    if (threadIdx.x == 0) {
        sh.row.total = total;
        sh.row.drawn = drawn;
    }
    __syncthreads();
}

/* The weight of all that keeps(last) keeps. */
PASS float row_weight(const float *x, int v, best last)
{
    const float scale = sh.draw.scale, top = sh.row.top.value;
    const edge end(last);
    float total = 0.f;
    row_quads(x, v, [&](int g, const float(&value)[QUAD]) {
        const float least = end.least(g);
#pragma unroll
        for (int k = 0; k < QUAD; k++) {
            const bool in =
                g == end.group ? keeps(last, value[k], quad_id(g, k)) : value[k] > least;
            const float p = exp2_of(__fmul_rn(__fsub_rn(value[k], top), scale));
            total = in ? __fadd_rn(total, p) : total;
        }
    });
    return block_sum(total);
}

/* A value above which less than `share` of a row's weight lies, by a sample of it: 64 groups of
 * ids. Only a hint: what it is changes no token. +infinity when the row is too short for one. */
PASS float row_hint(const float *x, int v, float share)
{
    const float scale = sh.draw.scale;
    enum { SAMPLE_GROUPS = SAMPLE_THREADS / 4, ROUNDS = 10 };
    const int stride = v / (GROUP * SAMPLE_GROUPS);
    if (stride < 2)
        return INFINITY;
    float p[QUAD], mine = 0.f, high = -INFINITY;
    quad_load(x, v, (threadIdx.x >> 2) * stride, p);
#pragma unroll
    for (int k = 0; k < QUAD; k++)
        high = fmaxf(high, p[k]);
    const float top = block_best({high, 0}).value;
#pragma unroll
    for (int k = 0; k < QUAD; k++) {
        p[k] = exp2_of(__fmul_rn(__fsub_rn(p[k], top), scale));
        mine = __fadd_rn(mine, p[k]);
    }
    /* Weights between 2^-20 and 1, by halving the exponent's range. */
    const float want = share * block_sum(mine);
    float lo = -20.f, hi = 0.f;
    for (int round = 0; round < ROUNDS; round++) {
        const float middle = 0.5f * (lo + hi), least = exp2_of(middle);
        mine = 0.f;
#pragma unroll
        for (int k = 0; k < QUAD; k++)
            mine = p[k] > least ? __fadd_rn(mine, p[k]) : mine;
        if (block_sum(mine) < want)
            hi = middle;
        else
            lo = middle;
    }
    return top + hi / scale;
}

#endif
