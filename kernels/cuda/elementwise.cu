/* elementwise: embedding gather, SwiGLU (Shazeer 2020), block-table updates: one 16-byte piece a
 * thread. */
#include "common.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum { THREADS = 256 };

__global__ void embed_kernel(bf16 *out, const bf16 *table, const int32_t *tokens,
                             const int32_t *slot, const int32_t *last, int64_t pieces,
                             int row_pieces)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= pieces)
        return;
    const int row = (int)(i / row_pieces), c = (int)(i % row_pieces);
    const int32_t id = tokens[row] >= 0 ? tokens[row] : last[slot[row]];
    reinterpret_cast<uint4 *>(out)[i] =
        __ldg(reinterpret_cast<const uint4 *>(table) + (int64_t)(id < 0 ? 0 : id) * row_pieces + c);
}

__global__ void swiglu_kernel(bf16 *out, const bf16 *gate_up, int64_t pieces, int row_pieces)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    grid_start_next();
    grid_wait();
    if (i >= pieces)
        return;
    const int64_t row = i / row_pieces, c = i % row_pieces;
    const uint4 *in = reinterpret_cast<const uint4 *>(gate_up) + row * 2 * row_pieces + c;
    const uint4 g = in[0], u = in[row_pieces];
    const uint32_t gw[4] = {g.x, g.y, g.z, g.w}, uw[4] = {u.x, u.y, u.z, u.w};
    uint32_t r[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float2 a = unpack_bf16(gw[k]), b = unpack_bf16(uw[k]);
        r[k] = pack_bf16(__fmul_rn(silu(a.x), b.x), __fmul_rn(silu(a.y), b.y));
    }
    reinterpret_cast<uint4 *>(out)[i] = make_uint4(r[0], r[1], r[2], r[3]);
}

extern "C" int embed_cuda(__nv_bfloat16 *out, const __nv_bfloat16 *table, const int32_t *tokens,
                          const int32_t *slot, const int32_t *last, int t, int d, void *stream)
{
    const int64_t pieces = (int64_t)t * (d / 8);
    embed_kernel<<<(unsigned)((pieces + THREADS - 1) / THREADS), THREADS, 0,
                   (cudaStream_t)stream>>>(out, table, tokens, slot, last, pieces, d / 8);
    return (int)cudaGetLastError();
}

extern "C" int swiglu_cuda(__nv_bfloat16 *out, const __nv_bfloat16 *gate_up, int t, int f,
                           void *stream)
{
    const int64_t pieces = (int64_t)t * (f / 8);
    return (int)launch_early<swiglu_kernel>((unsigned)((pieces + THREADS - 1) / THREADS), THREADS,
                                            0, (cudaStream_t)stream, out, gate_up, pieces, f / 8);
}

__global__ void scatter_kernel(int32_t *table, const int2 *deltas, int n)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        table[deltas[i].x] = deltas[i].y;
}

extern "C" int scatter_cuda(int32_t *table, const int2 *deltas, int n, void *stream)
{
    scatter_kernel<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        table, deltas, n);
    return (int)cudaGetLastError();
}

__global__ void differ_kernel(const uint4 *a, const uint4 *b, int64_t pieces, int32_t *count)
{
    int n = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < pieces;
         i += (int64_t)gridDim.x * THREADS) {
        const uint4 x = a[i], y = b[i];
        n += x.x != y.x || x.y != y.y || x.z != y.z || x.w != y.w;
    }
    if (n > 0)
        atomicAdd(count, n);
}

extern "C" int differ_cuda(const void *a, const void *b, int64_t pieces, int32_t *count,
                           void *stream)
{
    const int64_t grid = (pieces + THREADS - 1) / THREADS;
    differ_kernel<<<(unsigned)(grid < 2048 ? grid : 2048), THREADS, 0, (cudaStream_t)stream>>>(
        static_cast<const uint4 *>(a), static_cast<const uint4 *>(b), pieces, count);
    return (int)cudaGetLastError();
}
