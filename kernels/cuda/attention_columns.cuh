/* attention_columns: query rows as the eight columns of the tensor-core tile, keys (then head dims)
 * as its sixteen rows: S^T = K Q^T and O^T = V^T P^T by mma.sync. Both decode kernels and the
 * portable tile kernel compute so: one instruction with one role for each operand, whatever the
 * card. */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_COLUMNS_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_COLUMNS_CUH

#include "attention.cuh"

DEVICE uint32_t transpose_8x8(uint32_t v)
{
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(r) : "r"(v));
    return r;
}

/* merge_of for merge_full alone, as exact as merge_value: a state without keys is +0 and weighs -0,
 * and x + -0 is x. */
DEVICE merge_weights merge_of_any(float ma, float mb, float scale_log2)
{
    merge_weights w = merge_of(ma, mb, scale_log2);
    w.b = mb == -INFINITY ? -0.f : w.b;
    w.a = ma != -INFINITY ? w.a : mb != -INFINITY ? -0.f : 1.f;
    return w;
}

/* Lane (g = lane / 4, t = lane % 4) holds heads 2t and 2t + 1 at dims g and g + 8 of each 16:
 * o[dim / 16] = (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1); m and l of its two heads. */
template <int DH> struct state {
    float o[DH / 16][4], m[2], l[2];

    METHOD void clear()
    {
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0.f;
#pragma unroll
        for (int n = 0; n < DH / 16; n++)
            o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.f;
    }
    /* Both have keys. (A head whose scores are all -inf has m = -inf: its weight is 0.) */
    METHOD void merge(const state &b, float scale_log2)
    {
#pragma unroll
        for (int r = 0; r < 2; r++)
            merge_row(r, b, merge_of(m[r], b.m[r], scale_log2));
    }
    /* Either may have none and is zero then. */
    METHOD void merge_any(const state &b, float scale_log2)
    {
#pragma unroll
        for (int r = 0; r < 2; r++)
            merge_row(r, b, merge_of_any(m[r], b.m[r], scale_log2));
    }
    METHOD void merge_row(int r, const state &b, const merge_weights &w)
    {
#pragma unroll
        for (int n = 0; n < DH / 16; n++) {
            o[n][r] = merge_full(o[n][r], b.o[n][r], w);
            o[n][2 + r] = merge_full(o[n][2 + r], b.o[n][2 + r], w);
        }
        l[r] = merge_full(l[r], b.l[r], w);
        m[r] = w.m;
    }
};

/* Where a lane's rows of a chunk begin for load_matrix: [i] for the 16-byte pieces 2i and 2i + 1 of
 * a row of at most 128 bytes, and the same further on for the parts and rows behind. */
template <int DH> struct lane_offsets {
    enum { N = chunk_layout<DH>::PIECES / 2 };
    uint32_t at[N];

    METHOD lane_offsets(int row, int piece)
    {
#pragma unroll
        for (int i = 0; i < N; i++)
            at[i] = chunk_offset<DH>(row, 2 * i + piece);
    }
    METHOD uint32_t of(int row16, int pair) const /* row16: 0 or 1; pair: pieces 2 pair, + 1 */
    {
        return at[pair % N] + pair / N * chunk_layout<DH>::PART_BYTES +
               row16 * 16 * chunk_layout<DH>::ROW_BYTES;
    }
};

/* p^T as the B operand of O^T = V^T P^T, and the split's m and l: see attention_tile for the order.
 */
template <int DH>
DEVICE void probabilities(uint32_t (&p)[SPLIT_KEYS / 16][2], state<DH> &out,
                          const float (&s)[SPLIT_KEYS / 16][4], float scale_log2)
{
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        out.m[r] = -INFINITY;
#pragma unroll
        for (int n = 0; n < SPLIT_KEYS / 16; n++)
            out.m[r] = fmaxf(out.m[r], fmaxf(s[n][r], s[n][2 + r]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            out.m[r] = fmaxf(out.m[r], __shfl_xor_sync(0xffffffffu, out.m[r], step));
        shift[r] = out.m[r] == -INFINITY ? 0.f : __fmul_rn(out.m[r], scale_log2);
        out.l[r] = 0.f;
    }
#pragma unroll
    for (int n = 0; n < SPLIT_KEYS / 16; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float e[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                e[r] = exp2_of(__fmaf_rn(s[n][half * 2 + r], scale_log2, -shift[r]));
                out.l[r] = __fadd_rn(out.l[r], e[r]);
            }
            p[n][half] = transpose_8x8(pack_bf16(e[0], e[1]));
        }
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            out.l[r] = __fadd_rn(out.l[r], __shfl_xor_sync(0xffffffffu, out.l[r], step));
}

#endif
