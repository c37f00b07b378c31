/* rope: q/k norm where the family has it, rotary embedding (Su et al. 2021; pairs i and i + Dh/2),
 * and the write of K and V into their pages, laid out as attention.cuh says. One warp a row: its
 * angles are read once for all heads, and a lane moves pieces of 16 bytes.
 *
 * Ladder, 2,816 rows of 16 heads of 128: SPEED.md. */
#include <type_traits>

#include "attention.cuh"
#include "device.cuh"
#include "kernels/kernels_cuda.h"

enum {
    ROPE_WARPS = 4,
    PIECE = 8 /* elements of 16 bytes */,
    DEEP = 4 /* heads a lane loads ahead */
};

/* Element e of row r within a page's K or V, in elements. */
template <int DH> DEVICE int page_element(int r, int e)
{
    return r / CHUNK_KEYS * (CHUNK_KEYS * DH) + chunk_offset<DH>(r % CHUNK_KEYS, e >> 3) / 2 +
           (e & 7);
}

DEVICE void widen(float (&out)[PIECE], uint4 in)
{
    const uint32_t words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 f = unpack_bf16(words[i]);
        out[2 * i] = f.x, out[2 * i + 1] = f.y;
    }
}
DEVICE uint4 narrow(const float (&in)[PIECE])
{
    return make_uint4(pack_bf16(in[0], in[1]), pack_bf16(in[2], in[3]), pack_bf16(in[4], in[5]),
                      pack_bf16(in[6], in[7]));
}
DEVICE void load_floats(float (&out)[PIECE], const float *in)
{
    const float4 a = *reinterpret_cast<const float4 *>(in),
                 b = *reinterpret_cast<const float4 *>(in + 4);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

/* A lane's share of a head: elements e0 .. e0 + 7 of each half. */
struct share {
    float lo[PIECE], hi[PIECE];
};

/* RMSNorm over a head's DH / 16 lanes; all lanes of the warp. */
template <int DH> DEVICE void head_norm(share &x, const float *w, int e0, float eps)
{
    float sum = 0.f, of_lo[PIECE], of_hi[PIECE];
#pragma unroll
    for (int i = 0; i < PIECE; i++)
        sum = __fmaf_rn(x.hi[i], x.hi[i], __fmaf_rn(x.lo[i], x.lo[i], sum));
#pragma unroll
    for (int step = DH / 32; step > 0; step >>= 1)
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    const float scale = rsqrtf(__fadd_rn(sum * (1.f / DH), eps));
    load_floats(of_lo, w + e0);
    load_floats(of_hi, w + DH / 2 + e0);
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        x.lo[i] = __fmul_rn(__fmul_rn(x.lo[i], scale), of_lo[i]);
        x.hi[i] = __fmul_rn(__fmul_rn(x.hi[i], scale), of_hi[i]);
    }
}

DEVICE void rotate(share &x, const share &angle) /* lo: cosines, hi: sines */
{
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        const float c = angle.lo[i], s = angle.hi[i], l = x.lo[i], h = x.hi[i];
        x.lo[i] = __fmaf_rn(l, c, -__fmul_rn(h, s));
        x.hi[i] = __fmaf_rn(h, c, __fmul_rn(l, s));
    }
}

template <int DH> __global__ void __launch_bounds__(ROPE_WARPS * 32) rope_kernel(struct rope_cuda a)
{
    constexpr int LANES = DH / (2 * PIECE), AT_ONCE = 32 / LANES; /* of a head; heads of a warp */
    const int lane = threadIdx.x & 31, row = blockIdx.x * ROPE_WARPS + (threadIdx.x >> 5);
    const int heads = a.n_heads + 2 * a.n_kv_heads, e0 = lane % LANES * PIECE;
    grid_wait();
    grid_start_next(); /* not sooner: attention reads what was there before this launch */
    if (row >= a.t)
        return;
    const int position = a.position[row], r = position % PAGE_KEYS;
    const int64_t page =
        a.block_table[(int64_t)a.slot[row] * a.block_table_stride + position / PAGE_KEYS];
    bf16 *x = a.qkv + (int64_t)row * heads * DH + e0;
    share angle;
    load_floats(angle.lo, a.cos_sin + (int64_t)position * DH + e0);
    load_floats(angle.hi, a.cos_sin + (int64_t)position * DH + DH / 2 + e0);
    for (int first = lane / LANES; first - lane / LANES < heads; first += DEEP * AT_ONCE) {
        uint4 lo[DEEP], hi[DEEP];
#pragma unroll
        for (int k = 0; k < DEEP; k++) {
            const int head = min(first + k * AT_ONCE, heads - 1);
            lo[k] = *reinterpret_cast<const uint4 *>(x + head * DH);
            hi[k] = *reinterpret_cast<const uint4 *>(x + head * DH + DH / 2);
        }
#pragma unroll
        for (int k = 0; k < DEEP; k++) {
            const int head = first + k * AT_ONCE;
            const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
            if (!is_v || a.q_norm) { /* the norm's exchange needs all lanes */
                share mine;
                widen(mine.lo, lo[k]);
                widen(mine.hi, hi[k]);
                if (a.q_norm)
                    head_norm<DH>(mine, is_q ? a.q_norm : a.k_norm, e0, a.eps);
                rotate(mine, angle);
                lo[k] = is_v ? lo[k] : narrow(mine.lo);
                hi[k] = is_v ? hi[k] : narrow(mine.hi);
            }
            if (head >= heads)
                continue;
            bf16 *to = x + head * DH;
            int half = DH / 2;
            if (!is_q) {
                const int kv_head = (head - a.n_heads) % a.n_kv_heads, at = page_element<DH>(r, e0);
                to = a.kv +
                     ((page * a.n_kv_heads + kv_head) * 2 + (is_v ? 1 : 0)) * (PAGE_KEYS * DH) + at;
                half = page_element<DH>(r, DH / 2 + e0) - at;
            }
            *reinterpret_cast<uint4 *>(to) = lo[k];
            *reinterpret_cast<uint4 *>(to + half) = hi[k];
        }
    }
}

extern "C" int rope_kv_cuda(const struct rope_cuda *a, int head_dim, void *stream)
{
    const unsigned grid = (unsigned)((a->t + ROPE_WARPS - 1) / ROPE_WARPS);
    const auto launch = [&](auto dh) {
        return (int)launch_early<rope_kernel<dh.value>>(grid, ROPE_WARPS * 32, 0,
                                                        (cudaStream_t)stream, *a);
    };
    return head_dim == 128  ? launch(std::integral_constant<int, 128>())
           : head_dim == 32 ? launch(std::integral_constant<int, 32>())
                            : launch(std::integral_constant<int, 64>());
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
