/* norm: RMSNorm (Zhang & Sennrich 2019), one warp a row, fp32 inside, one rounding. The order of a
 * row's sum is fixed by its width alone. `rows` (may be null) gathers: out row i is x row rows[i].
 */
#include <type_traits>

#include "common.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum { NORM_WARPS = 4, PIECES_MAX = 24 }; /* 16-byte pieces a lane holds: rows up to 6,144 wide */

/* P: pieces a lane holds in registers, so that the row is read once. */
template <int P>
__global__ void __launch_bounds__(NORM_WARPS * 32)
    rmsnorm_kernel(bf16 *out, const bf16 *x, const float *w, float eps, int t, int d,
                   const int32_t *rows)
{
    const int i = blockIdx.x * NORM_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    grid_start_next();
    /* Narrow rows: the weights are asked for before the row is there. */
    constexpr int AHEAD = P <= 6 ? P / 2 : 1;
    float4 ahead[AHEAD][2];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const int c = min(lane * 8 + k * 256, d - 8);
        ahead[k][0] = *reinterpret_cast<const float4 *>(w + c);
        ahead[k][1] = *reinterpret_cast<const float4 *>(w + c + 4);
    }
    grid_wait();
    if (i >= t)
        return;
    const bf16 *in = x + (int64_t)(rows ? rows[i] : i) * d;
    uint4 piece[P];
#pragma unroll
    for (int k = 0; k < P; k++) {
        const int c = lane * 8 + k * 256;
        piece[k] = c < d ? *reinterpret_cast<const uint4 *>(in + c) : make_uint4(0, 0, 0, 0);
    }
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < P; k++) {
        const uint32_t words[4] = {piece[k].x, piece[k].y, piece[k].z, piece[k].w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float2 f = unpack_bf16(words[e]);
            sum = __fmaf_rn(f.x, f.x, sum);
            sum = __fmaf_rn(f.y, f.y, sum);
        }
    }
    const float scale = rsqrtf(__fadd_rn(__fdividef(warp_sum(sum), (float)d), eps));
#pragma unroll
    for (int k = 0; k < P; k++) {
        const int c = lane * 8 + k * 256;
        if (c >= d)
            continue;
        const float4 w0 = k < AHEAD ? ahead[k][0] : *reinterpret_cast<const float4 *>(w + c),
                     w1 = k < AHEAD ? ahead[k][1] : *reinterpret_cast<const float4 *>(w + c + 4);
        const uint32_t words[4] = {piece[k].x, piece[k].y, piece[k].z, piece[k].w};
        const float weights[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
        uint32_t r[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float2 f = unpack_bf16(words[e]);
            r[e] = pack_bf16(__fmul_rn(__fmul_rn(f.x, scale), weights[2 * e]),
                             __fmul_rn(__fmul_rn(f.y, scale), weights[2 * e + 1]));
        }
        *reinterpret_cast<uint4 *>(out + (int64_t)i * d + c) = make_uint4(r[0], r[1], r[2], r[3]);
    }
}

extern "C" int rmsnorm_cuda(__nv_bfloat16 *out, const __nv_bfloat16 *x, const float *w, float eps,
                            int t, int d, const int32_t *rows, void *stream)
{
    const int grid = (t + NORM_WARPS - 1) / NORM_WARPS, pieces = (d + 255) / 256;
    cudaStream_t s = (cudaStream_t)stream;
    const auto launch = [&](auto width) {
        return (int)launch_early<rmsnorm_kernel<width.value>>((unsigned)grid, NORM_WARPS * 32, 0, s,
                                                              out, x, w, eps, t, d, rows);
    };
    return pieces <= 6            ? launch(std::integral_constant<int, 6>())
           : pieces <= 16         ? launch(std::integral_constant<int, 16>())
           : pieces <= PIECES_MAX ? launch(std::integral_constant<int, PIECES_MAX>())
                                  : (int)cudaErrorInvalidValue;
}
