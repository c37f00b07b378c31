/* attention_tile: many query rows against one list of pages: the rows of a prefill, and the rows of
 * all sequences that share a prefix. A CTA takes a list of tiles of up to 128 packed rows (token x
 * query head of one kv head). A warp brings keys and values, a split at a time, by bulk copies; two
 * warpgroups of 64 rows each walk the splits from left to right with wgmma, the scores and the
 * states in registers, the state over earlier blocks in shared memory. A prefix tile is one block
 * of 512 keys and leaves its states for the decode kernel, which goes on from there.
 *
 * wgmma adds as mma.sync does, to the bit, so rows get the bits of the decode kernel.
 *
 * Ladder, TFLOP/s at 22 x 128, 5 x 512, 1,024 at 4,096 keys: SPEED.md. */
#include "attention_tile.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"
#include "wgmma.cuh"

enum {
    GROUP_ROWS = 64, /* of a warpgroup */
    CONSUMERS = 256,
    CONSUMER_WARPS = CONSUMERS / 32,
    THREADS = CONSUMERS + 128, /* registers are dealt out by the warpgroup */
    STAGES = 4,                /* keys or values of a split */
};

template <int DH> struct tile_shared {
    unsigned char stage[STAGES][SPLIT_KEYS * DH * 2]; /* [part][key][ROW_BYTES] */
    float total[DH / 2][CONSUMERS]; /* O over the blocks so far, one column a thread */
    float total_m[2][CONSUMERS], total_l[2][CONSUMERS];
    uint64_t full[STAGES], empty[STAGES];
};

/* ---- the producer ---- */

/* Keys (value 0) or values (1) of a split into a stage; a lane a copy. */
template <int DH>
DEVICE void stage_load(tile_shared<DH> &sh, int stage, const struct attention_cuda &a,
                       const tile &t, int page, int split, int value)
{
    typedef chunk_layout<DH> at;
    const int lane = threadIdx.x & 31, chunk = lane / at::PARTS, part = lane % at::PARTS;
    const int chunks = min(CHUNKS, (t.keys - split * SPLIT_KEYS + CHUNK_KEYS - 1) / CHUNK_KEYS);
    const uint32_t barrier = shared_address(&sh.full[stage]);
    if (lane == 0)
        barrier_expect(barrier, chunks * at::BYTES);
    __syncwarp();
    if (chunk >= chunks)
        return;
    const bf16 *src = a.kv + ((int64_t)page * a.n_kv_heads + t.head) * (2 * PAGE_KEYS * DH) +
                      (value * PAGE_KEYS + (chunk & 1) * CHUNK_KEYS) * DH +
                      part * (at::PART_BYTES / 2);
    bulk_load(shared_address(sh.stage[stage]) +
                  (part * SPLIT_KEYS + chunk * CHUNK_KEYS) * at::ROW_BYTES,
              src, at::PART_BYTES, barrier);
}

template <int DH>
DEVICE void produce(tile_shared<DH> &sh, const struct attention_cuda &a, int begin, int end)
{
    /* The lane's page of a split: that of its chunk. */
    const int second = (threadIdx.x & 31) / chunk_layout<DH>::PARTS / 2 & 1;
    int n = 0; /* loads over the kernel's life: stage = n % STAGES */
    for (int i = begin; i < end; i++) {
        const tile t = tile_read(a, i);
        const int pages = (t.keys + PAGE_KEYS - 1) / PAGE_KEYS;
        const int32_t *table = a.block_table + (int64_t)t.slot * a.block_table_stride;
        int next = __ldg(table + min(2 * t.split + second, pages - 1));
        for (int split = t.split; split < t.split_end(); split++) {
            const int page = next;
            next = __ldg(table + min(2 * split + 2 + second, pages - 1));
            for (int value = 0; value < 2; value++, n++) {
                if (n >= STAGES)
                    barrier_wait(shared_address(&sh.empty[n % STAGES]), (n / STAGES - 1) & 1);
                stage_load<DH>(sh, n % STAGES, a, t, page, split, value);
            }
        }
    }
}

/* ---- the consumers ---- */

/* Lane (g = lane / 4, t = lane % 4) of a warp holds rows g and g + 8 of its 16 (index r): dims or
 * keys 8n + 2t and + 1 at [n][2r] and [n][2r + 1]. */
template <int DH> struct rows {
    uint32_t q[DH / 16][4];
    int lo[2], hi[2]; /* visible keys of a row: lo <= key < hi */
    int first, last;  /* keys that any row of the warpgroup sees */
};
template <int DH> struct tile_state {
    float o[DH / 8][4], m[2], l[2];
};

/* Rows beyond the tile's see all keys of a zero query; nobody reads what they get. */
template <int DH>
DEVICE void rows_load(rows<DH> &w, const struct attention_cuda &a, const tile &t, int group)
{
    const int lane = threadIdx.x & 31, base = threadIdx.x / 128 * GROUP_ROWS;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int packed = (threadIdx.x >> 5) * 16 + r * 8 + (lane >> 2);
        const bool has = packed < t.rows;
        const int row = has ? packed_row(a, t, packed, group) : 0;
        const int position = has ? a.position[row] : 0, h = (t.packed + packed) % group;
        w.lo[r] = has ? window_begin(a.window, position) : 0;
        w.hi[r] = has ? position + 1 : 0x7fffffff;
        const bf16 *q = a.qkv + (int64_t)row * a.qkv_stride + (t.head * group + h) * DH;
#pragma unroll
        for (int kk = 0; kk < DH / 16; kk++) {
            const int d = kk * 16 + (lane & 3) * 2;
            w.q[kk][r] = has ? *reinterpret_cast<const uint32_t *>(q + d) : 0u;
            w.q[kk][2 + r] = has ? *reinterpret_cast<const uint32_t *>(q + d + 8) : 0u;
        }
    }
    int first = 0, last = base < t.rows ? t.keys : 0;
    if (base < t.rows && !t.shared()) {
        first = window_begin(a.window, a.position[packed_row(a, t, base, group)]);
        last = a.position[packed_row(a, t, min(t.rows, base + GROUP_ROWS) - 1, group)] + 1;
    }
    w.first = __shfl_sync(0xffffffffu, first, 0); /* tells the compiler that they are uniform */
    w.last = __shfl_sync(0xffffffffu, last, 0);
}

template <int DH>
DEVICE void scores(float (&s)[SPLIT_KEYS / 8][4], const rows<DH> &w, uint32_t keys)
{
    typedef chunk_layout<DH> at;
    wgmma_fence();
    wgmma_set<0>(s, w.q[0], wgmma_tile<at::ROW_BYTES>(keys, 0));
#pragma unroll
    for (int kk = 1; kk < DH / 16; kk++) {
        const int part = kk * 32 / at::ROW_BYTES, byte = kk * 32 % at::ROW_BYTES;
        wgmma_add<0>(s, w.q[kk],
                     wgmma_tile<at::ROW_BYTES>(keys + part * SPLIT_KEYS * at::ROW_BYTES + byte, 0));
    }
    wgmma_commit();
    wgmma_wait<0>(s);
}

template <int DH> DEVICE void mask(float (&s)[SPLIT_KEYS / 8][4], const rows<DH> &w, int key0)
{
    const bool whole = w.lo[0] <= key0 && w.lo[1] <= key0 && w.hi[0] >= key0 + SPLIT_KEYS &&
                       w.hi[1] >= key0 + SPLIT_KEYS;
    if (__all_sync(0xffffffffu, whole))
        return;
#pragma unroll
    for (int n = 0; n < SPLIT_KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = key0 + n * 8 + (threadIdx.x & 3) * 2 + (i & 1), r = i >> 1;
            s[n][i] = key >= w.lo[r] && key < w.hi[r] ? s[n][i] : -INFINITY;
        }
}

/* p as the A operand of the values' product, and the split's m and l: attention.cuh. */
template <int DH>
DEVICE void probabilities(uint32_t (&p)[SPLIT_KEYS / 16][4], tile_state<DH> &part,
                          const float (&s)[SPLIT_KEYS / 8][4], float scale_log2)
{
    float shift[2], odd[2] = {0.f, 0.f};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = -INFINITY;
#pragma unroll
        for (int n = 0; n < SPLIT_KEYS / 8; n++)
            m = fmaxf(m, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        part.m[r] = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        shift[r] = part.m[r] == -INFINITY ? 0.f : __fmul_rn(part.m[r], scale_log2);
        part.l[r] = 0.f;
    }
#pragma unroll
    for (int n = 0; n < SPLIT_KEYS / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float p0 = exp2_of(__fmaf_rn(s[n][2 * r], scale_log2, -shift[r]));
            const float p1 = exp2_of(__fmaf_rn(s[n][2 * r + 1], scale_log2, -shift[r]));
            part.l[r] = __fadd_rn(part.l[r], p0);
            odd[r] = __fadd_rn(odd[r], p1);
            p[n / 2][(n & 1) * 2 + r] = pack_bf16(p0, p1);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float l = __fadd_rn(part.l[r], odd[r]);
        l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 1));
        part.l[r] = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 2));
    }
}

template <int DH>
DEVICE void values(float (&o)[DH / 8][4], const uint32_t (&p)[SPLIT_KEYS / 16][4], uint32_t at)
{
    typedef chunk_layout<DH> layout;
    const uint32_t part_bytes = SPLIT_KEYS * layout::ROW_BYTES;
    wgmma_fence();
    wgmma_set<1>(o, p[0], wgmma_tile<layout::ROW_BYTES>(at, part_bytes));
#pragma unroll
    for (int kk = 1; kk < SPLIT_KEYS / 16; kk++)
        wgmma_add<1>(o, p[kk],
                     wgmma_tile<layout::ROW_BYTES>(at + kk * 16 * layout::ROW_BYTES, part_bytes));
    wgmma_commit();
    wgmma_wait<0>(o);
}

/* Rows past the end hold another sequence's values: 0 * NaN is NaN. Each warpgroup for itself: both
 * write zeros, and neither waits for the other. */
template <int DH> DEVICE void clear_tail(uint32_t values, int valid)
{
    typedef chunk_layout<DH> at;
    for (int i = threadIdx.x % 128; i < (SPLIT_KEYS - valid) * (DH / 8); i += 128) {
        const int row = valid + i / (DH / 8), piece = i % (DH / 8);
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};\n" ::"r"(
                         values + (piece / at::PIECES * SPLIT_KEYS + row) * at::ROW_BYTES +
                         piece % at::PIECES * 16),
                     "r"(0)
                     : "memory");
    }
    fence_async_shared();
    asm volatile("bar.sync %0, 128;\n" ::"r"(1 + threadIdx.x / 128) : "memory");
}

/* a = merge(a, b) */
template <int DH>
DEVICE void state_merge(tile_state<DH> &a, const tile_state<DH> &b, float scale_log2)
{
    const bool full = fminf(fminf(a.m[0], a.m[1]), fminf(b.m[0], b.m[1])) > -INFINITY;
    const bool easy = __all_sync(0xffffffffu, full);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const merge_weights w = merge_of(a.m[r], b.m[r], scale_log2);
        if (easy) {
#pragma unroll
            for (int n = 0; n < DH / 8; n++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++)
                    a.o[n][i] = merge_full(a.o[n][i], b.o[n][i], w);
        } else {
#pragma unroll
            for (int n = 0; n < DH / 8; n++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++)
                    a.o[n][i] = merge_value(a.o[n][i], b.o[n][i], a.m[r], b.m[r], w);
        }
        a.l[r] = merge_value(a.l[r], b.l[r], a.m[r], b.m[r], w);
        a.m[r] = w.m;
    }
}

/* block = merge(total, block), the total in shared memory; none yet when `fresh`. */
template <int DH>
DEVICE void total_merge(tile_state<DH> &block, const tile_shared<DH> &sh, float scale_log2)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float tm = sh.total_m[r][threadIdx.x];
        const merge_weights w = merge_of(tm, block.m[r], scale_log2);
#pragma unroll
        for (int n = 0; n < DH / 8; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++)
                block.o[n][i] =
                    merge_value(sh.total[n * 4 + i][threadIdx.x], block.o[n][i], tm, block.m[r], w);
        block.l[r] = merge_value(sh.total_l[r][threadIdx.x], block.l[r], tm, block.m[r], w);
        block.m[r] = w.m;
    }
}
template <int DH> DEVICE void total_store(tile_shared<DH> &sh, const tile_state<DH> &block)
{
#pragma unroll
    for (int i = 0; i < DH / 2; i++)
        sh.total[i][threadIdx.x] = block.o[i / 4][i % 4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sh.total_m[r][threadIdx.x] = block.m[r];
        sh.total_l[r][threadIdx.x] = block.l[r];
    }
}

template <int DH>
DEVICE void rows_store(const tile_state<DH> &st, const struct attention_cuda &a, const tile &t,
                       int group)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int packed = (threadIdx.x >> 5) * 16 + r * 8 + (lane >> 2), p = t.packed + packed;
        if (packed >= t.rows)
            continue;
        if (t.shared()) {
            float *to =
                a.partial + ((int64_t)(t.partial + p / group * t.blocks) * GROUP_MAX + p % group) *
                                chunk_layout<DH>::STATE_FLOATS;
#pragma unroll
            for (int n = 0; n < DH / 8; n++)
                *reinterpret_cast<float2 *>(to + n * 8 + (lane & 3) * 2) =
                    make_float2(st.o[n][2 * r], st.o[n][2 * r + 1]);
            if ((lane & 3) == 0)
                *reinterpret_cast<float2 *>(to + DH) = make_float2(st.m[r], st.l[r]);
        } else {
            bf16 *out =
                a.out + ((int64_t)(t.at + p / group) * a.n_heads + t.head * group + p % group) * DH;
#pragma unroll
            for (int n = 0; n < DH / 8; n++)
                *reinterpret_cast<uint32_t *>(out + n * 8 + (lane & 3) * 2) = pack_bf16(
                    __fdividef(st.o[n][2 * r], st.l[r]), __fdividef(st.o[n][2 * r + 1], st.l[r]));
        }
    }
}

/* The consumers' way through the ring of stages. */
template <int DH> struct stages {
    tile_shared<DH> &sh;
    int taken; /* over the kernel's life */

    METHOD uint32_t wait()
    {
        const int stage = taken % STAGES;
        barrier_wait(shared_address(&sh.full[stage]), (taken / STAGES) & 1);
        return shared_address(sh.stage[stage]);
    }
    METHOD void done()
    {
        __syncwarp();
        if ((threadIdx.x & 31) == 0)
            barrier_arrive(shared_address(&sh.empty[taken % STAGES]));
        taken++;
    }
};

template <int DH>
DEVICE void split_run(tile_state<DH> &part, const rows<DH> &w, stages<DH> &ring, int key0,
                      int valid, float scale_log2)
{
    uint32_t p[SPLIT_KEYS / 16][4];
    {
        float s[SPLIT_KEYS / 8][4];
        scores<DH>(s, w, ring.wait());
        ring.done();
        mask<DH>(s, w, key0);
        probabilities<DH>(p, part, s, scale_log2);
    }
    const uint32_t at = ring.wait();
    if (valid < SPLIT_KEYS)
        clear_tail<DH>(at, valid);
    values<DH>(part.o, p, at);
    ring.done();
}

/* A split of which the warpgroup sees no key. */
template <int DH> DEVICE void split_skip(stages<DH> &ring)
{
    ring.wait();
    ring.done();
    ring.wait();
    ring.done();
}

template <int DH>
DEVICE void tile_run(const struct attention_cuda &a, int i, stages<DH> &ring, int group)
{
    rows<DH> w;
    tile_state<DH> block;
    bool has_block = false, has_total = false; /* of the warpgroup */
    const tile t = tile_read(a, i);
    const int keys = t.keys, end = t.split_end();
    rows_load<DH>(w, a, t, group);
    for (int split = t.split; split < end; split++) {
        const int key0 = split * SPLIT_KEYS;
        if (key0 >= w.last || key0 + SPLIT_KEYS <= w.first) {
            split_skip<DH>(ring);
            continue;
        }
        tile_state<DH> part;
        split_run<DH>(part, w, ring, key0, keys - key0, a.scale_log2);
        if (has_block)
            state_merge<DH>(block, part, a.scale_log2);
        else
            block = part;
        has_block = true;
        const bool last = key0 + SPLIT_KEYS >= w.last;
        if (!last && split % BLOCK_SPLITS != BLOCK_SPLITS - 1)
            continue;
        if (has_total)
            total_merge<DH>(block, ring.sh, a.scale_log2);
        if (last)
            rows_store<DH>(block, a, tile_read(a, i), group);
        else
            total_store<DH>(ring.sh, block);
        has_total = true, has_block = false;
    }
}

template <int DH> __global__ void __launch_bounds__(THREADS, 1) tile_kernel(struct attention_cuda a)
{
    extern __shared__ __align__(1024) unsigned char tile_memory[];
    tile_shared<DH> &sh = *reinterpret_cast<tile_shared<DH> *>(tile_memory);
    const int begin = __ldg(a.tile_starts + blockIdx.x),
              end = __ldg(a.tile_starts + blockIdx.x + 1);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(shared_address(&sh.full[i]), 1);
            barrier_init(shared_address(&sh.empty[i]), CONSUMER_WARPS);
        }
        fence_async_shared();
    }
    __syncthreads();
    if (__shfl_sync(0xffffffffu, threadIdx.x / 128, 0) == CONSUMERS / 128) {
        registers_give<24>();
        if (threadIdx.x < CONSUMERS + 32)
            produce<DH>(sh, a, begin, end);
    } else {
        registers_take<240>();
        stages<DH> ring = {sh, 0};
        for (int i = begin; i < end; i++)
            tile_run<DH>(a, i, ring, a.n_heads / a.n_kv_heads);
    }
}

template <int DH>
static int tile_launch(const struct attention_cuda *a, int grid, cudaStream_t stream)
{
    static once_a_device ready;
    cudaError_t e = shared_memory_allow(tile_kernel<DH>, (int)sizeof(tile_shared<DH>), ready);
    if (e != cudaSuccess)
        return (int)e;
    tile_kernel<DH><<<grid, THREADS, sizeof(tile_shared<DH>), stream>>>(*a);
    return (int)cudaGetLastError();
}

extern "C" int attention_tile_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                   void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? tile_launch<128>(a, grid, s)
           : head_dim == 64 ? tile_launch<64>(a, grid, s)
                            : tile_launch<32>(a, grid, s);
}
