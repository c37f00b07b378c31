/* attention_decode: what a warp computes of its spans, over a ring of chunks that the kernel's form
 * brings (attention_decode.cu: Hopper's bulk copies; attention_decode_portable.cu: cp.async). A
 * ring R hands out a chunk in R::TURNS equal pieces of its head dims: wait() the next one's shared
 * address, done(of_all) when it has been read. */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_DECODE_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "attention_columns.cuh"
#include "attention_span.cuh"

template <int DH>
DEVICE void load_queries(uint32_t (&q)[DH / 16][2], const struct attention_cuda &a, const span &s,
                         int group)
{
    const int lane = threadIdx.x & 31;
    const bf16 *in = a.qkv + (int64_t)s.row * a.qkv_stride + (s.head * group + (lane >> 2)) * DH +
                     (lane & 3) * 2;
    const bool has = (lane >> 2) < group;
#pragma unroll
    for (int kk = 0; kk < DH / 16; kk++) {
        q[kk][0] = has ? *reinterpret_cast<const uint32_t *>(in + kk * 16) : 0u;
        q[kk][1] = has ? *reinterpret_cast<const uint32_t *>(in + kk * 16 + 8) : 0u;
    }
}

/* s^T of the split: s[tile of 16 keys] = (key g, head 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1), masked.
 */
template <int DH, class R>
DEVICE void scores(float (&s)[SPLIT_KEYS / 16][4], const uint32_t (&q)[DH / 16][2], R &tiles,
                   const part &p)
{
    constexpr int STEPS = DH / 16 / R::TURNS;
    const int lane = threadIdx.x & 31;
    const lane_offsets<DH> rows(lane & 15, lane >> 4);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float(&d)[4] = s[2 * c], (&e)[4] = s[2 * c + 1];
        d[0] = d[1] = d[2] = d[3] = e[0] = e[1] = e[2] = e[3] = 0.f;
        if (c < p.first_chunk() || c > p.last_chunk())
            continue;
#pragma unroll
        for (int turn = 0; turn < R::TURNS; turn++) {
            const uint32_t base = tiles.wait();
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                const int kk = turn * STEPS + i;
                uint32_t k[2][4];
#pragma unroll
                for (int half = 0; half < 2; half++)
                    load_matrix_x4(k[half], base + rows.of(half, i));
                mma_bf16(d, k[0], q[kk][0], q[kk][1]);
                mma_bf16(e, k[1], q[kk][0], q[kk][1]);
            }
            tiles.done(__float_as_uint(d[0]) | __float_as_uint(e[0]));
        }
    }
    if (p.lo % SPLIT_KEYS == 0 && p.hi % SPLIT_KEYS == 0)
        return;
#pragma unroll
    for (int n = 0; n < SPLIT_KEYS / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = p.lo / SPLIT_KEYS * SPLIT_KEYS + n * 16 + (lane >> 2) + (i >> 1) * 8;
            s[n][i] = key >= p.lo && key < p.hi ? s[n][i] : -INFINITY;
        }
}

/* Rows past the end hold what the ring had before: 0 * NaN is NaN. */
template <int DH, class R> DEVICE void clear_tail(uint32_t base, int valid)
{
    constexpr int PIECES = DH / 8 / R::TURNS; /* of a row */
    for (int i = threadIdx.x & 31; i < (CHUNK_KEYS - valid) * PIECES; i += 32)
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};\n" ::"r"(
                         base + chunk_offset<DH>(valid + i / PIECES, i % PIECES)),
                     "r"(0)
                     : "memory");
    R::cleared();
    __syncwarp();
}

template <int DH, class R>
DEVICE void split_decode(state<DH> &out, const uint32_t (&q)[DH / 16][2], R &tiles, const part &at,
                         float scale_log2)
{
    constexpr int STEPS = DH / 16 / R::TURNS;
    const int lane = threadIdx.x & 31;
    const lane_offsets<DH> rows((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    uint32_t p[SPLIT_KEYS / 16][2];
    {
        float s[SPLIT_KEYS / 16][4];
        scores<DH>(s, q, tiles, at);
        out.clear();
        probabilities<DH>(p, out, s, scale_log2);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (c < at.first_chunk() || c > at.last_chunk())
            continue;
#pragma unroll
        for (int turn = 0; turn < R::TURNS; turn++) {
            const uint32_t base = tiles.wait();
            if (c == at.last_chunk() && at.hi % CHUNK_KEYS != 0)
                clear_tail<DH, R>(base, at.hi % CHUNK_KEYS);
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < STEPS; i++) {
                    const int n = turn * STEPS + i;
                    uint32_t v[4];
                    load_matrix_x4_trans(v, base + rows.of(half, i));
                    mma_bf16(out.o[n], v, p[c * 2 + half][0], p[c * 2 + half][1]);
                }
            uint32_t of_all = 0;
#pragma unroll
            for (int i = 0; i < STEPS; i++)
                of_all |= __float_as_uint(out.o[turn * STEPS + i][0]);
            tiles.done(of_all);
        }
    }
}

template <int DH>
DEVICE void row_write(const state<DH> &st, const struct attention_cuda &a, const span &s, int group)
{
    const int lane = threadIdx.x & 31, h = lane >> 2;
    bf16 *out = a.out + ((int64_t)s.row * a.n_heads + s.head * group + h) * DH + (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < DH / 16; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t pair =
                transpose_8x8(pack_bf16(__fdividef(st.o[n][half * 2], st.l[0]),
                                        __fdividef(st.o[n][half * 2 + 1], st.l[1])));
            if (h < group)
                *reinterpret_cast<uint32_t *>(out + n * 16 + half * 8) = pair;
        }
}

/* `begins`: a block of keys, rather than going on with the one of the partial before. */
template <int DH> DEVICE void partial_write(const state<DH> &st, float *partial, bool begins)
{
    const int g = (threadIdx.x & 31) >> 2, h = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float *to = partial + (h + r) * chunk_layout<DH>::STATE_FLOATS;
#pragma unroll
        for (int n = 0; n < DH / 16; n++) {
            to[n * 16 + g] = st.o[n][r];
            to[n * 16 + 8 + g] = st.o[n][2 + r];
        }
        if (g == 0) {
            to[DH] = st.m[r];
            to[DH + 1] = st.l[r];
            to[DH + 2] = begins ? 1.f : 0.f;
        }
    }
}
/* Heads beyond the group get a state that nobody reads. */
template <int DH> DEVICE void partial_read(state<DH> &st, const float *partial, int group)
{
    const int g = (threadIdx.x & 31) >> 2, h = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const bool has = h + r < group;
        const float *from = partial + (h + r) * chunk_layout<DH>::STATE_FLOATS;
#pragma unroll
        for (int n = 0; n < DH / 16; n++) {
            st.o[n][r] = has ? __ldcg(from + n * 16 + g) : 0.f;
            st.o[n][2 + r] = has ? __ldcg(from + n * 16 + 8 + g) : 0.f;
        }
        st.m[r] = has ? __ldcg(from + DH) : -INFINITY;
        st.l[r] = has ? __ldcg(from + DH + 1) : 0.f;
    }
}

/* States of a row so far: over whole blocks, and over the block that is under way. */
template <int DH> struct row_state {
    state<DH> total, block;
    bool has_total, has_block;

    METHOD void add(const state<DH> &part, float scale_log2)
    {
        if (has_block)
            block.merge(part, scale_log2);
        else
            block = part;
        has_block = true;
    }
    METHOD void close_block(float scale_log2)
    {
        if (has_block && has_total)
            total.merge(block, scale_log2);
        else if (has_block)
            total = block;
        has_total = has_total || has_block;
        has_block = false;
    }
    /* The blocks before the span's first split: whole ones, and the one that is begun. */
    METHOD void begin(const struct attention_cuda &a, const span &s, int group)
    {
        total.clear();
        has_total = has_block = false;
        if (s.prefix < 0)
            return;
#pragma unroll 1
        for (int i = 0; i * BLOCK_SPLITS < s.split; i++) {
            partial_read<DH>(block, partial_at<DH>(a, s.prefix + i), group);
            has_block = __any_sync(0xffffffffu, block.m[0] > -INFINITY); /* a window may hide it */
            if ((i + 1) * BLOCK_SPLITS <= s.split)
                close_block(a.scale_log2);
        }
    }
    /* n states: the total, and behind it the block under way. */
    METHOD void write(const struct attention_cuda &a, int partial, int n, bool begins)
    {
        if (!has_block)
            block.clear();
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            partial_write<DH>(total, partial_at<DH>(a, partial + i), begins);
            total = block;
        }
        total.clear();
        has_total = has_block = false;
    }
};

template <int DH, class R>
DEVICE void span_run(const struct attention_cuda &a, const span &s, R &tiles, int group)
{
    uint32_t q[DH / 16][2];
    row_state<DH> row;
    int partial = s.partial;
    /* A later span's splits of a block that an earlier one began stay apart: merges go left to
     * right. */
    const int apart = s.first() ? 0 : (s.split + BLOCK_SPLITS - 1) / BLOCK_SPLITS * BLOCK_SPLITS;
    load_queries<DH>(q, a, s, group);
    row.begin(a, s, group);
#pragma unroll 1
    for (int split = s.split; split < s.end; split++) {
        const part p(s, split, a.window);
        if (!p.empty()) {
            state<DH> one;
            split_decode<DH>(one, q, tiles, p, a.scale_log2);
            row.add(one, a.scale_log2);
        }
        const bool ends = split % BLOCK_SPLITS == BLOCK_SPLITS - 1, last = split + 1 == s.end;
        if (!ends && !last && split >= apart)
            continue;
        /* One place for each of these: the loop must stay in the instruction cache. */
        const bool closes = ends || !s.first() || partial < 0 || s.end < BLOCK_SPLITS;
        if (closes)
            row.close_block(a.scale_log2);
        if (s.first() && (!last || partial < 0))
            continue;
        row.write(a, partial, closes ? 1 : 2, split >= apart);
        partial++;
    }
    if (s.first() && s.partial < 0)
        row_write<DH>(row.total, a, s, group);
}

#endif
