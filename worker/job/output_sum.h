/* output_sum: the sum of rows' output hashes as 256-bit little-endian numbers: the same whatever
 * the order of the rows. */
#ifndef TRANCHE_WORKER_JOB_OUTPUT_SUM_H
#define TRANCHE_WORKER_JOB_OUTPUT_SUM_H

#include "engine/base.h"

static inline void output_sum_add(uint8_t sum[32], const uint8_t more[32])
{
    unsigned carry = 0;
    for (int i = 0; i < 32; i++) {
        carry += (unsigned)sum[i] + more[i];
        sum[i] = (uint8_t)carry;
        carry >>= 8;
    }
}

/* 64 hex digits; shorter text leaves zeros behind it. */
static inline void output_sum_parse(struct str hex, uint8_t out[32])
{
    memset(out, 0, 32);
    for (size_t i = 0; i < TR_MIN(hex.len, 64); i++) {
        int digit = hex.ptr[i] <= '9' ? hex.ptr[i] - '0' : (hex.ptr[i] | 32) - 'a' + 10;
        out[i / 2] = (uint8_t)(out[i / 2] << 4 | (digit & 15));
    }
}

#endif
