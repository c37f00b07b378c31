/* sample: one CTA a logit row: raw logprobs, bans, bias, penalties, min_p, top_k, top_p and the
 * draw, in vLLM's order; the token stays on the device for the next step's embedding. fp32 logits
 * [rows, stride].
 *
 * Weights p = exp((l - greatest) / T). Cuts hang on integer sums of weights: their addition is
 * associative, so the order in which threads arrive cannot change a bit. A cut is found by a
 * histogram over distance from the greatest logit; the bin it falls into is sorted (ties to the
 * lower id) and cut exactly. The draw: the largest p / q, q ~ Exp(1) from 32 bits of Philox4x32-10
 * (Salmon et al. 2011), counter (block, n_output, choice, 0), key rng_key; id 64 g + 16 w + i takes
 * word w of block 16 g + i: the CPU's rule (kernels/cpu/sample.c).
 *
 * Ladder, 1,408 rows, H200, T 0.6 top_p 0.95 on flat logits:
 *   1. radix selection on the logits' bits, six passes and crowded bins: 5,993 us
 *   2. one histogram over distance, the crowded bin sorted in shared memory: 3,101 us (greedy 775
 * us)
 *   3. 64 bytes a thread in flight, two shared atomics a value instead of four: 1,723 us (greedy
 * 207 us)
 *   4. one shared atomic a value, masses relative to the bin's own weight: 1,677 us, so not the
 * atomics
 *   5. no conversions, no exponential in the histogram, two CTAs a multiprocessor: 2,096 us
 *   6. this version: 32 bytes a thread in flight, three CTAs again: 1,725 us */
#include "sample.cuh"

DEVICE uint4 philox(uint4 counter, uint2 key)
{
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t h0 = __umulhi(0xD2511F53u, counter.x), l0 = 0xD2511F53u * counter.x;
        const uint32_t h1 = __umulhi(0xCD9E8D57u, counter.z), l1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(h1 ^ counter.y ^ key.x, l1, h0 ^ counter.w ^ key.y, l0);
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

/* A little less than the u of exponential(r), without a conversion. */
DEVICE float least_uniform(uint32_t r)
{
    return __fmul_rn(__fsub_rn(__uint_as_float((r >> 9) | 0x3f800000u), 1.f), 0.999999f);
}

DEVICE uint4 words_of(int block, const struct sample_cuda &p)
{
    return philox(make_uint4((uint32_t)block, (uint32_t)p.n_output, p.choice, 0u),
                  make_uint2((uint32_t)p.rng_key, (uint32_t)(p.rng_key >> 32)));
}

/* The best of one block's four ids, if it beats b. */
DEVICE best block_draw(const float (&value)[4], int block, best b, const cut &c,
                       const struct sample_cuda &p)
{
    const int id0 = block / 16 * 64 + block % 16;
    float weight[4];
    bool any = false;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        weight[k] = keeps(c, value[k], id0 + 16 * k) ? __expf(-distance(c, value[k])) : 0.f;
        any |= weight[k] >= 0x1p-40f;
    }
    if (!any)
        return b;
    const uint4 r = words_of(block, p);
    const uint32_t words[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (weight[k] >= 0x1p-40f && weight[k] >= b.value * least_uniform(words[k]))
            b = better(b, {__fdiv_rn(weight[k], exponential(words[k])), id0 + 16 * k});
    return b;
}

/* A thread takes one block of random words and its four ids at a time. q >= u, so a weight that is
 * below best * u cannot win and needs no logarithm; the likeliest id's score is everyone's first
 * floor. Weights below 2^-40 count as 0. */
DEVICE best row_draw(const float *x, int v, int likely, const cut &c, const struct sample_cuda &p)
{
    best b = {-INFINITY, 0x7fffffff};
    {
        const uint4 r = words_of(16 * (likely / 64) + likely % 16, p);
        const int word = likely / 16 % 4;
        const uint32_t bits = word == 0 ? r.x : word == 1 ? r.y : word == 2 ? r.z : r.w;
        b = {__fdiv_rn(__expf(-distance(c, x[likely])), exponential(bits)), likely};
    }
    constexpr int AHEAD = 2; /* blocks of loads in flight */
    for (int block0 = threadIdx.x; block0 / 16 * 64 < v; block0 += AHEAD * SAMPLE_THREADS) {
        float value[AHEAD][4];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int block = block0 + j * SAMPLE_THREADS,
                          id = block / 16 * 64 + block % 16 + 16 * k;
                value[j][k] = id < v ? x[id] : -INFINITY;
            }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            b = better(b, block_draw(value[j], block0 + j * SAMPLE_THREADS, b, c, p));
    }
    return b;
}

/* The n best of a row, by falling logprob, ties to the lower id. */
DEVICE void row_top(const float *x, int v, int n, best top, float log_sum, struct sample_token *out,
                    sample_shared &sh)
{
    cut c = {top.value, 1.f, {-INFINITY, -1}};
    cut_narrow(x, v, c, (unsigned)n, 0, sh);
    if (threadIdx.x == 0)
        sh.n_sorted = 0;
    __syncthreads();
    /* More ties than fit: those that came first in id order cannot be told here; any SORTED of them
     * would depend on arrival, so the block looks for the n lowest ids one by one. */
    row_each(x, v, [&](float value, int i) {
        if (!keeps(c, value, i))
            return;
        const int at = atomicAdd(&sh.n_sorted, 1);
        if (at < SORTED)
            sh.sorted[at] = {value, i};
    });
    __syncthreads();
    const int kept = sh.n_sorted, have = min(n, kept);
    if (kept <= SORTED)
        block_sort(kept, sh);
    best limit = {INFINITY, -1};
    for (int k = 0; k < have; k++) {
        if (kept <= SORTED) {
            limit = {sh.sorted[k].value, sh.sorted[k].id};
        } else {
            best b = {-INFINITY, 0x7fffffff};
            for (int i = threadIdx.x; i < v; i += SAMPLE_THREADS)
                if (x[i] < limit.value || (x[i] == limit.value && i > limit.id))
                    b = better(b, {x[i], i});
            limit = block_best(b, sh);
        }
        if (threadIdx.x == 0) {
            out->top_ids[k] = limit.id;
            out->top_logprobs[k] = limit.value - log_sum;
        }
    }
    if (threadIdx.x == 0)
        out->n_top = have;
    __syncthreads();
}

/* out = the row after bans, bias and penalties; counts [V] of the slot (or null): bit 15 = in the
 * prompt, the rest = times generated. The raw row stays: its logprobs are reported. */
DEVICE void row_adjust(float *out, const float *x, int v, const uint16_t *counts,
                       const struct sample_cuda &p)
{
    for (int i = threadIdx.x; i < v; i += SAMPLE_THREADS)
        out[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < p.n_banned; i += SAMPLE_THREADS)
        out[p.ids[i]] = -INFINITY;
    __syncthreads();
    for (int i = threadIdx.x; i < p.n_bias; i += SAMPLE_THREADS)
        out[p.ids[p.n_banned + i]] += p.bias[i];
    __syncthreads();
    for (int i = threadIdx.x; counts && i < v; i += SAMPLE_THREADS) {
        const uint16_t c = counts[i];
        if (c == 0)
            continue;
        float value = out[i];
        value = value < 0.f ? value * p.repetition_penalty : value / p.repetition_penalty;
        const int n = c & 0x7fff;
        if (n > 0)
            value = value - p.frequency_penalty * (float)n - p.presence_penalty;
        out[i] = value;
    }
    __syncthreads();
}

/* Max and log-sum-exp of the raw row in one pass: each thread rescales its sum when its maximum
 * moves, once in 16 values. False: the row holds NaN or nothing finite. */
DEVICE bool row_raw(const float *x, int v, best *top, float *log_sum, sample_shared &sh)
{
    constexpr int AHEAD = 4;
    const float4 *pieces = reinterpret_cast<const float4 *>(x);
    best b = {-INFINITY, 0x7fffffff};
    float sum = 0.f, from = -3e38f;
    bool nan = false;
    for (int i = threadIdx.x; i < (v + 3) / 4; i += AHEAD * SAMPLE_THREADS) {
        float value[AHEAD * 4];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int id = (i + k * SAMPLE_THREADS) * 4;
            const float4 p = id < v / 4 * 4
                                 ? pieces[id / 4]
                                 : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            value[4 * k] = p.x, value[4 * k + 1] = p.y, value[4 * k + 2] = p.z,
                      value[4 * k + 3] = p.w;
#pragma unroll
            for (int e = 0; e < 3; e++)
                if (id == v / 4 * 4 && e < v % 4)
                    value[4 * k + e] = x[id + e];
        }
#pragma unroll
        for (int k = 0; k < AHEAD * 4; k++) {
            nan |= value[k] != value[k];
            if (value[k] > b.value)
                b = {value[k], (i + k / 4 * SAMPLE_THREADS) * 4 + k % 4};
        }
        if (b.value > from) {
            sum = __fmul_rn(sum, __expf(from - b.value));
            from = b.value;
        }
#pragma unroll
        for (int k = 0; k < AHEAD * 4; k++)
            sum = __fadd_rn(sum, __expf(value[k] - from));
    }
    *top = block_best(b, sh);
    sum = block_sum(__fmul_rn(sum, __expf(from - top->value)), sh);
    *log_sum = top->value + logf(sum);
    return !__syncthreads_or(nan) && sum > 0.f && top->value > -INFINITY && top->value < INFINITY;
}

DEVICE int row_choose(const float *x, float *adjusted, int v, best top, const uint16_t *counts,
                      const struct sample_cuda &p, sample_shared &sh)
{
    if (p.n_banned > 0 || p.n_bias > 0 || counts) {
        row_adjust(adjusted, x, v, counts, p);
        x = adjusted;
        top = row_best(x, v, sh);
    }
    if (p.temperature >= 1e-5f && top.id < v) {
        cut c = {top.value, 1.f / fmaxf(p.temperature, 0.01f), {-INFINITY, -1}};
        if (p.min_p > 0.f)
            c.last = {__fmaf_rn(logf(fminf(p.min_p, 1.f)), fmaxf(p.temperature, 0.01f), top.value),
                      0x7fffffff};
        if (p.top_k > 0 && p.top_k < v)
            cut_narrow(x, v, c, (unsigned)p.top_k, 0, sh);
        if (p.top_p < 1.f)
            cut_narrow(x, v, c, 0, fmaxf(p.top_p, 1e-30f), sh);
        top = block_best(row_draw(x, v, top.id, c, p), sh);
    }
    return top.id < v ? top.id : -1;
}

__global__ void __launch_bounds__(SAMPLE_THREADS, 3)
    sample_kernel(const float *logits, float *scratch, int64_t stride, int v,
                  const struct sample_cuda *params, struct sample_token *tokens, uint16_t *counts,
                  int32_t *last)
{
    __shared__ sample_shared sh;
    const struct sample_cuda p = params[blockIdx.x];
    const float *x = logits + (int64_t)blockIdx.x * stride;
    struct sample_token *out = tokens + blockIdx.x;
    uint16_t *mine = p.counts_row >= 0 ? counts + (int64_t)p.counts_row * v : nullptr;
    best top;
    float log_sum;
    const bool sound = row_raw(x, v, &top, &log_sum, sh);
    if (threadIdx.x == 0)
        out->n_top = 0;
    if (sound && p.n_top > 0)
        row_top(x, v, p.n_top, top, log_sum, out, sh);
    int id = p.forced;
    if (id < 0 && sound)
        id = row_choose(x, scratch + (int64_t)blockIdx.x * stride, v, top, mine, p, sh);
    if (threadIdx.x != 0)
        return;
    if (!sound)
        id = -1;
    out->id = id;
    out->logprob = id >= 0 ? x[id] - log_sum : 0.f;
    if (p.slot < 0 || id < 0)
        return;
    last[p.slot] = id;
    if (mine && (mine[id] & 0x7fff) < 0x7fff)
        mine[id]++;
}

extern "C" int sample_cuda(const float *logits, float *scratch, int64_t stride, int v,
                           const struct sample_cuda *params, struct sample_token *tokens,
                           uint16_t *counts, int32_t *last, int rows, void *stream)
{
    sample_kernel<<<(unsigned)rows, SAMPLE_THREADS, 0, (cudaStream_t)stream>>>(
        logits, scratch, stride, v, params, tokens, counts, last);
    return (int)cudaGetLastError();
}

/* counts[row] = 0, then what each entry says: a slot's history when a sequence takes it. */
__global__ void counts_kernel(uint16_t *counts, int v, const struct counts_cuda *jobs)
{
    const struct counts_cuda j = jobs[blockIdx.x];
    uint16_t *row = counts + (int64_t)j.counts_row * v;
    for (int i = threadIdx.x; i < v; i += blockDim.x)
        row[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < j.n_prompt; i += blockDim.x)
        row[j.ids[i]] = 0x8000; /* the same value from every writer */
    __syncthreads();
    if (threadIdx.x == 0) /* few: a parked sequence's own ids */
        for (int i = 0; i < j.n_output; i++)
            row[j.ids[j.n_prompt + i]]++;
}

extern "C" int counts_cuda(uint16_t *counts, int v, const struct counts_cuda *jobs, int n,
                           void *stream)
{
    counts_kernel<<<(unsigned)n, 512, 0, (cudaStream_t)stream>>>(counts, v, jobs);
    return (int)cudaGetLastError();
}
