/* engine_cuda: a model on the CUDA backend as a net: sizes chosen from the model and the card. */
#include <stdio.h>

#include "engine/backend_cuda.h"
#include "engine/engine_core.h"
#include "engine/gemm_rows.h"
#include "engine/log.h"
#include "engine/model.h"

enum {
    CUDA_SLOTS = 2816,
    CUDA_STEP_TOKENS = 5632, /* two waves of the narrow GEMMs' tiles on 132 SMs */
    CUDA_MODEL_LEN = 32768,  /* what a request may take unless more is asked for */
    MARGIN_PERCENT = 6,      /* of the free memory, left alone */
};

struct cuda_net {
    struct backend *backend;
    struct network *network;
};

static int cuda_forward(void *ctx, const struct step *step, struct sample_token *tokens,
                        struct err *err)
{
    struct cuda_net *n = ctx;
    if (step->rows.n == 0)
        return backend_cuda_drain(n->backend, tokens, err);
    return network_forward(n->network, step, tokens, err);
}

static void cuda_slot_open(void *ctx, int32_t slot, const struct request *r)
{
    struct cuda_net *n = ctx;
    (void)r;
    backend_cuda_slot_open(n->backend, slot);
}

static void cuda_times(void *ctx, int64_t *busy_ns, int64_t *idle_ns)
{
    struct cuda_net *n = ctx;
    backend_cuda_times(n->backend, busy_ns, idle_ns);
}

/* The most rows that run in the bucket of these, which is what their products compute. */
static int32_t cuda_padded(int32_t rows)
{
    enum { WIDEST_BUCKET = 128 };
    const int32_t below = backend_cuda_rows_below(rows);
    int32_t in = rows, out = rows + WIDEST_BUCKET;
    while (out - in > 1) {
        const int32_t middle = in + (out - in) / 2;
        if (backend_cuda_rows_below(middle) == below)
            in = middle;
        else
            out = middle;
    }
    return in;
}

static int64_t cuda_bytes(void *ctx, const char *what)
{
    struct cuda_net *n = ctx;
    return n->backend->ops->bytes(n->backend, what);
}

static void cuda_net_close(void *ctx)
{
    struct cuda_net *n = ctx;
    network_close(n->network);
    if (n->backend)
        n->backend->ops->close(n->backend);
    mem_free(n);
}

static int64_t page_bytes(const struct model_config *c)
{
    return (int64_t)c->n_layers * c->n_kv_heads * 2 * KV_PAGE_TOKENS * c->head_dim * 2;
}

/* Everything but weights and pages: what backend_cuda and network take per row, logit row and slot.
 */
static int64_t other_bytes(const struct engine_opts *o, const struct model_config *c)
{
    const int64_t rows = (o->step_tokens + 255) / 256 * 256;
    const int64_t qkv = (int64_t)(c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    const int64_t row = 2 * (2 * (int64_t)c->hidden + qkv + (int64_t)c->n_heads * c->head_dim +
                             3 * (int64_t)c->inner) +
                        2 * TR_MAX(2 * (int64_t)c->inner, qkv);
    const int64_t logits = cuda_gemm_rows(TR_MIN(o->step_tokens, ENGINE_CUDA_LOGITS));
    return rows * row + logits * (c->vocab_size + 8) * 8 + (int64_t)o->slots * c->vocab_size * 2 +
           (int64_t)o->max_model_len * c->head_dim * 6 + (INT64_C(1) << 30);
}

static int choose(struct engine_opts *o, int32_t *n_pages, struct err *err)
{
    const struct model_config *c = model_config(o->model);
    o->slots = o->slots > 0 ? o->slots : CUDA_SLOTS;
    o->queue_cap = o->queue_cap > 0 ? o->queue_cap : o->slots;
    o->step_tokens = o->step_tokens > 0 ? o->step_tokens : TR_MAX(CUDA_STEP_TOKENS, o->slots);
    o->chunk_tokens = o->chunk_tokens > 0 ? o->chunk_tokens : o->step_tokens;
    if (o->step_tokens > CUDA_STEP_TOKENS_MAX)
        return err_set(err, E_USAGE,
                       "step_tokens is %d, but a step on a GPU has at most %d: lower %s",
                       o->step_tokens, CUDA_STEP_TOKENS_MAX,
                       o->step_tokens == o->slots ? "--slots or --step-tokens" : "--step-tokens");
    if (o->max_model_len > c->max_positions)
        return err_set(err, E_USAGE, "max_model_len is %d, but the model has %d positions",
                       o->max_model_len, c->max_positions);
    if (o->max_model_len == 0)
        o->max_model_len = TR_MIN(c->max_positions, CUDA_MODEL_LEN);
    const int64_t most = (int64_t)o->slots * kv_pages_of(o->max_model_len);
    int64_t bytes = o->kv_bytes, left = 0;
    int rc = backend_cuda_free_bytes(o->device, &left, err);
    if (rc < 0)
        return rc;
    if (bytes == 0) {
        bytes =
            left / 100 * (100 - MARGIN_PERCENT) - model_weight_bytes(o->model) - other_bytes(o, c);
    }
    const int64_t pages = TR_MIN(bytes > 0 ? bytes / page_bytes(c) : 0, most);
    const int64_t one = kv_pages_of(o->max_model_len) * page_bytes(c);
    if (o->kv_bytes > 0 && pages * page_bytes(c) < one)
        return err_set(err, E_USAGE,
                       "kv_bytes is %lld MiB, but one sequence of max_model_len %d takes %lld MiB",
                       (long long)(o->kv_bytes >> 20), o->max_model_len, (long long)(one >> 20));
    const int64_t need = model_weight_bytes(o->model) + other_bytes(o, c) +
                         (o->kv_bytes > 0 ? pages * page_bytes(c) : one);
    if (need > left)
        return err_set(err, E_USAGE,
                       "cuda:%d has %lld MiB free, but weights take %lld, slots %d and step_tokens "
                       "%d take %lld, keys and values at least %lld: lower %s",
                       o->device, (long long)(left >> 20),
                       (long long)(model_weight_bytes(o->model) >> 20), o->slots, o->step_tokens,
                       (long long)(other_bytes(o, c) >> 20),
                       (long long)((need - model_weight_bytes(o->model) - other_bytes(o, c)) >> 20),
                       o->kv_bytes > 0 ? "--kv-bytes or --slots" : "--max-model-len or --slots");
    if (pages * page_bytes(c) < one)
        return err_set(err, E_USAGE,
                       "cuda:%d has %lld MiB left for keys and values, but one sequence of "
                       "max_model_len %d takes %lld: lower --max-model-len or --slots",
                       o->device, (long long)(TR_MAX(bytes, 0) >> 20), o->max_model_len,
                       (long long)(one >> 20));
    *n_pages = (int32_t)TR_MIN(pages, INT32_MAX);
    return E_OK;
}

static int net_open(struct cuda_net *n, const struct engine_opts *o, int32_t n_pages,
                    struct err *err)
{
    const struct model_config *c = model_config(o->model);
    const struct backend_opts b = {.threads = 1,
                                   .rows_cap = o->step_tokens,
                                   .logits_cap = TR_MIN(o->step_tokens, ENGINE_CUDA_LOGITS),
                                   .n_layers = c->n_layers,
                                   .n_pages = n_pages,
                                   .slots = o->slots,
                                   .pages_per_slot = kv_pages_of(o->max_model_len),
                                   .n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .vocab_size = c->vocab_size,
                                   .dtype = c->dtype};
    const int64_t start_ns = clock_mono_ns(clock_system());
    int rc = backend_cuda_open(&n->backend, &b, o->device, err);
    if (rc < 0)
        return rc;
    LOG(LOG_INFO, "cuda_opened", LOG_I("device", o->device),
        LOG_F("seconds", (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9));
    return network_open(&n->network, o->model, n->backend, o->step_tokens, o->max_model_len, err);
}

void engine_cuda_fingerprint(char *out, size_t cap, const struct cuda_build *b)
{
    snprintf(out, cap, "cuda-v%d cublasLt-%zu cudart-%d %s %s", CUDA_ARITHMETIC, b->cublas_lt,
             b->runtime, b->device, b->family);
}

int engine_cuda_open(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    struct engine_opts o = *opts;
    int32_t n_pages = 0;
    if (!o.model)
        return err_set(err, E_USAGE, "the CUDA engine needs a model");
    int rc = choose(&o, &n_pages, err);
    if (rc < 0)
        return rc;
    struct cuda_net *n = mem_alloc(1, sizeof *n);
    if (!n)
        return err_set(err, E_FATAL, "no memory for the CUDA engine");
    const struct model_config *c = model_config(o.model);
    struct engine_net net = {.ctx = n,
                             .lag = 1,
                             .vocab_size = c->vocab_size,
                             .forward = cuda_forward,
                             .slot_open = cuda_slot_open,
                             .bytes = cuda_bytes,
                             .times = cuda_times,
                             .padded = cuda_padded,
                             .close = cuda_net_close};
    struct cuda_build build = {.device = backend_cuda_device_name(o.device), .family = c->family};
    backend_cuda_libraries(&build.cublas_lt, &build.runtime);
    engine_cuda_fingerprint(net.fingerprint, sizeof net.fingerprint, &build);
    const int64_t start_ns = clock_mono_ns(clock_system());
    rc = net_open(n, &o, n_pages, err);
    const int64_t loaded_ns = clock_mono_ns(clock_system());
    if (rc == E_OK)
        rc = engine_cuda_warm(n->backend, n->network, &o, err);
    if (rc == E_OK)
        LOG(LOG_INFO, "cuda_ready", LOG_I("device", o.device),
            LOG_F("load_seconds", (double)(loaded_ns - start_ns) * 1e-9),
            LOG_F("warm_seconds", (double)(clock_mono_ns(clock_system()) - loaded_ns) * 1e-9));
    if (rc == E_OK)
        rc = engine_core_open(out, &o, &net, n_pages, err);
    if (rc < 0)
        cuda_net_close(n);
    return rc;
}
