/* attention_merge: decode rows that were cut over several warps: their partial states into out,
 * left to right within a block of keys, then blocks left to right. A warp takes one head of one row
 * and alone needs nobody; where there are few such heads, several warps share one's dims.
 *
 * A merge's weights hang on the greatest scores alone, and the greatest of many is the same in any
 * order: a lane works out those of one state by scans, so that what is left is a short chain. */
#include "attention.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum {
    MERGE_WARPS = 4,
    ROUND = 32,         /* states whose weights are worked out together, a lane each */
    HEADS_ALONE = 2048, /* from so many heads on, each has a warp alone */
};
static const unsigned ALL_LANES = 0xffffffffu;

/* One state: what the lane that stands for it knows. */
struct lane_state {
    float m, l;
    bool begins; /* a block of keys */

    METHOD bool begins_of(int lane) const
    {
        return __shfl_sync(ALL_LANES, (int)begins, lane) != 0;
    }
};
DEVICE lane_state state_read(const float *from, int dh)
{
    return {__ldcg(from + dh), __ldcg(from + dh + 1), __ldcg(from + dh + 2) != 0.f};
}

/* The greatest scores before the round: of the whole blocks, and of the one that is under way. */
struct greatest {
    float total, block;
};

/* What a state does to the sums: where it begins a block, the block before it is merged into the
 * total; else the state is merged into its block. A side without keys is left out exactly. */
struct lane_step {
    enum { BOTH, LEFT, RIGHT };
    float a, b;
    int kind;

    METHOD lane_step of_lane(int lane) const
    {
        return {__shfl_sync(ALL_LANES, a, lane), __shfl_sync(ALL_LANES, b, lane),
                __shfl_sync(ALL_LANES, kind, lane)};
    }
    METHOD lane_step(float of_a, float of_b, int of_kind) : a(of_a), b(of_b), kind(of_kind) {}
    METHOD lane_step(float ma, float mb, float scale_log2)
    {
        const merge_weights w = merge_of(ma, mb, scale_log2);
        a = w.a, b = w.b;
        kind = mb == -INFINITY ? LEFT : ma == -INFINITY ? RIGHT : BOTH;
    }
    METHOD float of(float va, float vb) const
    {
        const float both = __fmaf_rn(vb, b, __fmul_rn(va, a));
        return kind == LEFT ? va : kind == RIGHT ? vb : both;
    }
};

/* The lane's step; `before` goes on to behind the round. */
DEVICE lane_step step_scan(const lane_state &s, greatest &before, float scale_log2)
{
    const int lane = threadIdx.x & 31;
    const unsigned begins = __ballot_sync(ALL_LANES, s.begins);
    const unsigned upto = begins & ((2u << lane) - 1u);
    const int own = 31 - __clz((int)upto); /* where the lane's block begins; -1: before the round */
    float all = s.m, block = s.m;          /* up to the lane: of all, of its block */
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float x = __shfl_up_sync(ALL_LANES, all, step);
        const float y = __shfl_up_sync(ALL_LANES, block, step);
        all = lane >= step ? fmaxf(all, x) : all;
        block = lane >= step && lane - step >= own ? fmaxf(block, y) : block;
    }
    const float everything = fmaxf(before.total, before.block);
    all = fmaxf(all, everything);
    block = own < 0 ? fmaxf(block, before.block) : block;
    /* Of the whole blocks, as the lane leaves them: all before its own block. */
    const float outside = __shfl_sync(ALL_LANES, all, max(own - 1, 0));
    const float total = own < 0 ? before.total : own == 0 ? everything : outside;
    float total_before = __shfl_up_sync(ALL_LANES, total, 1);
    float block_before = __shfl_up_sync(ALL_LANES, block, 1);
    total_before = lane == 0 ? before.total : total_before;
    block_before = lane == 0 ? before.block : block_before;
    before.total = __shfl_sync(ALL_LANES, total, 31);
    before.block = __shfl_sync(ALL_LANES, block, 31);
    return lane_step(s.begins ? total_before : block_before, s.begins ? block_before : s.m,
                     scale_log2);
}

/* Some dims of O, and l behind them, over the whole blocks and over the block under way. */
template <int N> struct sums {
    float total[N], block[N];

    METHOD void step(const float (&v)[N], bool begins, const lane_step &w)
    {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float merged = w.of(begins ? total[i] : block[i], begins ? block[i] : v[i]);
            total[i] = begins ? merged : total[i];
            block[i] = begins ? v[i] : merged;
        }
    }
};

template <int V> DEVICE void values_read(float (&to)[V], const float *from)
{
    if constexpr (V == 4) {
        const float4 v = __ldcg(reinterpret_cast<const float4 *>(from));
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else if constexpr (V == 2) {
        const float2 v = __ldcg(reinterpret_cast<const float2 *>(from));
        to[0] = v.x, to[1] = v.y;
    } else {
        to[0] = __ldcg(from);
    }
}

/* V: dims of a lane. */
template <int DH, int V>
__global__ void __launch_bounds__(MERGE_WARPS * 32) merge_kernel(struct attention_cuda a, int n)
{
    /* AHEAD: states whose values are under way. */
    constexpr int WARPS_A_HEAD = DH / 32 / V, AHEAD = (V == 1 ? ROUND : 16) / V;
    constexpr int64_t PITCH = GROUP_MAX * chunk_layout<DH>::STATE_FLOATS;
    const int warp = blockIdx.x * MERGE_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int group = a.n_heads / a.n_kv_heads, of_group = warp / WARPS_A_HEAD % group;
    const int dim = (warp % WARPS_A_HEAD * 32 + lane) * V, merge = warp / WARPS_A_HEAD / group;
    grid_start_next();
    if (merge >= n)
        return;
    const int4 item = __ldg(a.merges + merge);
    const float *from = partial_at<DH>(a, item.z) + of_group * chunk_layout<DH>::STATE_FLOATS;
    grid_wait();
    float ahead[AHEAD][V];
    sums<V + 1> o = {};
    greatest m = {-INFINITY, -INFINITY};
    const auto fetch = [&](int first) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (first + k < item.w)
                values_read<V>(ahead[k], from + (first + k) * PITCH + dim);
    };
    fetch(0);
#pragma unroll 1
    for (int first = 0; first < item.w; first += ROUND) {
        lane_state mine = {-INFINITY, 0.f, false};
        if (first + lane < item.w)
            mine = state_read(from + (first + lane) * PITCH, DH);
        const lane_step step = step_scan(mine, m, a.scale_log2);
#pragma unroll 1
        for (int k0 = 0; k0 < min(ROUND, item.w - first); k0 += AHEAD) {
            float now[AHEAD][V];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
#pragma unroll
                for (int i = 0; i < V; i++)
                    now[k][i] = ahead[k][i];
            fetch(first + k0 + AHEAD);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (first + k0 + k >= item.w)
                    break;
                float v[V + 1];
#pragma unroll
                for (int i = 0; i < V; i++)
                    v[i] = now[k][i];
                v[V] = __shfl_sync(ALL_LANES, mine.l, k0 + k);
                o.step(v, mine.begins_of(k0 + k), step.of_lane(k0 + k));
            }
        }
    }
    const lane_step last(m.total, m.block, a.scale_log2);
    const float l = last.of(o.total[V], o.block[V]);
    bf16 *out = a.out + ((int64_t)item.x * a.n_heads + item.y * group + of_group) * DH + dim;
#pragma unroll
    for (int i = 0; i < V; i++)
        out[i] = __float2bfloat16_rn(__fdividef(last.of(o.total[i], o.block[i]), l));
}

template <int DH, int V>
static int merge_launch(const struct attention_cuda *a, int n, int heads, cudaStream_t s)
{
    const int warps = heads * (DH / 32 / V);
    return (int)launch_early<merge_kernel<DH, V>>(
        dim3((unsigned)((warps + MERGE_WARPS - 1) / MERGE_WARPS)), MERGE_WARPS * 32, 0, s, *a, n);
}

template <int DH> static int merge_heads(const struct attention_cuda *a, int n, cudaStream_t s)
{
    const int heads = n * (a->n_heads / a->n_kv_heads);
    return heads < HEADS_ALONE ? merge_launch<DH, 1>(a, n, heads, s)
                               : merge_launch<DH, DH / 32>(a, n, heads, s);
}

extern "C" int attention_merge_cuda(const struct attention_cuda *a, int head_dim, int n_merges,
                                    void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? merge_heads<128>(a, n_merges, s)
           : head_dim == 64 ? merge_heads<64>(a, n_merges, s)
                            : merge_heads<32>(a, n_merges, s);
}

template <int DH> static int merge_both_ready()
{
    cudaFuncAttributes loaded;
    const cudaError_t e = cudaFuncGetAttributes(&loaded, merge_kernel<DH, 1>);
    return (int)(e == cudaSuccess ? cudaFuncGetAttributes(&loaded, merge_kernel<DH, DH / 32>) : e);
}

extern "C" int attention_merge_ready_cuda(int head_dim)
{
    return head_dim == 128  ? merge_both_ready<128>()
           : head_dim == 64 ? merge_both_ready<64>()
                            : merge_both_ready<32>();
}
