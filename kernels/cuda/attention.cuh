/* attention: what the decode and the tile kernel share, so that a token's attention has the same
 * bits through either, and through a prefix that a group of rows shares.
 *
 * Spec. Keys are cut at absolute positions into splits of 128. Of one split and one query row:
 *   s_j = q . k_j (bf16 products, fp32 accumulation over head dims in steps of 16)
 *   m = max s_j over visible keys;  p_j = exp2(s_j * c - m * c), c = log2(e) / sqrt(Dh)
 *   l = sum p_j (fp32, unrounded: keys with equal j mod 8 from left to right, then the tree
 *       ((0+1)+(2+3))+((4+5)+(6+7)) over j mod 8)
 *   O = sum bf16(p_j) v_j (fp32, keys in steps of 16)
 * States (m, l, O) merge by merge_of and merge_value: splits left to right within a block of 512
 * keys, blocks left to right. A split without visible keys is the empty state, and
 * merge(a, empty) = a exactly.
 *
 * A page holds, per kv head, K then V of 64 tokens in two chunks of 32: rows of at most 128 bytes
 * (a head of 128 dims: its first halves, then its second halves), their 16-byte pieces swizzled as
 * wgmma reads them. A chunk is contiguous, so one bulk copy brings it. */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_CUH

#include "common.cuh"
#include "kernels/kernels_cuda.h"

enum {
    PAGE_KEYS = 64,
    CHUNK_KEYS = 32,
    SPLIT_KEYS = 128,
    BLOCK_KEYS = 512,
    CHUNKS = SPLIT_KEYS / CHUNK_KEYS,
    BLOCK_SPLITS = BLOCK_KEYS / SPLIT_KEYS,
    GROUP_MAX = 8, /* query heads of a kv head */
};

template <int DH> struct chunk_layout {
    enum {
        ROW_BYTES = DH >= 64 ? 128 : DH * 2,
        PIECES = ROW_BYTES / 16, /* of a row */
        PARTS = DH * 2 / ROW_BYTES,
        PART_BYTES = CHUNK_KEYS * ROW_BYTES,
        BYTES = PARTS * PART_BYTES,
        STATE_FLOATS = DH + 8, /* of one head in struct attention_cuda's partial: O, m, l, - */
    };
};

/* Bytes from a chunk's begin to a piece (of 16 bytes) of a row. */
template <int DH> DEVICE int chunk_offset(int row, int piece)
{
    typedef chunk_layout<DH> at;
    const int turn = DH >= 64 ? row & 7 : (row >> 1) & 3;
    return piece / at::PIECES * at::PART_BYTES + row * at::ROW_BYTES +
           (((piece % at::PIECES) ^ turn) << 4);
}

/* exp2 to 2 ulp; below 2^-126 it is 0. */
DEVICE float exp2_of(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* Weights of a merge; a state without keys has m = -inf and is left out exactly. */
struct merge_weights {
    float m, a, b;
};
DEVICE merge_weights merge_of(float ma, float mb, float scale_log2)
{
    merge_weights w;
    w.m = fmaxf(ma, mb);
    w.a = ma == -INFINITY ? 0.f : exp2_of(__fmul_rn(__fsub_rn(ma, w.m), scale_log2));
    w.b = mb == -INFINITY ? 0.f : exp2_of(__fmul_rn(__fsub_rn(mb, w.m), scale_log2));
    return w;
}
/* Of two states with keys. */
DEVICE float merge_full(float va, float vb, const merge_weights &w)
{
    return __fmaf_rn(vb, w.b, __fmul_rn(va, w.a));
}
DEVICE float merge_value(float va, float vb, float ma, float mb, const merge_weights &w)
{
    if (mb == -INFINITY)
        return va;
    if (ma == -INFINITY)
        return vb;
    return merge_full(va, vb, w);
}

/* The i-th of the states in struct attention_cuda's partial. */
template <int DH> DEVICE float *partial_at(const struct attention_cuda &a, int i)
{
    return a.partial + (int64_t)i * GROUP_MAX * chunk_layout<DH>::STATE_FLOATS;
}

#endif
