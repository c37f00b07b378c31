/* device: what a launcher does once a device, not once a process: several engines run on several.
 */
#ifndef TRANCHE_KERNELS_DEVICE_CUH
#define TRANCHE_KERNELS_DEVICE_CUH

#include <cuda_runtime.h>

enum { DEVICES_OF_A_HOST = 64 };
typedef bool once_a_device[DEVICES_OF_A_HOST]; /* static in the launcher; false at first */

/* Lets `kernel` take `bytes` of dynamic shared memory on the current device. Two threads may both
 * do it: the same value twice. */
template <typename K> cudaError_t shared_memory_allow(K *kernel, int bytes, once_a_device &done)
{
    int device = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess && (device >= DEVICES_OF_A_HOST || !done[device])) {
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (e == cudaSuccess && device < DEVICES_OF_A_HOST)
            done[device] = true;
    }
    return e;
}

#endif
