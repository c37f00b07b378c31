/* backend_cuda_none: stands in for backend_cuda.c in a build without a CUDA toolkit: says so. */
#include "engine/backend_cuda.h"

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
