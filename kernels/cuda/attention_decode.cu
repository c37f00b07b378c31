/* attention_decode: one new token a sequence against its paged keys. Warps work in pairs, each pair
 * alone: it walks a list of spans (splits of one row and kv head, in order); one warp streams keys
 * and values by bulk copies through a ring of chunks, across splits and spans, the other keeps the
 * running state in registers. The query heads of a group are the eight columns of the tensor-core
 * tile, keys (then head dims) its sixteen rows: S^T = K Q^T and O^T = V^T P^T, so no row of the
 * tile is padding. The sums have the order of attention_tile: its bits. A row that shares a prefix
 * goes on from the states that attention_tile left of the prefix's blocks. A row that is cut over
 * several pairs meets through fp32 partials in attention_merge, in the order of the keys.
 *
 * Ladder and what was lost: SPEED.md. */
#include "attention.cuh"
#include "attention_span.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"
#include "wgmma.cuh"

enum {
    PAIRS = 4, /* of a CTA; two CTAs a multiprocessor */
    STAGES = 3,
    THREADS = 2 * PAIRS * 32,
};

/* The pair's ring of 32-key chunks: the K chunks of a split in order, then its V chunks. */
template <int DH> struct ring {
    enum { BYTES = chunk_layout<DH>::BYTES };
    uint32_t data, full, empty; /* shared addresses */
    uint32_t zero;              /* 0, which the compiler cannot know */
    int stage, turn;            /* the next one; how often the ring went round, mod 2 */

    METHOD void step()
    {
        stage++;
        if (stage == STAGES)
            stage = 0, turn ^= 1;
    }
    /* The consumer's side. */
    METHOD uint32_t wait() const
    {
        barrier_wait(full + stage * 8, turn);
        return data + stage * BYTES;
    }
    /* `of_all`: of results of all reads of the chunk. The arrival waits for them: one that was only
     * issued behind the reads overtook them (a row in some thousands got a later chunk's keys). */
    METHOD void done(uint32_t of_all)
    {
        barrier_arrive(empty + stage * 8 + (of_all & zero)); /* every lane for its own reads */
        step();
    }
    /* The producer's; one lane. */
    METHOD void load(const bf16 *src)
    {
        barrier_wait(empty + stage * 8, turn ^ 1);
        barrier_expect(full + stage * 8, BYTES);
        bulk_load(data + stage * BYTES, src, BYTES, full + stage * 8);
        step();
    }
};

/* ---- the producer: one lane ---- */
template <int DH>
DEVICE void produce(ring<DH> &tiles, const struct attention_cuda &a, int begin, int end)
{
#pragma unroll 1
    for (int i = begin; i < end; i++) {
        const span s = span_read(a, i);
        const int32_t *pages = a.block_table + (int64_t)s.slot * a.block_table_stride;
        const int last = (s.keys - 1) / PAGE_KEYS;
        int next0 = __ldg(pages + 2 * s.split), next1 = __ldg(pages + min(2 * s.split + 1, last));
#pragma unroll 1
        for (int split = s.split; split < s.end; split++) {
            const int page0 = next0, page1 = next1;
            const part p(s, split, a.window);
            next0 = __ldg(pages + min(2 * split + 2, last));
            next1 = __ldg(pages + min(2 * split + 3, last));
            if (p.empty())
                continue;
#pragma unroll 1
            for (int value = 0; value < 2; value++)
#pragma unroll 1
                for (int c = p.first_chunk(); c <= p.last_chunk(); c++)
                    tiles.load(a.kv +
                               ((int64_t)(c < 2 ? page0 : page1) * a.n_kv_heads + s.head) *
                                   (2 * PAGE_KEYS * DH) +
                               (value * PAGE_KEYS + (c & 1) * CHUNK_KEYS) * DH);
        }
    }
}

/* ---- the consumer ---- */
DEVICE uint32_t transpose_8x8(uint32_t v)
{
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(r) : "r"(v));
    return r;
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
        for (int r = 0; r < 2; r++) {
            const merge_weights w = merge_of(m[r], b.m[r], scale_log2);
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                o[n][r] = merge_full(o[n][r], b.o[n][r], w);
                o[n][2 + r] = merge_full(o[n][2 + r], b.o[n][2 + r], w);
            }
            l[r] = merge_full(l[r], b.l[r], w);
            m[r] = w.m;
        }
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
template <int DH>
DEVICE void scores(float (&s)[SPLIT_KEYS / 16][4], const uint32_t (&q)[DH / 16][2], ring<DH> &tiles,
                   const part &p)
{
    const int lane = threadIdx.x & 31;
    const lane_offsets<DH> rows(lane & 15, lane >> 4);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float(&d)[4] = s[2 * c], (&e)[4] = s[2 * c + 1];
        d[0] = d[1] = d[2] = d[3] = e[0] = e[1] = e[2] = e[3] = 0.f;
        if (c < p.first_chunk() || c > p.last_chunk())
            continue;
        const uint32_t base = tiles.wait();
#pragma unroll
        for (int kk = 0; kk < DH / 16; kk++) {
            uint32_t k[2][4];
#pragma unroll
            for (int half = 0; half < 2; half++)
                load_matrix_x4(k[half], base + rows.of(half, kk));
            mma_bf16(d, k[0], q[kk][0], q[kk][1]);
            mma_bf16(e, k[1], q[kk][0], q[kk][1]);
        }
        tiles.done(__float_as_uint(d[0]) | __float_as_uint(e[0]));
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

/* Rows past the end hold another sequence's values: 0 * NaN is NaN. */
template <int DH> DEVICE void clear_tail(uint32_t base, int valid)
{
    for (int i = threadIdx.x & 31; i < (CHUNK_KEYS - valid) * (DH / 8); i += 32)
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};\n" ::"r"(
                         base + chunk_offset<DH>(valid + i / (DH / 8), i % (DH / 8))),
                     "r"(0)
                     : "memory");
    fence_async_shared();
    __syncwarp();
}

template <int DH>
DEVICE void split_decode(state<DH> &out, const uint32_t (&q)[DH / 16][2], ring<DH> &tiles,
                         const part &at, float scale_log2)
{
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
        const uint32_t base = tiles.wait();
        if (c == at.last_chunk() && at.hi % CHUNK_KEYS != 0)
            clear_tail<DH>(base, at.hi % CHUNK_KEYS);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                uint32_t v[4];
                load_matrix_x4_trans(v, base + rows.of(half, n));
                mma_bf16(out.o[n], v, p[c * 2 + half][0], p[c * 2 + half][1]);
            }
        uint32_t of_all = 0;
#pragma unroll
        for (int n = 0; n < DH / 16; n++)
            of_all |= __float_as_uint(out.o[n][0]);
        tiles.done(of_all);
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

template <int DH>
DEVICE void span_run(const struct attention_cuda &a, const span &s, ring<DH> &tiles, int group)
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

template <int DH>
__global__ void __launch_bounds__(THREADS, 2) decode_kernel(struct attention_cuda a)
{
    extern __shared__ __align__(128) unsigned char decode_stages[];
    __shared__ uint64_t barriers[PAIRS][2][STAGES];
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), pair = warp % PAIRS,
              worker = pair * gridDim.x + blockIdx.x;
    const int begin = __ldg(a.decode_starts + worker), end = __ldg(a.decode_starts + worker + 1);
    ring<DH> tiles = {shared_address(decode_stages) + pair * STAGES * ring<DH>::BYTES,
                      shared_address(barriers[pair][0]),
                      shared_address(barriers[pair][1]),
                      static_cast<uint32_t>(a.n_heads) >> 30,
                      0,
                      0};
    /* full: the producer's lane arrives; empty: the consumer's warp. */
    if (threadIdx.x < PAIRS * 2 * STAGES)
        barrier_init(shared_address(barriers) + threadIdx.x * 8,
                     threadIdx.x / STAGES % 2 == 0 ? 1 : 32);
    fence_async_shared();
    __syncthreads();
    grid_start_next();
    grid_wait();
    if (warp >= PAIRS) {
        registers_give<24>();
        if ((threadIdx.x & 31) == 0)
            produce<DH>(tiles, a, begin, end);
    } else {
        registers_take<232>();
#pragma unroll 1
        for (int i = begin; i < end; i++)
            span_run<DH>(a, span_read(a, i), tiles, a.n_heads / a.n_kv_heads);
    }
}

template <int DH> static int decode_launch(const struct attention_cuda *a, int grid, cudaStream_t s)
{
    static once_a_device ready;
    const int bytes = PAIRS * STAGES * ring<DH>::BYTES;
    cudaError_t e = shared_memory_allow(decode_kernel<DH>, bytes, ready);
    if (e != cudaSuccess)
        return (int)e;
    return (int)launch_early(decode_kernel<DH>, (unsigned)grid, THREADS, bytes, s, *a);
}

extern "C" int attention_decode_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                     void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? decode_launch<128>(a, grid, s)
           : head_dim == 64 ? decode_launch<64>(a, grid, s)
                            : decode_launch<32>(a, grid, s);
}
