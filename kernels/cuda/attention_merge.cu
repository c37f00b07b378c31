/* attention_merge: decode rows that were cut over several warps: their partial states into out,
 * left to right within a block of keys, then blocks left to right. A CTA a head, a thread a dim. */
#include "attention.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum {
    ROUND = 64, /* partials whose weights are worked out together, a thread each */
    AHEAD = 16, /* whose values are in flight while as many are merged */
};

/* A merge's weights, and what it does with a side that has no keys. */
struct step_weights {
    merge_weights w;
    float ma, mb;

    METHOD float of(float va, float vb) const
    {
        return merge_value(va, vb, ma, mb, w);
    }
};
DEVICE step_weights weights_of(float ma, float mb, float scale_log2)
{
    return {merge_of(ma, mb, scale_log2), ma, mb};
}

struct round_shared {
    float m[ROUND], l[ROUND];
    bool begins[ROUND];
    step_weights weights[ROUND];
};

/* The greatest scores so far: of the whole blocks, and of the block that is under way. */
struct greatest {
    float total = -INFINITY, block = -INFINITY;

    METHOD void step(float m, bool begins)
    {
        total = begins ? fmaxf(total, block) : total;
        block = begins ? m : fmaxf(block, m);
    }
};

/* The weights with which partial k of the round is merged, or, where it begins a block, the block
 * before it. */
DEVICE step_weights step_of(const round_shared &sh, int k, greatest before, float scale_log2)
{
    for (int i = 0; i < k; i++)
        before.step(sh.m[i], sh.begins[i]);
    return sh.begins[k] ? weights_of(before.total, before.block, scale_log2)
                        : weights_of(before.block, sh.m[k], scale_log2);
}

/* One dim of O, or l, over the whole blocks and over the block under way. */
struct sums {
    float total = 0.f, block = 0.f;

    METHOD void step(float v, bool begins, const step_weights &w)
    {
        const float merged = w.of(begins ? total : block, begins ? block : v);
        total = begins ? merged : total;
        block = begins ? v : merged;
    }
};

template <int DH> DEVICE void values_read(float (&to)[AHEAD], const float *from, int first, int n)
{
    const int64_t pitch = GROUP_MAX * chunk_layout<DH>::STATE_FLOATS;
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        to[k] = first + k < n ? __ldcg(from + (first + k) * pitch + threadIdx.x) : 0.f;
}

template <int DH> __global__ void __launch_bounds__(DH) merge_kernel(struct attention_cuda a)
{
    __shared__ round_shared sh;
    const int4 item = __ldg(a.merges + blockIdx.x);
    const float *from = partial_at<DH>(a, item.z) + blockIdx.y * chunk_layout<DH>::STATE_FLOATS;
    float ahead[AHEAD];
    greatest m;
    sums o, l;
    grid_start_next();
    grid_wait();
    values_read<DH>(ahead, from, 0, item.w);
#pragma unroll 1
    for (int first = 0; first < item.w; first += ROUND) {
        const int n = min(ROUND, item.w - first);
        __syncthreads();
        for (int k = threadIdx.x; k < n; k += DH) {
            const float *at =
                from + (int64_t)(first + k) * GROUP_MAX * chunk_layout<DH>::STATE_FLOATS + DH;
            sh.m[k] = __ldcg(at);
            sh.l[k] = __ldcg(at + 1);
            sh.begins[k] = __ldcg(at + 2) != 0.f;
        }
        __syncthreads();
        for (int k = threadIdx.x; k < n; k += DH)
            sh.weights[k] = step_of(sh, k, m, a.scale_log2);
        __syncthreads();
#pragma unroll 1
        for (int k0 = 0; k0 < n; k0 += AHEAD) {
            float now[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                now[k] = ahead[k];
            if (first + k0 + AHEAD < item.w)
                values_read<DH>(ahead, from, first + k0 + AHEAD, item.w);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (k0 + k >= n)
                    break;
                const bool begins = sh.begins[k0 + k];
                o.step(now[k], begins, sh.weights[k0 + k]);
                l.step(sh.l[k0 + k], begins, sh.weights[k0 + k]);
                m.step(sh.m[k0 + k], begins);
            }
        }
    }
    const step_weights last = weights_of(m.total, m.block, a.scale_log2);
    const int head = item.y * gridDim.y + blockIdx.y;
    a.out[((int64_t)item.x * a.n_heads + head) * DH + threadIdx.x] =
        __float2bfloat16_rn(__fdividef(last.of(o.total, o.block), last.of(l.total, l.block)));
}

template <int DH> static int merge_launch(const struct attention_cuda *a, int n, cudaStream_t s)
{
    const unsigned group = (unsigned)(a->n_heads / a->n_kv_heads);
    return (int)launch_early<merge_kernel<DH>>(dim3((unsigned)n, group), DH, 0, s, *a);
}

extern "C" int attention_merge_cuda(const struct attention_cuda *a, int head_dim, int n_merges,
                                    void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? merge_launch<128>(a, n_merges, s)
           : head_dim == 64 ? merge_launch<64>(a, n_merges, s)
                            : merge_launch<32>(a, n_merges, s);
}
