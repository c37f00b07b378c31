/* kv: where a token's key or value stands in a layer's pages: [page][G][K|V][64][Dh]. */
#ifndef TRANCHE_KERNELS_CPU_KV_H
#define TRANCHE_KERNELS_CPU_KV_H

#include "kernels/kernels.h"

/* side: 0 key, 1 value. */
static inline void *kv_page_row(const struct kv_layer *kv, int64_t page, int32_t g, int side,
                                int64_t token)
{
    int64_t row = ((page * kv->n_kv_heads + g) * 2 + side) * KV_PAGE_TOKENS + token;
    return (char *)kv->base + row * kv->head_dim * (int64_t)dtype_size(kv->dtype);
}
static inline void *kv_row(const struct kv_layer *kv, const struct kv_rows *rows, int64_t slot,
                           int32_t position, int32_t g, int side)
{
    const int32_t *table = rows->block_table + slot * rows->block_table_stride;
    return kv_page_row(kv, table[position / KV_PAGE_TOKENS], g, side, position % KV_PAGE_TOKENS);
}

#endif
