/* box: clusters of CTAs and the tensor copy engine, which brings boxes of a matrix into shared
 * memory, to one CTA of a cluster or to all. PTX ISA 8.x: cp.async.bulk.tensor, mapa; sm_90a. */
#ifndef TRANCHE_KERNELS_CUDA_BOX_CUH
#define TRANCHE_KERNELS_CUDA_BOX_CUH

#include <cuda.h>

#include "common.cuh"

DEVICE uint32_t cluster_rank()
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(r));
    return r;
}
DEVICE void cluster_wait_all()
{
    asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;\n" ::: "memory");
}

/* The box of the map at (col, row); completes on the barrier. */
DEVICE void box_load(uint32_t dst, const CUtensorMap *map, int col, int row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(dst),
                 "l"(map), "r"(col), "r"(row), "r"(barrier)
                 : "memory");
}
/* To each of the cluster's CTAs, at the same place, on its barrier. */
template <int CLUSTER>
DEVICE void box_load_all(uint32_t dst, const CUtensorMap *map, int col, int row, uint32_t barrier)
{
    const uint16_t mask = (1 << CLUSTER) - 1;
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(dst),
                 "l"(map), "r"(col), "r"(row), "r"(barrier), "h"(mask)
                 : "memory");
}

/* Arrives on the barrier at the same place in another CTA of the cluster. What it orders are reads
 * by the tensor cores, awaited, and writes by the copy engine: no fence for ordinary memory, which
 * .cluster scope would be (two a step took a third of the time). */
DEVICE void barrier_arrive_at(uint32_t barrier, uint32_t cta)
{
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
                 "r"(cta)
                 : "memory");
}

/* How the tensor copy engine sees a matrix [rows, cols]: boxes of `box_rows` rows of 64 values,
 * 128-byte swizzled; rows and columns beyond the last are zeros. data stays the caller's.
 * cudaErrorNotSupported: the driver has no encoder; cudaErrorInvalidValue: it refuses the matrix.
 */
cudaError_t box_map(CUtensorMap *map, const bf16 *data, int64_t rows, int64_t cols, int box_rows);

#endif
