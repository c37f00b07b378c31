/* engine_cuda: a model on the CUDA backend as a net: sizes chosen from the model and the card. */
#include <stdio.h>

#include "engine/backend_cuda.h"
#include "engine/engine_core.h"
#include "engine/log.h"
#include "engine/model.h"

enum {
    CUDA_SLOTS = 1408,
    CUDA_STEP_TOKENS = 2816, /* one wave of the GEMM tiles on 132 SMs; >= 2,048 rows feed them */
    CUDA_MODEL_LEN = 32768,  /* what a request may take unless more is asked for */
    CUDA_LOGITS = 1408,
    MARGIN_PERCENT = 6, /* of the free memory, left alone */
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
    const int64_t logits = TR_MIN(o->step_tokens, CUDA_LOGITS) + 64;
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
    if (pages < kv_pages_of(o->max_model_len))
        return err_set(err, E_USAGE,
                       "kv_bytes: %lld bytes of KV pages hold %lld tokens, but one sequence of "
                       "max_model_len has %d",
                       (long long)(pages * page_bytes(c)), (long long)(pages * KV_PAGE_TOKENS),
                       o->max_model_len);
    *n_pages = (int32_t)TR_MIN(pages, INT32_MAX);
    return E_OK;
}

static int net_open(struct cuda_net *n, const struct engine_opts *o, int32_t n_pages,
                    struct err *err)
{
    const struct model_config *c = model_config(o->model);
    const struct backend_opts b = {.threads = 1,
                                   .rows_cap = o->step_tokens,
                                   .logits_cap = TR_MIN(o->step_tokens, CUDA_LOGITS),
                                   .n_layers = c->n_layers,
                                   .n_pages = n_pages,
                                   .slots = o->slots,
                                   .pages_per_slot = kv_pages_of(o->max_model_len),
                                   .n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .vocab_size = c->vocab_size,
                                   .dtype = c->dtype};
    int rc = backend_cuda_open(&n->backend, &b, o->device, err);
    if (rc < 0)
        return rc;
    return network_open(&n->network, o->model, n->backend, o->step_tokens, o->max_model_len, err);
}

/* One step of m rows that stand for nothing: positions 0.. of as many slots as it takes, all in
 * page 0, whose content no sequence reads before it has written it. */
static int warm_step(struct cuda_net *n, const struct engine_opts *o, int32_t m, int32_t logits_cap,
                     int32_t *space, struct step_logit *logits, struct sample_token *tokens,
                     struct err *err)
{
    static const struct sample_params greedy = {.repetition_penalty = 1, .n_top = -1};
    const int32_t stride = kv_pages_of(o->max_model_len), rows = o->step_tokens;
    const int64_t vocab = model_config(o->model)->vocab_size;
    int32_t *ids = space, *position = space + rows, *slot = space + 2 * rows;
    for (int32_t i = 0; i < m; i++) {
        ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)vocab);
        position[i] = i % o->max_model_len;
        slot[i] = i / o->max_model_len;
    }
    const struct step step = {
        .rows = {m, position, slot, space + 3 * rows, stride},
        .tokens = ids,
        .logits = logits,
        .n_logits = TR_MIN(m, logits_cap),
    };
    for (int32_t i = 0; i < step.n_logits; i++)
        logits[i] = (struct step_logit){.row = i,
                                        .slot = slot[i],
                                        .kind = STEP_SAMPLE,
                                        .sample = {.params = &greedy, .forced = -1}};
    return network_forward(n->network, &step, tokens, err);
}

/* Runs every step size once, the widest first, so that all GEMM plans are made and proven on real
 * activations, and nothing is loaded or taken later. */
static int warm(struct cuda_net *n, const struct engine_opts *o, struct err *err)
{
    const int64_t start_ns = clock_mono_ns(clock_system());
    const int64_t table = (int64_t)o->slots * kv_pages_of(o->max_model_len);
    const int64_t room = (int64_t)o->slots * o->max_model_len;
    const int32_t logits_cap = TR_MIN(o->step_tokens, CUDA_LOGITS);
    int32_t *space = mem_alloc((size_t)(3 * (int64_t)o->step_tokens + table), sizeof *space);
    struct step_logit *logits = mem_alloc((size_t)logits_cap, sizeof *logits);
    struct sample_token *tokens = mem_alloc((size_t)logits_cap, sizeof *tokens);
    int rc = space && logits && tokens ? E_OK : err_set(err, E_FATAL, "cuda: no host memory");
    int32_t steps = 0;
    for (int32_t m = o->step_tokens; rc == E_OK && m > 0; m = backend_cuda_rows_below(m)) {
        if (m <= room)
            rc = warm_step(n, o, m, logits_cap, space, logits, tokens, err), steps++;
    }
    if (rc == E_OK)
        rc = backend_cuda_drain(n->backend, tokens, err);
    if (rc == E_OK)
        LOG(LOG_INFO, "cuda_warm", LOG_I("steps", steps),
            LOG_F("seconds", (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9));
    mem_free(space);
    mem_free(logits);
    mem_free(tokens);
    return rc;
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
                             .close = cuda_net_close};
    snprintf(net.fingerprint, sizeof net.fingerprint, "cuda-v1 %s %s",
             backend_cuda_device_name(o.device), c->family);
    rc = net_open(n, &o, n_pages, err);
    if (rc == E_OK)
        rc = warm(n, &o, err);
    if (rc == E_OK)
        rc = engine_core_open(out, &o, &net, n_pages, err);
    if (rc < 0)
        cuda_net_close(n);
    return rc;
}
