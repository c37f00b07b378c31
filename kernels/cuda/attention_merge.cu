/* attention_merge: decode rows that were cut over several warps: their partial states into out,
 * left to right within a block of keys, then blocks left to right. A CTA a head, a thread a dim. */
#include "attention.cuh"
#include "kernels/kernels_cuda.h"

enum { AHEAD = 8 }; /* partials whose loads are in flight while as many are merged */

/* One dim of one head's state. */
struct one_state {
    float o = 0.f, m = -INFINITY, l = 0.f;
    bool begins = false;

    template <int DH> METHOD void read(const float *at)
    {
        o = __ldcg(at + threadIdx.x);
        m = __ldcg(at + DH);
        l = __ldcg(at + DH + 1);
        begins = __ldcg(at + DH + 2) != 0.f;
    }
    METHOD void merge(const one_state &b, float scale_log2)
    {
        const merge_weights w = merge_of(m, b.m, scale_log2);
        o = merge_value(o, b.o, m, b.m, w);
        l = merge_value(l, b.l, m, b.m, w);
        m = w.m;
    }
};

template <int DH>
DEVICE void states_read(one_state (&to)[AHEAD], const float *from, int first, int n)
{
    const int64_t pitch = GROUP_MAX * chunk_layout<DH>::STATE_FLOATS;
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        to[k].read<DH>(from + min(first + k, n - 1) * pitch);
}

template <int DH> __global__ void __launch_bounds__(DH) merge_kernel(struct attention_cuda a)
{
    const int4 item = __ldg(a.merges + blockIdx.x);
    const float *from = partial_at<DH>(a, item.z) + blockIdx.y * chunk_layout<DH>::STATE_FLOATS;
    one_state total, block, ahead[AHEAD];
    states_read<DH>(ahead, from, 0, item.w);
#pragma unroll 1
    for (int first = 0; first < item.w; first += AHEAD) {
        one_state now[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            now[k] = ahead[k];
        if (first + AHEAD < item.w)
            states_read<DH>(ahead, from, first + AHEAD, item.w);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (first + k >= item.w)
                break;
            if (now[k].begins) {
                total.merge(block, a.scale_log2);
                block = now[k];
            } else {
                block.merge(now[k], a.scale_log2);
            }
        }
    }
    total.merge(block, a.scale_log2);
    const int head = item.y * gridDim.y + blockIdx.y;
    a.out[((int64_t)item.x * a.n_heads + head) * DH + threadIdx.x] =
        __float2bfloat16_rn(__fdividef(total.o, total.l));
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
