/* attention_tile_portable: attention_tile for cards that are no Hopper: the same tiles, splits and
 * merges, with mma.sync. A warp takes 16 of the tile's 128 packed rows, as two sets of eight
 * columns of the decode kernels' products (attention_columns.cuh), so its bits are theirs on any
 * card. The keys, then the values of a split come by cp.async while the half before them is
 * computed on; scores and states stand in registers, the state over earlier blocks in memory of the
 * CTA's own. Shared memory is 96 KiB for heads of 128, which sm_86 has. */
#include "attention_columns.cuh"
#include "attention_feed.cuh"
#include "attention_tile.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum {
    WARPS = 8,
    THREADS = WARPS * 32,
    SETS = 2, /* of a warp */
    SET_ROWS = 8,
    WARP_ROWS = SETS * SET_ROWS,
};

template <int DH> struct tile_shared {
    enum { STAGES = 2, HALF = CHUNKS * chunk_layout<DH>::BYTES };
    unsigned char stage[STAGES][HALF]; /* keys or values of a split, chunks as in a page */
    unsigned char queries[HALF];       /* of the tile, laid out as keys */
};

/* Tile i again, where it is seldom needed: not kept in registers meanwhile. */
DEVICE tile tile_again(const struct attention_cuda &a, int i)
{
    int again;
    asm volatile("mov.b32 %0, %1;\n" : "=r"(again) : "r"(i));
    return tile_read(a, again);
}

/* A tile as the feed's run of splits. */
struct tile_spans {
    METHOD span operator()(const struct attention_cuda &a, int i) const
    {
        const tile t = tile_read(a, i);
        return {0, t.head, t.split, t.split_end(), t.keys, t.slot, -1, -1};
    }
};

/* The CTA's two stages: wait() is a barrier of all threads, behind which the next half of a split
 * is there, and the one before it has been read by all, so its stage is filled anew. */
template <int DH> struct ring {
    enum { BYTES = chunk_layout<DH>::BYTES };
    uint32_t data; /* shared address */
    int stage;     /* the next one to fill */
    feed<DH, tile_spans> splits;

    METHOD void load()
    {
        if (!splits.ended()) {
            const split_half half = splits.take_half();
            const uint32_t to = data + stage * tile_shared<DH>::HALF;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                if (c < half.chunks)
#pragma unroll
                    for (int i = threadIdx.x; i < BYTES / 16; i += THREADS)
                        copy_16(to + c * BYTES + i * 16,
                                half.page[c / 2] + c % 2 * CHUNK_KEYS * DH + i * 8);
        }
        copies_commit();
        stage ^= 1;
    }
    METHOD uint32_t wait()
    {
        const uint32_t at = data + (stage ^ 1) * tile_shared<DH>::HALF;
        copies_wait<0>();
        __syncthreads();
        load();
        return at;
    }
};

/* Lane (g = lane / 4, t = lane % 4) holds queries of row g of each set, and scores and states of
 * rows 2t and 2t + 1. */
template <int DH> struct tile_state {
    state<DH> set[SETS];

    METHOD void clear()
    {
#pragma unroll
        for (int i = 0; i < SETS; i++)
            set[i].clear();
    }
};
template <int DH> struct queries {
    uint32_t of[SETS][DH / 16][2];
};

/* Keys that any row of the warp sees, and those that all of them see. */
struct warp_keys {
    int first, last, all_from, all_to;
};
DEVICE warp_keys warp_keys_of(const struct attention_cuda &a, const tile &t, int group)
{
    const int base = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0) * WARP_ROWS;
    if (base >= t.rows)
        return {0, 0, 0, 0};
    if (t.shared()) /* in any order, all behind the prefix */
        return {0, t.keys, 0, a.window > 0 ? 0 : t.keys};
    const int low = a.position[packed_row(a, t, base, group)],
              high = a.position[packed_row(a, t, min(t.rows, base + WARP_ROWS) - 1, group)];
    return {window_begin(a.window, low), high + 1, window_begin(a.window, high), low + 1};
}

/* The warp's queries into shared memory. Rows beyond the tile's are zero; nobody reads what they
 * get. */
template <int DH>
DEVICE void queries_store(unsigned char *to, const struct attention_cuda &a, const tile &t,
                          int group)
{
    constexpr int PIECES = DH / 8;
    const int base = (threadIdx.x >> 5) * WARP_ROWS;
    __syncwarp();
#pragma unroll 1
    for (int i = threadIdx.x & 31; i < WARP_ROWS * PIECES; i += 32) {
        const int packed = base + i / PIECES, h = (t.packed + packed) % group;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (packed < t.rows)
            v = *reinterpret_cast<const uint4 *>(
                a.qkv + (int64_t)packed_row(a, t, packed, group) * a.qkv_stride +
                (t.head * group + h) * DH + i % PIECES * 8);
        *reinterpret_cast<uint4 *>(to + packed / CHUNK_KEYS * chunk_layout<DH>::BYTES +
                                   chunk_offset<DH>(packed % CHUNK_KEYS, i % PIECES)) = v;
    }
    __syncwarp();
}
/* Read anew for each split: the registers hold states meanwhile. */
template <int DH>
DEVICE void queries_load(queries<DH> &q, uint32_t from, const lane_offsets<DH> &at)
{
    const int warp = threadIdx.x >> 5;
#pragma unroll
    for (int kk = 0; kk < DH / 16; kk++) {
        uint32_t v[4];
        load_matrix_x4(v, from + warp / 2 * chunk_layout<DH>::BYTES + at.of(warp % 2, kk));
        q.of[0][kk][0] = v[0], q.of[0][kk][1] = v[1];
        q.of[1][kk][0] = v[2], q.of[1][kk][1] = v[3];
    }
}

typedef float split_scores[SETS][SPLIT_KEYS / 16][4]; /* as in attention_decode.cuh, a set */

template <int DH>
DEVICE void scores(split_scores &s, const queries<DH> &q, uint32_t keys, int n_chunks)
{
    const int lane = threadIdx.x & 31;
    const lane_offsets<DH> at(lane & 15, lane >> 4);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
        for (int set = 0; set < SETS; set++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                s[set][2 * c + i / 4][i % 4] = 0.f;
        if (c >= n_chunks)
            continue;
#pragma unroll
        for (int kk = 0; kk < DH / 16; kk++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t k[4];
                load_matrix_x4(k, keys + c * chunk_layout<DH>::BYTES + at.of(half, kk));
#pragma unroll
                for (int set = 0; set < SETS; set++)
                    mma_bf16(s[set][2 * c + half], k, q.of[set][kk][0], q.of[set][kk][1]);
            }
    }
}

DEVICE void mask(split_scores &s, const struct attention_cuda &a, const tile &t, int key0,
                 int group)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int set = 0; set < SETS; set++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int packed = (threadIdx.x >> 5) * WARP_ROWS + set * SET_ROWS + (lane & 3) * 2 + r;
            if (packed >= t.rows)
                continue;
            const int position = a.position[packed_row(a, t, packed, group)],
                      low = window_begin(a.window, position) - key0, high = position - key0;
#pragma unroll
            for (int n = 0; n < SPLIT_KEYS / 16; n++)
#pragma unroll
                for (int i = r; i < 4; i += 2) {
                    const int key = n * 16 + (lane >> 2) + (i >> 1) * 8;
                    s[set][n][i] = key >= low && key <= high ? s[set][n][i] : -INFINITY;
                }
        }
}

/* Rows past the end hold another sequence's values: 0 * NaN is NaN. All threads. */
template <int DH> DEVICE void clear_tail(uint32_t values, int valid)
{
    const int end = (valid + CHUNK_KEYS - 1) / CHUNK_KEYS * CHUNK_KEYS;
    for (int i = threadIdx.x; i < (end - valid) * (DH / 8); i += THREADS)
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};\n" ::"r"(
                         values + valid / CHUNK_KEYS * chunk_layout<DH>::BYTES +
                         chunk_offset<DH>(valid % CHUNK_KEYS + i / (DH / 8), i % (DH / 8))),
                     "r"(0)
                     : "memory");
    __syncthreads();
}

template <int DH>
DEVICE void split_run(tile_state<DH> &part, const warp_keys &w, tile_shared<DH> &sh,
                      ring<DH> &halves, const struct attention_cuda &a, int i, int key0, int valid,
                      int group)
{
    const int lane = threadIdx.x & 31,
              n_chunks = min(CHUNKS, (valid + CHUNK_KEYS - 1) / CHUNK_KEYS);
    const bool sees = key0 < w.last && key0 + SPLIT_KEYS > w.first;
    const lane_offsets<DH> at((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    uint32_t p[SETS][SPLIT_KEYS / 16][2];
    const uint32_t keys = halves.wait();
    if (sees) {
        split_scores s;
        queries<DH> q;
        queries_load<DH>(q, shared_address(sh.queries), at);
        scores<DH>(s, q, keys, n_chunks);
        if (key0 < w.all_from || key0 + SPLIT_KEYS > w.all_to)
            mask(s, a, tile_again(a, i), key0, group);
#pragma unroll
        for (int set = 0; set < SETS; set++) {
            part.set[set].clear();
            probabilities<DH>(p[set], part.set[set], s[set], a.scale_log2);
        }
    }
    const uint32_t values = halves.wait();
    if (valid < SPLIT_KEYS && valid % CHUNK_KEYS != 0)
        clear_tail<DH>(values, valid);
    if (!sees)
        return;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (c >= n_chunks)
            continue;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                uint32_t v[4];
                load_matrix_x4_trans(v, values + c * chunk_layout<DH>::BYTES + at.of(half, n));
#pragma unroll
                for (int set = 0; set < SETS; set++)
                    mma_bf16(part.set[set].o[n], v, p[set][c * 2 + half][0],
                             p[set][c * 2 + half][1]);
            }
    }
}

/* A row that sees no key of the split: 0, whatever the values are. */
template <int DH> DEVICE void empty_clear(tile_state<DH> &part)
{
    bool empty = false;
#pragma unroll
    for (int i = 0; i < 2 * SETS; i++)
        empty = empty || part.set[i / 2].m[i % 2] == -INFINITY;
    if (!__any_sync(0xffffffffu, empty))
        return;
#pragma unroll
    for (int i = 0; i < SETS * DH / 4; i++) {
        state<DH> &b = part.set[i / (DH / 4)];
        float &v = b.o[i % (DH / 4) / 4][i % 4];
        v = b.m[i % 2] == -INFINITY ? 0.f : v;
    }
}

template <int DH> DEVICE float *total_at(const struct attention_cuda &a)
{
    return a.totals + (int64_t)blockIdx.x * (THREADS * (SETS * DH / 4 + 4 * SETS)) + threadIdx.x;
}
/* block = merge(total, block); total[i * THREADS] is the thread's i-th value. */
template <int DH>
DEVICE void total_merge(tile_state<DH> &block, const float *total, float scale_log2)
{
#pragma unroll
    for (int set = 0; set < SETS; set++) {
        state<DH> st;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            st.m[r] = __ldcg(total + (set * 4 + r) * THREADS);
            st.l[r] = __ldcg(total + (set * 4 + 2 + r) * THREADS);
        }
#pragma unroll
        for (int i = 0; i < DH / 4; i++)
            st.o[i / 4][i % 4] = __ldcg(total + (SETS * 4 + set * (DH / 4) + i) * THREADS);
        st.merge_any(block.set[set], scale_log2);
        block.set[set] = st;
    }
}
template <int DH> DEVICE void total_store(float *total, const tile_state<DH> &block)
{
#pragma unroll
    for (int set = 0; set < SETS; set++) {
        const state<DH> &st = block.set[set];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            __stcg(total + (set * 4 + r) * THREADS, st.m[r]);
            __stcg(total + (set * 4 + 2 + r) * THREADS, st.l[r]);
        }
#pragma unroll
        for (int i = 0; i < DH / 4; i++)
            __stcg(total + (SETS * 4 + set * (DH / 4) + i) * THREADS, st.o[i / 4][i % 4]);
    }
}

/* A set's states of a shared prefix, for the decode kernel. */
template <int DH>
DEVICE void set_partial(const state<DH> &st, const struct attention_cuda &a, const tile &t,
                        int packed, int group)
{
    const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int column = packed + (threadIdx.x & 3) * 2 + r, p = t.packed + column;
        if (column >= t.rows)
            continue;
        float *to = partial_at<DH>(a, t.partial + p / group * t.blocks) +
                    p % group * chunk_layout<DH>::STATE_FLOATS;
#pragma unroll
        for (int n = 0; n < DH / 16; n++) {
            to[n * 16 + g] = st.o[n][r];
            to[n * 16 + 8 + g] = st.o[n][2 + r];
        }
        if (g == 0)
            *reinterpret_cast<float2 *>(to + DH) = make_float2(st.m[r], st.l[r]);
    }
}
template <int DH>
DEVICE void set_out(const state<DH> &st, const struct attention_cuda &a, const tile &t, int packed,
                    int group)
{
    const int lane = threadIdx.x & 31, row = packed + (lane >> 2), p = t.packed + row;
    bf16 *out = a.out +
                ((int64_t)(t.at + p / group) * a.n_heads + t.head * group + p % group) * DH +
                (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < DH / 16; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t pair =
                transpose_8x8(pack_bf16(__fdividef(st.o[n][half * 2], st.l[0]),
                                        __fdividef(st.o[n][half * 2 + 1], st.l[1])));
            if (row < t.rows)
                *reinterpret_cast<uint32_t *>(out + n * 16 + half * 8) = pair;
        }
}

template <int DH>
DEVICE void tile_run(const struct attention_cuda &a, int i, ring<DH> &halves, tile_shared<DH> &sh,
                     int group)
{
    tile_state<DH> block;
    bool has_total = false; /* of the warp */
    const tile t = tile_read(a, i);
    const int keys = t.keys;
    block.clear();
    const warp_keys w = warp_keys_of(a, t, group);
    queries_store<DH>(sh.queries, a, t, group);
#pragma unroll 1
    for (int split = t.split; split * SPLIT_KEYS < keys; split++) {
        const int key0 = split * SPLIT_KEYS;
        tile_state<DH> part;
        split_run<DH>(part, w, sh, halves, a, i, key0, keys - key0, group);
        if (key0 >= w.last || key0 + SPLIT_KEYS <= w.first)
            continue;
        empty_clear<DH>(part);
#pragma unroll
        for (int set = 0; set < SETS; set++)
            block.set[set].merge_any(part.set[set], a.scale_log2);
        const bool last = key0 + SPLIT_KEYS >= w.last;
        if (!last && split % BLOCK_SPLITS != BLOCK_SPLITS - 1)
            continue;
        if (has_total)
            total_merge<DH>(block, total_at<DH>(a), a.scale_log2);
        if (!last) {
            total_store<DH>(total_at<DH>(a), block);
            block.clear();
            has_total = true;
            continue;
        }
        const tile done = tile_again(a, i);
#pragma unroll
        for (int set = 0; set < SETS; set++) {
            const int packed = (threadIdx.x >> 5) * WARP_ROWS + set * SET_ROWS;
            if (done.shared())
                set_partial<DH>(block.set[set], a, done, packed, group);
            else
                set_out<DH>(block.set[set], a, done, packed, group);
        }
    }
}

template <int DH>
__global__ void __launch_bounds__(THREADS, 1) tile_portable_kernel(struct attention_cuda a)
{
    extern __shared__ __align__(128) unsigned char tile_memory[];
    tile_shared<DH> &sh = *reinterpret_cast<tile_shared<DH> *>(tile_memory);
    const int begin = __ldg(a.tile_starts + blockIdx.x),
              end = __ldg(a.tile_starts + blockIdx.x + 1);
    ring<DH> halves = {shared_address(sh.stage), 0,
                       feed<DH, tile_spans>(a, tile_spans(), begin, end, 0)};
    halves.load();
#pragma unroll 1
    for (int i = begin; i < end; i++)
        tile_run<DH>(a, i, halves, sh, a.n_heads / a.n_kv_heads);
}

template <int DH>
static int tile_launch(const struct attention_cuda *a, int grid, cudaStream_t stream)
{
    static once_a_device ready;
    cudaError_t e =
        shared_memory_allow(tile_portable_kernel<DH>, (int)sizeof(tile_shared<DH>), ready);
    if (e != cudaSuccess)
        return (int)e;
    tile_portable_kernel<DH><<<grid, THREADS, sizeof(tile_shared<DH>), stream>>>(*a);
    return (int)cudaGetLastError();
}

extern "C" int attention_tile_portable_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                            void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? tile_launch<128>(a, grid, s)
           : head_dim == 64 ? tile_launch<64>(a, grid, s)
                            : tile_launch<32>(a, grid, s);
}
