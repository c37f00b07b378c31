/* kernels_cuda: every CUDA launcher, C linkage. Asynchronous on `stream` (cudaStream_t); each
 * returns a cudaError_t as int, 0 on success. bf16 activations, fp32 logits. The rounding points
 * and the row-independence rule are those of kernels.h. */
#ifndef TRANCHE_KERNELS_CUDA_H
#define TRANCHE_KERNELS_CUDA_H

#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
typedef __nv_bfloat16 bf16;
#else
typedef uint16_t bf16; /* the host only passes pointers on */
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Attention over paged keys (attention.cuh has the layout and the arithmetic). Work lists are built
 * by the host. A packed row is token * group + head, group = query heads of a kv head.
 * Decode: worker w of 4 * grid walks spans decode_starts[w] .. [w + 1]; a span is two int4, (row,
 * kv head, first split of 128 keys, last + 1) and (keys of the row, slot, partial or -1 when the
 * span is the whole row, prefix: first of the partials that hold the blocks before the first split,
 * -1: none, -2: the span is not the row's first). A cut row's states stand at consecutive places
 * in the order of its keys, each marked when it begins a block of 512 keys: of the first span its
 * whole blocks merged, if it has any, and the block it begins; of later spans each split of a block
 * that an earlier one began, then one state a block. merges[n_merges] = (row, kv head, first
 * partial, partials).
 * Tiles: CTA c walks tiles tile_starts[c] .. [c + 1]; a tile is two int4, (first row, first packed
 * row, rows | first split << 8, kv head) and (keys, slot, -1, -) for at most 128 packed rows of one
 * sequence, written to out; or, for the shared prefix of many, (first of tile_rows, 0, as before,
 * as before) and (keys, a slot with these pages, partial, partials a row) for one block of keys:
 * the state of row i goes to partial + i * partials a row. */
struct attention_cuda {
    bf16 *out;       /* [T, H*Dh] */
    const bf16 *qkv; /* [T, qkv_stride] */
    const bf16 *kv;  /* this layer's arena */
    const int32_t *position, *slot, *block_table;
    const int4 *decode, *merges, *tiles;
    const int32_t *decode_starts;           /* [4 * grid + 1] */
    const int32_t *tile_starts, *tile_rows; /* [grid + 1] */
    float *partial;                         /* [partials][8][Dh + 8] */
    float *totals;                          /* of the portable tiles: [grid][128][Dh + 16] */
    int32_t qkv_stride, block_table_stride, n_heads, n_kv_heads, window;
    float scale_log2;
};
/* deep: few workers with many loads under way each, for one CTA a multiprocessor; else two fit. */
int attention_decode_cuda(const struct attention_cuda *a, int head_dim, int grid, int deep,
                          void *stream);
int attention_merge_cuda(const struct attention_cuda *a, int head_dim, int n_merges, void *stream);
int attention_tile_cuda(const struct attention_cuda *a, int head_dim, int grid, void *stream);
/* Loads what the launchers above may choose for this head_dim onto the current device, which would
 * else be done by the step that first needs it, in the memory that is left then. */
int attention_decode_ready_cuda(int head_dim);
int attention_merge_ready_cuda(int head_dim);
/* The same work and bits on any card of compute capability 8.0 or later; those above: 9.0 alone. */
int attention_decode_portable_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                   void *stream);
int attention_tile_portable_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                 void *stream);

/* out[t, d] = table[tokens[i]]; a token < 0 stands for last[slot[i]], the id that slot sampled
 * last. */
int embed_cuda(bf16 *out, const bf16 *table, const int32_t *tokens, const int32_t *slot,
               const int32_t *last, int t, int d, void *stream);
/* rows: null, or the row of x for each output row. d is a multiple of 8. */
int rmsnorm_cuda(bf16 *out, const bf16 *x, const float *w, float eps, int t, int d,
                 const int32_t *rows, void *stream);
int swiglu_cuda(bf16 *out, const bf16 *gate_up, int t, int f, void *stream);

/* out[t, f] = silu(x . w[0:f]^T) * (x . w[f:2f]^T), bf16, the rounding of a product and
 * swiglu_cuda. f is a multiple of 128, k of 64 and at least 512. Rows are computed by 256: x and
 * out have as many as that takes.
 */
int gemm_swiglu_cuda(bf16 *out, const bf16 *x, const bf16 *w, int t, int f, int k, int n_sms,
                     void *stream);

/* out[rows, n] = round(x . w^T + bias), and with a residual round(that + residual), for at most
 * THIN_ROWS_MAX rows. bias [n] and residual [rows, n] may be null, residual may be out; n is a
 * multiple of 16, k of 64. May start, and read w, before the launch ahead of it has ended. */
enum { THIN_ROWS_MAX = 64 };
struct thin_product {
    const bf16 *bias, *residual;
    int32_t rows, n, k;
};
int gemm_thin_cuda(bf16 *out, const bf16 *x, const bf16 *w, const struct thin_product *p,
                   void *stream);

struct rope_cuda {
    bf16 *qkv, *kv;                         /* [t, (H+2G)*Dh]; this layer's arena */
    const float *cos_sin, *q_norm, *k_norm; /* as struct rope_args */
    const int32_t *position, *slot, *block_table;
    int32_t block_table_stride, t, n_heads, n_kv_heads;
    float eps;
};
int rope_kv_cuda(const struct rope_cuda *a, int head_dim, void *stream);
/* copies[n] = (page from, page to, tokens, -) on the device; all layers at once. */
int kv_copy_cuda(bf16 *kv, int64_t layer_elements, int n_layers, int n_kv_heads, int head_dim,
                 const int4 *copies, int n_copies, void *stream);

/* table[d.x] = d.y for each of the n deltas. */
int scatter_cuda(int32_t *table, const int2 *deltas, int n, void *stream);

/* *count += 16-byte pieces of a and b [pieces] that differ. */
int differ_cuda(const void *a, const void *b, int64_t pieces, int32_t *count, void *stream);

/* One logit row's wishes. slot -1: nothing is remembered (prompt logprobs: forced = the target). */
struct sample_cuda {
    float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    int32_t top_k, n_output, forced, n_top, slot;
    int32_t counts_row; /* row of counts with this slot's history; -1: no penalties */
    int32_t n_banned, n_bias;
    const int32_t *ids; /* device: banned ids, then biased ids */
    const float *bias;  /* device: [n_bias] */
    uint64_t rng_key;
    uint32_t choice;
};
/* logits and scratch [rows, stride] fp32; tokens [rows]; counts [rows of counts, v]; last [slots].
 */
int sample_cuda(const float *logits, float *scratch, int64_t stride, int v,
                const struct sample_cuda *params, struct sample_token *tokens, uint16_t *counts,
                int32_t *last, int rows, void *stream);
struct counts_cuda {
    const int32_t *ids; /* device: prompt ids, then generated ids */
    int32_t n_prompt, n_output, counts_row;
};
int counts_cuda(uint16_t *counts, int v, const struct counts_cuda *jobs, int n, void *stream);

#ifdef __cplusplus
}
#endif
#endif
