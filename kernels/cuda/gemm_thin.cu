/* gemm_thin: out = x W^T for steps of few rows, for Hopper: the weights are what takes the time, so
 * every multiprocessor streams its share of them once, far ahead of the products; what fits into
 * shared memory is on its way while the kernel before, which makes x, still runs.
 *
 * A CTA computes 16 outputs of all rows (at most 64): wgmma with the weights as its 64 rows, of
 * which the first 16 are used, and the step's rows as its columns. Tiles of 64 inputs come by the
 * tensor copy engine, 128-byte swizzled, four to a stage. (A cluster that shares the rows' tiles
 * was no faster at K 8,960 and 0.9 us slower at 1,536.)
 *
 * An output is one chain over its inputs in rising order, 16 at a time, whatever the number of
 * rows: the sum of cuBLASLt's wide products. Like theirs it is rounded before the residual is
 * added, and again after (cuda_thin.c proves the bits). PTX ISA 8.x: wgmma, cp.async.bulk.tensor,
 * griddepcontrol.
 */
#include "box.cuh"
#include "common.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"
#include "wgmma.cuh"

enum {
    OUTPUTS = 16, /* of a CTA */
    TILE_K = 64,
    TILES = 4, /* of a stage */
    THIN_THREADS = 128 + 32,
    BYTES_W = OUTPUTS * TILE_K * 2,
    SHARED_MAX = 208 << 10,
};
template <int MT> struct thin { /* for up to MT rows */
    static constexpr int BYTES_X = MT * TILE_K * 2, STAGE = TILES * (BYTES_W + BYTES_X),
                         FIT = SHARED_MAX / STAGE, STAGES = FIT > 12 ? 12 : FIT,
                         SHARED = STAGES * STAGE + 1024 /* to align */;
    /* wgmma reads 64 rows at the last tile of weights: 48 are what stands behind, unused. */
    static_assert(TILES * BYTES_X >= 48 * TILE_K * 2, "a stage ends behind what is read");
};

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
/* d[64 x N] (+)= a[64 x 16] . b[N x 16]^T of the warpgroup, N = 2 * the size of d; more 0: d is
 * overwritten. */
DEVICE void multiply(float (&d)[8], uint64_t a, uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, 0;\n}\n"
                 : D4(0), D4(4)
                 : "l"(a), "l"(b), "r"(more));
}
DEVICE void multiply(float (&d)[16], uint64_t a, uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "%16, %17, p, 1, 1, 0, 0;\n}\n"
                 : D4(0), D4(4), D4(8), D4(12)
                 : "l"(a), "l"(b), "r"(more));
}
DEVICE void multiply(float (&d)[32], uint64_t a, uint64_t b, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
                 "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, p, 1, 1, 0, 0;\n}\n"
                 : D4(0), D4(4), D4(8), D4(12), D4(16), D4(20), D4(24), D4(28)
                 : "l"(a), "l"(b), "r"(more));
}
#undef D4

struct thin_ring {
    uint32_t stages, full, empty;
    int steps; /* stages of the sum; the last may end in zeros, which change no sum */
};

template <int MT> DEVICE void load_weights(const CUtensorMap *w, const thin_ring &r, int s, int k)
{
    barrier_expect(r.full + 8 * s, thin<MT>::STAGE);
#pragma unroll
    for (int i = 0; i < TILES; i++)
        box_load(r.stages + s * thin<MT>::STAGE + i * BYTES_W, w, (k * TILES + i) * TILE_K,
                 (int)blockIdx.x * OUTPUTS, r.full + 8 * s);
}
template <int MT> DEVICE void load_rows(const CUtensorMap *x, const thin_ring &r, int s, int k)
{
    using T = thin<MT>;
#pragma unroll
    for (int i = 0; i < TILES; i++)
        box_load(r.stages + s * T::STAGE + TILES * BYTES_W + i * T::BYTES_X, x,
                 (k * TILES + i) * TILE_K, 0, r.full + 8 * s);
}

/* The thread that feeds the stages. */
template <int MT>
DEVICE void produce(const CUtensorMap *x, const CUtensorMap *w, const thin_ring &r)
{
    constexpr int STAGES = thin<MT>::STAGES;
    const int ahead = min(STAGES, r.steps);
    for (int k = 0; k < ahead; k++)
        load_weights<MT>(w, r, k, k);
    grid_wait();
    for (int k = 0; k < ahead; k++)
        load_rows<MT>(x, r, k, k);
    int s = 0;
    uint32_t parity = 0;
    for (int k = ahead; k < r.steps; k++) {
        barrier_wait(r.empty + 8 * s, parity);
        load_weights<MT>(w, r, s, k);
        load_rows<MT>(x, r, s, k);
        if (++s == STAGES) {
            s = 0;
            parity ^= 1;
        }
    }
}

/* One stage of the sum, behind the one before, which is then given back. */
template <int MT> DEVICE void step(float (&d)[MT / 2], const thin_ring &r, int s, int last, int k)
{
    using T = thin<MT>;
    const uint32_t at = r.stages + s * T::STAGE;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        const uint64_t a = wgmma_tile<128>(at + i * BYTES_W, 16),
                       b = wgmma_tile<128>(at + TILES * BYTES_W + i * T::BYTES_X, 16);
#pragma unroll
        for (int j = 0; j < TILE_K / 16; j++) /* 16 values are 32 bytes */
            multiply(d, a + 2 * j, b + 2 * j, k > 0 || i + j > 0);
    }
    wgmma_commit();
    if (k > 0) {
        wgmma_wait<1>();
        if (threadIdx.x == 0)
            barrier_arrive(r.empty + 8 * last);
    }
}

template <int MT> DEVICE void consume(float (&d)[MT / 2], const thin_ring &r)
{
    int s = 0, last = 0;
    uint32_t parity = 0;
    for (int k = 0; k < r.steps; k++) {
        barrier_wait(r.full + 8 * s, parity);
        step<MT>(d, r, s, last, k);
        last = s;
        if (++s == thin<MT>::STAGES) {
            s = 0;
            parity ^= 1;
        }
    }
    wgmma_wait<0>();
}

/* What the first warp's registers stand for: 4 b + 2 h + e is output lane / 4 + 8 h of row
 * 8 b + 2 (lane % 4) + e. */
DEVICE int row_of(int i)
{
    return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
}
DEVICE int output_of(int i)
{
    return (int)blockIdx.x * OUTPUTS + threadIdx.x / 4 + i % 4 / 2 * 8;
}

/* What is added at the end, asked for ahead of the sum. */
template <int MT> struct addends {
    float bias[2];
    bf16 residual[MT / 2];

    METHOD void load(const thin_product &p)
    {
        bias[0] = p.bias ? __bfloat162float(p.bias[output_of(0)]) : 0.f;
        bias[1] = p.bias ? __bfloat162float(p.bias[output_of(2)]) : 0.f;
        grid_wait(); /* the residual; and out, which an earlier kernel may still read */
#pragma unroll
        for (int i = 0; i < MT / 2; i++)
            residual[i] = p.residual && row_of(i) < p.rows
                              ? p.residual[(int64_t)row_of(i) * p.n + output_of(i)]
                              : __float2bfloat16_rn(0.f);
    }
};

template <int MT>
DEVICE void finish(bf16 *out, const float (&d)[MT / 2], const addends<MT> &more,
                   const thin_product &p)
{
#pragma unroll
    for (int i = 0; i < MT / 2; i++) {
        if (row_of(i) >= p.rows)
            continue;
        bf16 v = __float2bfloat16_rn(__fadd_rn(d[i], more.bias[i % 4 / 2]));
        if (p.residual)
            v = __float2bfloat16_rn(
                __fadd_rn(__bfloat162float(v), __bfloat162float(more.residual[i])));
        out[(int64_t)row_of(i) * p.n + output_of(i)] = v;
    }
}

template <int MT>
__global__ void __launch_bounds__(THIN_THREADS, 1)
    gemm_thin_kernel(bf16 *out, const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ CUtensorMap w, const thin_product p)
{
    using T = thin<MT>;
    extern __shared__ unsigned char raw[];
    __shared__ uint64_t barriers[2 * T::STAGES];
    const uint32_t full = shared_address(barriers);
    const thin_ring r = {(shared_address(raw) + 1023) & ~1023u, full, full + 8 * T::STAGES,
                         (p.k / TILE_K + TILES - 1) / TILES};
    if (threadIdx.x == 0) {
        for (int s = 0; s < T::STAGES; s++) {
            barrier_init(r.full + 8 * s, 1);
            barrier_init(r.empty + 8 * s, 1);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    }
    __syncthreads();
    grid_start_next();
    if (threadIdx.x == 128)
        produce<MT>(&x, &w, r);
    if (threadIdx.x < 128) {
        float d[MT / 2];
        addends<MT> more;
        if (threadIdx.x < 32)
            more.load(p);
        consume<MT>(d, r);
        if (threadIdx.x < 32)
            finish<MT>(out, d, more, p);
    }
}

template <int MT>
static cudaError_t launch(bf16 *out, const bf16 *x, const bf16 *w, const thin_product &p,
                          cudaStream_t stream)
{
    static once_a_device allowed;
    CUtensorMap of_x, of_w;
    cudaError_t e = shared_memory_allow(gemm_thin_kernel<MT>, thin<MT>::SHARED, allowed);
    if (e == cudaSuccess)
        e = box_map(&of_x, x, p.rows, p.k, MT);
    if (e == cudaSuccess)
        e = box_map(&of_w, w, p.n, p.k, OUTPUTS);
    return e == cudaSuccess
               ? launch_early<gemm_thin_kernel<MT>>((unsigned)(p.n / OUTPUTS), THIN_THREADS,
                                                    thin<MT>::SHARED, stream, out, of_x, of_w, p)
               : e;
}

extern "C" int gemm_thin_cuda(__nv_bfloat16 *out, const __nv_bfloat16 *x, const __nv_bfloat16 *w,
                              const struct thin_product *p, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    if (p->n % OUTPUTS != 0 || p->k % TILE_K != 0 || p->rows < 1 || p->rows > THIN_ROWS_MAX)
        return (int)cudaErrorInvalidValue;
    return (int)(p->rows <= 16   ? launch<16>(out, x, w, *p, s)
                 : p->rows <= 32 ? launch<32>(out, x, w, *p, s)
                                 : launch<64>(out, x, w, *p, s));
}
