/* box: see box.cuh. The driver's encoder is found at run time: nothing links with libcuda. */
#include "box.cuh"

enum { BOX_COLS = 64 };

static void *find_encode()
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult how;
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                           cudaEnableDefault, &how);
    return e == cudaSuccess && how == cudaDriverEntryPointSuccess ? found : nullptr;
}

cudaError_t box_map(CUtensorMap *map, const bf16 *data, int64_t rows, int64_t cols, int box_rows)
{
    static void *const encode = find_encode();
    if (!encode)
        return cudaErrorNotSupported;
    const cuuint64_t size[2] = {(cuuint64_t)cols, (cuuint64_t)rows},
                     stride[1] = {(cuuint64_t)cols * 2};
    const cuuint32_t box[2] = {BOX_COLS, (cuuint32_t)box_rows}, step[2] = {1, 1};
    const CUresult r = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16 *>(data), size, stride, box, step,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
