/* attention: rotation, pages and attention give a row the same bits alone, in any chunk, beside any
 * other sequence, on every vector unit; and the values are right, against double precision. */
#include "tests/unit/kernels_help.h"

/* ---- KV pages, rotation, attention ---- */
struct world {
    int32_t heads, groups, dh, slots, pages_per_slot, window;
    enum dtype dtype, round;
    struct kv_layer kv;
    size_t kv_bytes;
    int32_t *table, *length; /* length[slot]: tokens of the sequence */
    float **qkv;             /* [slot] [length, (H+2G) Dh] before rotation */
    float *cos_sin, *q_norm, *k_norm;
};

static int64_t qkv_width(const struct world *w)
{
    return (int64_t)(w->heads + 2 * w->groups) * w->dh;
}

static void world_open(struct world *w, const int32_t *lengths)
{
    int32_t longest = 0;
    w->length = take((size_t)w->slots * sizeof *w->length);
    for (int32_t s = 0; s < w->slots; s++) {
        w->length[s] = lengths[s];
        longest = lengths[s] > longest ? lengths[s] : longest;
    }
    w->pages_per_slot = (longest + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int32_t pages = w->slots * w->pages_per_slot;
    w->kv_bytes = (size_t)pages * (size_t)w->groups * 2 * KV_PAGE_TOKENS * (size_t)w->dh *
                  dtype_size(w->dtype);
    w->kv = (struct kv_layer){take(w->kv_bytes), w->dtype, w->groups, w->dh};
    w->table = take((size_t)pages * sizeof *w->table);
    for (int32_t i = 0; i < pages; i++) /* pages of a sequence stand anywhere */
        w->table[i] = (i * 7 + 3) % pages;
    if (pages % 7 == 0)
        for (int32_t i = 0; i < pages; i++)
            w->table[i] = pages - 1 - i;
    w->qkv = take((size_t)w->slots * sizeof *w->qkv);
    for (int32_t s = 0; s < w->slots; s++)
        w->qkv[s] = random_array(lengths[s] * qkv_width(w), w->round);
    w->cos_sin = take((size_t)(longest * w->dh) * sizeof(float));
    for (int32_t p = 0; p < longest; p++)
        for (int32_t i = 0; i < w->dh / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / w->dh);
            w->cos_sin[p * w->dh + i] = (float)cos(angle);
            w->cos_sin[p * w->dh + w->dh / 2 + i] = (float)sin(angle);
        }
    w->q_norm = random_array(w->dh, w->round);
    w->k_norm = random_array(w->dh, w->round);
}
static void world_close(struct world *w)
{
    for (int32_t s = 0; s < w->slots; s++)
        free(w->qkv[s]);
    free(w->qkv);
    free(w->table);
    free(w->length);
    free(w->kv.base);
    free(w->cos_sin);
    free(w->q_norm);
    free(w->k_norm);
}

/* Runs the tokens of all slots in steps of `chunk` tokens a slot; out[slot] = [length, H Dh]. */
static void world_run(const struct world *w, struct cpu *cpu, int32_t chunk, float **out,
                      float **rotated)
{
    const int64_t width = qkv_width(w), out_width = (int64_t)w->heads * w->dh;
    int32_t cap = w->slots * chunk, done[16] = {0};
    int32_t *position = take((size_t)cap * 4), *slot = take((size_t)cap * 4);
    float *qkv = take((size_t)(cap * width) * 4), *step = take((size_t)(cap * out_width) * 4);
    memset(w->kv.base, 0xff, w->kv_bytes); /* NaN in every token not yet written */
    const struct rope_args args = {w->cos_sin, w->q_norm, w->k_norm, 1e-6f, w->heads, w->round};
    for (;;) {
        struct kv_rows rows = {0, position, slot, w->table, w->pages_per_slot};
        for (int32_t s = 0; s < w->slots; s++)
            for (int32_t i = 0; i < chunk && done[s] + i < w->length[s]; i++, rows.n++) {
                position[rows.n] = done[s] + i;
                slot[rows.n] = s;
                memcpy(qkv + rows.n * width, w->qkv[s] + (done[s] + i) * width, (size_t)width * 4);
            }
        if (rows.n == 0)
            break;
        rope_kv_cpu(cpu, qkv, &w->kv, &rows, &args);
        attention_cpu(cpu, step, qkv, &w->kv, &rows, w->heads, w->window, w->round);
        for (int32_t r = 0; r < rows.n; r++) {
            int32_t s = slot[r], p = position[r];
            memcpy(out[s] + p * out_width, step + r * out_width, (size_t)out_width * 4);
            if (rotated)
                memcpy(rotated[s] + p * width, qkv + r * width, (size_t)width * 4);
            done[s] = p + 1;
        }
    }
    free(position);
    free(slot);
    free(qkv);
    free(step);
}

/* Attention of one query in double over the rotated rows. */
static void attention_plain(const struct world *w, const float *rotated, int32_t p, int32_t h,
                            double *out)
{
    const int64_t width = qkv_width(w);
    int32_t g = h / (w->heads / w->groups), dh = w->dh;
    int32_t lo = w->window > 0 && p >= w->window ? p - w->window + 1 : 0;
    double sum = 0, top = -INFINITY, *score = take((size_t)(p + 1) * sizeof *score);
    for (int32_t j = lo; j <= p; j++) {
        const float *q = rotated + p * width + h * dh;
        const float *k = rotated + j * width + (w->heads + g) * dh;
        double dot = 0;
        for (int32_t d = 0; d < dh; d++)
            dot += (double)q[d] * (double)float_rounded(k[d], w->dtype);
        score[j] = dot / sqrt(dh);
        top = score[j] > top ? score[j] : top;
    }
    memset(out, 0, (size_t)dh * sizeof *out);
    for (int32_t j = lo; j <= p; j++) {
        const float *v = rotated + j * width + (w->heads + w->groups + g) * dh;
        double e = exp(score[j] - top);
        sum += e;
        for (int32_t d = 0; d < dh; d++)
            out[d] += e * (double)float_rounded(v[d], w->dtype);
    }
    for (int32_t d = 0; d < dh; d++)
        out[d] /= sum;
    free(score);
}

static void attention_close_to_double(const struct world *w, float **out, float **rotated)
{
    double error = 0, norm = 0, *want = take((size_t)w->dh * sizeof *want);
    for (int32_t s = 0; s < w->slots; s++)
        for (int32_t p = w->length[s] - 1; p >= 0; p -= 1 + p / 5)
            for (int32_t h = 0; h < w->heads; h++) {
                attention_plain(w, rotated[s], p, h, want);
                const float *got = out[s] + ((int64_t)p * w->heads + h) * w->dh;
                for (int32_t d = 0; d < w->dh; d++) {
                    error += ((double)got[d] - want[d]) * ((double)got[d] - want[d]);
                    norm += want[d] * want[d];
                }
            }
    double limit = w->round == DTYPE_F32 ? 1e-6 : w->round == DTYPE_F16 ? 1e-3 : 5e-3;
    if (!(sqrt(error / norm) < limit))
        fail_msg("attention: relative error %g, want < %g", sqrt(error / norm), limit);
    free(want);
}

/* ---- the specification of kernels/cpu/attention.c, word by word ---- */
struct part {
    float m, l, o[256];
    bool any;
};
static float spec_exp(float x)
{
    cpu_ops(contexts[0])->map(&x, &x, 1, 'e');
    return x;
}
static float spec_tree(float lane[16])
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] = lane[i] + lane[i + half];
    return lane[0];
}
static void spec_merge(struct part *a, const struct part *b, int32_t dh)
{
    if (!b->any)
        return;
    if (!a->any) {
        *a = *b;
        return;
    }
    float m = a->m > b->m ? a->m : b->m, wa = spec_exp(a->m - m), wb = spec_exp(b->m - m);
    a->m = m;
    a->l = fmaf(b->l, wb, a->l * wa);
    for (int32_t d = 0; d < dh; d++)
        a->o[d] = fmaf(b->o[d], wb, a->o[d] * wa);
}
static struct part spec_split(const struct world *w, const float *rotated, int32_t p, int32_t h,
                              int32_t from, int32_t to)
{
    const int64_t width = qkv_width(w);
    const int32_t g = h / (w->heads / w->groups), dh = w->dh;
    struct part part = {.m = -INFINITY, .any = from < to};
    float score[ATTENTION_SPLIT], sum[16] = {0};
    for (int32_t j = from; j < to; j++) {
        const float *q = rotated + p * width + h * dh;
        const float *k = rotated + j * width + (w->heads + g) * dh;
        float lane[16] = {0};
        for (int32_t d = 0; d < dh; d++)
            lane[d % 16] = fmaf(q[d], float_rounded(k[d], w->dtype), lane[d % 16]);
        score[j % ATTENTION_SPLIT] = spec_tree(lane) * (1.0f / sqrtf((float)dh));
        part.m = fmaxf(part.m, score[j % ATTENTION_SPLIT]);
    }
    for (int32_t j = from; j < to; j++) {
        const float *v = rotated + j * width + (w->heads + w->groups + g) * dh;
        float e = spec_exp(score[j % ATTENTION_SPLIT] - part.m);
        sum[j % 16] += e;
        for (int32_t d = 0; d < dh; d++)
            part.o[d] = fmaf(float_rounded(e, w->round), float_rounded(v[d], w->dtype), part.o[d]);
    }
    part.l = spec_tree(sum);
    return part;
}
static void attention_spec(const struct world *w, const float *rotated, int32_t p, int32_t h,
                           float *out)
{
    const int32_t lo = w->window > 0 && p >= w->window ? p - w->window + 1 : 0;
    struct part all = {.any = false};
    for (int32_t block = 0; block <= p; block += ATTENTION_BLOCK) {
        struct part merged = {.any = false};
        for (int32_t at = block; at < block + ATTENTION_BLOCK; at += ATTENTION_SPLIT) {
            int32_t to = at + ATTENTION_SPLIT <= p ? at + ATTENTION_SPLIT : p + 1;
            struct part split = spec_split(w, rotated, p, h, at > lo ? at : lo, to);
            spec_merge(&merged, &split, w->dh);
        }
        spec_merge(&all, &merged, w->dh);
    }
    for (int32_t d = 0; d < w->dh; d++)
        out[d] = float_rounded(all.o[d] * (1.0f / all.l), w->round);
}
static void attention_equals_the_specification(const struct world *w, float **out, float **rotated)
{
    float want[256];
    for (int32_t s = 0; s < w->slots; s++)
        for (int32_t p = w->length[s] - 1; p >= 0; p -= 1 + p / 4)
            for (int32_t h = 0; h < w->heads; h++) {
                attention_spec(w, rotated[s], p, h, want);
                const float *got = out[s] + ((int64_t)p * w->heads + h) * w->dh;
                same_bits("attention against its specification", n_contexts - 2, got, want, w->dh);
            }
}

static float **columns_take(const struct world *w, int64_t width)
{
    float **out = take((size_t)w->slots * sizeof *out);
    for (int32_t s = 0; s < w->slots; s++)
        out[s] = take((size_t)(w->length[s] * width) * 4);
    return out;
}
static void columns_free(const struct world *w, float **columns)
{
    for (int32_t s = 0; s < w->slots; s++)
        free(columns[s]);
    free(columns);
}

static void world_check(struct world *w, const int32_t *lengths)
{
    world_open(w, lengths);
    const int64_t out_width = (int64_t)w->heads * w->dh;
    float **want = columns_take(w, out_width), **got = columns_take(w, out_width);
    float **rotated = columns_take(w, qkv_width(w)), **again = columns_take(w, qkv_width(w));
    static const int32_t chunks[] = {1 << 20, 1, 17, 64, 300, 5};
    int32_t longest = w->pages_per_slot * KV_PAGE_TOKENS;
    world_run(w, contexts[n_contexts - 2], longest, want, rotated);
    attention_close_to_double(w, want, rotated);
    attention_equals_the_specification(w, want, rotated);
    for (int c = 0; c < n_contexts; c++) {
        /* Plain C pays a library call for each multiply-add: one chunk size is enough for it. */
        size_t tries = cpu_isa(contexts[c]) == CPU_ISA_SCALAR ? 1 : COUNT(chunks);
        for (size_t i = 0; i < tries; i++) {
            int32_t chunk = chunks[(i + (size_t)c) % COUNT(chunks)];
            world_run(w, contexts[c], chunk < longest ? chunk : longest, got, again);
            for (int32_t s = 0; s < w->slots; s++) {
                same_bits("rope", c, again[s], rotated[s], w->length[s] * qkv_width(w));
                same_bits("attention", c, got[s], want[s], w->length[s] * out_width);
            }
        }
    }
    columns_free(w, want);
    columns_free(w, got);
    columns_free(w, rotated);
    columns_free(w, again);
    world_close(w);
}

static void attention_is_row_independent(void **state)
{
    (void)state;
    static const struct {
        int32_t heads, groups, dh, window;
        enum dtype dtype, round;
        int32_t lengths[3];
    } cases[] = {
        {14, 2, 64, 0, DTYPE_BF16, DTYPE_BF16, {130, 1, 65}},
        {4, 4, 20, 0, DTYPE_F32, DTYPE_F32, {129, 128, 127}},
        {6, 1, 40, 50, DTYPE_BF16, DTYPE_BF16, {200, 3, 16}},
        {3, 3, 80, 128, DTYPE_F16, DTYPE_F16, {300, 40, 129}},
        {2, 1, 96, 1, DTYPE_BF16, DTYPE_BF16, {70, 33, 64}},
        {2, 2, 2, 0, DTYPE_F32, DTYPE_BF16, {40, 17, 5}},
        {5, 1, 128, 0, DTYPE_BF16, DTYPE_F32, {140, 64, 63}},
        {1, 1, 256, 0, DTYPE_F16, DTYPE_F16, {66, 9, 1}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct world w = {.heads = cases[i].heads,
                          .groups = cases[i].groups,
                          .dh = cases[i].dh,
                          .slots = 3,
                          .window = cases[i].window,
                          .dtype = cases[i].dtype,
                          .round = cases[i].round};
        world_check(&w, cases[i].lengths);
    }
}

static void attention_crosses_splits_and_blocks(void **state)
{
    (void)state;
    struct world w = {
        .heads = 2, .groups = 1, .dh = 16, .slots = 2, .dtype = DTYPE_BF16, .round = DTYPE_BF16};
    world_check(&w, (int32_t[]){1100, 513});
    struct world windowed = {.heads = 2,
                             .groups = 1,
                             .dh = 16,
                             .slots = 2,
                             .window = 600,
                             .dtype = DTYPE_F32,
                             .round = DTYPE_F32};
    world_check(&windowed, (int32_t[]){1300, 700});
}

/* A later token that overflowed must not reach an earlier row of the same chunk. */
static void attention_ignores_later_infinities(void **state)
{
    (void)state;
    struct world w = {
        .heads = 3, .groups = 1, .dh = 32, .slots = 1, .dtype = DTYPE_F32, .round = DTYPE_F32};
    world_open(&w, (int32_t[]){150});
    const int64_t width = qkv_width(&w), out_width = w.heads * w.dh;
    for (int64_t i = (w.heads + 1) * w.dh; i < width; i++)
        w.qkv[0][141 * width + i] = INFINITY;
    float **want = columns_take(&w, out_width), **got = columns_take(&w, out_width);
    for (int c = 0; c < n_contexts; c++) {
        world_run(&w, contexts[c], 1, want, NULL);
        world_run(&w, contexts[c], 150, got, NULL);
        same_bits("attention before infinity", c, got[0], want[0], 141 * out_width);
        assert_true(isfinite(got[0][141 * out_width - 1]) && !isfinite(got[0][141 * out_width]));
    }
    columns_free(&w, want);
    columns_free(&w, got);
    world_close(&w);
}

static void pages_copy_their_first_tokens(void **state)
{
    (void)state;
    enum { G = 3, DH = 10, ROW = DH * 2, PAGE = G * 2 * KV_PAGE_TOKENS * ROW };
    unsigned char *base = take(3 * PAGE), before[3 * PAGE];
    for (int i = 0; i < 3 * PAGE; i++)
        before[i] = base[i] = (unsigned char)random_bits();
    struct kv_layer kv = {base, DTYPE_BF16, G, DH};
    kv_copy_cpu(&kv, 2, 1, 21);
    for (int i = 0; i < 3 * PAGE; i++) {
        int page = i / PAGE, token = i % PAGE / ROW % KV_PAGE_TOKENS;
        assert_int_equal(base[i], before[page == 1 && token < 21 ? i + PAGE : i]);
    }
    free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_row_independent),
        cmocka_unit_test(attention_crosses_splits_and_blocks),
        cmocka_unit_test(attention_ignores_later_infinities),
        cmocka_unit_test(pages_copy_their_first_tokens),
    };
    return cmocka_run_group_tests(tests, contexts_open, contexts_close);
}
