/* attention: the one split arithmetic (device side), used by the decode and the prefill kernel, so
 * a token's attention has the same bits through either.
 *
 * Spec. Keys are cut at absolute positions into splits of 128. Of one split and one query row:
 *   s_j = q . k_j (bf16 products, fp32 accumulation over head dims in steps of 16)
 *   m = max s_j over visible keys;  p_j = exp2(s_j * c - m * c), c = log2(e) / sqrt(Dh)
 *   l = sum p_j (fp32, unrounded: keys with equal j mod 8 from left to right, then the tree
 *       ((0+1)+(2+3))+((4+5)+(6+7)) over j mod 8);  O = sum bf16(p_j) v_j (fp32, keys in steps of
 * 16) States (m, l, O) merge by merge(): splits left to right within a block of 512 keys, blocks
 * left to right. A split without visible keys is the empty state, and merge(a, empty) = a exactly.
 */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_CUH

#include "common.cuh"

enum { SPLIT_KEYS = 128, CHUNK_KEYS = 32, CHUNKS = SPLIT_KEYS / CHUNK_KEYS, BLOCK_KEYS = 512 };

/* K and V rows stand in pages with their 16-byte pieces XOR-swizzled by the row (written so by
 * rope_kv): piece i of row r lies at i ^ (r & 7), & 3 where a row has only four. A linear copy to
 * shared memory then reads without conflicts (two-way with four pieces). */
template <int DH> DEVICE uint32_t tile_address(uint32_t base, int row, int piece)
{
    return base + static_cast<uint32_t>(row * DH * 2 + ((piece ^ (row & (DH >= 64 ? 7 : 3))) << 4));
}

/* Weights of a merge; a state without keys has m = -inf and is left out exactly. */
struct merge_weights {
    float m, a, b;
};
DEVICE merge_weights merge_of(float ma, float mb, float scale_log2)
{
    merge_weights w;
    w.m = fmaxf(ma, mb);
    w.a = ma == -INFINITY ? 0.f : exp2f(__fmul_rn(__fsub_rn(ma, w.m), scale_log2));
    w.b = mb == -INFINITY ? 0.f : exp2f(__fmul_rn(__fsub_rn(mb, w.m), scale_log2));
    return w;
}
DEVICE float merge_value(float va, float vb, float ma, float mb, const merge_weights &w)
{
    if (mb == -INFINITY)
        return va;
    if (ma == -INFINITY)
        return vb;
    return __fmaf_rn(vb, w.b, __fmul_rn(va, w.a));
}

/* One warp, 16 query rows, one split. Lane (g = lane / 4, t = lane % 4) holds rows g and g + 8:
 * index 0 and 1 of lo, hi, m, l. Visible keys of row i: lo[i] <= key < hi[i] (absolute).
 * tiles.k(c) / tiles.v(c) wait for chunk c (32 keys) and return its shared address; tiles.done()
 * says that the warp has read it. Chunks outside [chunk_lo, chunk_hi) hold no visible key of any
 * row. */
template <int DH, class Tiles>
DEVICE void split_run(const uint32_t (&q)[DH / 16][4], Tiles &tiles, int key0, const int (&lo)[2],
                      const int (&hi)[2], int chunk_lo, int chunk_hi, float scale_log2,
                      float (&o)[DH / 8][4], float (&m)[2], float (&l)[2])
{
    const int lane = threadIdx.x & 31;
    float s[SPLIT_KEYS / 8][4];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const bool live = c >= chunk_lo && c < chunk_hi;
        const uint32_t base = live ? tiles.k(c) : 0u;
#pragma unroll
        for (int nt = 0; nt < CHUNK_KEYS / 8; nt++) {
            float(&d)[4] = s[c * (CHUNK_KEYS / 8) + nt];
            d[0] = d[1] = d[2] = d[3] = 0.f;
            if (!live)
                continue;
#pragma unroll
            for (int kk = 0; kk < DH / 32; kk++) {
                uint32_t b[4];
                load_matrix_x4(b,
                               tile_address<DH>(base, nt * 8 + (lane & 7), kk * 4 + (lane >> 3)));
                mma_bf16(d, q[2 * kk], b[0], b[1]);
                mma_bf16(d, q[2 * kk + 1], b[2], b[3]);
            }
        }
        if (live)
            tiles.done();
    }
    m[0] = m[1] = -INFINITY;
#pragma unroll
    for (int n = 0; n < SPLIT_KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = key0 + n * 8 + (lane & 3) * 2 + (i & 1), r = i >> 1;
            s[n][i] = key >= lo[r] && key < hi[r] ? s[n][i] : -INFINITY;
            m[r] = fmaxf(m[r], s[n][i]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        m[r] = fmaxf(m[r], __shfl_xor_sync(0xffffffffu, m[r], 1));
        m[r] = fmaxf(m[r], __shfl_xor_sync(0xffffffffu, m[r], 2));
    }
    uint32_t p[SPLIT_KEYS / 16][4];
    float odd[2] = {0.f, 0.f};
    l[0] = l[1] = 0.f;
#pragma unroll
    for (int n = 0; n < SPLIT_KEYS / 8; n++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float shift = m[r] == -INFINITY ? 0.f : __fmul_rn(m[r], scale_log2);
            const float p0 = exp2f(__fmaf_rn(s[n][2 * r], scale_log2, -shift));
            const float p1 = exp2f(__fmaf_rn(s[n][2 * r + 1], scale_log2, -shift));
            l[r] = __fadd_rn(l[r], p0);
            odd[r] = __fadd_rn(odd[r], p1);
            p[n / 2][(n & 1) * 2 + r] = pack_bf16(p0, p1);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] = __fadd_rn(l[r], odd[r]);
        l[r] = __fadd_rn(l[r], __shfl_xor_sync(0xffffffffu, l[r], 1));
        l[r] = __fadd_rn(l[r], __shfl_xor_sync(0xffffffffu, l[r], 2));
    }
#pragma unroll
    for (int n = 0; n < DH / 8; n++)
        o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (c < chunk_lo || c >= chunk_hi)
            continue;
        const uint32_t base = tiles.v(c);
#pragma unroll
        for (int kk = 0; kk < CHUNK_KEYS / 16; kk++)
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                uint32_t b[4];
                load_matrix_x4_trans(
                    b, tile_address<DH>(base, kk * 16 + (lane & 15), n * 2 + (lane >> 4)));
                mma_bf16(o[2 * n], p[c * (CHUNK_KEYS / 16) + kk], b[0], b[1]);
                mma_bf16(o[2 * n + 1], p[c * (CHUNK_KEYS / 16) + kk], b[2], b[3]);
            }
        tiles.done();
    }
}

#endif
