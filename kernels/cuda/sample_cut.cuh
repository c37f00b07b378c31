/* sample_cut: the first k of a row in falling order. For k up to the number of threads a lower
 * bound of the k-th greatest value is the k-th greatest of the threads' own greatest: what reaches
 * it is little more than k values, sorted in shared memory. Otherwise (a larger k, or the greatest
 * values crowded at one thread) radix selection finds the k-th. */
#ifndef TRANCHE_KERNELS_CUDA_SAMPLE_CUT_CUH
#define TRANCHE_KERNELS_CUDA_SAMPLE_CUT_CUH

#include "sample.cuh"

/* The k-th greatest of one value a thread, k >= 1 and <= SAMPLE_THREADS. */
PASS float block_kth(float own, int k)
{
    int ahead = 0;
    sh.own[threadIdx.x] = own;
    __syncthreads();
    for (int i = 0; i < SAMPLE_THREADS; i++) {
        const float other = sh.own[i];
        ahead += other > own || (other == own && i < (int)threadIdx.x);
    }
    if (ahead == k - 1)
        sh.chosen = own;
    __syncthreads();
    return sh.chosen;
}

/* Sorts the values >= least in sh.sorted. Their number; more than SORTED: nothing is sorted. */
PASS int row_collect(const float *x, int v, float least)
{
    __syncthreads();
    if (threadIdx.x == 0)
        sh.n_sorted = 0;
    __syncthreads();
    row_quads(x, v, [&](int g, const float(&value)[QUAD]) {
        unsigned hits = 0;
#pragma unroll
        for (int k = 0; k < QUAD; k++)
            hits |= (unsigned)(value[k] >= least) << k;
        for (; hits; hits &= hits - 1) {
            const int id = quad_id(g, __ffs((int)hits) - 1);
            const int at = id < v ? atomicAdd(&sh.n_sorted, 1) : SORTED;
            if (at < SORTED)
                sh.sorted[at] = {x[id], id};
        }
    });
    __syncthreads();
    const int n = sh.n_sorted;
    if (n <= SORTED)
        block_sort(n);
    return n;
}

/* Of sh.sorted[0 .. n): how many reach value number k, counted from 1. */
DEVICE int sorted_reaching(int n, int k)
{
    const float least = sh.sorted[min(k, n) - 1].value;
    int kept = 0;
    for (int i0 = 0; i0 < n; i0 += SAMPLE_THREADS) {
        const int i = i0 + threadIdx.x;
        kept += __syncthreads_count(i < n && sh.sorted[i].value >= least);
    }
    return kept;
}

/* The first place of one amount a bin or sorted place, at which the running sum reaches want, or
 * -1; *before is the sum ahead of it. share > 0: want is that share of the total, at least 1. */
template <class F>
DEVICE int first_reaching(F amount, unsigned long long want, float share,
                          unsigned long long *before)
{
    constexpr int OWN = (BINS + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    const auto own_amount = [&](int k) {
        const int i = threadIdx.x * OWN + k;
        return i < BINS ? (unsigned long long)amount(i) : 0ull;
    };
    unsigned long long mine = 0, total;
#pragma unroll 1
    for (int k = 0; k < OWN; k++)
        mine += own_amount(k);
    unsigned long long sum = block_prefix(mine, &total);
    if (share > 0.f)
        want = max((unsigned long long)ceil((double)total * (double)share), 1ull);
    if (threadIdx.x == 0)
        sh.found = -1;
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < OWN; k++) {
        const unsigned long long here = own_amount(k);
        if (sum < want && sum + here >= want) { /* true at one place of one thread */
            sh.found = threadIdx.x * OWN + k;
            sh.before = sum;
        }
        sum += here;
    }
    __syncthreads();
    *before = sh.before;
    return sh.found;
}

/* An integer that falls as the value rises; +0 and -0 are one. */
DEVICE uint32_t falling_key(float value)
{
    const int bits = __float_as_int(__fadd_rn(value, 0.f));
    return ~((uint32_t)bits ^ ((uint32_t)(bits >> 31) | 0x80000000u));
}

/* The k-th greatest value, -infinity when there are fewer: radix selection, 11, 11 and 10
 * bits of the key, until what shares the found bin can be sorted. */
PASS float row_kth(const float *x, int v, unsigned long long k)
{
    uint32_t prefix = 0; /* the key's bits so far */
    __builtin_assume(__isGlobal(x));
    for (int shift = 21, bits = 11, known = 32; bits > 0;) {
        const uint32_t mask = (1u << bits) - 1;
        for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS)
            sh.bin[i] = 0;
        if (threadIdx.x == 0)
            sh.n_sorted = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < v; i += SAMPLE_THREADS) {
            const uint32_t key = falling_key(x[i]);
            if (known == 32 || key >> known == prefix)
                atomicAdd(&sh.bin[key >> shift & mask], 1u);
        }
        __syncthreads();
        unsigned long long before;
        const int found =
            first_reaching([&](int i) { return (unsigned long long)sh.bin[i]; }, k, 0.f, &before);
        if (found < 0)
            return -INFINITY; /* fewer than k: all stay */
        k -= before;
        prefix = prefix << bits | (uint32_t)found;
        known = shift;
        bits = shift < 11 ? shift : 11;
        shift -= bits;
        __syncthreads();
        for (int i = threadIdx.x; i < v; i += SAMPLE_THREADS) {
            if (falling_key(x[i]) >> known != prefix)
                continue;
            const int at = atomicAdd(&sh.n_sorted, 1);
            if (at < SORTED)
                sh.sorted[at] = {x[i], i};
        }
        __syncthreads();
        const int crowd = sh.n_sorted;
        __syncthreads();
        if (crowd > SORTED && bits > 0)
            continue;
        /* All of a crowd that is left at the end is one tie. */
        if (crowd <= SORTED)
            block_sort(crowd);
        const float last = sh.sorted[crowd <= SORTED ? (int)k - 1 : 0].value;
        __syncthreads();
        return last;
    }
    return -INFINITY;
}

#endif
