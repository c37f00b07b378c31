/* gemm_swiglu: out = silu(x Wg^T) * (x Wu^T) in one kernel (Shazeer 2020), for Hopper: the
 * product's gate and up columns meet in one thread's accumulators, so neither goes to memory.
 *
 * A cluster of two CTAs takes two tiles of 128 rows and the same 128 columns of gate and of up.
 * Tiles of 64 inputs come by the tensor copy engine, 128-byte swizzled, four stages deep; each CTA
 * loads its own rows, and one half of the weights for both. Two warpgroups multiply 64 rows by 256
 * columns each (wgmma m64n256k16), one thread of a third feeds them. Persistent: a cluster walks
 * tiles, rows first, so that the weights pass once.
 *
 * An output is one chain over its inputs in rising order, 16 at a time, whatever the number of
 * rows; gate and up are rounded to bf16 before SiLU and the product once more (R3, R7), as by a
 * product and swiglu_cuda. PTX ISA 8.x: wgmma, cp.async.bulk.tensor, mbarrier. */
#include "box.cuh"
#include "common.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"
#include "wgmma.cuh"

enum {
    TILE_M = 128,
    HALF_N = 128, /* columns of gate, and as many of up */
    TILE_K = 64,
    STAGES = 4,
    WARPGROUPS = 2, /* that multiply; one more loads */
    GEMM_THREADS = 128 * (WARPGROUPS + 1),
    CLUSTER = 2,
    BYTES_A = TILE_M * TILE_K * 2,
    BYTES_B = 2 * HALF_N * TILE_K * 2,
    STAGE_BYTES = BYTES_A + BYTES_B,
    SHARED_BYTES = STAGES * STAGE_BYTES + 1024 /* to align */,
    ACCUMULATORS = 128, /* 64 of gate, 64 of up */
};

struct gemm_tiles {
    int n, rows_pairs, k_tiles; /* tiles in all, pairs of row tiles, tiles of the sum */
};

#define D8(i)                                                                                      \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
/* d[64 x 256] (+)= a[64 x 16] . b[256 x 16]^T of the warpgroup; more 0: d is overwritten. */
DEVICE void multiply(float (&d)[ACCUMULATORS], uint64_t a, uint64_t b, int more)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
        "%125, %126, %127}, %128, %129, p, 1, 1, 0, 0;\n}\n"
        : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56), D8(64), D8(72), D8(80),
          D8(88), D8(96), D8(104), D8(112), D8(120)
        : "l"(a), "l"(b), "r"(more));
}
#undef D8

/* The thread that feeds the stages. */
DEVICE void produce(const CUtensorMap *x, const CUtensorMap *w, const gemm_tiles &t, int f,
                    uint32_t stages, uint32_t full, uint32_t empty)
{
    const int rank = (int)cluster_rank();
    int s = 0;
    uint32_t parity = 1; /* the stages begin empty */
    for (int tile = blockIdx.x / CLUSTER; tile < t.n; tile += gridDim.x / CLUSTER) {
        const int row = (tile % t.rows_pairs * CLUSTER + rank) * TILE_M;
        const int column = tile / t.rows_pairs * HALF_N + rank * f;
        for (int k = 0; k < t.k_tiles; k++) {
            const uint32_t a = stages + s * STAGE_BYTES, b = a + BYTES_A;
            barrier_wait(empty + 8 * s, parity);
            barrier_expect(full + 8 * s, STAGE_BYTES);
            box_load(a, x, k * TILE_K, row, full + 8 * s);
            box_load_all<CLUSTER>(b + rank * (BYTES_B / 2), w, k * TILE_K, column, full + 8 * s);
            if (++s == STAGES) {
                s = 0;
                parity ^= 1;
            }
        }
    }
}

/* Four registers of a quad of lanes, transposed: lane q gets what the lanes hold as v[q]. */
DEVICE void quad_transpose(uint32_t (&v)[4])
{
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? v[i] : v[i + 1], 1);
        (odd ? v[i] : v[i + 1]) = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? v[i] : v[i + 2], 2);
        (high ? v[i] : v[i + 2]) = got;
    }
}

/* Two values rounded to one word that the compiler does not take apart again. */
DEVICE uint32_t pack_whole(float lo, float hi)
{
    uint32_t v;
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(v) : "f"(hi), "f"(lo));
    return v;
}
DEVICE float low_of(uint32_t v)
{
    return __uint_as_float(v << 16);
}
DEVICE float high_of(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}
DEVICE uint32_t swiglu_pair(uint32_t gate, uint32_t up)
{
    return pack_whole(__fmul_rn(silu(low_of(gate)), low_of(up)),
                      __fmul_rn(silu(high_of(gate)), high_of(up)));
}

/* A finished product that waits for its SwiGLU, rounded: pair 2 b + h is columns 8 b + 2 (lane % 4)
 * and the next, of row lane / 4 + 8 h of the warp's 16; first gate, then up. */
struct product {
    uint32_t pair[ACCUMULATORS / 2];
    bf16 *at; /* the thread's first piece of out */
};
enum { PARTS = 8 }; /* that a product is finished in: 32 columns of 8 rows a warp */

template <int PART> DEVICE void finish(const product &p, int f)
{
    constexpr int HALF = PART / 4, COLUMN = PART % 4 * 32;
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int pair = 2 * (COLUMN / 8 + i) + HALF;
        v[i] = swiglu_pair(p.pair[pair], p.pair[pair + ACCUMULATORS / 4]);
    }
    quad_transpose(v);
    *reinterpret_cast<uint4 *>(p.at + (int64_t)HALF * 8 * f + COLUMN) =
        make_uint4(v[0], v[1], v[2], v[3]);
}

/* Where a warpgroup stands in the ring of stages. */
struct ring {
    uint32_t stages, full, empty, parity;
    int s, last;
    METHOD void release(int stage) const /* to both CTAs, which both fill it */
    {
        const uint32_t thread = threadIdx.x % 128;
        if (thread < CLUSTER)
            barrier_arrive_at(empty + 8 * stage, thread);
    }
};

/* One tile of the sum: d += x . w^T over 64 inputs; meanwhile `aside` is done. */
template <class F> DEVICE void step(float (&d)[ACCUMULATORS], ring &r, int k, F aside)
{
    const uint32_t stage = r.stages + r.s * STAGE_BYTES;
    const uint64_t a = wgmma_tile<128>(stage + (threadIdx.x / 128 - 1) * (BYTES_A / WARPGROUPS),
                                       16),
                   b = wgmma_tile<128>(stage + BYTES_A, 16);
    barrier_wait(r.full + 8 * r.s, r.parity);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < TILE_K / 16; i++) /* 16 values are 32 bytes */
        multiply(d, a + 2 * i, b + 2 * i, k > 0 || i > 0);
    wgmma_commit();
    aside();
    if (k > 0) {
        wgmma_wait<1>();
        r.release(r.last);
    }
    r.last = r.s;
    if (++r.s == STAGES) {
        r.s = 0;
        r.parity ^= 1;
    }
}

/* The first PARTS steps of a tile, each with a part of the product before. */
template <int PART>
DEVICE void steps(float (&d)[ACCUMULATORS], ring &r, const product &before, int f)
{
    step(d, r, PART, [&] { finish<PART>(before, f); });
    if constexpr (PART + 1 < PARTS)
        steps<PART + 1>(d, r, before, f);
}
template <int PART> DEVICE void finish_all(const product &p, int f)
{
    finish<PART>(p, f);
    if constexpr (PART + 1 < PARTS)
        finish_all<PART + 1>(p, f);
}

/* A warpgroup that multiplies: while a tile's products run, the tile before gets its SwiGLU. */
DEVICE void consume(bf16 *out, const gemm_tiles &t, int f, ring r)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 - 4; /* of both warpgroups */
    const int row = (int)cluster_rank() * TILE_M + warp * 16 + lane / 4;
    const auto place = [&](int tile) {
        return out + (int64_t)(tile % t.rows_pairs * CLUSTER * TILE_M + row) * f +
               tile / t.rows_pairs * HALF_N + lane % 4 * 8;
    };
    /* Zeros stand before the first tile, at its own place: it writes there again. */
    product p = {};
    p.at = place(blockIdx.x / CLUSTER);
    for (int tile = blockIdx.x / CLUSTER; tile < t.n; tile += gridDim.x / CLUSTER) {
        float d[ACCUMULATORS];
        steps<0>(d, r, p, f);
        for (int k = PARTS; k < t.k_tiles; k++)
            step(d, r, k, [] {});
        wgmma_wait<0>();
        r.release(r.last);
#pragma unroll
        for (int i = 0; i < ACCUMULATORS / 2; i++)
            p.pair[i] = pack_whole(d[2 * i], d[2 * i + 1]);
        p.at = place(tile);
    }
    finish_all<0>(p, f);
}

__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(GEMM_THREADS, 1)
    gemm_swiglu_kernel(bf16 *out, const __grid_constant__ CUtensorMap x,
                       const __grid_constant__ CUtensorMap w, struct gemm_tiles t, int f)
{
    extern __shared__ unsigned char raw[];
    __shared__ uint64_t barriers[2 * STAGES];
    const uint32_t stages = (shared_address(raw) + 1023) & ~1023u;
    const uint32_t full = shared_address(barriers), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, CLUSTER * WARPGROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    }
    __syncthreads();
    cluster_wait_all();
    if (threadIdx.x < 128) {
        registers_give<40>();
        if (threadIdx.x == 0)
            produce(&x, &w, t, f, stages, full, empty);
    } else {
        registers_take<232>();
        consume(out, t, f, {stages, full, empty, 0, 0, 0});
    }
    /* A CTA stays while the other may still write to it or arrive at it. */
    __syncwarp();
    cluster_wait_all();
}

extern "C" int gemm_swiglu_cuda(__nv_bfloat16 *out, const __nv_bfloat16 *x, const __nv_bfloat16 *w,
                                int t, int f, int k, int n_sms, void *stream)
{
    static once_a_device allowed;
    const int rows_pairs = (t + CLUSTER * TILE_M - 1) / (CLUSTER * TILE_M);
    const struct gemm_tiles tiles = {rows_pairs * (f / HALF_N), rows_pairs, k / TILE_K};
    CUtensorMap of_x, of_w;
    if (f % HALF_N != 0 || k % TILE_K != 0 || k < PARTS * TILE_K)
        return (int)cudaErrorInvalidValue;
    cudaError_t e = shared_memory_allow(gemm_swiglu_kernel, SHARED_BYTES, allowed);
    if (e == cudaSuccess)
        e = box_map(&of_x, x, (int64_t)rows_pairs * CLUSTER * TILE_M, k, TILE_M);
    if (e == cudaSuccess)
        e = box_map(&of_w, w, 2 * (int64_t)f, k, HALF_N);
    if (e != cudaSuccess)
        return (int)e;
    const int clusters = tiles.n < n_sms / CLUSTER ? tiles.n : n_sms / CLUSTER;
    gemm_swiglu_kernel<<<(unsigned)(clusters * CLUSTER), GEMM_THREADS, SHARED_BYTES,
                         (cudaStream_t)stream>>>(out, of_x, of_w, tiles, f);
    return (int)cudaGetLastError();
}
