/* sample: one token from one row of logits. The order of steps is vLLM's:
 *   raw logprobs, banned ids, bias, repetition, frequency and presence penalties, then greedy; or
 *   temperature, min_p, top_k, top_p and the draw.
 * The passes over the row are in sample_inner.h, the cuts in select.c.
 *
 * Weights: p = exp((logit - greatest) / T), so the greatest is exactly 1. Weights below 2^-40 count
 * as 0: none of them could win the draw, whose p / q lies above 2^-5 for the greatest and below
 * 2^-7 for them. The draw: the largest p / q, q ~ Exp(1) from 32 bits of Philox4x32-10 with counter
 * (block, n_output, choice, 0) and key rng_key; id 64 g + 16 w + i takes word w of block 16 g + i.
 *
 * Logits that a bias or penalty pushes past the largest float stay at it, so no infinity arises. */
#include "kernels/cpu/cpu.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Laid over the caller's scratch. */
struct sample_space {
    float *p;                 /* [V rounded up to 64] weights */
    float *raw;               /* [V] the logit before changes, where `changed` says so */
    int32_t *ids;             /* [V] survivors */
    int32_t *count;           /* [V] of the output, where `seen` says so */
    uint64_t *changed, *seen; /* [V / 64] bits */
};

static size_t round_up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}
static size_t mark_bytes(int64_t v)
{
    return round_up((size_t)(v + 63) / 64 * sizeof(uint64_t));
}

size_t sample_scratch_bytes(int64_t v)
{
    KERNEL_CHECK(v > 0);
    KERNEL_CHECK(v <= INT32_MAX - 64);
    return 4 * round_up((size_t)v) * sizeof(float) + 2 * mark_bytes(v) + 64;
}

static struct sample_space space_lay(void *scratch, int64_t v)
{
    const size_t column = round_up((size_t)v);
    float *base = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    struct sample_space s = {
        .p = base,
        .raw = base + column,
        .ids = (int32_t *)(void *)(base + 2 * column),
        .count = (int32_t *)(void *)(base + 3 * column),
        .changed = (uint64_t *)(void *)(base + 4 * column),
    };
    s.seen = s.changed + mark_bytes(v) / sizeof *s.seen;
    memset(s.changed, 0, 2 * mark_bytes(v));
    return s;
}

static bool mark(uint64_t *bits, int32_t id)
{
    uint64_t bit = (uint64_t)1 << (id & 63), had = bits[id >> 6] & bit;
    bits[id >> 6] |= bit;
    return had == 0;
}
static bool marked(const uint64_t *bits, int32_t id)
{
    return bits[id >> 6] >> (id & 63) & 1;
}

static void logit_set(struct sample_space *s, float *logits, int32_t id, float value)
{
    if (mark(s->changed, id))
        s->raw[id] = logits[id];
    if (logits[id] == -INFINITY)
        return; /* masked stays masked */
    logits[id] = value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value;
}

static void logits_mask(struct sample_space *s, float *logits, int64_t v,
                        const struct sample_row *row)
{
    const struct sample_params *params = row->params;
    for (int32_t i = 0; i < row->n_banned; i++) {
        int32_t id = row->banned[i];
        KERNEL_CHECK(id >= 0);
        KERNEL_CHECK(id < v);
        if (mark(s->changed, id))
            s->raw[id] = logits[id];
        logits[id] = -INFINITY;
    }
    for (int32_t i = 0; i < params->n_bias; i++) {
        int32_t id = params->bias_ids[i];
        KERNEL_CHECK(id >= 0);
        KERNEL_CHECK(id < v);
        logit_set(s, logits, id, logits[id] + params->bias[i]);
    }
}

/* Repetition once for each id of prompt and output; then frequency and presence for the output's.
 */
static void logits_penalise(struct sample_space *s, float *logits, int64_t v,
                            const struct sample_row *row)
{
    const struct sample_params *params = row->params;
    const float r = params->repetition_penalty, f = params->frequency_penalty;
    const bool counted = f != 0.0f || params->presence_penalty != 0.0f;
    if (r == 1.0f && !counted)
        return;
    const int32_t n_prompt = r == 1.0f ? 0 : row->n_prompt;
    for (int32_t i = 0; i < n_prompt + row->n_output; i++) {
        int32_t id = i < n_prompt ? row->prompt[i] : row->output[i - n_prompt];
        KERNEL_CHECK(id >= 0);
        KERNEL_CHECK(id < v);
        if (mark(s->seen, id)) {
            s->count[id] = 0;
            if (r != 1.0f)
                logit_set(s, logits, id, logits[id] < 0 ? logits[id] * r : logits[id] / r);
        }
        s->count[id] += i >= n_prompt;
    }
    for (int32_t i = 0; counted && i < row->n_output; i++) {
        int32_t id = row->output[i];
        if (s->count[id] > 0) {
            float less = logits[id] - f * (float)s->count[id];
            logit_set(s, logits, id, less - params->presence_penalty);
            s->count[id] = 0;
        }
    }
}

static int32_t draw(const struct cpu_ops *ops, struct sample_space *s, const float *logits,
                    int64_t v, float max, const struct sample_row *row)
{
    const struct sample_params *params = row->params;
    const float t = params->temperature < 0.01f ? 0.01f : params->temperature;
    float least = params->min_p > 0x1p-40f ? params->min_p : 0x1p-40f;
    if (least > 1.0f)
        least = 1.0f;
    ops->sample_weights(s->p, logits, v, max, 1.0f / t, least);
    const struct select select = {s->p, logits, v, max, t, s->ids};
    select_cut(ops, &select, params->top_k, params->top_p);
    return ops->sample_draw(s->p, v, params->rng_key, (uint32_t)row->n_output, params->choice);
}

/* The greatest logit with +0 for -0, or NaN when the row has a NaN, a +infinity or no finite one.
 */
static float row_max(const struct cpu_ops *ops, const float *logits, int64_t v)
{
    bool good = true;
    float max = ops->sample_max(logits, v, &good) + 0.0f;
    return good && max > -INFINITY ? max : NAN;
}

/* Log of the sum that turns logits - max into log-probabilities. */
static void top_fill(const struct cpu_ops *ops, const float *logits, int64_t v, float max,
                     float log_sum, int32_t n_top, struct sample_token *out)
{
    KERNEL_CHECK(n_top <= SAMPLE_TOP_MAX);
    out->n_top = ops->sample_best(logits, v, n_top, out->top_ids, out->top_logprobs);
    for (int32_t i = 0; i < out->n_top; i++)
        out->top_logprobs[i] = out->top_logprobs[i] - max - log_sum;
}

void sample_with(const struct cpu_ops *ops, float *logits, int64_t v, const struct sample_row *row,
                 struct sample_token *out, void *scratch)
{
    const struct sample_params *params = row->params;
    struct sample_space s = space_lay(scratch, v);
    float max = row_max(ops, logits, v), log_sum = 0;
    *out = (struct sample_token){.id = -1, .logprob = NAN};
    if (max != max)
        return;
    const float raw_max = max;
    if (params->n_top >= 0) {
        log_sum = ops->log((float)ops->sample_sum(logits, v, max));
        top_fill(ops, logits, v, max, log_sum, params->n_top, out);
    }
    if (row->forced >= 0) {
        KERNEL_CHECK(row->forced < v);
        out->id = row->forced;
    } else {
        logits_mask(&s, logits, v, row);
        logits_penalise(&s, logits, v, row);
        max = row_max(ops, logits, v);
        if (max != max) {
            out->n_top = 0;
            return;
        }
        out->id = params->temperature < 1e-5f ? ops->sample_find(logits, v, max)
                                              : draw(ops, &s, logits, v, max, row);
    }
    KERNEL_CHECK(out->id >= 0);
    float raw = marked(s.changed, out->id) ? s.raw[out->id] : logits[out->id];
    out->logprob = params->n_top >= 0 ? raw - raw_max - log_sum : 0.0f;
}

void sample_cpu(float *logits, int64_t v, const struct sample_row *row, struct sample_token *out,
                void *scratch)
{
    sample_with(cpu_ops_best(), logits, v, row, out, scratch);
}

void logprobs_cpu(const float *logits, int64_t v, int32_t target, int32_t n_top,
                  struct sample_token *out)
{
    const struct cpu_ops *ops = cpu_ops_best();
    KERNEL_CHECK(target >= 0);
    KERNEL_CHECK(target < v);
    float max = row_max(ops, logits, v);
    *out = (struct sample_token){.id = -1, .logprob = NAN};
    if (max != max)
        return;
    float log_sum = ops->log((float)ops->sample_sum(logits, v, max));
    out->id = target;
    out->logprob = logits[target] - max - log_sum;
    top_fill(ops, logits, v, max, log_sum, n_top, out);
}
