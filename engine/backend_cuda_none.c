/* backend_cuda_none: stands in for backend_cuda.c in a build without a CUDA toolkit: says so. */
#include "engine/backend_cuda.h"
#include "engine/cuda_measure.h"

static int without_cuda(int device, struct err *err)
{
    return err_set(err, E_USAGE,
                   "--device cuda:%d: this tranche was built without CUDA; use --device cpu",
                   device);
}

int backend_cuda_open(struct backend **out, const struct backend_opts *opts, int device,
                      struct err *err)
{
    (void)out;
    (void)opts;
    return without_cuda(device, err);
}

int backend_cuda_drain(struct backend *b, struct sample_token *tokens, struct err *err)
{
    (void)b;
    (void)tokens;
    return err_set(err, E_FATAL, "cuda: this tranche was built without CUDA");
}

void backend_cuda_slot_open(struct backend *b, int32_t slot)
{
    (void)b;
    (void)slot;
}

void backend_cuda_graphs(struct backend *b, bool on)
{
    (void)b;
    (void)on;
}

void backend_cuda_plan_cache(struct backend *b, const char *folder)
{
    (void)b;
    (void)folder;
}

void backend_cuda_plans_keep(struct backend *b)
{
    (void)b;
}

void backend_cuda_times(const struct backend *b, int64_t *busy_ns, int64_t *idle_ns)
{
    (void)b;
    *busy_ns = *idle_ns = 0;
}

int32_t backend_cuda_rows_below(int32_t m)
{
    return m - 1;
}

int backend_cuda_free_bytes(int device, int64_t *out, struct err *err)
{
    *out = 0;
    return without_cuda(device, err);
}

const char *backend_cuda_device_name(int device)
{
    (void)device;
    return "";
}

void backend_cuda_libraries(size_t *cublas_lt, int *runtime)
{
    *cublas_lt = 0;
    *runtime = 0;
}

int cuda_measure_ceilings(struct cuda_ceilings *out, int device, struct err *err)
{
    (void)out;
    return without_cuda(device, err);
}

int cuda_measure_memory(int device, int64_t *used, int64_t *total, struct err *err)
{
    *used = *total = 0;
    return without_cuda(device, err);
}

void cuda_measure_driver(char *out, size_t cap)
{
    if (cap > 0)
        out[0] = '\0';
}

int cuda_meter_open(struct cuda_meter **out, const struct model *m,
                    const struct cuda_meter_opts *opts, struct err *err)
{
    (void)out;
    (void)m;
    return without_cuda(opts->device, err);
}

void cuda_meter_close(struct cuda_meter *m)
{
    (void)m;
}

int cuda_meter_products(struct cuda_meter *m, int64_t rows, struct cuda_product out[CUDA_PRODUCTS],
                        struct err *err)
{
    (void)m;
    (void)rows;
    (void)out;
    return without_cuda(0, err);
}

int cuda_meter_step(struct cuda_meter *m, const struct cuda_step_shape *shape,
                    struct cuda_step_times *out, struct err *err)
{
    (void)m;
    (void)shape;
    (void)out;
    return without_cuda(0, err);
}

int cuda_meter_attention(struct cuda_meter *m, const struct cuda_step_shape *shape, double *seconds,
                         struct err *err)
{
    (void)m;
    (void)shape;
    (void)seconds;
    return without_cuda(0, err);
}
