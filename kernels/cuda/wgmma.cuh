/* wgmma: Hopper's warpgroup products, bf16 in, fp32 out; A in registers (the fragments of mma.sync,
 * a warp 16 rows), B in shared memory. PTX ISA 8.x, wgmma.mma_async; sm_90a only. One product adds
 * its sixteen terms to the accumulator as mma.sync m16n8k16 does, to the bit (kernels_cuda_test
 * holds decode, which uses mma.sync, against prefill). */
#ifndef TRANCHE_KERNELS_CUDA_WGMMA_CUH
#define TRANCHE_KERNELS_CUDA_WGMMA_CUH

#include "common.cuh"

/* A tile in shared memory of rows of ROW_BYTES (64 or 128), their 16-byte pieces swizzled by the
 * hardware's pattern. `atom` is the distance between neighbouring atoms along a row, bytes. */
template <int ROW_BYTES> DEVICE uint64_t wgmma_tile(uint32_t address, uint32_t atom)
{
    return static_cast<uint64_t>((address >> 4) & 0x3fff) |
           static_cast<uint64_t>((atom >> 4) & 0x3fff) << 16 |
           static_cast<uint64_t>(8 * ROW_BYTES >> 4) << 32 |
           static_cast<uint64_t>(ROW_BYTES == 128 ? 1 : 2) << 62;
}

/* Registers written before this are seen by the products after it. */
DEVICE void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
DEVICE void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/* Waits until at most PENDING groups are under way. */
template <int PENDING> DEVICE void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}
/* The same; d may be read from here on. */
template <int PENDING, int N> DEVICE void wgmma_wait(float (&d)[N][4])
{
    wgmma_wait<PENDING>();
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

/* A warpgroup's registers a thread, out of what the kernel was launched with. */
template <int COUNT> DEVICE void registers_give()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}
template <int COUNT> DEVICE void registers_take()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}

#define SET(d) "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
#define ADD(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])

/* wgmma_set: d[64xN] = a[64x16] . b[16xN] over a warpgroup; wgmma_add: d += the same. N is 128, 64
 * or 32, by the size of d. TRANS 1: the tile at b is stored row by k, its N columns contiguous. */
template <int TRANS> DEVICE void wgmma_set(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, p, 1, 1, %69;\n}\n"
                 : SET(d[0]), SET(d[1]), SET(d[2]), SET(d[3]), SET(d[4]), SET(d[5]), SET(d[6]),
                   SET(d[7]), SET(d[8]), SET(d[9]), SET(d[10]), SET(d[11]), SET(d[12]), SET(d[13]),
                   SET(d[14]), SET(d[15])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS));
}
template <int TRANS> DEVICE void wgmma_add(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, p, 1, 1, %69;\n}\n"
                 : ADD(d[0]), ADD(d[1]), ADD(d[2]), ADD(d[3]), ADD(d[4]), ADD(d[5]), ADD(d[6]),
                   ADD(d[7]), ADD(d[8]), ADD(d[9]), ADD(d[10]), ADD(d[11]), ADD(d[12]), ADD(d[13]),
                   ADD(d[14]), ADD(d[15])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS));
}
template <int TRANS> DEVICE void wgmma_set(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, p, 1, 1, %37;\n}\n"
                 : SET(d[0]), SET(d[1]), SET(d[2]), SET(d[3]), SET(d[4]), SET(d[5]), SET(d[6]),
                   SET(d[7])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS));
}
template <int TRANS> DEVICE void wgmma_add(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, p, 1, 1, %37;\n}\n"
                 : ADD(d[0]), ADD(d[1]), ADD(d[2]), ADD(d[3]), ADD(d[4]), ADD(d[5]), ADD(d[6]),
                   ADD(d[7])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS));
}
template <int TRANS> DEVICE void wgmma_set(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
                 "{%16,%17,%18,%19}, %20, p, 1, 1, %21;\n}\n"
                 : SET(d[0]), SET(d[1]), SET(d[2]), SET(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS));
}
template <int TRANS> DEVICE void wgmma_add(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
                 "{%16,%17,%18,%19}, %20, p, 1, 1, %21;\n}\n"
                 : ADD(d[0]), ADD(d[1]), ADD(d[2]), ADD(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS));
}
#undef SET
#undef ADD

#endif
