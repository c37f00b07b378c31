/* vec_plain: the sixteen lanes in plain C. Where the machine has no fused multiply-add, fmaf is a
 * library call: slow, but the same bits. */
#define VEC_REGISTERS 0

typedef struct {
    float f[16];
} v16;
typedef struct {
    uint32_t u[16];
} v16i;
#define VEC_EACH for (int lane = 0; lane < 16; lane++)

VEC_INLINE v16 v16_set1(float x)
{
    v16 r;
    VEC_EACH r.f[lane] = x;
    return r;
}
VEC_INLINE v16 v16_load(const float *p)
{
    v16 r;
    memcpy(r.f, p, sizeof r.f);
    return r;
}
VEC_INLINE void v16_store(float *p, v16 v)
{
    memcpy(p, v.f, sizeof v.f);
}
VEC_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    v16 r;
    VEC_EACH r.f[lane] = float_of_bf16(p[lane]);
    return r;
}
VEC_INLINE v16 v16_load_f16(const uint16_t *p)
{
    v16 r;
    VEC_EACH r.f[lane] = float_of_f16(p[lane]);
    return r;
}
/* Even (lo) and odd (hi) halves of 32 bf16: the packed order of a weight line. */
VEC_INLINE v16 v16_pair_lo(const uint16_t *p)
{
    v16 r;
    VEC_EACH r.f[lane] = float_of_bf16(p[2 * lane]);
    return r;
}
VEC_INLINE v16 v16_pair_hi(const uint16_t *p)
{
    v16 r;
    VEC_EACH r.f[lane] = float_of_bf16(p[2 * lane + 1]);
    return r;
}
#define VEC_BINARY(name, expr)                                                                     \
    VEC_INLINE v16 v16_##name(v16 x, v16 y)                                                        \
    {                                                                                              \
        v16 r;                                                                                     \
        VEC_EACH                                                                                   \
        {                                                                                          \
            float a = x.f[lane], b = y.f[lane];                                                    \
            r.f[lane] = (expr);                                                                    \
        }                                                                                          \
        return r;                                                                                  \
    }
VEC_BINARY(add, a + b)
VEC_BINARY(sub, a - b)
VEC_BINARY(mul, a *b)
VEC_BINARY(div, a / b)
VEC_BINARY(max, a > b ? a : b)
VEC_BINARY(min, a < b ? a : b)
VEC_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    v16 r;
    VEC_EACH r.f[lane] = fmaf(a.f[lane], b.f[lane], c.f[lane]);
    return r;
}
VEC_INLINE float v16_first(v16 v)
{
    return v.f[0];
}
VEC_INLINE float v16_sum(v16 v)
{
    for (int half = 8; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            v.f[lane] = v.f[lane] + v.f[lane + half];
    return v.f[0];
}
VEC_INLINE float v16_top(v16 v)
{
    float top = v.f[0];
    VEC_EACH top = v.f[lane] > top ? v.f[lane] : top;
    return top;
}
VEC_INLINE unsigned v16_gt(v16 a, v16 b)
{
    unsigned bits = 0;
    VEC_EACH bits |= (unsigned)(a.f[lane] > b.f[lane]) << lane;
    return bits;
}
VEC_INLINE unsigned v16_eq(v16 a, v16 b)
{
    unsigned bits = 0;
    VEC_EACH bits |= (unsigned)(a.f[lane] == b.f[lane]) << lane;
    return bits;
}
VEC_INLINE v16 v16_pick(unsigned bits, v16 yes, v16 no)
{
    v16 r;
    VEC_EACH r.f[lane] = bits >> lane & 1 ? yes.f[lane] : no.f[lane];
    return r;
}
VEC_INLINE v16 v16_round_bf16(v16 v)
{
    VEC_EACH v.f[lane] = float_rounded(v.f[lane], DTYPE_BF16);
    return v;
}
VEC_INLINE v16 v16_round_f16(v16 v)
{
    VEC_EACH v.f[lane] = float_rounded(v.f[lane], DTYPE_F16);
    return v;
}
VEC_INLINE void v16_store_bf16(uint16_t *p, v16 v)
{
    VEC_EACH p[lane] = bf16_of_float(v.f[lane]);
}
VEC_INLINE void v16_store_f16(uint16_t *p, v16 v)
{
    VEC_EACH p[lane] = f16_of_float(v.f[lane]);
}

VEC_INLINE v16i v16_bits(v16 v)
{
    v16i r;
    memcpy(&r, &v, sizeof r);
    return r;
}
VEC_INLINE v16 v16_of_bits(v16i v)
{
    v16 r;
    memcpy(&r, &v, sizeof r);
    return r;
}
VEC_INLINE v16 v16_of_int(v16i v)
{
    v16 r;
    VEC_EACH r.f[lane] = (float)(int32_t)v.u[lane];
    return r;
}
VEC_INLINE v16i v16i_set1(int32_t x)
{
    v16i r;
    VEC_EACH r.u[lane] = (uint32_t)x;
    return r;
}
VEC_INLINE v16i v16i_iota(void)
{
    v16i r;
    VEC_EACH r.u[lane] = (uint32_t)lane;
    return r;
}
#define VEC_INTEGER(name, expr)                                                                    \
    VEC_INLINE v16i v16i_##name(v16i x, v16i y)                                                    \
    {                                                                                              \
        v16i r;                                                                                    \
        VEC_EACH                                                                                   \
        {                                                                                          \
            uint32_t a = x.u[lane], b = y.u[lane];                                                 \
            r.u[lane] = (expr);                                                                    \
        }                                                                                          \
        return r;                                                                                  \
    }
VEC_INTEGER(add, a + b)
VEC_INTEGER(sub, a - b)
VEC_INTEGER(xor, a ^ b)
VEC_INLINE v16i v16i_sll(v16i v, int by)
{
    VEC_EACH v.u[lane] <<= by;
    return v;
}
VEC_INLINE v16i v16i_srl(v16i v, int by)
{
    VEC_EACH v.u[lane] >>= by;
    return v;
}
VEC_INLINE v16i v16i_sra(v16i v, int by)
{
    VEC_EACH v.u[lane] = (uint32_t)((int32_t)v.u[lane] >> by);
    return v;
}
VEC_INLINE void v16i_mul_wide(v16i v, uint32_t by, v16i *hi, v16i *lo)
{
    VEC_EACH
    {
        uint64_t product = (uint64_t)v.u[lane] * by;
        hi->u[lane] = (uint32_t)(product >> 32);
        lo->u[lane] = (uint32_t)product;
    }
}
/* Probability mass in units of 2^-40, cut off; p <= 1. */
typedef struct {
    uint64_t u[16];
} v16m;
VEC_INLINE v16m v16m_zero(void)
{
    return (v16m){{0}};
}
VEC_INLINE v16m v16_mass(v16 p)
{
    v16m r;
    VEC_EACH r.u[lane] = (uint64_t)(p.f[lane] * 0x1p40f);
    return r;
}
VEC_INLINE v16m v16m_add(v16m sum, v16m m, unsigned bits)
{
    VEC_EACH sum.u[lane] += bits >> lane & 1 ? m.u[lane] : 0;
    return sum;
}
VEC_INLINE uint64_t v16m_sum(v16m m)
{
    uint64_t sum = 0;
    VEC_EACH sum += m.u[lane];
    return sum;
}
VEC_INLINE void v16_transpose(v16 r[16])
{
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            float swap = r[i].f[j];
            r[i].f[j] = r[j].f[i];
            r[j].f[i] = swap;
        }
}
#undef VEC_BINARY
#undef VEC_INTEGER
#undef VEC_EACH
