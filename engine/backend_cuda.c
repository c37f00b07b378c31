/* backend_cuda: see backend_cuda.h. Opens and closes the device; the ops of a step are launches of
 * kernels/cuda. Memory stands in cuda_memory.c, GEMMs in cuda_gemm.c, metadata in cuda_step.c. */
#include <math.h>

#include "engine/backend_cuda_impl.h"

static void op_embed(struct backend *base, struct buffer *out, const struct weight *table)
{
    struct cuda_backend *b = cuda_self(base);
    cuda_launched(b, embed_cuda(out->data, table->data, b->now->device.tokens, b->now->device.slot,
                                b->last_token, b->step->rows.n, (int)table->k, b->stream));
}

static void op_rmsnorm(struct backend *base, struct buffer *out, const struct buffer *x,
                       const float *w, float eps)
{
    struct cuda_backend *b = cuda_self(base);
    cuda_launched(b, rmsnorm_cuda(out->data, x->data, w, eps, b->step->rows.n, (int)x->cols, NULL,
                                  b->stream));
}

static void op_linear(struct backend *base, struct buffer *out, const struct buffer *x,
                      const struct weight *w, const float *bias, const struct buffer *residual)
{
    struct cuda_backend *b = cuda_self(base);
    CHECK(!(bias && residual)); /* no family has both; the epilogue would round twice */
    const int kind = bias ? LINEAR_BIAS : residual ? LINEAR_RESIDUAL : LINEAR_PLAIN;
    const struct product on = {x->data, w, bias ? (const void *)(bias + w->n) : NULL,
                               residual ? residual->data : NULL};
    cuda_gemm(b, out->data, &on, kind, b->step->rows.n);
}

static void op_rope_kv(struct backend *base, struct buffer *qkv, int32_t layer,
                       const struct rope_args *args)
{
    struct cuda_backend *b = cuda_self(base);
    const struct rope_cuda a = {
        .qkv = qkv->data,
        .kv = b->kv + layer * b->kv_layer_elements,
        .cos_sin = args->cos_sin,
        .q_norm = args->q_norm,
        .k_norm = args->k_norm,
        .position = b->now->device.position,
        .slot = b->now->device.slot,
        .block_table = b->block_table,
        .block_table_stride = b->opts.pages_per_slot,
        .t = b->step->rows.n,
        .n_heads = args->n_heads,
        .n_kv_heads = b->opts.n_kv_heads,
        .eps = args->eps,
    };
    cuda_launched(b, rope_kv_cuda(&a, b->opts.head_dim, b->stream));
}

static void op_attention(struct backend *base, struct buffer *out, const struct buffer *qkv,
                         int32_t layer, const struct attention_shape *shape)
{
    struct cuda_backend *b = cuda_self(base);
    const struct attention_cuda a = {
        .out = out->data,
        .qkv = qkv->data,
        .kv = b->kv + layer * b->kv_layer_elements,
        .position = b->now->device.position,
        .slot = b->now->device.slot,
        .block_table = b->block_table,
        .decode = b->now->device.decode,
        .tiles = b->now->device.tiles,
        .merges = b->now->device.merges,
        .decode_starts = b->now->device.decode_starts,
        .tile_starts = b->now->device.tile_starts,
        .tile_rows = b->now->device.tile_rows,
        .partial = b->partial,
        .totals = b->totals,
        .qkv_stride = (int32_t)qkv->cols,
        .block_table_stride = b->opts.pages_per_slot,
        .n_heads = shape->n_heads,
        .n_kv_heads = shape->n_kv_heads,
        .window = shape->window,
        .scale_log2 = (float)(1.4426950408889634 / sqrt((double)shape->head_dim)),
    };
    /* The tiles first: decode rows go on from the states of their prefixes. */
    if (b->lists.n_tiles > 0)
        cuda_launched(b, (b->hopper ? attention_tile_cuda : attention_tile_portable_cuda)(
                             &a, shape->head_dim, b->n_sms, b->stream));
    const int grid = b->lists.decode_ctas, deep = grid == b->n_sms;
    if (b->n_spans > 0)
        cuda_launched(
            b, b->hopper ? attention_decode_cuda(&a, shape->head_dim, grid, deep, b->stream)
                         : attention_decode_portable_cuda(&a, shape->head_dim, grid, b->stream));
    if (b->n_merges > 0)
        cuda_launched(b, attention_merge_cuda(&a, shape->head_dim, b->n_merges, b->stream));
}

static void op_linear_swiglu(struct backend *base, struct buffer *out, struct buffer *gate_up,
                             const struct buffer *x, const struct weight *w, const float *bias)
{
    struct cuda_backend *b = cuda_self(base);
    const int f = (int)(w->n / 2);
    if (!bias && cuda_swiglu_fits(b, w, b->step->rows.n) &&
        cuda_swiglu_proven(b, out, gate_up, x, w)) {
        cuda_launched(b, gemm_swiglu_cuda(out->data, x->data, w->data, b->step->rows.n, f,
                                          (int)w->k, b->n_sms, b->stream));
        return;
    }
    op_linear(base, gate_up, x, w, bias, NULL);
    cuda_launched(b, swiglu_cuda(out->data, gate_up->data, b->step->rows.n, f, b->stream));
}

/* In turns of logits_cap rows: a step that scores its prompt may have more. */
static void op_head(struct backend *base, const struct buffer *x, struct buffer *scratch,
                    const float *norm, float eps, const struct weight *head)
{
    struct cuda_backend *b = cuda_self(base);
    struct flight *f = b->now;
    for (int at = 0; at < b->step->n_logits; at += b->opts.logits_cap) {
        const int n = TR_MIN(b->opts.logits_cap, b->step->n_logits - at);
        cuda_launched(b, rmsnorm_cuda(scratch->data, x->data, norm, eps, n, (int)x->cols,
                                      f->device.logit_rows + at, b->stream));
        cuda_gemm(b, b->logits, &(struct product){scratch->data, head, NULL, NULL}, LINEAR_LOGITS,
                  n);
        cuda_launched(b,
                      sample_cuda(b->logits, b->scratch, b->logits_stride, (int)b->opts.vocab_size,
                                  f->device.samples + at, f->tokens_device + at, b->counts,
                                  b->last_token, n, b->stream));
    }
}

static void op_close(struct backend *base)
{
    struct cuda_backend *b = cuda_self(base);
    if (!b)
        return;
    cudaSetDevice(b->device);
    if (b->stream)
        cudaStreamSynchronize(b->stream);
    cuda_graph_close(b);
    cuda_memory_close(b);
    cuda_attention_close(b);
    cuda_gemm_close(b);
    if (b->up)
        cudaStreamDestroy(b->up);
    if (b->stream)
        cudaStreamDestroy(b->stream);
    mem_free(b);
}

static bool portable; /* of the process */

void backend_cuda_portable(bool on)
{
    portable = on;
}

void backend_cuda_graphs(struct backend *base, bool on)
{
    cuda_self(base)->use_graphs = on;
}

void backend_cuda_plan_cache(struct backend *base, const char *folder)
{
    cuda_self(base)->plan_cache = folder;
}

void backend_cuda_plans_keep(struct backend *base)
{
    struct cuda_backend *b = cuda_self(base);
    if (b->plan_cache && b->plans_new)
        cuda_plans_write(b);
    b->plans_new = false;
}

void *backend_cuda_stream(struct backend *base)
{
    return cuda_self(base)->stream;
}

void *backend_cuda_kv(struct backend *base)
{
    return cuda_self(base)->kv;
}

int32_t backend_cuda_shared_rows(const struct backend *base)
{
    return cuda_self(base)->lists.n_rows;
}

int backend_cuda_free_bytes(int device, int64_t *out, struct err *err)
{
    size_t free_bytes = 0, total = 0;
    cudaError_t e = cudaSetDevice(device);
    if (e == cudaSuccess)
        e = cudaMemGetInfo(&free_bytes, &total);
    cudaGetLastError();
    *out = (int64_t)free_bytes;
    return e == cudaSuccess
               ? E_OK
               : err_set(err, E_USAGE, "--device cuda:%d: %s", device, cudaGetErrorString(e));
}

const char *backend_cuda_device_name(int device)
{
    static char names[DEVICES_MAX][256];
    struct cudaDeviceProp prop;
    if (device < 0 || device >= DEVICES_MAX ||
        cudaGetDeviceProperties(&prop, device) != cudaSuccess) {
        cudaGetLastError();
        return "";
    }
    memcpy(names[device], prop.name, sizeof names[device]);
    names[device][sizeof names[device] - 1] = '\0';
    return names[device];
}

static int device_check(const struct backend_opts *o, int device, struct cudaDeviceProp *prop,
                        struct err *err)
{
    cudaError_t e = cudaSetDevice(device);
    if (e == cudaSuccess)
        e = cudaGetDeviceProperties(prop, device);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return err_set(err, E_USAGE, "--device cuda:%d: %s", device, cudaGetErrorString(e));
    }
    if (prop->major < 8)
        return err_set(err, E_USAGE,
                       "--device cuda:%d: %s has compute capability %d.%d and no bf16 arithmetic; "
                       "8.0 or later has (Ampere, Ada, Hopper, Blackwell); use --device cpu",
                       device, prop->name, prop->major, prop->minor);
    if (o->dtype != DTYPE_BF16)
        return err_set(err, E_USAGE,
                       "--device cuda:%d: the weights are %s, the CUDA engine takes bf16", device,
                       o->dtype == DTYPE_F16 ? "fp16" : "fp32");
    if (o->head_dim != 32 && o->head_dim != 64 && o->head_dim != 128)
        return err_set(err, E_USAGE,
                       "--device cuda:%d: head_dim is %d, the CUDA engine takes 32, 64 or 128",
                       device, o->head_dim);
    if (o->n_heads % o->n_kv_heads != 0 || o->n_heads / o->n_kv_heads > 8)
        return err_set(err, E_USAGE,
                       "--device cuda:%d: %d query heads for %d kv heads, at most 8 to 1 fit",
                       device, o->n_heads, o->n_kv_heads);
    return E_OK;
}

/* The warm-up's few rows do not come by every form of these kernels. */
static int load_kernels(const struct cuda_backend *b, struct err *err)
{
    int e = attention_merge_ready_cuda(b->opts.head_dim);
    if (e == 0 && b->hopper)
        e = attention_decode_ready_cuda(b->opts.head_dim);
    return e == 0 ? E_OK : cuda_fail(err, (cudaError_t)e, "attention kernels");
}

int backend_cuda_open(struct backend **out, const struct backend_opts *opts, int device,
                      struct err *err)
{
    static const struct backend_ops ops = {
        .name = "cuda",
        .lag = 1,
        .buffer_open = cuda_buffer_open,
        .weight_open = cuda_weight_open,
        .weight_load = cuda_weight_load,
        .staging = cuda_staging,
        .staging_end = cuda_staging_end,
        .load_mark = cuda_load_mark,
        .load_wait = cuda_load_wait,
        .vector_open = cuda_vector_open,
        .bytes = cuda_bytes,
        .close = op_close,
        .step_begin = cuda_step_begin,
        .embed = op_embed,
        .rmsnorm = op_rmsnorm,
        .linear = op_linear,
        .rope_kv = op_rope_kv,
        .attention = op_attention,
        .linear_swiglu = op_linear_swiglu,
        .head = op_head,
        .step_end = cuda_step_end,
    };
    struct cudaDeviceProp prop;
    int rc = device_check(opts, device, &prop, err);
    if (rc < 0)
        return rc;
    struct cuda_backend *b = mem_alloc(1, sizeof *b);
    if (!b)
        return err_set(err, E_FATAL, "cuda: no memory");
    b->base.ops = &ops;
    b->opts = *opts;
    b->device = device;
    b->n_records = -1;
    b->n_sms = prop.multiProcessorCount;
    b->hopper = prop.major == 9 && !portable;
    cudaError_t e = cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithFlags(&b->up, cudaStreamNonBlocking);
    if (e != cudaSuccess)
        rc = cuda_fail(err, e, "stream");
    else if (cublasLtCreate(&b->blas) != CUBLAS_STATUS_SUCCESS)
        rc = err_set(err, E_FATAL, "cublasLt: cannot create a handle");
    if (rc == E_OK)
        rc = cuda_memory_open(b, err);
    if (rc == E_OK)
        rc = cuda_attention_open(b, err);
    if (rc == E_OK)
        rc = load_kernels(b, err);
    if (rc < 0) {
        op_close(&b->base);
        return rc;
    }
    *out = &b->base;
    return E_OK;
}
