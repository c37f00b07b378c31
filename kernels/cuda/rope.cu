/* rope: q/k norm where the family has it, rotary embedding (Su et al. 2021; pairs i and i + Dh/2),
 * and the write of K and V into their pages, laid out as attention.cuh says. One warp a (row,
 * head). */
#include "attention.cuh"
#include "kernels/kernels_cuda.h"

enum { ROPE_WARPS = 8 };

/* Element e of row r within a page's K or V, in elements. */
template <int DH> DEVICE int page_element(int r, int e)
{
    return r / CHUNK_KEYS * (CHUNK_KEYS * DH) + chunk_offset<DH>(r % CHUNK_KEYS, e >> 3) / 2 +
           (e & 7);
}

template <int DH> __global__ void __launch_bounds__(ROPE_WARPS * 32) rope_kernel(struct rope_cuda a)
{
    /* Rotation pairs a lane: elements lane * PAIRS .. and half + the same; a head of 32 leaves half
     * idle. */
    constexpr int PAIRS = DH > 64 ? DH / 64 : 1;
    const int lane = threadIdx.x & 31, heads = a.n_heads + 2 * a.n_kv_heads;
    const int64_t unit = (int64_t)blockIdx.x * ROPE_WARPS + (threadIdx.x >> 5);
    if (unit >= (int64_t)a.t * heads)
        return;
    const int row = (int)(unit / heads), head = (int)(unit % heads);
    const bool idle = lane * PAIRS >= DH / 2;
    const int position = a.position[row], e0 = idle ? 0 : lane * PAIRS;
    bf16 *x = a.qkv + (int64_t)row * heads * DH + head * DH;
    float lo[PAIRS], hi[PAIRS];
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        lo[i] = __bfloat162float(x[e0 + i]);
        hi[i] = __bfloat162float(x[DH / 2 + e0 + i]);
    }
    const bool is_q = head < a.n_heads, is_k = !is_q && head < a.n_heads + a.n_kv_heads;
    const float *norm = is_q ? a.q_norm : is_k ? a.k_norm : nullptr;
    if (norm) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            sum = idle ? 0.f : __fmaf_rn(hi[i], hi[i], __fmaf_rn(lo[i], lo[i], sum));
        const float scale = rsqrtf(__fadd_rn(warp_sum(sum) * (1.f / DH), a.eps));
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            lo[i] = __fmul_rn(__fmul_rn(lo[i], scale), norm[e0 + i]);
            hi[i] = __fmul_rn(__fmul_rn(hi[i], scale), norm[DH / 2 + e0 + i]);
        }
    }
    if (is_q || is_k) {
        const float *cs = a.cos_sin + (int64_t)position * DH;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const float c = cs[e0 + i], s = cs[DH / 2 + e0 + i], l = lo[i], h = hi[i];
            lo[i] = __fmaf_rn(l, c, -__fmul_rn(h, s));
            hi[i] = __fmaf_rn(h, c, __fmul_rn(l, s));
        }
    }
    if (idle)
        return;
    bf16 *out_lo = x + e0, *out_hi = x + DH / 2 + e0;
    if (!is_q) {
        const int kv_head = (head - a.n_heads) % a.n_kv_heads, r = position % PAGE_KEYS;
        const int64_t page =
            a.block_table[(int64_t)a.slot[row] * a.block_table_stride + position / PAGE_KEYS];
        bf16 *tile =
            a.kv + ((page * a.n_kv_heads + kv_head) * 2 + (is_k ? 0 : 1)) * (PAGE_KEYS * DH);
        out_lo = tile + page_element<DH>(r, e0);
        out_hi = tile + page_element<DH>(r, DH / 2 + e0);
    }
    if (PAIRS == 2) {
        *reinterpret_cast<uint32_t *>(out_lo) = pack_bf16(lo[0], lo[PAIRS - 1]);
        *reinterpret_cast<uint32_t *>(out_hi) = pack_bf16(hi[0], hi[PAIRS - 1]);
    } else {
        out_lo[0] = __float2bfloat16_rn(lo[0]);
        out_hi[0] = __float2bfloat16_rn(hi[0]);
    }
}

extern "C" int rope_kv_cuda(const struct rope_cuda *a, int head_dim, void *stream)
{
    const int64_t units = (int64_t)a->t * (a->n_heads + 2 * a->n_kv_heads);
    const unsigned grid = (unsigned)((units + ROPE_WARPS - 1) / ROPE_WARPS);
    if (head_dim == 128)
        rope_kernel<128><<<grid, ROPE_WARPS * 32, 0, (cudaStream_t)stream>>>(*a);
    else if (head_dim == 32)
        rope_kernel<32><<<grid, ROPE_WARPS * 32, 0, (cudaStream_t)stream>>>(*a);
    else
        rope_kernel<64><<<grid, ROPE_WARPS * 32, 0, (cudaStream_t)stream>>>(*a);
    return (int)cudaGetLastError();
}

/* First n tokens of every head's K and V, every layer: the tail of a shared prefix. */
template <int DH>
__global__ void kv_copy_kernel(uint4 *kv, int64_t layer_pieces, int n_kv_heads, const int4 *copies)
{
    enum { CHUNK = CHUNK_KEYS * DH / 8, ROW = chunk_layout<DH>::PIECES };
    const int4 c = copies[blockIdx.x]; /* from, to, tokens, - */
    const int64_t n = (int64_t)n_kv_heads * 2 * (PAGE_KEYS / CHUNK_KEYS) * CHUNK;
    uint4 *layer = kv + (int64_t)blockIdx.y * layer_pieces;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const int token = i / CHUNK % (PAGE_KEYS / CHUNK_KEYS) * CHUNK_KEYS + i / ROW % CHUNK_KEYS;
        if (token < c.z)
            layer[c.y * n + i] = layer[c.x * n + i];
    }
}

template <int DH>
static int kv_copy_launch(bf16 *kv, int64_t layer_elements, int n_layers, int n_kv_heads,
                          const int4 *copies, int n_copies, cudaStream_t stream)
{
    kv_copy_kernel<DH><<<dim3((unsigned)n_copies, (unsigned)n_layers), 256, 0, stream>>>(
        reinterpret_cast<uint4 *>(kv), layer_elements / 8, n_kv_heads, copies);
    return (int)cudaGetLastError();
}

extern "C" int kv_copy_cuda(bf16 *kv, int64_t layer_elements, int n_layers, int n_kv_heads,
                            int head_dim, const int4 *copies, int n_copies, void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return (head_dim == 128  ? kv_copy_launch<128>
            : head_dim == 64 ? kv_copy_launch<64>
                             : kv_copy_launch<32>)(kv, layer_elements, n_layers, n_kv_heads, copies,
                                                   n_copies, s);
}
