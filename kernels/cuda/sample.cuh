/* sample: what the sampler's parts share: the shared memory of a row's CTA, its reductions in fixed
 * order, and the walk over a row. The rules and the ladder stand in sample.cu. */
#ifndef TRANCHE_KERNELS_CUDA_SAMPLE_CUH
#define TRANCHE_KERNELS_CUDA_SAMPLE_CUH

#include "common.cuh"
#include "kernels/kernels_cuda.h"

enum {
    SAMPLE_THREADS = 256,
    SAMPLE_WARPS = SAMPLE_THREADS / 32,
    GROUP = 64,      /* ids that share 16 blocks of random words */
    WARP_GROUPS = 8, /* groups of ids that a warp holds at a time, four lanes each */
    QUAD = 16,       /* ids of a group that a lane holds: four whole blocks */
    BINS = 2048,     /* of a level of the histogram */
    SORTED = 2048,   /* most values that are sorted */
    NO_ID = 0x7fffffff,
};
static_assert(BINS == SORTED, "one share a thread for both");

struct candidate {
    float value;
    int id;
};
/* How a row is drawn from. */
struct rule {
    float scale; /* log2(e) / T */
    float hint;  /* the scan sums the weights of values above it */
    uint2 key;
    uint32_t n_output, choice;
};
struct best {
    float value;
    int id;
};
/* What a pass over the row says of it. */
struct scanned {
    best top;    /* the greatest value, its lowest id */
    float sum;   /* of e^(value - top.value) */
    float total; /* of the weights e^((value - top.value) / T) */
    float above; /* of the weights of values above the hint */
    best drawn;  /* its score and id */
    bool sound;  /* no NaN, no +infinity, something finite */
};
/* The passes are functions of their own, called, so that each has all registers: what they share
 * stands in shared memory. Every thread of the CTA calls them together. */
#define PASS static __device__ __noinline__

static __shared__ struct sample_shared {
    struct sample_cuda p;
    rule draw;
    scanned row;
    union {
        unsigned int bin[BINS];
        candidate sorted[SORTED];
        float own[SAMPLE_THREADS];
    };
    float value[SAMPLE_WARPS];
    int id[SAMPLE_WARPS];
    unsigned long long scan[SAMPLE_WARPS];
    int n_sorted, found;
    float chosen;
    unsigned long long before;
} sh;

DEVICE best better(best a, best b) /* ties to the lower id */
{
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

DEVICE best block_best(best b)
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

DEVICE float block_sum(float v)
{
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0)
        sh.value[threadIdx.x >> 5] = v;
    __syncthreads();
    float sum = 0.f;
    for (int w = 0; w < SAMPLE_WARPS; w++)
        sum = __fadd_rn(sum, sh.value[w]);
    __syncthreads();
    return sum;
}

/* Exclusive prefix of one value a thread. */
DEVICE unsigned long long block_prefix(unsigned long long v, unsigned long long *total)
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
DEVICE void block_sort(int n)
{
    int size = 1;
    while (size < n)
        size *= 2;
    for (int i = n + threadIdx.x; i < size; i += SAMPLE_THREADS)
        sh.sorted[i] = {-INFINITY, NO_ID};
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

/* The quad of ids 64 g + 16 w + 4 j + e as value[4 w + e], j = the thread's number modulo 4, for
 * any g; what lies past the row is -infinity. Rows begin at multiples of 16 bytes. */
DEVICE void quad_load(const float *x, int v, int g, float (&value)[QUAD])
{
    const int id0 = g * GROUP + (threadIdx.x & 3) * 4;
    __builtin_assume(__isGlobal(x));
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const int id = id0 + 16 * w;
        float4 p = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (id + 4 <= v) {
            p = *reinterpret_cast<const float4 *>(x + id);
        } else {
            p.x = id < v ? x[id] : -INFINITY;
            p.y = id + 1 < v ? x[id + 1] : -INFINITY;
            p.z = id + 2 < v ? x[id + 2] : -INFINITY;
        }
        value[4 * w] = p.x, value[4 * w + 1] = p.y, value[4 * w + 2] = p.z, value[4 * w + 3] = p.w;
    }
}
DEVICE int quad_id(int g, int k)
{
    return g * GROUP + (threadIdx.x & 3) * 4 + 16 * (k >> 2) + (k & 3);
}

/* f(g, value) for every quad of the row, all lanes of a warp together; 64 bytes a thread in flight.
 */
template <class F> DEVICE void row_quads(const float *x, int v, F f)
{
    const int own = (threadIdx.x & 31) >> 2;
    __builtin_assume(__isGlobal(x));
    for (int first = (threadIdx.x >> 5) * WARP_GROUPS; first * GROUP < v;
         first += SAMPLE_WARPS * WARP_GROUPS) {
        float value[QUAD];
        if ((first + WARP_GROUPS) * GROUP <= v) {
            const float4 *pieces =
                reinterpret_cast<const float4 *>(x + (first + own) * GROUP) + (threadIdx.x & 3);
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const float4 p = pieces[4 * w];
                value[4 * w] = p.x, value[4 * w + 1] = p.y, value[4 * w + 2] = p.z,
                          value[4 * w + 3] = p.w;
            }
        } else {
            quad_load(x, v, first + own, value);
        }
        f(first + own, value);
    }
}

/* The last that takes part in the falling order: values above last.value do, and equal ones with
 * ids up to last.id. */
DEVICE bool keeps(best last, float value, int id)
{
    return value > last.value || (value == last.value && id <= last.id);
}

/* The same by one comparison a value: in groups before that of last.id ties stay, in groups behind
 * it they do not. */
struct edge {
    best last;
    float below; /* the next number under last.value; -infinity has none and needs none */
    int group;   /* of last.id */
    METHOD explicit edge(best end) : last(end), group(end.id >> 6)
    {
        const int bits = __float_as_int(end.value);
        below = end.value == -INFINITY ? -INFINITY
                : end.value == 0.f     ? __int_as_float(0x80000001)
                                       : __int_as_float(end.value > 0.f ? bits - 1 : bits + 1);
    }
    METHOD float least(int g) const
    {
        return g < group ? below : last.value;
    }
};

#endif
