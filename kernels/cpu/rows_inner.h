/* rows_inner: the ops that see one row at a time (norm, activation, rotation, stores), for one
 * vector unit. Sums follow the fixed tree: lane j chains elements j, j+16, ..., then v16_sum. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* 1 / sqrt(mean(x^2) + eps): correctly rounded root and division in every variant. */
VEC_INLINE float norm_factor(const float *x, int64_t n, float eps)
{
    return 1.0f / sqrtf(vec_sum_squares(x, n) / (float)n + eps);
}

static void rmsnorm_row(float *out, const float *x, const float *w, float eps, int64_t d,
                        enum dtype round)
{
    const v16 factor = v16_set1(norm_factor(x, d, eps));
    for (int64_t i = 0; i < d; i += 16) {
        v16 v = v16_mul(v16_load_some(x + i, d - i), factor);
        v = v16_mul(v, v16_load_some(w + i, d - i));
        v16_store_some(out + i, v16_round(v, round), d - i);
    }
}

static void swiglu_row(float *out, const float *gate, const float *up, int64_t f, enum dtype round)
{
    for (int64_t i = 0; i < f; i += 16) {
        v16 v = v16_mul(v16_silu(v16_load_some(gate + i, f - i)), v16_load_some(up + i, f - i));
        v16_store_some(out + i, v16_round(v, round), f - i);
    }
}

/* Pairs i and i + dh/2: (a c - b s, b c + a s), the second product fused into the sum. */
static void rope_head(float *head, const float *norm, float eps, const float *cos_sin, int64_t dh,
                      enum dtype round)
{
    const int64_t half = dh / 2;
    const v16 factor = v16_set1(norm ? norm_factor(head, dh, eps) : 1.0f);
    const v16 zero = v16_set1(0.0f);
    for (int64_t i = 0; i < half; i += 16) {
        int64_t left = half - i;
        v16 a = v16_load_some(head + i, left), b = v16_load_some(head + half + i, left);
        v16 c = v16_load_some(cos_sin + i, left), s = v16_load_some(cos_sin + half + i, left);
        if (norm) {
            a = v16_mul(v16_mul(a, factor), v16_load_some(norm + i, left));
            b = v16_mul(v16_mul(b, factor), v16_load_some(norm + half + i, left));
        }
        v16 first = v16_fma(v16_sub(zero, b), s, v16_mul(a, c));
        v16 second = v16_fma(a, s, v16_mul(b, c));
        v16_store_some(head + i, v16_round(first, round), left);
        v16_store_some(head + half + i, v16_round(second, round), left);
    }
}

static void store_row(void *out, const float *x, int64_t n, enum dtype dtype)
{
    if (dtype == DTYPE_F32) {
        memcpy(out, x, (size_t)n * sizeof *x);
        return;
    }
    uint16_t *half = out;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        if (dtype == DTYPE_BF16)
            v16_store_bf16(half + i, v16_load(x + i));
        else
            v16_store_f16(half + i, v16_load(x + i));
    }
    for (; i < n; i++)
        half[i] = dtype == DTYPE_BF16 ? bf16_of_float(x[i]) : f16_of_float(x[i]);
}
