/* gemm_rows: see gemm_rows.h. */
#include "engine/gemm_rows.h"

enum {
    PRODUCTS = 4,      /* of a layer: qkv, o, gate_up, down; the head is apart */
    ALWAYS_ROWS = 256, /* plans up to here are made however small the steps are */
    NARROW = 64,       /* buckets up to here are multiples of 16 */
    MIDDLE = 1024,     /* of 64; wider ones of 128: 2,816 is a multiple of it */
    NARROW_STEP = 16,
    MIDDLE_STEP = 64,
    WIDE_STEP = 128,
};

int64_t cuda_gemm_rows(int64_t m)
{
    const int64_t step = m <= NARROW ? NARROW_STEP : m <= MIDDLE ? MIDDLE_STEP : WIDE_STEP;
    return (m + step - 1) / step * step;
}

static int64_t buckets(int64_t most)
{
    const int64_t narrow = TR_MIN(cuda_gemm_rows(most), NARROW);
    const int64_t middle = TR_MIN(cuda_gemm_rows(most), MIDDLE);
    const int64_t wide = TR_MAX(cuda_gemm_rows(most), MIDDLE);
    return narrow / NARROW_STEP + TR_MAX(middle - NARROW, 0) / MIDDLE_STEP +
           (wide - MIDDLE) / WIDE_STEP;
}

int64_t cuda_gemm_plans(int64_t rows_cap, int64_t logits_cap)
{
    return PRODUCTS * buckets(TR_MAX(rows_cap, ALWAYS_ROWS)) + buckets(logits_cap);
}
