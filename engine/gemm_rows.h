/* gemm_rows: the buckets that the CUDA backend's products run in, and how many plans they make.
 * Pure numbers: no CUDA is needed. */
#ifndef TRANCHE_ENGINE_GEMM_ROWS_H
#define TRANCHE_ENGINE_GEMM_ROWS_H

#include "engine/base.h"

enum {
    CUDA_STEP_TOKENS_MAX = 32768,
    PLANS_MAX = 1280, /* what cuda_gemm_plans gives at most, and some room */
};

/* Rows that a product of m >= 1 rows computes: a step of 700 rows runs as 704. The rows past the
 * end are computed and unused; a row's bits do not depend on the bucket. */
int64_t cuda_gemm_rows(int64_t m);
/* The most plans that one model makes: each of its products in each bucket, steps of at most
 * rows_cap rows and logits_cap logit rows at once. */
int64_t cuda_gemm_plans(int64_t rows_cap, int64_t logits_cap);

#endif
