/* vec: sixteen fp32 (or 32-bit integer) lanes, written three times: AVX-512, AVX2, plain C.
 *
 * The inner loops of the kernels (*_inner.h) are written once over these lanes and compiled once
 * per vector unit (variant_*.c). Every operation here is exact IEEE per lane, or has one stated
 * order (v16_sum), so the three builds give the same bits. Private to kernels/cpu. */
#ifndef TRANCHE_KERNELS_CPU_VEC_H
#define TRANCHE_KERNELS_CPU_VEC_H

/* With a check on every access the unrolled tiles take minutes to optimise: so less of it. The bits
 * stay the same. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define VEC_CHECKED 1
#pragma GCC optimize("O1")
#else
#define VEC_CHECKED 0
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/kernels.h"

#if defined(VEC_SCALAR) && VEC_CHECKED
#define VEC_INLINE static __attribute__((noinline, unused))
#elif defined(VEC_SCALAR)
#define VEC_INLINE static inline __attribute__((unused))
#else
#define VEC_INLINE static inline __attribute__((always_inline, unused))
#endif

#if defined(__AVX512F__) && !defined(VEC_SCALAR)
#include "kernels/cpu/vec_512.h"
#elif defined(__AVX2__) && !defined(VEC_SCALAR)
#include "kernels/cpu/vec_256.h"
#else
#include "kernels/cpu/vec_plain.h"
#endif

/* ---- what follows from the primitives ---- */
VEC_INLINE v16 v16_round(v16 v, enum dtype round)
{
    return round == DTYPE_BF16 ? v16_round_bf16(v) : round == DTYPE_F16 ? v16_round_f16(v) : v;
}

VEC_INLINE v16 v16_load_as(const void *p, int64_t at, enum dtype dtype)
{
    if (dtype == DTYPE_BF16)
        return v16_load_bf16((const uint16_t *)p + at);
    if (dtype == DTYPE_F16)
        return v16_load_f16((const uint16_t *)p + at);
    return v16_load((const float *)p + at);
}

/* Loads or stores n <= 16 lanes; missing lanes read as +0. */
VEC_INLINE v16 v16_load_some(const float *p, int64_t n)
{
    if (n >= 16)
        return v16_load(p);
    float lane[16] = {0};
    memcpy(lane, p, (size_t)n * sizeof *p);
    return v16_load(lane);
}
VEC_INLINE void v16_store_some(float *p, v16 v, int64_t n)
{
    if (n >= 16) {
        v16_store(p, v);
        return;
    }
    float lane[16];
    v16_store(lane, v);
    memcpy(p, lane, (size_t)n * sizeof *p);
}

/* exp with at most 1.1 ulp of error (measured in kernels_test). Degree-6 minimax polynomial on
 * +-ln(2)/2 by the Remez exchange. At or below -104 exactly 0, above 88.73 infinity; NaN stays
 * NaN: the constant stands first in max and min, which return their second operand on NaN. */
VEC_INLINE v16 v16_exp(v16 x)
{
    const v16 magic = v16_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = v16_max(v16_set1(-104.0f), x);
    x = v16_min(v16_set1(89.0f), x);
    v16 t = v16_fma(x, v16_set1(0x1.715476p+0f), magic);
    v16 n = v16_sub(t, magic);
    v16 r = v16_fma(n, v16_set1(-0x1.62e430p-1f), x);
    r = v16_fma(n, v16_set1(0x1.05c610p-29f), r);
    v16 q = v16_set1(0.0013950819f);
    q = v16_fma(q, r, v16_set1(0.008369081f));
    q = v16_fma(q, r, v16_set1(0.0416662f));
    q = v16_fma(q, r, v16_set1(0.16666517f));
    q = v16_fma(q, r, v16_set1(0.5f));
    v16 p = v16_add(v16_fma(v16_mul(r, r), q, r), v16_set1(1.0f));
    /* Two factors, so that 2^n may be subnormal or overflow while each factor is normal. */
    v16i k = v16i_sub(v16_bits(t), v16_bits(magic));
    v16i half = v16i_sra(k, 1);
    v16i rest = v16i_sub(k, half);
    v16 a = v16_of_bits(v16i_sll(v16i_add(half, v16i_set1(127)), 23));
    v16 b = v16_of_bits(v16i_sll(v16i_add(rest, v16i_set1(127)), 23));
    return v16_mul(v16_mul(p, a), b);
}

/* log(1+f) for f in [sqrt(1/2)-1, sqrt(2)-1]; degree-8 minimax tail. */
VEC_INLINE v16 v16_log1p_core(v16 f)
{
    v16 p = v16_set1(0.069229972f);
    p = v16_fma(p, f, v16_set1(-0.11782882f));
    p = v16_fma(p, f, v16_set1(0.118654328f));
    p = v16_fma(p, f, v16_set1(-0.12385228f));
    p = v16_fma(p, f, v16_set1(0.142199456f));
    p = v16_fma(p, f, v16_set1(-0.16669231f));
    p = v16_fma(p, f, v16_set1(0.200021499f));
    p = v16_fma(p, f, v16_set1(-0.24999986f));
    p = v16_fma(p, f, v16_set1(0.33333312f));
    return v16_fma(v16_mul(f, f), v16_fma(f, p, v16_set1(-0.5f)), f);
}

/* log of positive normal numbers. */
VEC_INLINE v16 v16_log(v16 x)
{
    const v16i root_half = v16i_set1(0x3f3504f3);
    v16i bits = v16_bits(x);
    v16i e = v16i_sra(v16i_sub(bits, root_half), 23);
    v16 f = v16_sub(v16_of_bits(v16i_sub(bits, v16i_sll(e, 23))), v16_set1(1.0f));
    v16 n = v16_of_int(e);
    v16 low = v16_fma(n, v16_set1(-0x1.05c610p-29f), v16_log1p_core(f));
    return v16_fma(n, v16_set1(0x1.62e430p-1f), low);
}

VEC_INLINE v16 v16_silu(v16 x)
{
    const v16 one = v16_set1(1.0f);
    return v16_div(x, v16_add(one, v16_exp(v16_sub(v16_set1(0.0f), x))));
}

/* Sum of f(i) over an array by the fixed tree: lane j chains elements j, j+16, ...; then v16_sum.
 */
VEC_INLINE float vec_sum_squares(const float *x, int64_t n)
{
    v16 sum = v16_set1(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v = v16_load(x + i);
        sum = v16_fma(v, v, sum);
    }
    if (i < n) {
        v16 v = v16_load_some(x + i, n - i);
        sum = v16_fma(v, v, sum);
    }
    return v16_sum(sum);
}

/* One Philox4x32-10 block per lane (Salmon et al. 2011, table 2 and figure 3). */
VEC_INLINE void v16_philox(v16i c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        v16i hi0, lo0, hi1, lo1;
        v16i_mul_wide(c[0], 0xD2511F53u, &hi0, &lo0);
        v16i_mul_wide(c[2], 0xCD9E8D57u, &hi1, &lo1);
        c[0] = v16i_xor(v16i_xor(hi1, c[1]), v16i_set1((int32_t)k0));
        c[1] = lo1;
        c[2] = v16i_xor(v16i_xor(hi0, c[3]), v16i_set1((int32_t)k1));
        c[3] = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

#endif
