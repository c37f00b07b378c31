/* network: a model on a backend: fused weights, activations, and the forward pass, written once.
 *
 * q|k|v and gate|up are stored as one matrix each (rows one behind the other), so a layer has four
 * products. A tied head is the embedding's own packed weight. */
#include "engine/log.h"
#include "engine/upload.h"

enum { PARTS_PER_LAYER = 7 };

struct layer {
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm; /* q_norm, k_norm NULL but in Qwen3 */
    const float *qkv_bias, *o_bias, *gate_up_bias, *down_bias; /* NULL where there is none */
    struct weight *qkv, *o, *gate_up, *down;
};
struct network {
    struct backend *backend; /* borrowed; owns every weight, vector and buffer below */
    struct model_config config;
    struct weight *embed, *head; /* the same when tied */
    const float *norm, *cos_sin;
    struct buffer x, h, qkv, attn, gate_up, act;
    struct layer layers[MODEL_LAYERS_MAX];
};
/* What network_open carries around. */
struct building {
    struct network *n;
    const struct model *m;
    struct upload_part *parts;
    size_t n_parts;
    float *scratch; /* the longest vector: a fused bias */
};

/* Plans the tensors of `n_roles` roles as the rows of one new matrix. */
static int plan_matrix(struct building *b, struct weight **out, const enum tensor_role *roles,
                       int n_roles, int32_t layer, struct err *err)
{
    const struct model_config *c = &b->n->config;
    struct backend *backend = b->n->backend;
    int64_t rows = 0;
    for (int i = 0; i < n_roles; i++) {
        struct upload_part *p = &b->parts[b->n_parts + (size_t)i];
        p->from = weights_tensor(model_weights(b->m), c, roles[i], layer);
        p->row0 = rows;
        rows += p->from.n;
    }
    int64_t k = b->parts[b->n_parts].from.k;
    int rc = backend->ops->weight_open(backend, out, rows, k, c->dtype, err);
    for (int i = 0; rc == E_OK && i < n_roles; i++)
        b->parts[b->n_parts++].into = *out;
    return rc;
}
#define PLAN(b, out, layer, err, ...)                                                              \
    plan_matrix(b, out, (const enum tensor_role[]){__VA_ARGS__},                                   \
                TR_COUNT(((const enum tensor_role[]){__VA_ARGS__})), layer, err)

/* One vector of the tensors of `n_roles` roles, end to end; NULL when the model has none of them.
 */
static int load_vector(struct building *b, const float **out, const enum tensor_role *roles,
                       int n_roles, int32_t layer, struct err *err)
{
    const struct model_config *c = &b->n->config;
    struct backend *backend = b->n->backend;
    int64_t n = 0;
    *out = NULL;
    if (!weights_needs(c, roles[0]))
        return E_OK;
    for (int i = 0; i < n_roles; i++) {
        struct weights_tensor t = weights_tensor(model_weights(b->m), c, roles[i], layer);
        if (upload_vector(&t, b->scratch + n, err) != E_OK)
            return E_FATAL;
        n += t.n;
    }
    return backend->ops->vector_open(backend, out, b->scratch, n, err);
}
#define VECTOR(b, out, layer, err, ...)                                                            \
    load_vector(b, out, (const enum tensor_role[]){__VA_ARGS__},                                   \
                TR_COUNT(((const enum tensor_role[]){__VA_ARGS__})), layer, err)

static int plan_layer(struct building *b, int32_t i, struct err *err)
{
    struct layer *l = &b->n->layers[i];
    int rc;
    if ((rc = VECTOR(b, &l->attn_norm, i, err, TENSOR_ATTN_NORM)) != E_OK ||
        (rc = VECTOR(b, &l->mlp_norm, i, err, TENSOR_MLP_NORM)) != E_OK ||
        (rc = VECTOR(b, &l->q_norm, i, err, TENSOR_Q_NORM)) != E_OK ||
        (rc = VECTOR(b, &l->k_norm, i, err, TENSOR_K_NORM)) != E_OK ||
        (rc = VECTOR(b, &l->qkv_bias, i, err, TENSOR_Q_BIAS, TENSOR_K_BIAS, TENSOR_V_BIAS)) !=
            E_OK ||
        (rc = VECTOR(b, &l->o_bias, i, err, TENSOR_O_BIAS)) != E_OK ||
        (rc = VECTOR(b, &l->gate_up_bias, i, err, TENSOR_GATE_BIAS, TENSOR_UP_BIAS)) != E_OK ||
        (rc = VECTOR(b, &l->down_bias, i, err, TENSOR_DOWN_BIAS)) != E_OK ||
        (rc = PLAN(b, &l->qkv, i, err, TENSOR_Q, TENSOR_K, TENSOR_V)) != E_OK ||
        (rc = PLAN(b, &l->o, i, err, TENSOR_O)) != E_OK ||
        (rc = PLAN(b, &l->gate_up, i, err, TENSOR_GATE, TENSOR_UP)) != E_OK ||
        (rc = PLAN(b, &l->down, i, err, TENSOR_DOWN)) != E_OK)
        return rc;
    return E_OK;
}

static int load_weights(struct building *b, struct err *err)
{
    struct network *n = b->n;
    int rc = PLAN(b, &n->embed, 0, err, TENSOR_EMBED);
    n->head = n->embed;
    if (rc == E_OK && !n->config.tied)
        rc = PLAN(b, &n->head, 0, err, TENSOR_HEAD);
    if (rc == E_OK)
        rc = VECTOR(b, &n->norm, 0, err, TENSOR_NORM);
    for (int32_t i = 0; rc == E_OK && i < n->config.n_layers; i++)
        rc = plan_layer(b, i, err);
    if (rc == E_OK)
        rc = upload_run(n->backend, b->parts, b->n_parts, model_dir(b->m), err);
    return rc;
}

static int take_rope(struct network *n, int32_t max_positions, const char *path, struct err *err)
{
    int64_t start_ns = clock_mono_ns(clock_system());
    size_t count = (size_t)max_positions * (size_t)n->config.head_dim;
    float *table = mem_alloc(count, sizeof *table);
    if (!table)
        return err_set(err, E_FATAL, "rope table: cannot take %zu bytes", count * sizeof *table);
    rope_table(&n->config, max_positions, table);
    int rc = n->backend->ops->vector_open(n->backend, &n->cos_sin, table, (int64_t)count, err);
    mem_free(table);
    if (rc == E_OK)
        LOG(LOG_INFO, "model_rope_table", LOG_S("path", path), LOG_I("bytes", count * 4),
            LOG_F("seconds", (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9));
    return rc;
}

static int take_buffers(struct network *n, int32_t rows, struct err *err)
{
    const struct model_config *c = &n->config;
    struct backend *b = n->backend;
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    int rc;
    if ((rc = b->ops->buffer_open(b, &n->x, rows, c->hidden, err)) != E_OK ||
        (rc = b->ops->buffer_open(b, &n->h, rows, c->hidden, err)) != E_OK ||
        (rc = b->ops->buffer_open(b, &n->qkv, rows, q + 2 * kv, err)) != E_OK ||
        (rc = b->ops->buffer_open(b, &n->attn, rows, q, err)) != E_OK ||
        (rc = b->ops->buffer_open(b, &n->gate_up, rows, 2 * (int64_t)c->inner, err)) != E_OK ||
        (rc = b->ops->buffer_open(b, &n->act, rows, c->inner, err)) != E_OK)
        return rc;
    return E_OK;
}

int network_plan(const struct model_config *c, struct backend *b, int32_t rows_cap, struct err *err)
{
    struct network n = {.backend = b, .config = *c};
    return take_buffers(&n, rows_cap, err);
}

/* The longest vector of load_vector: a norm [D], qkv bias, gate|up bias or a q/k norm. */
static size_t longest_vector(const struct model_config *c)
{
    size_t qkv = (size_t)(c->n_heads + 2 * c->n_kv_heads) * (size_t)c->head_dim;
    size_t longest = TR_MAX(qkv, (size_t)c->hidden);
    return TR_MAX(longest, 2 * (size_t)c->inner);
}

int network_open(struct network **out, const struct model *m, struct backend *b, int32_t rows_cap,
                 int32_t max_positions, struct err *err)
{
    CHECK(rows_cap >= 1);
    CHECK(max_positions >= 1);
    const struct model_config *c = model_config(m);
    struct building build = {.m = m, .n = mem_alloc(1, sizeof *build.n)};
    size_t parts = 2 + PARTS_PER_LAYER * (size_t)c->n_layers;
    int rc;
    build.parts = mem_alloc(parts, sizeof *build.parts);
    build.scratch = mem_alloc(longest_vector(c), sizeof *build.scratch);
    if (!build.n || !build.parts || !build.scratch) {
        rc = err_set(err, E_FATAL, "model: no memory for %zu tensors", parts);
        goto out;
    }
    build.n->backend = b;
    build.n->config = *c;
    if ((rc = load_weights(&build, err)) == E_OK &&
        (rc = take_rope(build.n, max_positions, model_dir(m), err)) == E_OK)
        rc = take_buffers(build.n, rows_cap, err);
    CHECK(build.n_parts <= parts);
out:
    mem_free(build.scratch);
    mem_free(build.parts);
    if (rc == E_OK)
        *out = build.n;
    else
        network_close(build.n);
    return rc;
}

void network_close(struct network *n)
{
    mem_free(n);
}

/* The transformer, pre-norm, SwiGLU, grouped queries: one pass over the ops for every family. */
static int forward(struct network *n, const struct step *step, int32_t n_layers,
                   struct sample_token *tokens, struct err *err)
{
    const struct model_config *c = &n->config;
    struct backend *b = n->backend;
    const struct backend_ops *ops = b->ops;
    int rc = ops->step_begin(b, step, err);
    if (rc != E_OK)
        return rc;
    ops->embed(b, &n->x, n->embed);
    for (int32_t i = 0; i < n_layers; i++) {
        const struct layer *l = &n->layers[i];
        struct rope_args rope = {n->cos_sin,  l->q_norm,  l->k_norm,
                                 c->norm_eps, c->n_heads, c->dtype};
        struct attention_shape shape = {c->n_heads, c->n_kv_heads, c->head_dim, c->window[i]};
        ops->rmsnorm(b, &n->h, &n->x, l->attn_norm, c->norm_eps);
        ops->linear(b, &n->qkv, &n->h, l->qkv, l->qkv_bias, NULL);
        ops->rope_kv(b, &n->qkv, i, &rope);
        ops->attention(b, &n->attn, &n->qkv, i, &shape);
        ops->linear(b, &n->x, &n->attn, l->o, l->o_bias, &n->x);
        ops->rmsnorm(b, &n->h, &n->x, l->mlp_norm, c->norm_eps);
        ops->linear_swiglu(b, &n->act, &n->gate_up, &n->h, l->gate_up, l->gate_up_bias);
        ops->linear(b, &n->x, &n->act, l->down, l->down_bias, &n->x);
    }
    ops->head(b, &n->x, &n->h, n->norm, c->norm_eps, n->head);
    return ops->step_end(b, tokens, err);
}

int network_forward(struct network *n, const struct step *step, struct sample_token *tokens,
                    struct err *err)
{
    return forward(n, step, n->config.n_layers, tokens, err);
}

int network_warm(struct network *n, const struct step *step, struct sample_token *tokens,
                 struct err *err)
{
    return forward(n, step, 1, tokens, err);
}
