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

/* Launches KERNEL, which may start before what is ahead of it in the stream has ended: as soon as
 * that says grid_start_next(), or ends. KERNEL calls grid_wait() before it touches what others
 * write; compiled for a card before 9.0 it has no such wait, and is launched as any other. */
template <auto KERNEL, typename... A>
cudaError_t launch_early(dim3 grid, unsigned threads, size_t shared, cudaStream_t stream,
                         A... arguments)
{
    enum state : signed char { UNKNOWN, ORDINARY, EARLY };
    static state states[DEVICES_OF_A_HOST]; /* two threads may both ask: the same answer */
    int device = 0;
    cudaFuncAttributes compiled;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess && states[device] == UNKNOWN) {
        e = cudaFuncGetAttributes(&compiled, KERNEL);
        if (e == cudaSuccess)
            states[device] = compiled.ptxVersion >= 90 ? EARLY : ORDINARY;
    }
    if (e != cudaSuccess)
        return e;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = states[device] == EARLY ? 1 : 0;
    return cudaLaunchKernelEx(&config, KERNEL, arguments...);
}

#endif
