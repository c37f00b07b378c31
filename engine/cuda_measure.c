/* cuda_measure: the card's ceilings. See cuda_measure.h; steps and products stand in cuda_meter.c.
 */
#include "engine/cuda_measure.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda_impl.h"

enum { EDGE = 8192, RUNS = 15, WARM_RUNS = 3, NOISE_BYTES = 2 << 20 };
static const size_t COPY_BYTES = (size_t)4 << 30;

int cuda_noise(void *device, size_t bytes, struct err *err)
{
    uint16_t *noise = mem_alloc(NOISE_BYTES, 1);
    uint64_t x = 0x9E3779B97F4A7C15u;
    if (!noise)
        return err_set(err, E_FATAL, "cuda: no memory for %d bytes", NOISE_BYTES);
    /* bf16 of magnitude 1/8 .. 2, any sign and mantissa. */
    for (size_t i = 0; i < NOISE_BYTES / sizeof *noise; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        noise[i] = (uint16_t)((x & 0x81ff) + 0x3e00);
    }
    cudaError_t e = cudaSuccess;
    for (size_t at = 0; at < bytes && e == cudaSuccess;) {
        /* From the host once, then what is there doubles. */
        const size_t n = TR_MIN(at > 0 ? at : NOISE_BYTES, bytes - at);
        e = cudaMemcpy((char *)device + at, at > 0 ? device : (void *)noise, n, cudaMemcpyDefault);
        at += n;
    }
    mem_free(noise);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "random data");
}

double cuda_median(float *ms, int n)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k > 0 && ms[k] < ms[k - 1]; k--) {
            const float t = ms[k];
            ms[k] = ms[k - 1];
            ms[k - 1] = t;
        }
    return ms[n / 2] * 1e-3;
}

struct square { /* 8192^3, bf16 */
    cublasLtHandle_t blas;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulHeuristicResult_t found;
    void *a, *b, *c, *space, *from, *to;
    cudaEvent_t begin, end;
};

static cublasStatus_t square_plan(struct square *s)
{
    const cublasOperation_t t = CUBLAS_OP_T;
    const size_t space = WORKSPACE_BYTES;
    cublasLtMatmulPreference_t pref = NULL;
    int n = 0;
    cublasStatus_t e = cublasLtCreate(&s->blas);
    if (e == CUBLAS_STATUS_SUCCESS)
        e = cublasLtMatmulDescCreate(&s->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (e == CUBLAS_STATUS_SUCCESS)
        e = cublasLtMatmulDescSetAttribute(s->desc, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    if (e == CUBLAS_STATUS_SUCCESS)
        e = cublasLtMatrixLayoutCreate(&s->layout, CUDA_R_16BF, EDGE, EDGE, EDGE);
    if (e == CUBLAS_STATUS_SUCCESS)
        e = cublasLtMatmulPreferenceCreate(&pref);
    if (e == CUBLAS_STATUS_SUCCESS)
        e = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &space, sizeof space);
    if (e == CUBLAS_STATUS_SUCCESS)
        e = cublasLtMatmulAlgoGetHeuristic(s->blas, s->desc, s->layout, s->layout, s->layout,
                                           s->layout, pref, 1, &s->found, &n);
    if (pref)
        cublasLtMatmulPreferenceDestroy(pref);
    return e == CUBLAS_STATUS_SUCCESS && n == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : e;
}

static int square_open(struct square *s, struct err *err)
{
    const size_t bytes = (size_t)EDGE * EDGE * 2;
    void **const blocks[] = {&s->a, &s->b, &s->c, &s->space, &s->from, &s->to};
    const size_t sizes[] = {bytes, bytes, bytes, WORKSPACE_BYTES, COPY_BYTES, COPY_BYTES};
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < TR_COUNT(blocks) && e == cudaSuccess; i++)
        e = cudaMalloc(blocks[i], sizes[i]);
    if (e == cudaSuccess)
        e = cudaEventCreate(&s->begin);
    if (e == cudaSuccess)
        e = cudaEventCreate(&s->end);
    if (e != cudaSuccess)
        return cuda_fail(err, e, "9 GiB for the ceilings");
    const cublasStatus_t status = square_plan(s);
    if (status != CUBLAS_STATUS_SUCCESS)
        return err_set(err, E_FATAL, "cublasLt: no plan for %d^3 (%d)", EDGE, (int)status);
    int rc = cuda_noise(s->a, bytes, err);
    if (rc == E_OK)
        rc = cuda_noise(s->b, bytes, err);
    return rc == E_OK ? cuda_noise(s->from, COPY_BYTES, err) : rc;
}

static void square_close(struct square *s)
{
    void *const blocks[] = {s->a, s->b, s->c, s->space, s->from, s->to};
    for (size_t i = 0; i < TR_COUNT(blocks); i++)
        cudaFree(blocks[i]);
    if (s->layout)
        cublasLtMatrixLayoutDestroy(s->layout);
    if (s->desc)
        cublasLtMatmulDescDestroy(s->desc);
    if (s->blas)
        cublasLtDestroy(s->blas);
    if (s->begin)
        cudaEventDestroy(s->begin);
    if (s->end)
        cudaEventDestroy(s->end);
}

static cudaError_t square_time(struct square *s, bool copy, float *ms)
{
    const float one = 1, zero = 0;
    cudaError_t e = cudaEventRecord(s->begin, 0);
    if (e == cudaSuccess && copy)
        e = cudaMemcpyAsync(s->to, s->from, COPY_BYTES, cudaMemcpyDeviceToDevice, 0);
    else if (e == cudaSuccess &&
             cublasLtMatmul(s->blas, s->desc, &one, s->a, s->layout, s->b, s->layout, &zero, s->c,
                            s->layout, s->c, s->layout, &s->found.algo, s->space, WORKSPACE_BYTES,
                            0) != CUBLAS_STATUS_SUCCESS)
        e = cudaErrorLaunchFailure;
    if (e == cudaSuccess)
        e = cudaEventRecord(s->end, 0);
    if (e == cudaSuccess)
        e = cudaEventSynchronize(s->end);
    return e == cudaSuccess ? cudaEventElapsedTime(ms, s->begin, s->end) : e;
}

int cuda_measure_ceilings(struct cuda_ceilings *out, int device, struct err *err)
{
    struct square s = {0};
    float copy_ms[RUNS], gemm_ms[RUNS];
    cudaError_t e = cudaSetDevice(device);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return err_set(err, E_USAGE, "--device cuda:%d: %s", device, cudaGetErrorString(e));
    }
    int rc = square_open(&s, err);
    for (int i = -WARM_RUNS; i < RUNS && rc == E_OK; i++) {
        e = square_time(&s, true, &copy_ms[TR_MAX(i, 0)]);
        if (e == cudaSuccess)
            e = square_time(&s, false, &gemm_ms[TR_MAX(i, 0)]);
        if (e != cudaSuccess)
            rc = cuda_fail(err, e, "ceilings");
    }
    square_close(&s);
    if (rc == E_OK)
        *out = (struct cuda_ceilings){
            .copy_Bps = 2.0 * (double)COPY_BYTES / cuda_median(copy_ms, RUNS),
            .gemm_flops = 2.0 * EDGE * EDGE * EDGE / cuda_median(gemm_ms, RUNS)};
    return rc;
}

int cuda_measure_memory(int device, int64_t *used, int64_t *total, struct err *err)
{
    size_t left = 0, all = 0;
    cudaError_t e = cudaSetDevice(device);
    if (e == cudaSuccess)
        e = cudaMemGetInfo(&left, &all);
    *used = (int64_t)(all - left);
    *total = (int64_t)all;
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "memory in use");
}

void cuda_measure_driver(char *out, size_t cap)
{
    char line[256] = "";
    const char *mark = "Kernel Module", *at = NULL;
    FILE *f = fopen("/proc/driver/nvidia/version", "re");
    if (f && fgets(line, sizeof line, f))
        at = strstr(line, mark);
    if (f)
        fclose(f);
    /* "... Kernel Module  580.159.04  Release ..." or "... Kernel Module for x86_64  580..." */
    for (at = at ? at + strlen(mark) : NULL; at && *at; at += strcspn(at, " \n")) {
        at += strspn(at, " \n");
        if (*at >= '0' && *at <= '9') {
            snprintf(out, cap, "%.*s", (int)strcspn(at, " \n"), at);
            return;
        }
    }
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess)
        cudaGetLastError();
    snprintf(out, cap, "CUDA %d.%d", version / 1000, version % 1000 / 10);
}
