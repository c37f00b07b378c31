/* cuda_memory: device memory of the CUDA backend, all of it taken at open: weights, vectors,
 * activations, KV pages, tables, logits, step blocks. */
#include <stdio.h>

#include "engine/backend_cuda_impl.h"

int cuda_take(struct cuda_backend *b, void **out, size_t bytes, int64_t *account, const char *what,
              struct err *err)
{
    cudaError_t e = cudaMalloc(out, TR_MAX(bytes, 16));
    if (e != cudaSuccess) {
        size_t free_bytes = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total);
        return err_set(err, E_FATAL,
                       "cuda: %s: want %zu MiB of device memory, %zu MiB of %zu are free", what,
                       bytes >> 20, free_bytes >> 20, total >> 20);
    }
    CHECK(b->n_owned < OWNED_MAX);
    b->owned[b->n_owned++] = *out;
    *account += (int64_t)bytes;
    e = cudaMemsetAsync(*out, 0, TR_MAX(bytes, 16), b->stream);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, what);
}

int cuda_buffer_open(struct backend *base, struct buffer *out, int64_t rows, int64_t cols,
                     struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    *out = (struct buffer){.rows_cap = rows, .cols = cols};
    /* Rows are padded to the widest GEMM bucket, which may compute past rows_cap. */
    return cuda_take(b, &out->data, (size_t)((rows + 255) / 256 * 256 * cols) * 2, &b->bytes_other,
                     "activations", err);
}

int cuda_weight_open(struct backend *base, struct weight **out, int64_t n, int64_t k,
                     enum dtype dtype, struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    const bool head = n == b->opts.vocab_size;
    /* A vocabulary's last rows are zeros up to a multiple of 8; nobody reads their logits. */
    n = head ? b->logits_stride : n;
    if (dtype != DTYPE_BF16 || k % 8 != 0 || n % 8 != 0)
        return err_set(err, E_USAGE,
                       "cuda: weights [%lld,%lld]: want bf16 with sizes that are multiples of 8",
                       (long long)n, (long long)k);
    struct weight *w = mem_alloc(1, sizeof *w);
    if (!w)
        return err_set(err, E_FATAL, "cuda: no memory");
    w->n = n;
    w->k = k;
    if (!head)
        b->widest_n = TR_MAX(b->widest_n, n);
    void *data = NULL;
    int rc = cuda_take(b, &data, (size_t)(n * k) * 2, &b->bytes_weights, "weights", err);
    w->data = data;
    *out = w;
    return rc;
}

int cuda_weight_load(struct backend *base, struct weight *w, int64_t row0, const void *src,
                     int64_t rows, struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    CHECK(row0 >= 0 && row0 + rows <= w->n);
    cudaError_t e = cudaMemcpyAsync(w->data + row0 * w->k, src, (size_t)(rows * w->k) * 2,
                                    cudaMemcpyHostToDevice, b->stream);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "upload weights");
}

void *cuda_staging(struct backend *base, size_t bytes, struct err *err)
{
    void *p = NULL;
    (void)base;
    cudaError_t e = cudaMallocHost(&p, bytes);
    if (e != cudaSuccess) {
        cuda_fail(err, e, "pinned memory to load through");
        return NULL;
    }
    return p;
}

void cuda_staging_end(struct backend *base, void *staging)
{
    cudaStreamSynchronize(cuda_self(base)->stream);
    cudaFreeHost(staging);
}

int cuda_load_mark(struct backend *base, int mark, struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    CHECK(mark >= 0 && mark < LOAD_EVENTS);
    cudaError_t e = cudaEventRecord(b->loads[mark], b->stream);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "upload weights");
}

int cuda_load_wait(struct backend *base, int mark, struct err *err)
{
    cudaError_t e = cudaEventSynchronize(cuda_self(base)->loads[mark]);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "upload weights");
}

/* fp32, then the same values as bf16: cuBLASLt takes a bias in the output's type. */
int cuda_vector_open(struct backend *base, const float **out, const float *src, int64_t n,
                     struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    void *data = NULL;
    const size_t bytes = (size_t)n * 6;
    unsigned char *host = mem_alloc(bytes, 1);
    if (!host)
        return err_set(err, E_FATAL, "cuda: no memory for a vector of %lld", (long long)n);
    memcpy(host, src, (size_t)n * 4);
    uint16_t *narrow = (uint16_t *)(void *)(host + n * 4);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &src[i], 4);
        narrow[i] = (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
    int rc = cuda_take(b, &data, bytes, &b->bytes_weights, "vectors", err);
    if (rc == E_OK) {
        *out = data;
        cudaError_t e = cudaMemcpyAsync(data, host, bytes, cudaMemcpyHostToDevice, b->stream);
        if (e == cudaSuccess)
            e = cudaStreamSynchronize(b->stream);
        if (e != cudaSuccess)
            rc = cuda_fail(err, e, "upload vectors");
    }
    mem_free(host);
    return rc;
}

int64_t cuda_bytes(const struct backend *base, const char *what)
{
    const struct cuda_backend *b = cuda_self(base);
    return strcmp(what, "weights") == 0    ? b->bytes_weights
           : strcmp(what, "kv pages") == 0 ? b->bytes_kv
                                           : b->bytes_other;
}

static int take_memory(struct cuda_backend *b, struct err *err)
{
    const struct backend_opts *o = &b->opts;
    const int64_t page = (int64_t)2 * o->n_kv_heads * KV_PAGE_TOKENS * o->head_dim;
    const int64_t tables = (int64_t)o->slots * o->pages_per_slot;
    const int64_t logits = cuda_gemm_rows(o->logits_cap);
    int rc;
    b->kv_layer_elements = page * o->n_pages;
    b->logits_stride = (o->vocab_size + 7) / 8 * 8;
    b->logits_rows = logits;
    b->spans_cap = (int64_t)o->rows_cap * o->n_kv_heads + cuda_decode_workers(b);
    b->deltas_cap = tables;
#define TAKE(field, bytes, account, what)                                                          \
    (rc = cuda_take(b, (void **)&b->field, (size_t)(bytes), &b->account, what, err))
    if (TAKE(kv, b->kv_layer_elements * o->n_layers * 2, bytes_kv, "kv pages") < 0 ||
        TAKE(block_table, tables * 4, bytes_other, "block table") < 0 ||
        TAKE(last_token, o->slots * 4, bytes_other, "tokens") < 0 ||
        TAKE(counts, (int64_t)o->slots * o->vocab_size * 2, bytes_other, "penalty counts") < 0 ||
        TAKE(logits, logits * b->logits_stride * 4, bytes_other, "logits") < 0 ||
        TAKE(scratch, logits * b->logits_stride * 4, bytes_other, "adjusted logits") < 0 ||
        TAKE(partial, (int64_t)PARTIALS_MAX * 8 * (o->head_dim + 8) * 4, bytes_other,
             "attention partials") < 0 ||
        TAKE(totals, b->hopper ? 16 : (int64_t)b->n_sms * TILE_ROWS * (o->head_dim + 16) * 4,
             bytes_other, "attention totals") < 0 ||
        TAKE(differ, 16, bytes_other, "GEMM proofs") < 0 ||
        TAKE(workspace, WORKSPACE_BYTES, bytes_other, "cublas workspace") < 0)
        return rc;
#undef TAKE
    b->block_table_shadow = mem_alloc((size_t)tables, 4);
    b->history = mem_alloc((size_t)o->slots, sizeof *b->history);
    if (!b->block_table_shadow || !b->history)
        return err_set(err, E_FATAL, "cuda: no host memory for %lld block table entries",
                       (long long)tables);
    memset(b->block_table_shadow, 0xff, (size_t)tables * 4);
    return E_OK;
}

static int take_flights(struct cuda_backend *b, struct err *err)
{
    for (int i = 0; i < STEPS_IN_FLIGHT; i++) {
        struct flight *f = &b->flights[i];
        struct step_block sizes;
        const size_t tokens = (size_t)b->opts.rows_cap * sizeof *f->tokens_host;
        void *host = NULL, *device = NULL;
        cuda_block_layout(&sizes, b, NULL);
        cudaError_t e = cudaMallocHost(&host, sizes.bytes);
        if (e == cudaSuccess)
            e = cudaMallocHost((void **)&f->tokens_host, tokens);
        if (e == cudaSuccess)
            e = cudaEventCreateWithFlags(&f->uploaded, cudaEventDisableTiming);
        if (e != cudaSuccess)
            return cuda_fail(err, e, "pinned memory for a step");
        int rc = cuda_take(b, &device, sizes.bytes, &b->bytes_other, "step metadata", err);
        if (rc == E_OK)
            rc = cuda_take(b, (void **)&f->tokens_device, tokens, &b->bytes_other, "tokens", err);
        if (rc < 0)
            return rc;
        cuda_block_layout(&f->host, b, host);
        cuda_block_layout(&f->device, b, device);
    }
    return E_OK;
}

/* A waiting host sleeps: its cores tokenize meanwhile, and a step is longer than waking up. */
static cudaError_t take_events(struct cuda_backend *b)
{
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < STEPS_TIMED && e == cudaSuccess; i++) {
        b->clocks[i].step = -1;
        e = cudaEventCreate(&b->clocks[i].begin);
        if (e == cudaSuccess)
            e = cudaEventCreateWithFlags(&b->clocks[i].end, cudaEventBlockingSync);
    }
    for (int i = 0; i < LOAD_EVENTS && e == cudaSuccess; i++)
        e = cudaEventCreateWithFlags(&b->loads[i], cudaEventDisableTiming);
    for (int i = 0; i < 2 && e == cudaSuccess; i++)
        e = cudaEventCreate(&b->tune[i]);
    return e;
}

int cuda_memory_open(struct cuda_backend *b, struct err *err)
{
    cudaError_t e = take_events(b);
    int rc = e == cudaSuccess ? take_memory(b, err) : cuda_fail(err, e, "events");
    return rc == E_OK ? take_flights(b, err) : rc;
}

void cuda_memory_close(struct cuda_backend *b)
{
    for (int i = 0; i < b->n_owned; i++)
        cudaFree(b->owned[i]);
    for (int i = 0; i < STEPS_IN_FLIGHT; i++) {
        cudaFreeHost(b->flights[i].host.base);
        cudaFreeHost(b->flights[i].tokens_host);
        if (b->flights[i].uploaded)
            cudaEventDestroy(b->flights[i].uploaded);
    }
    for (int i = 0; i < STEPS_TIMED; i++) {
        if (b->clocks[i].begin)
            cudaEventDestroy(b->clocks[i].begin);
        if (b->clocks[i].end)
            cudaEventDestroy(b->clocks[i].end);
    }
    for (int i = 0; i < LOAD_EVENTS; i++)
        if (b->loads[i])
            cudaEventDestroy(b->loads[i]);
    for (int i = 0; i < 2; i++)
        if (b->tune[i])
            cudaEventDestroy(b->tune[i]);
    mem_free(b->block_table_shadow);
    mem_free(b->history);
}
