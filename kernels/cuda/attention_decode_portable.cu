/* attention_decode_portable: attention_decode for cards that are no Hopper: the same spans, sums
 * and bits (attention_decode.cuh), one warp a worker, which brings its own chunks by cp.async,
 * three pieces of at most 4 KiB ahead: two CTAs fit into the smallest shared memory (sm_86: 100
 * KB). */
#include "attention_decode.cuh"
#include "attention_feed.cuh"
#include "kernels/kernels_cuda.h"

enum {
    WARPS = 4, /* of a CTA; two CTAs a multiprocessor, as the work lists are dealt */
    STAGES = 3,
    THREADS = WARPS * 32,
};

/* The warp's ring. A piece is one part of a chunk: 64 head dims or fewer of 32 keys. */
template <int DH, class FEED> struct ring {
    enum { TURNS = chunk_layout<DH>::PARTS, BYTES = chunk_layout<DH>::PART_BYTES };
    uint32_t data; /* shared address */
    uint32_t zero; /* 0, which the compiler cannot know */
    int stage;     /* the next one */
    FEED feed;
    const bf16 *src; /* of the chunk whose pieces are being brought; null behind the last */
    int piece;       /* its next one */

    METHOD void fill()
    {
#pragma unroll 1
        for (stage = 0; stage < STAGES; stage++)
            load(data + stage * BYTES);
        stage = 0;
    }
    METHOD uint32_t wait() const
    {
        copies_wait<STAGES - 1>();
        __syncwarp();
        return data + stage * BYTES;
    }
    /* `of_all`: of results of all reads of the piece. What goes into its place waits for them. */
    METHOD void done(uint32_t of_all)
    {
        __syncwarp();
        load(data + stage * BYTES + (of_all & zero));
        if (++stage == STAGES)
            stage = 0;
    }
    METHOD static void cleared() {}

  private:
    METHOD void load(uint32_t dst)
    {
        const int lane = threadIdx.x & 31;
        if (piece == 0)
            src = feed.ended() ? nullptr : feed.take();
        if (src)
#pragma unroll
            for (int i = 0; i < BYTES / 512; i++)
                copy_16(dst + i * 512 + lane * 16, src + piece * (BYTES / 2) + i * 256 + lane * 8);
        copies_commit();
        piece = piece + 1 == TURNS ? 0 : piece + 1;
    }
};

struct decode_spans {
    METHOD span operator()(const struct attention_cuda &a, int i) const
    {
        return span_read(a, i);
    }
};

template <int DH>
__global__ void __launch_bounds__(THREADS, 2) decode_portable_kernel(struct attention_cuda a)
{
    typedef feed<DH, decode_spans> spans;
    extern __shared__ __align__(128) unsigned char decode_stages[];
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0),
              worker = warp * gridDim.x + blockIdx.x;
    const int begin = __ldg(a.decode_starts + worker), end = __ldg(a.decode_starts + worker + 1);
    ring<DH, spans> tiles = {shared_address(decode_stages) + warp * STAGES * ring<DH, spans>::BYTES,
                             static_cast<uint32_t>(a.n_heads) >> 30,
                             0,
                             spans(a, decode_spans(), begin, end, a.window),
                             nullptr,
                             0};
    tiles.fill();
#pragma unroll 1
    for (int i = begin; i < end; i++)
        span_run<DH>(a, span_read(a, i), tiles, a.n_heads / a.n_kv_heads);
}

template <int DH> static int decode_launch(const struct attention_cuda *a, int grid, cudaStream_t s)
{
    const int bytes = WARPS * STAGES * chunk_layout<DH>::PART_BYTES; /* at most 48 KiB */
    decode_portable_kernel<DH><<<grid, THREADS, bytes, s>>>(*a);
    return (int)cudaGetLastError();
}

extern "C" int attention_decode_portable_cuda(const struct attention_cuda *a, int head_dim,
                                              int grid, void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? decode_launch<128>(a, grid, s)
           : head_dim == 64 ? decode_launch<64>(a, grid, s)
                            : decode_launch<32>(a, grid, s);
}
