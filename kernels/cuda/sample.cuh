/* sample: the cuts of a row of logits (min_p, top_k, top_p) by one CTA: histogram, collection,
 * sort. The rules and the ladder stand in sample.cu. */
#ifndef TRANCHE_KERNELS_CUDA_SAMPLE_CUH
#define TRANCHE_KERNELS_CUDA_SAMPLE_CUH

#include "common.cuh"
#include "kernels/kernels_cuda.h"

enum {
    SAMPLE_THREADS = 256,
    SAMPLE_WARPS = SAMPLE_THREADS / 32,
    BINS = 2048,
    SORTED = 2048, /* most values of the cut's bin that are sorted; more are one tie */
};

struct candidate {
    float value;
    int id;
};
struct sample_shared {
    union {
        /* Counts, or masses in 2^-14 of the weight at the bin's begin: one native 32-bit atomic a
         * value (64-bit ones are a loop), at most 2^14 each, so no sum of a row overflows. Odd and
         * even lanes add to two copies: fewer of a warp's values meet. */
        unsigned int bin[BINS][2];
        candidate sorted[SORTED];
    };
    float value[SAMPLE_WARPS], extra[SAMPLE_WARPS];
    int id[SAMPLE_WARPS];
    unsigned long long scan[SAMPLE_WARPS];
    int n_sorted, found;
    unsigned long long before;
};

struct best {
    float value;
    int id;
};

/* f(value, id) for every id of the row, a thread's own in rising order; 32 bytes a thread in
 * flight. Rows begin at multiples of 16 bytes. */
template <class F> DEVICE void row_each(const float *x, int v, F f)
{
    constexpr int AHEAD = 2;
    const float4 *pieces = reinterpret_cast<const float4 *>(x);
    for (int i = threadIdx.x; i < v / 4; i += AHEAD * SAMPLE_THREADS) {
        float4 p[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            p[k] = i + k * SAMPLE_THREADS < v / 4 ? pieces[i + k * SAMPLE_THREADS]
                                                  : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int id = (i + k * SAMPLE_THREADS) * 4;
            if (id >= v / 4 * 4)
                break;
            f(p[k].x, id);
            f(p[k].y, id + 1);
            f(p[k].z, id + 2);
            f(p[k].w, id + 3);
        }
    }
    for (int id = v / 4 * 4 + threadIdx.x; id < v; id += SAMPLE_THREADS)
        f(x[id], id);
}
DEVICE best better(best a, best b) /* ties to the lower id */
{
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

DEVICE best block_best(best b, sample_shared &sh)
{
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        b = better(b, {__shfl_xor_sync(0xffffffffu, b.value, step),
                       __shfl_xor_sync(0xffffffffu, b.id, step)});
    const int warp = threadIdx.x >> 5;
    if ((threadIdx.x & 31) == 0) {
        sh.value[warp] = b.value;
        sh.id[warp] = b.id;
    }
    __syncthreads();
    b = {sh.value[0], sh.id[0]};
    for (int w = 1; w < SAMPLE_WARPS; w++)
        b = better(b, {sh.value[w], sh.id[w]});
    __syncthreads();
    return b;
}

DEVICE float block_sum(float v, sample_shared &sh)
{
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0)
        sh.extra[threadIdx.x >> 5] = v;
    __syncthreads();
    float sum = 0.f;
    for (int w = 0; w < SAMPLE_WARPS; w++)
        sum = __fadd_rn(sum, sh.extra[w]);
    __syncthreads();
    return sum;
}

/* Maximum with its id over the row. NaN compares false and is caught by the sum. */
DEVICE best row_best(const float *x, int v, sample_shared &sh)
{
    best b = {-INFINITY, 0x7fffffff};
    row_each(x, v, [&](float value, int i) { b = better(b, {value, i}); });
    return block_best(b, sh);
}

/* What still takes part: values above last.value, and equal ones with ids up to last.id. */
struct cut {
    float top, inverse_t;
    best last;
};
DEVICE bool keeps(const cut &c, float value, int id)
{
    return value > c.last.value || (value == c.last.value && id <= c.last.id);
}
/* Distance from the greatest value in units of T: the weight is exp(-distance). */
DEVICE float distance(const cut &c, float value)
{
    return __fmul_rn(__fsub_rn(c.top, value), c.inverse_t);
}
DEVICE unsigned long long mass_of(float distance)
{
    return (unsigned long long)(__expf(-distance) * 1099511627776.f);
}

/* Bins of 1/scale from base; what lies past the last one falls into it. */
struct bins {
    float base, scale;
    int found;
    METHOD float place(float distance) const
    {
        return __fmul_rn(__fsub_rn(distance, base), scale);
    }
    METHOD bool in_found(float distance) const
    {
        const float at = place(distance);
        return (at >= (float)found || found == 0) && (at < (float)(found + 1) || found == BINS - 1);
    }
    METHOD float begin(int bin) const
    {
        return __fmaf_rn((float)bin, __frcp_rn(scale), base);
    }
};

/* Exclusive prefix of one value a thread. */
DEVICE unsigned long long block_prefix(unsigned long long v, unsigned long long *total,
                                       sample_shared &sh)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    unsigned long long sum = v;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const unsigned long long left = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? left : 0;
    }
    if (lane == 31)
        sh.scan[warp] = sum;
    __syncthreads();
    unsigned long long before = 0, all = 0;
    for (int w = 0; w < SAMPLE_WARPS; w++) {
        before += w < warp ? sh.scan[w] : 0;
        all += sh.scan[w];
    }
    __syncthreads();
    *total = all;
    return before + sum - v;
}

/* Sorts sh.sorted[0 .. n) by falling value, ties by rising id; bitonic, n <= SORTED. */
DEVICE void block_sort(int n, sample_shared &sh)
{
    int size = 1;
    while (size < n)
        size *= 2;
    for (int i = n + threadIdx.x; i < size; i += SAMPLE_THREADS)
        sh.sorted[i] = {-INFINITY, 0x7fffffff};
    for (int run = 2; run <= size; run *= 2)
        for (int half = run / 2; half > 0; half /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size; i += SAMPLE_THREADS) {
                const int other = i ^ half;
                if (other < i)
                    continue;
                const candidate a = sh.sorted[i], b = sh.sorted[other];
                const bool ordered = a.value > b.value || (a.value == b.value && a.id < b.id);
                if (ordered != ((i & run) == 0)) {
                    sh.sorted[i] = b;
                    sh.sorted[other] = a;
                }
            }
        }
    __syncthreads();
}

/* The amount that bin i of b, or (b null) sorted place i, adds to the running sum. */
DEVICE unsigned long long amount(const cut &c, const sample_shared &sh, int i, const bins *b,
                                 bool by_mass)
{
    if (b) {
        const unsigned long long sum = (unsigned long long)sh.bin[i][0] + sh.bin[i][1];
        return by_mass ? (unsigned long long)((double)sum * (double)__expf(-b->begin(i)) * 0x1p26)
                       : sum;
    }
    if (i >= sh.n_sorted)
        return 0;
    return by_mass ? mass_of(distance(c, sh.sorted[i].value)) : 1;
}

/* The first place where the running sum reaches *want (share > 0: that share of the total); -1 when
 * it never does. *before is the sum ahead of it. */
DEVICE int first_reaching(const cut &c, const bins *b, bool by_mass, double share,
                          unsigned long long *want, unsigned long long *before, sample_shared &sh)
{
    constexpr int OWN = BINS / SAMPLE_THREADS;
    static_assert(BINS == SORTED, "one share a thread for both");
    unsigned long long mine = 0, total;
#pragma unroll 1
    for (int k = 0; k < OWN; k++)
        mine += amount(c, sh, threadIdx.x * OWN + k, b, by_mass);
    unsigned long long sum = block_prefix(mine, &total, sh);
    if (share > 0)
        *want = max((unsigned long long)((double)total * share), 1ull);
    if (threadIdx.x == 0)
        sh.found = -1;
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < OWN; k++) {
        const unsigned long long here = amount(c, sh, threadIdx.x * OWN + k, b, by_mass);
        if (sum < *want && sum + here >= *want) { /* true at one place of one thread */
            sh.found = threadIdx.x * OWN + k;
            sh.before = sum;
        }
        sum += here;
    }
    __syncthreads();
    *before = sh.before;
    return sh.found;
}

DEVICE bool inside(const cut &c, const bins *outer, int n_outer, float value, int id)
{
    if (!keeps(c, value, id))
        return false;
    const float d = distance(c, value);
    for (int k = 0; k < n_outer; k++)
        if (!outer[k].in_found(d))
            return false;
    return true;
}

/* The histogram of what lies in the found bins of the levels before n: counts, or masses. */
DEVICE void bins_fill(const float *x, int v, const cut &c, const bins *level, int n, bool by_mass,
                      sample_shared &sh)
{
    const struct bins b = level[n];
    const float inverse = __frcp_rn(b.scale);
    for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS)
        sh.bin[i][0] = sh.bin[i][1] = 0;
    __syncthreads();
    row_each(x, v, [&](float value, int i) {
        if (!inside(c, level, n, value, i))
            return;
        /* The unit that converts and exponentiates is four times slower than the others: the bin
         * comes from adding 2^23, the weight within a bin (at most 1/64 nat wide) from two terms of
         * its series. */
        const float at = fminf(fmaxf(b.place(distance(c, value)), 0.f), BINS + 1.f),
                    whole = __fadd_rz(at, 8388608.f);
        const int bin = min(__float_as_int(whole) & 0xffff, BINS - 1);
        const float part = __fmul_rn(__fsub_rn(at, __fsub_rn(whole, 8388608.f)), inverse);
        const float weight =
            __fmaf_rn(part, __fmaf_rn(part, 8192.f, -16384.f), 16384.f + 8388608.f);
        const unsigned int mass = at >= (float)BINS ? 0 : __float_as_int(weight) & 0x7fffff;
        atomicAdd(&sh.bin[bin][threadIdx.x & 1], by_mass ? mass : 1u);
    });
    __syncthreads();
}

/* The values in the found bins of n levels into sh.sorted, as far as they fit, and their number;
 * the thread's least of them. */
DEVICE float bin_collect(const float *x, int v, const cut &c, const bins *level, int n,
                         sample_shared &sh)
{
    float low = INFINITY;
    if (threadIdx.x == 0)
        sh.n_sorted = 0;
    __syncthreads();
    row_each(x, v, [&](float value, int i) {
        if (!inside(c, level, n, value, i))
            return;
        low = fminf(low, value);
        const int at = atomicAdd(&sh.n_sorted, 1);
        if (at < SORTED)
            sh.sorted[at] = {value, i};
    });
    __syncthreads();
    return low;
}

/* Narrows c to the first `want` values of the falling order, or (share > 0) to the fewest that hold
 * that share of the mass. top_k keeps the ties of its last value; top_p ends at one id. */
DEVICE void cut_narrow(const float *x, int v, cut &c, unsigned long long want, double share,
                       sample_shared &sh)
{
    const bool by_mass = share > 0;
    struct bins level[3];
    unsigned long long before = 0;
    best low = {INFINITY, 0x7fffffff};
    int n = 0;
    for (bool crowded = true; crowded && n < 3;) {
        struct bins &b = level[n];
        b.base = n ? level[n - 1].base + (float)level[n - 1].found / level[n - 1].scale : 0.f;
        b.scale = n ? level[n - 1].scale * BINS : 64.f;
        bins_fill(x, v, c, level, n, by_mass, sh);
        b.found = first_reaching(c, &b, by_mass, n == 0 ? share : 0, &want, &before, sh);
        if (b.found < 0)
            return; /* fewer than wanted: all stay */
        want -= before;
        low.value = bin_collect(x, v, c, level, ++n, sh);
        crowded = sh.n_sorted > SORTED;
        __syncthreads();
        if (crowded && n == 3) { /* thousands within 2^-28 of a nat: one tie, all of it stays */
            low.value = -low.value, low.id = 0;
            c.last = {-block_best(low, sh).value, 0x7fffffff};
            return;
        }
    }
    block_sort(sh.n_sorted, sh);
    const int at = first_reaching(c, nullptr, by_mass, 0, &want, &before, sh);
    const candidate last = sh.sorted[at < 0 ? sh.n_sorted - 1 : at];
    __syncthreads();
    c.last = {last.value, by_mass ? last.id : 0x7fffffff};
}

#endif
