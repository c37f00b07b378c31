/* kernels: every vector unit, thread count and row count gives the same bits, and the bits are
 * right: against plain loops where an order is promised, against double precision elsewhere. */
#include "tests/unit/kernels_help.h"

#include <stdatomic.h>

/* ---- formats ---- */
static void halves_round_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(bf16_of_float(1.00390625f), 0x3f80); /* ties to even: down, then up */
    assert_int_equal(bf16_of_float(1.01171875f), 0x3f82);
    assert_int_equal(bf16_of_float(FLT_MAX), 0x7f80);
    assert_int_equal(bf16_of_float(NAN), 0x7fc0);
    assert_int_equal(f16_of_float(65519.996f), 0x7bff);
    assert_int_equal(f16_of_float(65520.0f), 0x7c00);
    assert_int_equal(f16_of_float(0x1p-24f), 0x0001);
    assert_int_equal(f16_of_float(0x1p-25f), 0x0000);
    assert_int_equal(f16_of_float(0x1.8p-24f), 0x0002);
    assert_int_equal(f16_of_float(-0x1.004p0f), 0xbc01);
    assert_int_equal(f16_of_float(1.0f + 0x1p-11f), 0x3c00);
    assert_int_equal(f16_of_float(1.0f + 0x3p-11f), 0x3c02);
    for (uint32_t h = 0; h < 65536; h++) {
        float b = float_of_bf16((uint16_t)h), f = float_of_f16((uint16_t)h);
        if (b == b)
            assert_int_equal(bf16_of_float(b), h);
        if (f == f)
            assert_int_equal(f16_of_float(f), h);
    }
}

/* Each variant's rounding stores against the plain conversions, specials included. */
static void stores_agree_with_plain_conversion(void **state)
{
    (void)state;
    enum { N = 1 << 16 };
    float *x = take(N * sizeof *x);
    uint16_t *h = take(N * sizeof *h);
    for (uint32_t i = 0; i < N; i++)
        x[i] = float_of_bits(i < 4096 ? i << 20 | random_bits() >> 14 : random_bits());
    for (int c = 0; c < n_contexts; c++)
        for (enum dtype d = DTYPE_BF16; d <= DTYPE_F16; d++) {
            cpu_ops(contexts[c])->store_row(h, x, N - 3, d);
            for (int i = 0; i < N - 3; i++)
                assert_int_equal(h[i], d == DTYPE_BF16 ? bf16_of_float(x[i]) : f16_of_float(x[i]));
        }
    free(x);
    free(h);
}

static double ulps(float got, double want)
{
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1.0, (e - 24 > -149 ? e - 24 : -149));
}

static double worst_error(const struct cpu_ops *ops, char which, float lo, float hi)
{
    enum { N = 1 << 14 };
    float x[N], y[N];
    double worst = 0;
    for (int i = 0; i < N; i++)
        x[i] = lo + (hi - lo) * ((float)i + (float)random_bits() * 0x1p-32f) / (float)N;
    ops->map(y, x, N, which);
    for (int i = 0; i < N; i++) {
        double d = (double)x[i];
        double want = which == 'e' ? exp(d) : which == 'l' ? log(d) : d / (1 + exp(-d));
        double error = ulps(y[i], want);
        if (!(error <= worst))
            worst = error;
    }
    return worst;
}

static void functions_are_accurate(void **state)
{
    (void)state;
    for (int c = 0; c < n_contexts; c++) {
        const struct cpu_ops *ops = cpu_ops(contexts[c]);
        double e = worst_error(ops, 'e', -87.0f, 88.7f), tiny = worst_error(ops, 'e', -103, -87);
        double one = worst_error(ops, 'e', -1.0f, 1.0f);
        double l = worst_error(ops, 'l', 1e-30f, 0.7f), m = worst_error(ops, 'l', 1.5f, 1e9f);
        double s = worst_error(ops, 's', -80.0f, 80.0f), near = worst_error(ops, 's', -2.0f, 2.0f);
        if (c == 0)
            print_message("worst error in ulp: exp %.3f (-1..1: %.3f, subnormal results: %.3f) "
                          "log %.3f %.3f silu %.3f (-2..2: %.3f)\n",
                          e, one, tiny, l, m, s, near);
        assert_true(e < 1.1 && one < 1.1 && tiny < 1.1);
        assert_true(l < 1.5 && m < 1.5);
        assert_true(s < 3 && near < 3);
        float in[8] = {-INFINITY, -104.0f, 0.0f, -0.0f, 88.8f, INFINITY, NAN, -1000.0f}, out[8];
        ops->map(out, in, 8, 'e');
        assert_true(out[0] == 0 && out[1] == 0 && out[2] == 1 && out[3] == 1);
        assert_true(out[4] == INFINITY && out[5] == INFINITY && isnan(out[6]) && out[7] == 0);
    }
}

static void functions_give_the_same_bits(void **state)
{
    (void)state;
    enum { N = 1 << 15 };
    float *x = take(N * sizeof *x), *want = take(N * sizeof *x), *got = take(N * sizeof *x);
    for (int c = 1; c < n_contexts; c++)
        for (const char *which = "els"; *which; which++) {
            for (int i = 0; i < N; i++) {
                x[i] = float_of_bits(random_bits());
                if (x[i] != x[i] || (*which == 'l' && !(x[i] >= FLT_MIN && x[i] <= FLT_MAX)))
                    x[i] = 1.0f;
            }
            cpu_ops(contexts[0])->map(want, x, N, *which);
            cpu_ops(contexts[c])->map(got, x, N, *which);
            same_bits("function", c, got, want, N);
        }
    free(x);
    free(want);
    free(got);
}

/* ---- pool ---- */
struct hits {
    _Atomic int of[300];
};
static void hit(void *ctx, int i)
{
    struct hits *hits = ctx;
    atomic_fetch_add_explicit(&hits->of[i], 1, memory_order_relaxed);
}
static void pool_runs_each_task_once(void **state)
{
    (void)state;
    static struct hits hits;
    int want[300] = {0};
    struct cpu *cpu = contexts[n_contexts - 1];
    for (int round = 0; round < 3000; round++) {
        int n = round % 7 == 0 ? random_below(300) : random_below(9);
        cpu_run(cpu, n, hit, &hits);
        for (int i = 0; i < n; i++)
            want[i]++;
        if (round % 500 == 499) /* long enough for the idle threads to fall asleep */
            for (volatile int spin = 0; spin < 3000000; spin++)
                ;
        for (int i = 0; i < 300; i++)
            assert_int_equal(atomic_load_explicit(&hits.of[i], memory_order_relaxed), want[i]);
    }
    assert_null(cpu_open(0, CPU_ISA_SCALAR));
    for (int i = 0; i < 20; i++)
        cpu_close(cpu_open(1 + i % 4, CPU_ISA_SCALAR));
}

/* ---- linear ---- */
struct matrix {
    struct cpu_weight w;
    float *values; /* [n, k] as fp32 */
};
static struct matrix matrix_random(struct cpu *cpu, int64_t n, int64_t k, enum dtype dtype)
{
    struct matrix m = {.w = {.dtype = dtype, .n = n, .k = k}};
    size_t bytes = cpu_weight_bytes(n, k, dtype), size = dtype_size(dtype);
    m.w.data = take(bytes);
    memset(m.w.data, 0xff, bytes); /* NaN: what packing leaves out would show */
    m.values = random_array(n * k, dtype);
    char *src = malloc((size_t)(n * k) * size + 1);
    assert_non_null(src);
    char *odd = src + 1; /* files do not align their tensors */
    for (int64_t i = 0; i < n * k; i++) {
        uint16_t h = dtype == DTYPE_BF16 ? bf16_of_float(m.values[i]) : f16_of_float(m.values[i]);
        memcpy(odd + (size_t)i * size, dtype == DTYPE_F32 ? (void *)&m.values[i] : &h, size);
    }
    int64_t row = 0; /* in three uneven pieces, as joined q, k and v are */
    for (int piece = 0; piece < 3 && row < n; piece++) {
        int64_t rows = piece == 2 ? n - row : (n - row + 2) / 3;
        cpu_weight_pack(cpu, &m.w, row, odd + (size_t)(row * k) * size, rows);
        row += rows;
    }
    free(src);
    return m;
}
static void matrix_close(struct matrix *m)
{
    free(m->w.data);
    free(m->values);
}

struct linear_case {
    int64_t t, n, k;
    enum dtype dtype, round;
    bool bias, residual;
};

/* The promise of kernels.h word by word. */
static float linear_plain(const struct linear_case *lc, const struct matrix *m, const float *x,
                          const float *bias, const float *residual, int64_t row, int64_t n)
{
    float sum = 0;
    for (int64_t k = 0; k < lc->k; k++)
        sum = fmaf(x[row * lc->k + k], m->values[n * lc->k + k], sum);
    if (lc->bias)
        sum = sum + bias[n];
    if (lc->residual)
        sum = sum + residual[row * lc->n + n];
    return float_rounded(sum, lc->round);
}

static void linear_check(const struct linear_case *lc)
{
    struct matrix m = matrix_random(contexts[n_contexts - 2], lc->n, lc->k, lc->dtype);
    float *x = random_array(lc->t * lc->k, lc->round), *bias = random_array(lc->n, lc->dtype);
    float *residual = random_array(lc->t * lc->n, lc->round);
    float *want = take((size_t)(lc->t * lc->n) * sizeof *want);
    float *got = take((size_t)(lc->t * lc->n) * sizeof *got);
    char name[96];
    snprintf(name, sizeof name, "linear T=%lld N=%lld K=%lld dtype %d", (long long)lc->t,
             (long long)lc->n, (long long)lc->k, lc->dtype);
    for (int64_t i = 0; i < lc->t * lc->n; i++)
        want[i] = linear_plain(lc, &m, x, bias, residual, i / lc->n, i % lc->n);
    for (int c = 0; c < n_contexts; c++) {
        const float *in_place = lc->residual ? got : NULL;
        memcpy(got, residual, (size_t)(lc->t * lc->n) * sizeof *got);
        linear_cpu(contexts[c], got, x, &m.w, lc->bias ? bias : NULL, in_place, lc->t, lc->round);
        same_bits(name, c, got, want, lc->t * lc->n);
        int64_t row = random_below((int)lc->t); /* the same row alone */
        linear_cpu(contexts[c], got, x + row * lc->k, &m.w, lc->bias ? bias : NULL,
                   lc->residual ? residual + row * lc->n : NULL, 1, lc->round);
        same_bits(name, c, got, want + row * lc->n, lc->n);
    }
    free(x);
    free(bias);
    free(residual);
    free(want);
    free(got);
    matrix_close(&m);
}

static void linear_is_one_chain_everywhere(void **state)
{
    (void)state;
    static const struct linear_case fixed[] = {
        {1, 1, 1, DTYPE_F32, DTYPE_F32, false, false},
        {1, 65, 8960, DTYPE_BF16, DTYPE_BF16, true, true},
        {7, 130, 4864, DTYPE_BF16, DTYPE_BF16, false, true},
        {300, 70, 513, DTYPE_BF16, DTYPE_BF16, true, true},
        {300, 33, 1025, DTYPE_F16, DTYPE_F16, true, false},
        {241, 129, 512, DTYPE_F32, DTYPE_F32, false, true},
        {25, 64, 1537, DTYPE_F32, DTYPE_BF16, false, false},
        {121, 640, 96, DTYPE_BF16, DTYPE_F32, true, false},
        {3, 1000, 20, DTYPE_F16, DTYPE_F16, false, false},
    };
    for (size_t i = 0; i < COUNT(fixed); i++)
        linear_check(&fixed[i]);
    for (int i = 0; i < 60; i++) {
        static const int rows[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 31, 120, 121};
        struct linear_case lc = {
            .t = rows[random_below(COUNT(rows))],
            .n = 1 + random_below(200),
            .k = 1 + random_below(i % 5 ? 150 : 1200),
            .dtype = (enum dtype)random_below(3),
            .round = (enum dtype)random_below(3),
            .bias = random_below(2),
            .residual = random_below(2),
        };
        linear_check(&lc);
    }
}

static void embedding_reads_back_the_packed_rows(void **state)
{
    (void)state;
    for (enum dtype d = DTYPE_F32; d <= DTYPE_F16; d++) {
        struct matrix m = matrix_random(contexts[0], 131, 37, d);
        int32_t ids[] = {0, 130, 63, 64, 16, 15, 48, 64};
        float out[COUNT(ids) * 37];
        for (int c = 0; c < n_contexts; c++) {
            embed_cpu(contexts[c], out, &m.w, ids, COUNT(ids));
            for (size_t i = 0; i < COUNT(ids); i++)
                same_bits("embed", c, out + i * 37, m.values + ids[i] * 37, 37);
        }
        matrix_close(&m);
    }
}

/* ---- rows ---- */
static void norm_row_check(const float *x, const float *w, const float *got, int64_t d,
                           enum dtype round)
{
    double sum = 0;
    for (int64_t i = 0; i < d; i++)
        sum += (double)x[i] * (double)x[i];
    double factor = 1 / sqrt(sum / (double)d + 1e-6);
    double step = round == DTYPE_F32 ? 1e-6 : round == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
    for (int64_t i = 0; i < d; i++) {
        double want = (double)x[i] * factor * (double)w[i];
        assert_true(fabs((double)got[i] - want) <= fabs(want) * step * 1.01 + 1e-7);
    }
}

static void norm_and_activation_agree(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 2, 15, 16, 17, 20, 33, 96, 255, 896, 1000, 4864, 8960};
    static const int64_t rows[] = {1, 2, 3, 37};
    for (size_t i = 0; i < COUNT(widths) * COUNT(rows) * 3; i++) {
        int64_t d = widths[i % COUNT(widths)], t = rows[i / COUNT(widths) % COUNT(rows)];
        enum dtype round = (enum dtype)(i / (COUNT(widths) * COUNT(rows)));
        float *x = random_array(t * 2 * d, round), *w = random_array(d, round);
        float *want = take((size_t)(t * d) * 4), *got = take((size_t)(t * d) * 4);
        for (int c = 0; c < n_contexts; c++) {
            float *to = c ? got : want;
            rmsnorm_cpu(contexts[c], to, x, w, 1e-6f, t, d, round);
            if (c == 0)
                norm_row_check(x + (t - 1) * d, w, to + (t - 1) * d, d, round);
            same_bits("norm", c, to, want, t * d);
            rmsnorm_cpu(contexts[c], got, x + (t - 1) * d, w, 1e-6f, 1, d, round);
            same_bits("norm of one row", c, got, want + (t - 1) * d, d);
        }
        for (int c = 0; c < n_contexts; c++) {
            float *to = c ? got : want;
            swiglu_cpu(contexts[c], to, x, t, d, round);
            same_bits("swiglu", c, to, want, t * d);
            swiglu_cpu(contexts[c], got, x + (t - 1) * 2 * d, 1, d, round);
            same_bits("swiglu of one row", c, got, want + (t - 1) * d, d);
        }
        float g = x[(t - 1) * 2 * d], u = x[(t - 1) * 2 * d + d];
        double silu = (double)g / (1 + exp(-(double)g)) * (double)u;
        assert_true(fabs((double)want[(t - 1) * d] - silu) <= fabs(silu) * 0x1p-8 + 1e-7);
        free(x);
        free(w);
        free(want);
        free(got);
    }
}

static void norm_sums_follow_the_tree(void **state)
{
    (void)state;
    float x[37], w[37], out[37], part[16] = {0};
    for (int i = 0; i < 37; i++) {
        x[i] = random_float() * (i % 3 ? 1.0f : 300.0f);
        w[i] = 1.0f;
        part[i % 16] = fmaf(x[i], x[i], part[i % 16]);
    }
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    float factor = 1.0f / sqrtf(part[0] / 37.0f + 1e-5f);
    for (int c = 0; c < n_contexts; c++) {
        rmsnorm_cpu(contexts[c], out, x, w, 1e-5f, 1, 37, DTYPE_F32);
        for (int i = 0; i < 37; i++)
            assert_int_equal(bits_of_float(out[i]), bits_of_float(x[i] * factor));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(stores_agree_with_plain_conversion),
        cmocka_unit_test(functions_are_accurate),
        cmocka_unit_test(functions_give_the_same_bits),
        cmocka_unit_test(pool_runs_each_task_once),
        cmocka_unit_test(linear_is_one_chain_everywhere),
        cmocka_unit_test(embedding_reads_back_the_packed_rows),
        cmocka_unit_test(norm_and_activation_agree),
        cmocka_unit_test(norm_sums_follow_the_tree),
    };
    return cmocka_run_group_tests(tests, contexts_open, contexts_close);
}
