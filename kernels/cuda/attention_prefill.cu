/* attention_prefill: many query tokens of one sequence against its paged keys. A CTA takes up to
 * 128 packed rows (token x query head of one kv head); each of its eight warps owns 16 of them and
 * walks all splits from left to right; two splits of K and V stand in shared memory, loaded by bulk
 * copies. The arithmetic of a split and the merge tree are those of attention_decode: same
 * functions.
 *
 * Ladder: 1. this version: mma.sync, two-deep split buffers, total state in shared memory. */
#include "attention.cuh"
#include "kernels/kernels_cuda.h"

enum { PREFILL_WARPS = 8, PREFILL_ROWS = PREFILL_WARPS * 16, BUFFERS = 2 };

template <int DH> struct prefill_shared {
    enum { SPLIT_BYTES = SPLIT_KEYS * DH * 2 };
    unsigned char kv[BUFFERS][2][SPLIT_BYTES]; /* K and V of a split */
    float total[DH / 2]
               [PREFILL_WARPS * 32]; /* fp32 state over the blocks so far, one column a thread */
    float total_m[2][PREFILL_WARPS * 32], total_l[2][PREFILL_WARPS * 32],
        block_l[2][PREFILL_WARPS * 32];
    uint64_t full[BUFFERS];
};

/* Chunks of a split that stands whole in shared memory. */
template <int DH> struct resident {
    uint32_t key_base, value_base;
    METHOD uint32_t k(int c)
    {
        return key_base + c * CHUNK_KEYS * DH * 2;
    }
    METHOD uint32_t v(int c)
    {
        return value_base + c * CHUNK_KEYS * DH * 2;
    }
    METHOD void done() {}
};

template <int DH>
DEVICE void split_load(prefill_shared<DH> &sh, int buffer, const struct attention_cuda &a,
                       const int32_t *table, int split, int n_keys, int head)
{
    const int pages = min(2, (n_keys - split * SPLIT_KEYS + 63) / 64);
    const uint32_t barrier = shared_address(&sh.full[buffer]), page_bytes = 64 * DH * 2;
    barrier_expect(barrier, 2 * pages * page_bytes);
    for (int i = 0; i < pages; i++) {
        const bf16 *src =
            a.kv + ((int64_t)table[split * 2 + i] * a.n_kv_heads + head) * (2 * 64 * DH);
        bulk_load(shared_address(sh.kv[buffer][0]) + i * page_bytes, src, page_bytes, barrier);
        bulk_load(shared_address(sh.kv[buffer][1]) + i * page_bytes, src + 64 * DH, page_bytes,
                  barrier);
    }
}

/* First key that a row sees. */
DEVICE int window_begin(int window, int position)
{
    return window > 0 ? max(0, position - window + 1) : 0;
}

template <int DH>
__global__ void __launch_bounds__(PREFILL_WARPS * 32, 1) prefill_kernel(struct attention_cuda a)
{
    extern __shared__ __align__(128) unsigned char raw[];
    prefill_shared<DH> &sh = *reinterpret_cast<prefill_shared<DH> *>(raw);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = a.n_heads / a.n_kv_heads;
    if (threadIdx.x == 0)
        for (int i = 0; i < BUFFERS; i++)
            barrier_init(shared_address(&sh.full[i]), 1);
    fence_async_shared();
    __syncthreads();
    int loaded = 0; /* splits loaded over the kernel's life */
    for (int item = blockIdx.x; item < *a.n_prefill; item += gridDim.x) {
        const int4 work =
            a.prefill[item]; /* first row of the step, first packed row, packed rows, kv head */
        const int row0 = work.x, head = work.w;
        const int last_row = row0 + (work.y + work.z - 1) / group;
        const int32_t *table = a.block_table + (int64_t)a.slot[row0] * a.block_table_stride;
        const int n_keys = a.position[last_row] + 1;
        const int first_position = a.position[row0 + work.y / group];
        const int split_lo = a.window > 0 ? max(0, first_position - a.window + 1) / SPLIT_KEYS : 0;
        const int split_hi = (n_keys + SPLIT_KEYS - 1) / SPLIT_KEYS;

        int position[2];
        uint32_t q[DH / 16][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int packed = warp * 16 + r * 8 + (lane >> 2);
            const bool has = packed < work.z;
            const int p = work.y + (has ? packed : 0), row = row0 + p / group,
                      h = head * group + p % group;
            position[r] = has ? a.position[row] : -1;
            const bf16 *qrow = a.qkv + (int64_t)row * a.qkv_stride + h * DH;
#pragma unroll
            for (int kk = 0; kk < DH / 16; kk++) {
                const int d = kk * 16 + (lane & 3) * 2;
                q[kk][r] = has ? *reinterpret_cast<const uint32_t *>(qrow + d) : 0u;
                q[kk][2 + r] = has ? *reinterpret_cast<const uint32_t *>(qrow + d + 8) : 0u;
            }
        }
        /* Highest and lowest visible key of the warp's rows: whole chunks outside are skipped. */
        int warp_hi = max(position[0], position[1]) + 1, warp_lo = 0x7fffffff;
        for (int r = 0; r < 2; r++)
            warp_lo =
                position[r] >= 0 ? min(warp_lo, window_begin(a.window, position[r])) : warp_lo;
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) {
            warp_hi = max(warp_hi, __shfl_xor_sync(0xffffffffu, warp_hi, step));
            warp_lo = min(warp_lo, __shfl_xor_sync(0xffffffffu, warp_lo, step));
        }

#pragma unroll
        for (int r = 0; r < 2; r++) {
            sh.total_m[r][threadIdx.x] = -INFINITY;
            sh.total_l[r][threadIdx.x] = sh.block_l[r][threadIdx.x] = 0.f;
        }
        float block[DH / 8][4], block_m[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < DH / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                block[n][i] = 0.f;

        if (threadIdx.x == 0)
            for (int i = 0; i < BUFFERS && split_lo + i < split_hi; i++)
                split_load<DH>(sh, (loaded + i) % BUFFERS, a, table, split_lo + i, n_keys, head);
        for (int split = split_lo; split < split_hi; split++, loaded++) {
            const int buffer = loaded % BUFFERS, key0 = split * SPLIT_KEYS;
            barrier_wait(shared_address(&sh.full[buffer]), (loaded / BUFFERS) & 1);
            const int valid = n_keys - key0;
            if (valid < SPLIT_KEYS) { /* rows past the end hold another sequence's values */
                uint4 *tail = reinterpret_cast<uint4 *>(sh.kv[buffer][1] + valid * DH * 2);
                for (int i = threadIdx.x; i < (SPLIT_KEYS - valid) * (DH / 8);
                     i += PREFILL_WARPS * 32)
                    tail[i] = make_uint4(0, 0, 0, 0);
                fence_async_shared();
                __syncthreads();
            }
            const int lo[2] = {window_begin(a.window, position[0]),
                               window_begin(a.window, position[1])};
            const int hi[2] = {position[0] + 1, position[1] + 1};
            const int chunk_lo = max(0, warp_lo - key0) / CHUNK_KEYS;
            const int chunk_hi =
                min(CHUNKS, (max(0, warp_hi - key0) + CHUNK_KEYS - 1) / CHUNK_KEYS);
            if (chunk_lo < chunk_hi) {
                resident<DH> tiles = {shared_address(sh.kv[buffer][0]),
                                      shared_address(sh.kv[buffer][1])};
                float o[DH / 8][4], m[2], l[2];
                split_run<DH>(q, tiles, key0, lo, hi, chunk_lo, chunk_hi, a.scale_log2, o, m, l);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const merge_weights w = merge_of(block_m[r], m[r], a.scale_log2);
#pragma unroll
                    for (int n = 0; n < DH / 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++)
                            block[n][2 * r + i] = merge_value(block[n][2 * r + i], o[n][2 * r + i],
                                                              block_m[r], m[r], w);
                    float &block_l = sh.block_l[r][threadIdx.x];
                    block_l = merge_value(block_l, l[r], block_m[r], m[r], w);
                    block_m[r] = w.m;
                }
            }
            if ((split & 3) == 3 || split + 1 == split_hi) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float &total_m = sh.total_m[r][threadIdx.x],
                          &total_l = sh.total_l[r][threadIdx.x];
                    const merge_weights w = merge_of(total_m, block_m[r], a.scale_log2);
#pragma unroll
                    for (int n = 0; n < DH / 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float &t = sh.total[n * 4 + 2 * r + i][threadIdx.x];
                            t = merge_value(t, block[n][2 * r + i], total_m, block_m[r], w);
                        }
                    total_l =
                        merge_value(total_l, sh.block_l[r][threadIdx.x], total_m, block_m[r], w);
                    total_m = w.m;
                    block_m[r] = -INFINITY;
                    sh.block_l[r][threadIdx.x] = 0.f;
                }
            }
            __syncthreads(); /* all warps have read this buffer */
            if (threadIdx.x == 0 && split + BUFFERS < split_hi)
                split_load<DH>(sh, buffer, a, table, split + BUFFERS, n_keys, head);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int packed = warp * 16 + r * 8 + (lane >> 2), p = work.y + packed;
            if (packed >= work.z)
                continue;
            const float total_l = sh.total_l[r][threadIdx.x];
            bf16 *out =
                a.out + ((int64_t)(row0 + p / group) * a.n_heads + head * group + p % group) * DH;
#pragma unroll
            for (int n = 0; n < DH / 8; n++)
                *reinterpret_cast<uint32_t *>(out + n * 8 + (lane & 3) * 2) =
                    pack_bf16(__fdividef(sh.total[n * 4 + 2 * r][threadIdx.x], total_l),
                              __fdividef(sh.total[n * 4 + 2 * r + 1][threadIdx.x], total_l));
        }
    }
}

template <int DH>
static int prefill_launch(const struct attention_cuda *a, int grid, cudaStream_t stream)
{
    static bool ready = false;
    if (!ready) {
        cudaError_t e =
            cudaFuncSetAttribute(prefill_kernel<DH>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)sizeof(prefill_shared<DH>));
        if (e != cudaSuccess)
            return (int)e;
        ready = true;
    }
    prefill_kernel<DH><<<grid, PREFILL_WARPS * 32, sizeof(prefill_shared<DH>), stream>>>(*a);
    return (int)cudaGetLastError();
}

extern "C" int attention_prefill_cuda(const struct attention_cuda *a, int head_dim, int grid,
                                      void *stream)
{
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    return head_dim == 128  ? prefill_launch<128>(a, grid, s)
           : head_dim == 64 ? prefill_launch<64>(a, grid, s)
                            : prefill_launch<32>(a, grid, s);
}
