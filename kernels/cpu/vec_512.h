/* vec_512: the sixteen lanes as one AVX-512 register (F, BW, DQ, VL). */
#include <immintrin.h>
#define VEC_REGISTERS 32

typedef __m512 v16;
typedef __m512i v16i;

VEC_INLINE v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC_INLINE v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC_INLINE void v16_store(float *p, v16 v)
{
    _mm512_storeu_ps(p, v);
}
VEC_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
VEC_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
/* Even (lo) and odd (hi) halves of 32 bf16: the packed order of a weight line. */
VEC_INLINE v16 v16_pair_lo(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
VEC_INLINE v16 v16_pair_hi(const uint16_t *p)
{
    const __m512i high = _mm512_set1_epi32((int32_t)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
}
VEC_INLINE v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
VEC_INLINE v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
VEC_INLINE v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
VEC_INLINE v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
VEC_INLINE v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}
VEC_INLINE v16 v16_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}
VEC_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VEC_INLINE float v16_first(v16 v)
{
    return _mm512_cvtss_f32(v);
}
VEC_INLINE float v16_sum(v16 v)
{
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
VEC_INLINE float v16_top(v16 v)
{
    return _mm512_reduce_max_ps(v);
}
VEC_INLINE unsigned v16_gt(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}
VEC_INLINE unsigned v16_eq(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
VEC_INLINE v16 v16_pick(unsigned bits, v16 yes, v16 no)
{
    return _mm512_mask_blend_ps((__mmask16)bits, no, yes);
}
VEC_INLINE __m512i vec_round_bits(v16 v)
{
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_blend_epi32(nan, r, _mm512_set1_epi32(0x7fc00000));
}
VEC_INLINE v16 v16_round_bf16(v16 v)
{
    const __m512i high = _mm512_set1_epi32((int32_t)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(vec_round_bits(v), high));
}
VEC_INLINE __m256i vec_f16_bits(v16 v)
{
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    v = _mm512_mask_blend_ps(nan, v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_INLINE v16 v16_round_f16(v16 v)
{
    return _mm512_cvtph_ps(vec_f16_bits(v));
}
VEC_INLINE void v16_store_bf16(uint16_t *p, v16 v)
{
    __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(vec_round_bits(v), 16));
    _mm256_storeu_si256((__m256i *)p, h);
}
VEC_INLINE void v16_store_f16(uint16_t *p, v16 v)
{
    _mm256_storeu_si256((__m256i *)p, vec_f16_bits(v));
}

VEC_INLINE v16i v16_bits(v16 v)
{
    return _mm512_castps_si512(v);
}
VEC_INLINE v16 v16_of_bits(v16i v)
{
    return _mm512_castsi512_ps(v);
}
VEC_INLINE v16 v16_of_int(v16i v)
{
    return _mm512_cvtepi32_ps(v);
}
VEC_INLINE v16i v16i_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
VEC_INLINE v16i v16i_iota(void)
{
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
VEC_INLINE v16i v16i_add(v16i a, v16i b)
{
    return _mm512_add_epi32(a, b);
}
VEC_INLINE v16i v16i_sub(v16i a, v16i b)
{
    return _mm512_sub_epi32(a, b);
}
VEC_INLINE v16i v16i_xor(v16i a, v16i b)
{
    return _mm512_xor_si512(a, b);
}
VEC_INLINE v16i v16i_sll(v16i v, int by)
{
    return _mm512_sll_epi32(v, _mm_cvtsi32_si128(by));
}
VEC_INLINE v16i v16i_srl(v16i v, int by)
{
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(by));
}
VEC_INLINE v16i v16i_sra(v16i v, int by)
{
    return _mm512_sra_epi32(v, _mm_cvtsi32_si128(by));
}
VEC_INLINE void v16i_mul_wide(v16i v, uint32_t by, v16i *hi, v16i *lo)
{
    const __m512i m = _mm512_set1_epi32((int32_t)by);
    __m512i even = _mm512_mul_epu32(v, m);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), m);
    *hi = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    *lo = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}
/* Probability mass in units of 2^-40, cut off; p <= 1. */
typedef struct {
    __m512i a, b;
} v16m;
VEC_INLINE v16m v16m_zero(void)
{
    return (v16m){_mm512_setzero_si512(), _mm512_setzero_si512()};
}
VEC_INLINE v16m v16_mass(v16 p)
{
    v16 units = _mm512_mul_ps(p, _mm512_set1_ps(0x1p40f));
    return (v16m){_mm512_cvttps_epi64(_mm512_castps512_ps256(units)),
                  _mm512_cvttps_epi64(_mm512_extractf32x8_ps(units, 1))};
}
VEC_INLINE v16m v16m_add(v16m sum, v16m m, unsigned bits)
{
    return (v16m){_mm512_mask_add_epi64(sum.a, (__mmask8)bits, sum.a, m.a),
                  _mm512_mask_add_epi64(sum.b, (__mmask8)(bits >> 8), sum.b, m.b)};
}
VEC_INLINE uint64_t v16m_sum(v16m m)
{
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(m.a, m.b));
}
/* 16 x 16 in four rounds of pairwise exchange. */
VEC_INLINE void v16_transpose(v16 r[16])
{
    v16 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v16 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        v16 b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        v16 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        v16 d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}
