/* sample: one CTA a logit row: raw logprobs, bans, bias, penalties, min_p, top_k, top_p and the
 * draw, in vLLM's order; the token stays on the device for the next step's embedding. fp32 logits
 * [rows, stride].
 *
 * Weights p = exp((l - greatest) / T). The draw is the largest p / q over what the cuts keep, with
 * q by id from a counter (sample_draw.cuh). What top_p keeps is a prefix of the falling order, so
 * whether it keeps one id is a question about the weight ahead of that id alone. So nothing is
 * sorted: the first pass draws from the whole row; a winner with less than top_p of the weight
 * ahead of it is the answer, as the largest of a set that lies in a subset is the subset's largest.
 * Otherwise (5 times in 100 at top_p 0.95) all that stands behind the winner is outside, and the
 * next draw is among what stands ahead of it. Each turn halves, on average, what is outside. min_p
 * is a bound on the value, top_k by selection (sample_cut.cuh), both before the draw.
 *
 * The weight ahead of the winner takes a second pass, unless a bound says enough: the first pass
 * adds up what lies above a value guessed from a sample of the row (row_hint).
 *
 * A row's sums run in one fixed order, so its token depends on its own logits alone. SPEED.md has
 * the ladder. */
#include "sample_cut.cuh"
#include "sample_draw.cuh"

/* The n best of a row, by falling logprob, ties to the lower id. */
DEVICE void row_top(const float *x, int v, int n, float own, float log_sum,
                    struct sample_token *out)
{
    const float greatest = sh.row.top.value;
    int kept = row_collect(x, v, block_kth(own, n));
    if (kept > SORTED)
        kept = row_collect(x, v, row_kth(x, v, (unsigned)n));
    best limit = {INFINITY, -1};
    for (int k = 0; k < min(n, kept); k++) {
        if (kept <= SORTED) {
            limit = {sh.sorted[k].value, sh.sorted[k].id};
        } else { /* more ties than fit: the lowest ids one by one */
            best b = {-INFINITY, NO_ID};
            for (int i = threadIdx.x; i < v; i += SAMPLE_THREADS)
                if (x[i] < limit.value || (x[i] == limit.value && i > limit.id))
                    b = better(b, {x[i], i});
            limit = block_best(b);
        }
        if (threadIdx.x == 0) {
            out->top_ids[k] = limit.id;
            out->top_logprobs[k] = limit.value - greatest - log_sum;
        }
    }
    if (threadIdx.x == 0)
        out->n_top = min(n, kept);
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

DEVICE float weight_of(float value)
{
    return exp2_of(__fmul_rn(__fsub_rn(value, sh.row.top.value), sh.draw.scale));
}

/* The id drawn from sh.sorted[0 .. n) after top_p. */
PASS int sorted_draw(int n)
{
    if (sh.p.top_p < 1.f) {
        unsigned long long before;
        const int last = first_reaching(
            [&](int i) {
                return i >= n
                           ? 0ull
                           : (unsigned long long)__fmul_rn(weight_of(sh.sorted[i].value), 0x1p40f);
            },
            0, fmaxf(sh.p.top_p, 1e-30f), &before);
        n = last < 0 ? n : last + 1;
    }
    best b = {-INFINITY, NO_ID};
    for (int i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        const candidate c = sh.sorted[i];
        b = better(b, {score_of(weight_of(c.value), c.id, sh.draw), c.id});
    }
    return block_best(b).id;
}

static constexpr float DRAW_BELOW = 0.75f;

/* After a scan, drawn from the whole row where there is neither min_p nor top_k. own: what the scan
 * returned. */
PASS int row_choose(const float *x, int v, float own)
{
    const best top = sh.row.top;
    const int k = sh.p.top_k < v ? sh.p.top_k : 0;
    const float top_p = sh.p.top_p;
    best last = {-INFINITY, NO_ID};
    if (sh.p.min_p > 0.f)
        last.value =
            __fmaf_rn(logf(fminf(sh.p.min_p, 1.f)), fmaxf(sh.p.temperature, 0.01f), top.value);
    if (k > 0 && k <= SAMPLE_THREADS) {
        const int n = row_collect(x, v, fmaxf(block_kth(own, k), last.value));
        if (n <= SORTED)
            return sorted_draw(sorted_reaching(n, k));
    }
    if (k > 0)
        last.value = fmaxf(last.value, row_kth(x, v, (unsigned)k));
    if (k > 0 || sh.p.min_p > 0.f)
        row_draw(x, v, last);
    const float want = fmaxf(__fmul_rn(sh.row.total, top_p), 1e-30f);
    best drawn = sh.row.drawn;
    while (top_p < 1.f && drawn.id != top.id) {
        last = {x[drawn.id], drawn.id - 1}; /* what stands ahead of it */
        if (last.value > sh.draw.hint && sh.row.above < 0.9999f * want)
            break;
        /* The weight alone takes less than a draw, but two passes where it is likely enough. */
        if (top_p >= DRAW_BELOW && row_weight(x, v, last) < want)
            break;
        row_draw(x, v, last);
        if (sh.row.total < want)
            break;
        drawn = sh.row.drawn;
    }
    return drawn.id;
}

/* The scan that a token is taken from: with the draw where it is from the whole row. */
template <bool RAW> DEVICE float row_look(const float *x, int v)
{
    const bool by_k = sh.p.top_k > 0 && sh.p.top_k < v;
    if (sh.p.forced >= 0 || sh.p.temperature < 1e-5f || by_k || sh.p.min_p > 0.f)
        return row_scan<RAW, false>(x, v);
    if (sh.p.top_p < 1.f) {
        const float hint = row_hint(x, v, 0.97f * sh.p.top_p);
        if (threadIdx.x == 0)
            sh.draw.hint = hint;
        __syncthreads();
    }
    return row_scan<RAW, true>(x, v);
}

/* The row's token, or -1; *logprob where it is asked for. */
DEVICE int row_sample(const float *raw, float *adjusted, int v, const uint16_t *counts,
                      struct sample_token *out, float *logprob)
{
    const bool changed =
        sh.p.forced < 0 && (sh.p.n_banned > 0 || sh.p.n_bias > 0 || counts != nullptr);
    float own = changed          ? row_scan<true, false>(raw, v)
                : sh.p.n_top < 0 ? row_look<false>(raw, v)
                                 : row_look<true>(raw, v);
    const float greatest = sh.row.top.value, log_sum = logf(sh.row.sum);
    if (!sh.row.sound)
        return -1;
    if (sh.p.n_top > 0)
        row_top(raw, v, sh.p.n_top, own, log_sum, out);
    if (changed) {
        row_adjust(adjusted, raw, v, counts, sh.p);
        own = row_look<false>(adjusted, v);
        if (!sh.row.sound)
            return -1;
    }
    int id = sh.p.forced;
    if (id < 0)
        id =
            sh.p.temperature < 1e-5f ? sh.row.top.id : row_choose(changed ? adjusted : raw, v, own);
    if (id >= v)
        return -1; /* nothing was kept: never an id that the next step embeds */
    *logprob = sh.p.n_top >= 0 ? raw[id] - greatest - log_sum : 0.f;
    return id;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
enum { SAMPLE_CTAS = 2 }; /* of a multiprocessor; with three, code for 8.x spills registers */
#else
enum { SAMPLE_CTAS = 3 };
#endif

__global__ void __launch_bounds__(SAMPLE_THREADS, SAMPLE_CTAS)
    sample_kernel(const float *logits, float *scratch, int64_t stride, int v,
                  const struct sample_cuda *params, struct sample_token *tokens, uint16_t *counts,
                  int32_t *last)
{
    struct sample_token *out = tokens + blockIdx.x;
    if (threadIdx.x == 0) {
        const struct sample_cuda p = params[blockIdx.x];
        sh.p = p;
        sh.draw = {LOG2_E / fmaxf(p.temperature, 0.01f), INFINITY,
                   make_uint2((uint32_t)p.rng_key, (uint32_t)(p.rng_key >> 32)),
                   (uint32_t)p.n_output, p.choice};
        out->n_top = 0;
    }
    __syncthreads();
    uint16_t *mine = sh.p.counts_row >= 0 ? counts + (int64_t)sh.p.counts_row * v : nullptr;
    float logprob = 0.f;
    const int id = row_sample(logits + (int64_t)blockIdx.x * stride,
                              scratch + (int64_t)blockIdx.x * stride, v, mine, out, &logprob);
    if (threadIdx.x != 0)
        return;
    out->id = id;
    out->logprob = logprob;
    if (id < 0)
        out->n_top = 0;
    if (sh.p.slot < 0 || id < 0)
        return;
    last[sh.p.slot] = id;
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
        for (int i = 0; i < j.n_output; i++) {
            uint16_t *count = row + j.ids[j.n_prompt + i];
            if ((*count & 0x7fff) < 0x7fff)
                (*count)++;
        }
}

extern "C" int counts_cuda(uint16_t *counts, int v, const struct counts_cuda *jobs, int n,
                           void *stream)
{
    counts_kernel<<<(unsigned)n, 512, 0, (cudaStream_t)stream>>>(counts, v, jobs);
    return (int)cudaGetLastError();
}
