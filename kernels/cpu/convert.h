/* convert: one fp32 value to and from bf16 and fp16, round to nearest even, every NaN to the one
 * quiet NaN. Plain C for layouts, tails and tests; the lanes of vec.h give the same bits. */
#ifndef TRANCHE_KERNELS_CPU_CONVERT_H
#define TRANCHE_KERNELS_CPU_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

static inline uint32_t bits_of_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float float_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline float float_of_bf16(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}
static inline uint16_t bf16_of_float(float f)
{
    uint32_t u = bits_of_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float float_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 31)
        return float_of_bits(sign | 0x7f800000u | (m << 13) | (m ? 0x400000u : 0));
    if (e == 0) { /* subnormal: m units of 2^-24, exact in fp32 */
        float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    return float_of_bits(sign | ((e + 112) << 23) | (m << 13));
}
static inline uint16_t f16_of_float(float f)
{
    uint32_t u = bits_of_float(f), a = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    if (a > 0x7f800000u)
        return 0x7e00;
    if (a >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 leaves a step of 2^-24, rounded by the FPU */
        float shifted = float_of_bits(a) + 0.5f;
        return (uint16_t)(sign | (bits_of_float(shifted) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13));
}

static inline float float_of(const void *p, int64_t at, enum dtype dtype)
{
    uint16_t h;
    if (dtype == DTYPE_F32) {
        float f;
        memcpy(&f, (const char *)p + at * 4, 4);
        return f;
    }
    memcpy(&h, (const char *)p + at * 2, 2);
    return dtype == DTYPE_BF16 ? float_of_bf16(h) : float_of_f16(h);
}
static inline float float_rounded(float f, enum dtype dtype)
{
    if (dtype == DTYPE_F32)
        return f;
    if (f != f)
        return float_of_bits(0x7fc00000u);
    return dtype == DTYPE_BF16 ? float_of_bf16(bf16_of_float(f)) : float_of_f16(f16_of_float(f));
}

#endif
