/* attention_inner: attention of neighbouring rows of one sequence, for one vector unit. What is
 * computed, and in which order, stands in attention.c. A key or value is read and widened once for
 * all queries of a run; tiles of queries only share loads, never sums. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/vec.h"

#if VEC_REGISTERS == 32
enum { SCORE_QUERIES = 4, VALUE_QUERIES = 4, VALUE_LANES = 4 };
#elif VEC_REGISTERS == 16
enum { SCORE_QUERIES = 1, VALUE_QUERIES = 2, VALUE_LANES = 2 };
#else
enum { SCORE_QUERIES = 1, VALUE_QUERIES = 1, VALUE_LANES = 1 };
#endif

/* The run at work: queries are (row, head of the group), row by row. */
struct run {
    const struct attention_job *job;
    struct attention_scratch *scratch;
    int32_t row0, row1, g, heads; /* heads: query heads of this key/value head */
    int64_t dh, padded;           /* padded: dh rounded up to 16; the rest is zeros */
    float scale;
};

static int32_t visible_from(const struct run *run, int32_t position)
{
    int32_t window = run->job->window;
    return window > 0 && position >= window ? position - window + 1 : 0;
}

static void queries_load(const struct run *run)
{
    const struct attention_job *job = run->job;
    const int64_t stride = (job->n_heads + 2 * job->kv->n_kv_heads) * run->dh;
    float *q = run->scratch->q;
    for (int32_t row = run->row0; row < run->row1; row++)
        for (int32_t h = 0; h < run->heads; h++, q += run->padded) {
            const float *in = job->qkv + row * stride + (run->g * run->heads + h) * run->dh;
            for (int64_t d = 0; d < run->padded; d += 16)
                v16_store(q + d, v16_load_some(in + d, run->dh - d));
        }
}

/* Sixteen elements of a stored key or value from d on; zeros past dh. */
VEC_INLINE v16 kv_lanes(const void *row, int64_t d, int64_t dh, enum dtype dtype)
{
    if (d + 16 <= dh)
        return v16_load_as(row, d, dtype);
    float lane[16] = {0};
    for (int64_t i = d; i < dh; i++)
        lane[i - d] = float_of(row, i, dtype);
    return v16_load(lane);
}

/* Keys from..to-1 of the split that starts at `start`, transposed: [key / 16][padded][16]. */
static void keys_load(const struct run *run, int32_t start, int32_t from, int32_t to)
{
    const struct attention_job *job = run->job;
    const int32_t slot = job->rows->slot[run->row0];
    for (int32_t key = from & ~15; key < to; key += 16) {
        const void *row[16];
        for (int32_t i = 0; i < 16; i++) {
            /* Keys outside from..to are never looked at: any row of the page will do. */
            int32_t known = key + i < from ? from : key + i >= to ? to - 1 : key + i;
            row[i] = kv_row(job->kv, job->rows, slot, start + known, run->g, 0);
        }
        float *out = run->scratch->k + key * run->padded;
        for (int64_t d = 0; d < run->padded; d += 16) {
            v16 block[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                block[i] = kv_lanes(row[i], d, run->dh, job->kv->dtype);
            v16_transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                v16_store(out + (d + i) * 16, block[i]);
        }
    }
}

static void values_load(const struct run *run, int32_t start, int32_t from, int32_t to)
{
    const struct attention_job *job = run->job;
    const int32_t slot = job->rows->slot[run->row0];
    for (int32_t key = from; key < to; key++) {
        const void *row = kv_row(job->kv, job->rows, slot, start + key, run->g, 1);
        float *out = run->scratch->v + key * run->padded;
        for (int64_t d = 0; d < run->padded; d += 16)
            v16_store(out + d, kv_lanes(row, d, run->dh, job->kv->dtype));
    }
}

/* Scores of n queries against 16 keys. The 16 partial sums of the tree are taken four at a time:
 * i, i+8, i+4, i+12 give s4[i]; s4[0] + s4[2] and s4[1] + s4[3] give the two last ones. */
VEC_INLINE void score_tile(const struct run *run, const float *q, const float *k, float *out, int n)
{
    static const int offset[4] = {0, 8, 4, 12};
    v16 pair[2][SCORE_QUERIES];
    for (int half = 0; half < 2; half++) {
        for (int step = 0; step < 2; step++) {
            v16 sum[SCORE_QUERIES][4];
#pragma GCC unroll 4
            for (int i = 0; i < n; i++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++)
                    sum[i][c] = v16_set1(0.0f);
            for (int64_t d = half + 2 * step; d < run->padded; d += 16) {
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) {
                    v16 key = v16_load(k + (d + offset[c]) * 16);
#pragma GCC unroll 4
                    for (int i = 0; i < n; i++) {
                        v16 in = v16_set1(q[i * run->padded + d + offset[c]]);
                        sum[i][c] = v16_fma(in, key, sum[i][c]);
                    }
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) {
                v16 s4 = v16_add(v16_add(sum[i][0], sum[i][1]), v16_add(sum[i][2], sum[i][3]));
                pair[half][i] = step ? v16_add(pair[half][i], s4) : s4;
            }
        }
    }
    for (int i = 0; i < n; i++) {
        v16 dot = v16_add(pair[0][i], pair[1][i]);
        v16_store(out + i * ATTENTION_SPLIT, v16_mul(dot, v16_set1(run->scale)));
    }
}

static void scores(const struct run *run, int32_t q0, int32_t q1, int32_t from, int32_t to)
{
    const struct attention_scratch *s = run->scratch;
    for (int32_t key = from & ~15; key < to; key += 16) {
        const float *k = s->k + key * run->padded;
        float *out = run->scratch->p + key;
        int32_t i = q0;
        for (; i + SCORE_QUERIES <= q1; i += SCORE_QUERIES)
            score_tile(run, s->q + i * run->padded, k, out + i * ATTENTION_SPLIT, SCORE_QUERIES);
        for (; i < q1; i++)
            score_tile(run, s->q + i * run->padded, k, out + i * ATTENTION_SPLIT, 1);
    }
}

/* Bits of the lanes key..key+15 that lie in from..to-1. */
VEC_INLINE unsigned lanes_within(int32_t key, int32_t from, int32_t to)
{
    unsigned below = to - key >= 16 ? 0xffffu : (1u << (to - key)) - 1;
    return from <= key ? below : below & ~((1u << (from - key)) - 1);
}

/* Scores of one query to rounded probabilities in place; its maximum and sum into the split. */
static void softmax(const struct run *run, int32_t q, int32_t from, int32_t to)
{
    struct attention_part *split = &run->scratch->split;
    float *p = run->scratch->p + q * ATTENTION_SPLIT;
    const v16 hidden = v16_set1(-INFINITY), zero = v16_set1(0.0f);
    v16 top = hidden, sum = zero;
    for (int32_t key = from & ~15; key < to; key += 16)
        top = v16_max(top, v16_pick(lanes_within(key, from, to), v16_load(p + key), hidden));
    split->m[q] = v16_top(top);
    const v16 m = v16_set1(split->m[q]);
    for (int32_t key = from & ~15; key < to; key += 16) {
        v16 e = v16_exp(v16_sub(v16_load(p + key), m));
        e = v16_pick(lanes_within(key, from, to), e, zero);
        sum = v16_add(sum, e);
        v16_store(p + key, v16_round(e, run->job->round));
    }
    split->l[q] = v16_sum(sum);
}

VEC_INLINE void value_tile(const struct run *run, int32_t q, int n, int64_t d, int lanes,
                           int32_t from, int32_t to)
{
    const float *p = run->scratch->p + q * ATTENTION_SPLIT;
    float *o = run->scratch->split.o + q * run->padded + d;
    v16 sum[VALUE_QUERIES][VALUE_LANES];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int c = 0; c < lanes; c++)
            sum[i][c] = v16_load(o + i * run->padded + 16 * c);
    const float *v = run->scratch->v + from * run->padded + d;
    for (int32_t key = from; key < to; key++, v += run->padded) {
        v16 value[VALUE_LANES];
#pragma GCC unroll 4
        for (int c = 0; c < lanes; c++)
            value[c] = v16_load(v + 16 * c);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            v16 weight = v16_set1(p[i * ATTENTION_SPLIT + key]);
#pragma GCC unroll 4
            for (int c = 0; c < lanes; c++)
                sum[i][c] = v16_fma(weight, value[c], sum[i][c]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int c = 0; c < lanes; c++)
            v16_store(o + i * run->padded + 16 * c, sum[i][c]);
}

/* Goes on with the chains of n queries over keys from..to-1. */
static void values_add(const struct run *run, int32_t q, int n, int32_t from, int32_t to)
{
    if (from >= to)
        return;
    int64_t d = 0;
    for (; d + 16 * VALUE_LANES <= run->padded; d += 16 * VALUE_LANES) {
        if (n == VALUE_QUERIES)
            value_tile(run, q, VALUE_QUERIES, d, VALUE_LANES, from, to);
        else
            value_tile(run, q, 1, d, VALUE_LANES, from, to);
    }
    for (; d < run->padded; d += 16) {
        if (n == VALUE_QUERIES)
            value_tile(run, q, VALUE_QUERIES, d, 1, from, to);
        else
            value_tile(run, q, 1, d, 1, from, to);
    }
}

/* first[q], end[q]: the visible keys of each query in this split. Where neighbours differ, each
 * chain takes its own keys alone: a hidden key must not even be multiplied by zero. */
static void values(const struct run *run, int32_t q0, int32_t q1, const int32_t *first,
                   const int32_t *end)
{
    memset(run->scratch->split.o + q0 * run->padded, 0,
           (size_t)((q1 - q0) * run->padded) * sizeof(float));
    int32_t q = q0;
    for (; q + VALUE_QUERIES <= q1; q += VALUE_QUERIES) {
        /* Both bounds rise with the row, so the common keys lie between the last and the first. */
        int32_t from = first[q + VALUE_QUERIES - 1], to = end[q];
        if (from >= to)
            from = to = end[q + VALUE_QUERIES - 1];
        for (int32_t i = q; i < q + VALUE_QUERIES; i++)
            values_add(run, i, 1, first[i], from < end[i] ? from : end[i]);
        values_add(run, q, VALUE_QUERIES, from, to);
        for (int32_t i = q; i < q + VALUE_QUERIES; i++)
            values_add(run, i, 1, to, end[i]);
    }
    for (; q < q1; q++)
        values_add(run, q, 1, first[q], end[q]);
}

/* The merge formula of attention.c: part b of query q into part a. */
static void merge(const struct run *run, struct attention_part *a, const struct attention_part *b,
                  int32_t q)
{
    float *oa = a->o + q * run->padded;
    const float *ob = b->o + q * run->padded;
    if (!a->any[q]) {
        a->any[q] = true;
        a->m[q] = b->m[q];
        a->l[q] = b->l[q];
        memcpy(oa, ob, (size_t)run->padded * sizeof *oa);
        return;
    }
    float m = a->m[q] > b->m[q] ? a->m[q] : b->m[q];
    v16 wa = v16_exp(v16_set1(a->m[q] - m)), wb = v16_exp(v16_set1(b->m[q] - m));
    a->m[q] = m;
    a->l[q] = fmaf(b->l[q], v16_first(wb), a->l[q] * v16_first(wa));
    for (int64_t d = 0; d < run->padded; d += 16)
        v16_store(oa + d, v16_fma(v16_load(ob + d), wb, v16_mul(v16_load(oa + d), wa)));
}

static void block_close(const struct run *run, int32_t n)
{
    struct attention_scratch *s = run->scratch;
    for (int32_t q = 0; q < n; q++)
        if (s->block.any[q]) {
            merge(run, &s->all, &s->block, q);
            s->block.any[q] = false;
        }
}

static void split_run(const struct run *run, int32_t start)
{
    const int32_t *position = run->job->rows->position;
    int32_t first[ATTENTION_QUERIES], end[ATTENTION_QUERIES];
    int32_t row0 = run->row0, row1 = run->row1;
    while (row0 < row1 && position[row0] < start)
        row0++;
    while (row0 < row1 && visible_from(run, position[row1 - 1]) >= start + ATTENTION_SPLIT)
        row1--;
    if (row0 == row1)
        return;
    const int32_t q0 = (row0 - run->row0) * run->heads, q1 = (row1 - run->row0) * run->heads;
    for (int32_t q = q0; q < q1; q++) {
        int32_t at = position[run->row0 + q / run->heads], lo = visible_from(run, at);
        first[q] = lo > start ? lo - start : 0;
        end[q] = at - start < ATTENTION_SPLIT ? at - start + 1 : ATTENTION_SPLIT;
    }
    keys_load(run, start, first[q0], end[q1 - 1]);
    values_load(run, start, first[q0], end[q1 - 1]);
    scores(run, q0, q1, first[q0], end[q1 - 1]);
    for (int32_t q = q0; q < q1; q++)
        softmax(run, q, first[q], end[q]);
    values(run, q0, q1, first, end);
    for (int32_t q = q0; q < q1; q++)
        merge(run, &run->scratch->block, &run->scratch->split, q);
}

static void attention_run(const struct attention_job *job, int32_t row0, int32_t row1, int32_t g,
                          struct attention_scratch *scratch)
{
    struct run run = {
        .job = job,
        .scratch = scratch,
        .row0 = row0,
        .row1 = row1,
        .g = g,
        .heads = job->n_heads / job->kv->n_kv_heads,
        .dh = job->kv->head_dim,
        .padded = (job->kv->head_dim + 15) / 16 * 16,
        .scale = 1.0f / sqrtf((float)job->kv->head_dim),
    };
    const int32_t *position = job->rows->position, n = (row1 - row0) * run.heads;
    queries_load(&run);
    memset(scratch->block.any, 0, sizeof scratch->block.any);
    memset(scratch->all.any, 0, sizeof scratch->all.any);
    int32_t start = visible_from(&run, position[row0]) / ATTENTION_SPLIT * ATTENTION_SPLIT;
    for (int32_t block = start / ATTENTION_BLOCK; start <= position[row1 - 1];
         start += ATTENTION_SPLIT) {
        if (start / ATTENTION_BLOCK != block)
            block_close(&run, n);
        block = start / ATTENTION_BLOCK;
        split_run(&run, start);
    }
    block_close(&run, n);
    float *out = job->out + row0 * (int64_t)job->n_heads * run.dh;
    for (int32_t q = 0; q < n; q++) {
        const float *o = scratch->all.o + q * run.padded;
        const v16 scale = v16_set1(1.0f / scratch->all.l[q]);
        float *to = out + (q / run.heads) * job->n_heads * run.dh +
                    (g * run.heads + q % run.heads) * run.dh;
        for (int64_t d = 0; d < run.dh; d += 16)
            v16_store_some(to + d, v16_round(v16_mul(v16_load(o + d), scale), job->round),
                           run.dh - d);
    }
}
