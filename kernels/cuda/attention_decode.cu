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
#include "attention_decode.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"
#include "wgmma.cuh"

enum {
    PAIRS = 4, /* of a CTA */
    THREADS = 2 * PAIRS * 32,
    /* Of a pair's ring, with two CTAs a multiprocessor or with one. Either takes most of its shared
     * memory: the loads under way are what counts, and two stages lose 7 % of the bandwidth. */
    SHALLOW = 3,
    DEEP = 7,
};

/* The pair's ring of 32-key chunks: the K chunks of a split in order, then its V chunks. */
template <int DH, int STAGES> struct ring {
    enum { BYTES = chunk_layout<DH>::BYTES, TURNS = 1 };
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
    METHOD static void cleared()
    {
        fence_async_shared();
    }
    /* The producer's; one lane. Of a row's last chunk only the keys that there are: half a chunk is
     * 8 % of a sequence of 192. */
    METHOD void load(const bf16 *src, int keys)
    {
        typedef chunk_layout<DH> at;
        const uint32_t to = data + stage * BYTES, bar = full + stage * 8;
        const int bytes = keys * at::ROW_BYTES;
        barrier_wait(empty + stage * 8, turn ^ 1);
        barrier_expect(bar, at::PARTS * bytes);
        if (at::PARTS == 1 || keys == CHUNK_KEYS) {
            bulk_load(to, src, at::PARTS * bytes, bar);
        } else {
#pragma unroll
            for (int i = 0; i < at::PARTS; i++)
                bulk_load(to + i * at::PART_BYTES, src + i * (at::PART_BYTES / 2), bytes, bar);
        }
        step();
    }
};

/* ---- the producer: one lane ----
 * It does not wait for the launch ahead until it comes to the newest key of a row, which alone was
 * written in this step (a sequence of one row). What is older, the lists and the pages' numbers
 * were there before rope_kernel, which lets the next launch start only when all before it has
 * ended. */
template <int DH, int STAGES>
DEVICE void produce(ring<DH, STAGES> &tiles, const struct attention_cuda &a, int begin, int end)
{
    bool waited = false;
#pragma unroll 1
    for (int i = begin; i < end; i++) {
        const span s = span_read(a, i);
        const int newest = (s.keys - 1) / CHUNK_KEYS;
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
                for (int c = p.first_chunk(); c <= p.last_chunk(); c++) {
                    const bool ends = split * CHUNKS + c == newest;
                    if (ends && !waited) {
                        grid_wait();
                        waited = true;
                    }
                    tiles.load(a.kv +
                                   ((int64_t)(c < 2 ? page0 : page1) * a.n_kv_heads + s.head) *
                                       (2 * PAGE_KEYS * DH) +
                                   (value * PAGE_KEYS + (c & 1) * CHUNK_KEYS) * DH,
                               ends ? s.keys - newest * CHUNK_KEYS : CHUNK_KEYS);
                }
        }
    }
}

template <int DH, int STAGES>
__global__ void __launch_bounds__(THREADS, 2) decode_kernel(struct attention_cuda a)
{
    extern __shared__ __align__(128) unsigned char decode_stages[];
    __shared__ uint64_t barriers[PAIRS][2][STAGES];
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), pair = warp % PAIRS,
              worker = pair * gridDim.x + blockIdx.x;
    const int begin = __ldg(a.decode_starts + worker), end = __ldg(a.decode_starts + worker + 1);
    typedef ring<DH, STAGES> ring_of;
    ring_of tiles = {shared_address(decode_stages) + pair * STAGES * ring_of::BYTES,
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
    if (warp >= PAIRS) {
        registers_give<24>();
        if ((threadIdx.x & 31) == 0)
            produce<DH, STAGES>(tiles, a, begin, end);
    } else {
        registers_take<232>();
        grid_wait();
#pragma unroll 1
        for (int i = begin; i < end; i++)
            span_run<DH>(a, span_read(a, i), tiles, a.n_heads / a.n_kv_heads);
    }
}

template <int DH, int STAGES> constexpr int ring_bytes()
{
    return PAIRS * STAGES * ring<DH, STAGES>::BYTES;
}

template <int DH, int STAGES> static cudaError_t decode_ready()
{
    static once_a_device ready;
    return shared_memory_allow(decode_kernel<DH, STAGES>, ring_bytes<DH, STAGES>(), ready);
}

template <int DH, int STAGES>
static int decode_launch(const struct attention_cuda *a, int grid, cudaStream_t s)
{
    const cudaError_t e = decode_ready<DH, STAGES>();
    if (e != cudaSuccess)
        return (int)e;
    return (int)launch_early<decode_kernel<DH, STAGES>>((unsigned)grid, THREADS,
                                                        ring_bytes<DH, STAGES>(), s, *a);
}

template <int STAGES>
static int decode_heads(const struct attention_cuda *a, int head_dim, int grid, cudaStream_t s)
{
    return head_dim == 128  ? decode_launch<128, STAGES>(a, grid, s)
           : head_dim == 64 ? decode_launch<64, STAGES>(a, grid, s)
                            : decode_launch<32, STAGES>(a, grid, s);
}

extern "C" int attention_decode_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                     int deep, void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return deep ? decode_heads<DEEP>(a, head_dim, grid, s)
                : decode_heads<SHALLOW>(a, head_dim, grid, s);
}

template <int DH> static int decode_both_ready()
{
    const cudaError_t e = decode_ready<DH, SHALLOW>();
    return (int)(e == cudaSuccess ? decode_ready<DH, DEEP>() : e);
}

extern "C" int attention_decode_ready_cuda(int head_dim)
{
    return head_dim == 128  ? decode_both_ready<128>()
           : head_dim == 64 ? decode_both_ready<64>()
                            : decode_both_ready<32>();
}
