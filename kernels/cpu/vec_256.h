/* vec_256: the sixteen lanes as two AVX2 registers (with FMA and F16C). */
#include <immintrin.h>
#define VEC_REGISTERS 16

typedef struct {
    __m256 a, b;
} v16;
typedef struct {
    __m256i a, b;
} v16i;

VEC_INLINE v16 v16_set1(float x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
VEC_INLINE v16 v16_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
VEC_INLINE void v16_store(float *p, v16 v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
VEC_INLINE __m128i vec_half(const uint16_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}
VEC_INLINE __m256 vec_widen_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(vec_half(p)), 16));
}
VEC_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    return (v16){vec_widen_bf16(p), vec_widen_bf16(p + 8)};
}
VEC_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return (v16){_mm256_cvtph_ps(vec_half(p)), _mm256_cvtph_ps(vec_half(p + 8))};
}
/* Even (lo) and odd (hi) halves of 32 bf16: the packed order of a weight line. */
VEC_INLINE __m256 vec_lo(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}
VEC_INLINE __m256 vec_hi(const uint16_t *p)
{
    const __m256i high = _mm256_set1_epi32((int32_t)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), high));
}
VEC_INLINE v16 v16_pair_lo(const uint16_t *p)
{
    return (v16){vec_lo(p), vec_lo(p + 16)};
}
VEC_INLINE v16 v16_pair_hi(const uint16_t *p)
{
    return (v16){vec_hi(p), vec_hi(p + 16)};
}
#define VEC_BINARY(name, op)                                                                       \
    VEC_INLINE v16 v16_##name(v16 x, v16 y)                                                        \
    {                                                                                              \
        return (v16){op(x.a, y.a), op(x.b, y.b)};                                                  \
    }
VEC_BINARY(add, _mm256_add_ps)
VEC_BINARY(sub, _mm256_sub_ps)
VEC_BINARY(mul, _mm256_mul_ps)
VEC_BINARY(div, _mm256_div_ps)
VEC_BINARY(max, _mm256_max_ps)
VEC_BINARY(min, _mm256_min_ps)
VEC_INLINE v16 v16_fma(v16 x, v16 y, v16 z)
{
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
VEC_INLINE float v16_first(v16 v)
{
    return _mm256_cvtss_f32(v.a);
}
VEC_INLINE float v16_sum(v16 v)
{
    __m256 s8 = _mm256_add_ps(v.a, v.b);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
VEC_INLINE float v16_top(v16 v)
{
    __m256 t8 = _mm256_max_ps(v.a, v.b);
    __m128 t4 = _mm_max_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    __m128 t2 = _mm_max_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_max_ss(t2, _mm_shuffle_ps(t2, t2, 1)));
}
VEC_INLINE unsigned vec_pack_bits(__m256 a, __m256 b)
{
    return (unsigned)_mm256_movemask_ps(a) | (unsigned)_mm256_movemask_ps(b) << 8;
}
VEC_INLINE unsigned v16_gt(v16 x, v16 y)
{
    return vec_pack_bits(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ));
}
VEC_INLINE unsigned v16_eq(v16 x, v16 y)
{
    return vec_pack_bits(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ));
}
VEC_INLINE __m256 vec_mask(unsigned bits)
{
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32((int32_t)bits), lane);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
}
VEC_INLINE v16 v16_pick(unsigned bits, v16 yes, v16 no)
{
    return (v16){_mm256_blendv_ps(no.a, yes.a, vec_mask(bits)),
                 _mm256_blendv_ps(no.b, yes.b, vec_mask(bits >> 8))};
}
VEC_INLINE __m256i vec_round_bits(__m256 v)
{
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan);
}
VEC_INLINE __m256 vec_round_bf16(__m256 v)
{
    const __m256i high = _mm256_set1_epi32((int32_t)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(vec_round_bits(v), high));
}
VEC_INLINE v16 v16_round_bf16(v16 v)
{
    return (v16){vec_round_bf16(v.a), vec_round_bf16(v.b)};
}
VEC_INLINE __m128i vec_f16_bits(__m256 v)
{
    __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    v = _mm256_blendv_ps(v, quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_INLINE v16 v16_round_f16(v16 v)
{
    return (v16){_mm256_cvtph_ps(vec_f16_bits(v.a)), _mm256_cvtph_ps(vec_f16_bits(v.b))};
}
VEC_INLINE void v16_store_bf16(uint16_t *p, v16 v)
{
    __m256i a = _mm256_srli_epi32(vec_round_bits(v.a), 16);
    __m256i b = _mm256_srli_epi32(vec_round_bits(v.b), 16);
    __m256i h = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    _mm256_storeu_si256((__m256i *)p, h);
}
VEC_INLINE void v16_store_f16(uint16_t *p, v16 v)
{
    _mm_storeu_si128((__m128i *)p, vec_f16_bits(v.a));
    _mm_storeu_si128((__m128i *)(p + 8), vec_f16_bits(v.b));
}

VEC_INLINE v16i v16_bits(v16 v)
{
    return (v16i){_mm256_castps_si256(v.a), _mm256_castps_si256(v.b)};
}
VEC_INLINE v16 v16_of_bits(v16i v)
{
    return (v16){_mm256_castsi256_ps(v.a), _mm256_castsi256_ps(v.b)};
}
VEC_INLINE v16 v16_of_int(v16i v)
{
    return (v16){_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)};
}
VEC_INLINE v16i v16i_set1(int32_t x)
{
    return (v16i){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
VEC_INLINE v16i v16i_iota(void)
{
    return (v16i){_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                  _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
#define VEC_INTEGER(name, op)                                                                      \
    VEC_INLINE v16i v16i_##name(v16i x, v16i y)                                                    \
    {                                                                                              \
        return (v16i){op(x.a, y.a), op(x.b, y.b)};                                                 \
    }
VEC_INTEGER(add, _mm256_add_epi32)
VEC_INTEGER(sub, _mm256_sub_epi32)
VEC_INTEGER(xor, _mm256_xor_si256)
#define VEC_SHIFT(name, op)                                                                        \
    VEC_INLINE v16i v16i_##name(v16i v, int by)                                                    \
    {                                                                                              \
        return (v16i){op(v.a, _mm_cvtsi32_si128(by)), op(v.b, _mm_cvtsi32_si128(by))};             \
    }
VEC_SHIFT(sll, _mm256_sll_epi32)
VEC_SHIFT(srl, _mm256_srl_epi32)
VEC_SHIFT(sra, _mm256_sra_epi32)
VEC_INLINE void vec_mul_wide(__m256i v, __m256i m, __m256i *hi, __m256i *lo)
{
    __m256i even = _mm256_mul_epu32(v, m);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
    *hi = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *lo = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
VEC_INLINE void v16i_mul_wide(v16i v, uint32_t by, v16i *hi, v16i *lo)
{
    const __m256i m = _mm256_set1_epi32((int32_t)by);
    vec_mul_wide(v.a, m, &hi->a, &lo->a);
    vec_mul_wide(v.b, m, &hi->b, &lo->b);
}
/* Probability mass in units of 2^-40, cut off; p <= 1. The integer part of a double below 2^52 is
 * read off its low bits after adding 2^52. */
typedef struct {
    __m256i q[4];
} v16m;
VEC_INLINE v16m v16m_zero(void)
{
    const __m256i zero = _mm256_setzero_si256();
    return (v16m){{zero, zero, zero, zero}};
}
VEC_INLINE __m256i vec_mass(__m128 p)
{
    const __m256d base = _mm256_set1_pd(0x1p52);
    __m256d units = _mm256_mul_pd(_mm256_cvtps_pd(p), _mm256_set1_pd(0x1p40));
    units = _mm256_round_pd(units, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(units, base)),
                            _mm256_castpd_si256(base));
}
VEC_INLINE v16m v16_mass(v16 p)
{
    return (v16m){{vec_mass(_mm256_castps256_ps128(p.a)), vec_mass(_mm256_extractf128_ps(p.a, 1)),
                   vec_mass(_mm256_castps256_ps128(p.b)), vec_mass(_mm256_extractf128_ps(p.b, 1))}};
}
VEC_INLINE v16m v16m_add(v16m sum, v16m m, unsigned bits)
{
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i set = _mm256_and_si256(_mm256_set1_epi64x((int64_t)(bits >> 4 * i)), lane);
        __m256i keep = _mm256_cmpeq_epi64(set, lane);
        sum.q[i] = _mm256_add_epi64(sum.q[i], _mm256_and_si256(m.q[i], keep));
    }
    return sum;
}
VEC_INLINE uint64_t v16m_sum(v16m m)
{
    uint64_t lane[4];
    __m256i all =
        _mm256_add_epi64(_mm256_add_epi64(m.q[0], m.q[1]), _mm256_add_epi64(m.q[2], m.q[3]));
    _mm256_storeu_si256((__m256i *)(void *)lane, all);
    return lane[0] + lane[1] + lane[2] + lane[3];
}
VEC_INLINE void vec_transpose8(__m256 r[8])
{
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}
/* Four 8 x 8 corners; the two off the diagonal change places. */
VEC_INLINE void v16_transpose(v16 r[16])
{
    __m256 nw[8], ne[8], sw[8], se[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        nw[i] = r[i].a;
        ne[i] = r[i].b;
        sw[i] = r[i + 8].a;
        se[i] = r[i + 8].b;
    }
    vec_transpose8(nw);
    vec_transpose8(ne);
    vec_transpose8(sw);
    vec_transpose8(se);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = (v16){nw[i], sw[i]};
        r[i + 8] = (v16){ne[i], se[i]};
    }
}
#undef VEC_BINARY
#undef VEC_INTEGER
#undef VEC_SHIFT
