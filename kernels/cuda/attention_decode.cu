/* attention_decode: one new token a sequence against its paged keys. Each warp works alone: it
 * walks a list of spans (splits of one row and kv head, in order), streams keys and values through
 * a private ring of bulk copies, and keeps the running state in registers. The query heads of a
 * group are the eight columns of the tensor-core tile, keys (then head dims) its sixteen rows: S^T
 * = K Q^T and O^T = V^T P^T, so no row of the tile is padding. The sums have the order of
 * attention_tile: its bits. A row that shares a prefix goes on from the states that attention_tile
 * left of the prefix's blocks. A row whose blocks are cut over several warps meets through fp32
 * partials in a second kernel: the first span's merged state, then each later block's, left to
 * right.
 *
 * Ladder, share of copy at 1408 x 192, 1877 x 1024, 64 x 8192, 8 x 32768 keys (H200):
 *   1. a CTA a block, a split a warp, heads as rows padded to 16: 51, 68, 23, 12 %
 *   2. rows of few blocks whole to one CTA, loads of the next unit ahead of the merge: 51, 95, 31,
 * 12 %
 *   3. this version: a warp a span, heads as columns: 78, 92, 84, 67 %.
 *   Lost: spans handed out by a counter (80, 91, 83, 52 %), a ring of two stages (80, 90, 82, 67
 * %). */
#include "attention.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum { WARPS = 4, STAGES = 3, MERGE_THREADS = 256, MERGE_AHEAD = 16 };

/* One split of a span, with what its loads need. */
struct unit {
    int row, head, slot, n_keys; /* of the span */
    int split, split_end;        /* this one; the span's last one + 1 */
    int partial; /* where the span's (first) state goes, or -1: it is the whole row */
    int prefix;  /* partials of the blocks before the row's first split; -1: none, -2: no first */
    int lo, hi;  /* visible keys of the split */
    int page0, page1;
    int first_chunk, last_chunk, issued;

    METHOD int total() const
    {
        return 2 * (last_chunk - first_chunk);
    }
    METHOD void place(const struct attention_cuda &a)
    {
        const int key0 = split * SPLIT_KEYS;
        lo = a.window > 0 ? max(n_keys - a.window, key0) : key0;
        hi = min(n_keys, key0 + SPLIT_KEYS);
        const int32_t *pages =
            a.block_table + (int64_t)slot * a.block_table_stride + key0 / PAGE_KEYS;
        page0 = lo < min(hi, key0 + PAGE_KEYS) ? __ldg(pages) : 0;
        page1 = max(lo, key0 + PAGE_KEYS) < hi ? __ldg(pages + 1) : 0;
        first_chunk = lo < hi ? (lo - key0) / CHUNK_KEYS : 0;
        last_chunk = lo < hi ? (hi - key0 + CHUNK_KEYS - 1) / CHUNK_KEYS : 0;
        issued = 0;
    }
};

/* The warp's way through its spans, a split at a time; the span behind is fetched ahead. */
struct walk {
    int index, end;
    int4 place,
        keys; /* the span at index: (row, head, split, split end), (keys, slot, partial, prefix) */

    METHOD void fetch(const struct attention_cuda &a)
    {
        if (index < end) {
            place = __ldg(a.decode + 2 * index);
            keys = __ldg(a.decode + 2 * index + 1);
        }
    }
    /* The split behind u; false: there is none. */
    METHOD bool next(const struct attention_cuda &a, unit &u)
    {
        if (u.split + 1 < u.split_end) {
            u.split++;
        } else {
            if (index >= end)
                return false;
            u.row = place.x, u.head = place.y, u.split = place.z, u.split_end = place.w;
            u.n_keys = keys.x, u.slot = keys.y, u.partial = keys.z, u.prefix = keys.w;
            index++;
            fetch(a);
        }
        u.place(a);
        return true;
    }
};

/* The warp's ring of 32-key chunks: the K chunks of a split in order, then its V chunks, then the
 * next split's: loads run across splits and spans. */
template <int DH> struct ring {
    enum { BYTES = chunk_layout<DH>::BYTES };
    uint32_t data, barriers; /* shared addresses */
    int issued, taken;       /* over the kernel's life: stage = count % STAGES */

    METHOD void issue(const struct attention_cuda &a, unit &u)
    {
        const int live = u.last_chunk - u.first_chunk, value = u.issued >= live;
        const int c = u.first_chunk + u.issued - (value ? live : 0), stage = issued % STAGES;
        const bf16 *src =
            a.kv +
            ((int64_t)(c < 2 ? u.page0 : u.page1) * a.n_kv_heads + u.head) * (2 * PAGE_KEYS * DH) +
            (value * PAGE_KEYS + (c & 1) * CHUNK_KEYS) * DH;
        if ((threadIdx.x & 31) == 0) {
            barrier_expect(barriers + stage * 8, BYTES);
            bulk_load(data + stage * BYTES, src, BYTES, barriers + stage * 8);
        }
        issued++;
        u.issued++;
    }
    METHOD void fill(const struct attention_cuda &a, unit &u, unit &behind)
    {
        while (issued - taken < STAGES && u.issued < u.total())
            issue(a, u);
        while (issued - taken < STAGES && behind.issued < behind.total())
            issue(a, behind);
    }
    METHOD uint32_t wait() const
    {
        const int stage = taken % STAGES;
        barrier_wait(barriers + stage * 8, (taken / STAGES) & 1);
        return data + stage * BYTES;
    }
    METHOD void done(const struct attention_cuda &a, unit &u, unit &behind)
    {
        __syncwarp();
        taken++;
        fill(a, u, behind);
    }
};

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
    METHOD void merge(const state &b, float scale_log2)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const merge_weights w = merge_of(m[r], b.m[r], scale_log2);
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                o[n][r] = merge_value(o[n][r], b.o[n][r], m[r], b.m[r], w);
                o[n][2 + r] = merge_value(o[n][2 + r], b.o[n][2 + r], m[r], b.m[r], w);
            }
            l[r] = merge_value(l[r], b.l[r], m[r], b.m[r], w);
            m[r] = w.m;
        }
    }
};

template <int DH>
DEVICE void load_queries(uint32_t (&q)[DH / 16][2], const struct attention_cuda &a, const unit &u,
                         int group)
{
    const int lane = threadIdx.x & 31;
    const bf16 *in = a.qkv + (int64_t)u.row * a.qkv_stride + (u.head * group + (lane >> 2)) * DH +
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
                   const struct attention_cuda &a, unit &u, unit &behind)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const bool live = c >= u.first_chunk && c < u.last_chunk;
        const uint32_t base = live ? tiles.wait() : 0u;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float(&d)[4] = s[c * 2 + half];
            d[0] = d[1] = d[2] = d[3] = 0.f;
#pragma unroll
            for (int kk = 0; kk < DH / 16; kk++) {
                if (!live)
                    continue;
                uint32_t k[4];
                load_matrix_x4(
                    k, base + chunk_offset<DH>(half * 16 + (lane & 15), kk * 2 + (lane >> 4)));
                mma_bf16(d, k, q[kk][0], q[kk][1]);
            }
            const int key = u.split * SPLIT_KEYS + c * CHUNK_KEYS + half * 16 + (lane >> 2);
#pragma unroll
            for (int i = 0; i < 4; i++)
                d[i] = key + (i >> 1) * 8 >= u.lo && key + (i >> 1) * 8 < u.hi ? d[i] : -INFINITY;
        }
        if (live)
            tiles.done(a, u, behind);
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
                         const struct attention_cuda &a, unit &u, unit &behind)
{
    const int lane = threadIdx.x & 31;
    float s[SPLIT_KEYS / 16][4];
    uint32_t p[SPLIT_KEYS / 16][2];
    scores<DH>(s, q, tiles, a, u, behind);
    out.clear();
    probabilities<DH>(p, out, s, a.scale_log2);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (c < u.first_chunk || c >= u.last_chunk)
            continue;
        const uint32_t base = tiles.wait();
        const int valid = u.n_keys - u.split * SPLIT_KEYS - c * CHUNK_KEYS;
        if (valid < CHUNK_KEYS)
            clear_tail<DH>(base, valid);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                uint32_t v[4];
                load_matrix_x4_trans(
                    v, base + chunk_offset<DH>(half * 16 + (lane & 7) + ((lane >> 4) << 3),
                                               n * 2 + ((lane >> 3) & 1)));
                mma_bf16(out.o[n], v, p[c * 2 + half][0], p[c * 2 + half][1]);
            }
        tiles.done(a, u, behind);
    }
}

template <int DH>
DEVICE void row_write(const state<DH> &st, const struct attention_cuda &a, const unit &u, int group)
{
    const int lane = threadIdx.x & 31, h = lane >> 2;
    bf16 *out = a.out + ((int64_t)u.row * a.n_heads + u.head * group + h) * DH + (lane & 3) * 2;
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

template <int DH> DEVICE void partial_write(const state<DH> &st, float *partial)
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
        }
    }
}
/* Heads beyond the group have a state of no keys. */
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

template <int DH> DEVICE float *partial_at(const struct attention_cuda &a, int i)
{
    return a.partial + (int64_t)i * GROUP_MAX * chunk_layout<DH>::STATE_FLOATS;
}

/* The blocks before a span's first split: whole ones into total, the last one, if begun, into
 * block. */
template <int DH>
DEVICE void prefix_read(state<DH> &total, state<DH> &block, const struct attention_cuda &a,
                        const unit &u, int group)
{
    const int whole = u.split / BLOCK_SPLITS;
#pragma unroll 1
    for (int i = 0; i < whole; i++) {
        partial_read<DH>(block, partial_at<DH>(a, u.prefix + i), group);
        total.merge(block, a.scale_log2);
    }
    if (u.split % BLOCK_SPLITS != 0)
        partial_read<DH>(block, partial_at<DH>(a, u.prefix + whole), group);
}

template <int DH>
__global__ void __launch_bounds__(WARPS * 32, 2) decode_kernel(struct attention_cuda a)
{
    extern __shared__ __align__(128) unsigned char stages[];
    __shared__ uint64_t barriers[WARPS * STAGES];
    const int warp = threadIdx.x >> 5, group = a.n_heads / a.n_kv_heads,
              worker = warp * gridDim.x + blockIdx.x;
    ring<DH> tiles = {shared_address(stages) + warp * STAGES * ring<DH>::BYTES,
                      shared_address(barriers + warp * STAGES), 0, 0};
    if ((threadIdx.x & 31) == 0)
        for (int i = 0; i < STAGES; i++)
            barrier_init(tiles.barriers + i * 8, 1);
    fence_async_shared();
    __syncwarp();

    walk way = {__ldg(a.decode_starts + worker), __ldg(a.decode_starts + worker + 1)};
    way.fetch(a);
    unit u, behind;
    u.split = u.split_end = u.issued = u.first_chunk = u.last_chunk = 0;
    bool more = way.next(a, u), more_behind = false, begins = true;
    uint32_t q[DH / 16][2];
    state<DH> block, total;
    total.clear();
    if (more) {
        load_queries<DH>(q, a, u, group);
        behind = u;
        more_behind = way.next(a, behind);
    }
    while (more) {
        state<DH> part;
        if (!more_behind)
            behind.issued = behind.first_chunk = behind.last_chunk = 0;
        tiles.fill(a, u, behind);
        if (begins && u.prefix >= 0)
            prefix_read<DH>(total, block, a, u, group);
        if (u.split % BLOCK_SPLITS == 0)
            block.clear();
        if (u.lo < u.hi) {
            split_decode<DH>(part, q, tiles, a, u, behind);
            block.merge(part, a.scale_log2);
        }
        const bool span_ends = u.split + 1 == u.split_end,
                   block_ends = u.split % BLOCK_SPLITS == BLOCK_SPLITS - 1 || span_ends,
                   first = u.prefix >= -1;
        if (block_ends && first)
            total.merge(block, a.scale_log2);
        if (block_ends && !first)
            partial_write<DH>(block, partial_at<DH>(a, u.partial++));
        if (span_ends && first) {
            if (u.partial < 0)
                row_write<DH>(total, a, u, group);
            else
                partial_write<DH>(total, partial_at<DH>(a, u.partial));
            total.clear();
        }
        const int partial = u.partial;
        more = more_behind;
        begins = span_ends;
        if (more) {
            u = behind;
            if (span_ends)
                load_queries<DH>(q, a, u, group);
            else
                u.partial = partial; /* counted up by block */
            more_behind = way.next(a, behind);
        }
    }
}

/* Cut rows: item (row, kv head, first partial, partials). */
template <int DH>
__global__ void __launch_bounds__(MERGE_THREADS) merge_kernel(struct attention_cuda a)
{
    const int4 item = a.merges[blockIdx.x];
    const int group = a.n_heads / a.n_kv_heads;
    const int pitch = chunk_layout<DH>::STATE_FLOATS;
    const float *first = partial_at<DH>(a, item.z);
    for (int i = threadIdx.x; i < group * DH; i += MERGE_THREADS) {
        const float *p = first + (i / DH) * pitch;
        const int d = i % DH;
        float ma = -INFINITY, la = 0.f, oa = 0.f;
        for (int b0 = 0; b0 < item.w; b0 += MERGE_AHEAD) {
            float o[MERGE_AHEAD], m[MERGE_AHEAD], l[MERGE_AHEAD];
#pragma unroll
            for (int k = 0; k < MERGE_AHEAD; k++) {
                const bool has = b0 + k < item.w;
                const float *at = p + (int64_t)(has ? b0 + k : 0) * GROUP_MAX * pitch;
                o[k] = __ldcg(at + d);
                m[k] = has ? __ldcg(at + DH) : -INFINITY;
                l[k] = __ldcg(at + DH + 1);
            }
#pragma unroll
            for (int k = 0; k < MERGE_AHEAD; k++) {
                const merge_weights w = merge_of(ma, m[k], a.scale_log2);
                oa = merge_value(oa, o[k], ma, m[k], w);
                la = merge_value(la, l[k], ma, m[k], w);
                ma = w.m;
            }
        }
        a.out[((int64_t)item.x * a.n_heads + item.y * group) * DH + i] =
            __float2bfloat16_rn(__fdividef(oa, la));
    }
}

template <int DH>
static int decode_launch(const struct attention_cuda *a, int grid, int n_merges, cudaStream_t s)
{
    static once_a_device ready;
    const int bytes = WARPS * STAGES * ring<DH>::BYTES;
    cudaError_t e = shared_memory_allow(decode_kernel<DH>, bytes, ready);
    if (e != cudaSuccess)
        return (int)e;
    decode_kernel<DH><<<grid, WARPS * 32, bytes, s>>>(*a);
    if (n_merges > 0)
        merge_kernel<DH><<<n_merges, MERGE_THREADS, 0, s>>>(*a);
    return (int)cudaGetLastError();
}

extern "C" int attention_decode_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                     int n_merges, void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? decode_launch<128>(a, grid, n_merges, s)
           : head_dim == 64 ? decode_launch<64>(a, grid, n_merges, s)
                            : decode_launch<32>(a, grid, n_merges, s);
}
