/* attention_merge: decode rows whose blocks were cut over several warps: their partial states, left
 * to right, into out. A CTA a head, a thread a dim. */
#include "attention.cuh"
#include "kernels/kernels_cuda.h"

enum { MERGE_AHEAD = 32 }; /* partials whose loads are in flight together */

template <int DH> __global__ void __launch_bounds__(DH) merge_kernel(struct attention_cuda a)
{
    const int4 item = __ldg(a.merges + blockIdx.x);
    const int pitch = chunk_layout<DH>::STATE_FLOATS, d = threadIdx.x;
    const float *p = partial_at<DH>(a, item.z) + blockIdx.y * pitch;
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
    const int head = item.y * gridDim.y + blockIdx.y;
    a.out[((int64_t)item.x * a.n_heads + head) * DH + d] = __float2bfloat16_rn(__fdividef(oa, la));
}

template <int DH> static int merge_launch(const struct attention_cuda *a, int n, cudaStream_t s)
{
    const unsigned group = (unsigned)(a->n_heads / a->n_kv_heads);
    merge_kernel<DH><<<dim3((unsigned)n, group), DH, 0, s>>>(*a);
    return (int)cudaGetLastError();
}

extern "C" int attention_merge_cuda(const struct attention_cuda *a, int head_dim, int n_merges,
                                    void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? merge_launch<128>(a, n_merges, s)
           : head_dim == 64 ? merge_launch<64>(a, n_merges, s)
                            : merge_launch<32>(a, n_merges, s);
}
