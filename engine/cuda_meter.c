/* cuda_meter: steps of a given make-up, whole and op by op, and the model's products. See
 * cuda_measure.h. Ops are timed by marks (events) before each of them, set by an op table that
 * stands in front of the backend's own; one meter at a time runs op by op. */
#include "engine/cuda_measure.h"

#include "engine/backend_cuda_impl.h"

enum { MARKS_MAX = 1024, OP_TURNS = 3, WHOLE_TURNS = 8, PRODUCT_TURNS = 20, COPIES = 3 };

struct cuda_meter {
    struct backend *backend;
    struct network *network;
    const struct model *model;
    struct cuda_meter_opts opts;
    const struct backend_ops *real;
    struct backend_ops timed, lone;         /* lone: attention and nothing else */
    int32_t *ids, *position, *slot, *table; /* table [slots, stride] */
    struct step_logit *logits;
    struct sample_token *tokens;
    int32_t stride;
    /* products */
    struct weight *weights[CUDA_PRODUCTS][COPIES];
    struct buffer in, out;
    const float *bias;
    int64_t k[CUDA_PRODUCTS];
};

static struct {
    const struct backend_ops *real;
    cudaEvent_t at[MARKS_MAX];
    const char *what[MARKS_MAX];
    int n;
    cudaStream_t stream;
} marks;

static void mark(const char *what)
{
    if (marks.n < MARKS_MAX) {
        marks.what[marks.n] = what;
        cudaEventRecord(marks.at[marks.n++], marks.stream);
    }
}

static int timed_begin(struct backend *b, const struct step *s, struct err *err)
{
    marks.n = 0;
    mark("upload");
    return marks.real->step_begin(b, s, err);
}

static void timed_embed(struct backend *b, struct buffer *out, const struct weight *table)
{
    mark("embed");
    marks.real->embed(b, out, table);
}

static void timed_rmsnorm(struct backend *b, struct buffer *out, const struct buffer *x,
                          const float *w, float eps)
{
    mark("rmsnorm");
    marks.real->rmsnorm(b, out, x, w, eps);
}

static void timed_linear(struct backend *b, struct buffer *out, const struct buffer *x,
                         const struct weight *w, const float *bias, const struct buffer *residual)
{
    mark(!residual ? "gemm qkv" : x->cols > out->cols ? "gemm down" : "gemm o");
    marks.real->linear(b, out, x, w, bias, residual);
}

static void timed_rope(struct backend *b, struct buffer *qkv, int32_t layer,
                       const struct rope_args *a)
{
    mark("rope");
    marks.real->rope_kv(b, qkv, layer, a);
}

static void timed_attention(struct backend *b, struct buffer *out, const struct buffer *qkv,
                            int32_t layer, const struct attention_shape *s)
{
    mark("attention");
    marks.real->attention(b, out, qkv, layer, s);
}

static void timed_linear_swiglu(struct backend *b, struct buffer *out, struct buffer *gate_up,
                                const struct buffer *x, const struct weight *w, const float *bias)
{
    mark("gate_up and swiglu");
    marks.real->linear_swiglu(b, out, gate_up, x, w, bias);
}

static void timed_head(struct backend *b, const struct buffer *x, struct buffer *scratch,
                       const float *norm, float eps, const struct weight *head)
{
    mark("head and sampler");
    marks.real->head(b, x, scratch, norm, eps, head);
}

static int timed_end(struct backend *b, struct sample_token *tokens, struct err *err)
{
    mark("tokens down");
    return marks.real->step_end(b, tokens, err);
}

/* ---- attention in a row: a step whose other ops do nothing ---- */

static void lone_embed(struct backend *b, struct buffer *out, const struct weight *table)
{
    (void)b, (void)out, (void)table;
    mark("attention");
}

static void lone_rmsnorm(struct backend *b, struct buffer *out, const struct buffer *x,
                         const float *w, float eps)
{
    (void)b, (void)out, (void)x, (void)w, (void)eps;
}

static void lone_linear(struct backend *b, struct buffer *out, const struct buffer *x,
                        const struct weight *w, const float *bias, const struct buffer *residual)
{
    (void)b, (void)out, (void)x, (void)w, (void)bias, (void)residual;
}

static void lone_rope(struct backend *b, struct buffer *qkv, int32_t layer,
                      const struct rope_args *a)
{
    (void)b, (void)qkv, (void)layer, (void)a;
}

static void lone_linear_swiglu(struct backend *b, struct buffer *out, struct buffer *gate_up,
                               const struct buffer *x, const struct weight *w, const float *bias)
{
    (void)b, (void)out, (void)gate_up, (void)x, (void)w, (void)bias;
}

static void lone_head(struct backend *b, const struct buffer *x, struct buffer *scratch,
                      const float *norm, float eps, const struct weight *head)
{
    (void)b, (void)x, (void)scratch, (void)norm, (void)eps, (void)head;
    mark("tokens down");
}

static void set_lone(struct cuda_meter *m)
{
    m->lone = m->timed;
    m->lone.embed = lone_embed;
    m->lone.rmsnorm = lone_rmsnorm;
    m->lone.linear = lone_linear;
    m->lone.rope_kv = lone_rope;
    m->lone.attention = m->real->attention;
    m->lone.linear_swiglu = lone_linear_swiglu;
    m->lone.head = lone_head;
    m->lone.step_end = m->real->step_end;
}

static void set_timed(struct cuda_meter *m)
{
    m->real = m->backend->ops;
    m->timed = *m->real;
    m->timed.step_begin = timed_begin;
    m->timed.embed = timed_embed;
    m->timed.rmsnorm = timed_rmsnorm;
    m->timed.linear = timed_linear;
    m->timed.rope_kv = timed_rope;
    m->timed.attention = timed_attention;
    m->timed.linear_swiglu = timed_linear_swiglu;
    m->timed.head = timed_head;
    m->timed.step_end = timed_end;
    set_lone(m);
}

static int open_step(struct cuda_meter *m, struct err *err)
{
    const struct cuda_meter_opts *o = &m->opts;
    const int64_t rows = o->rows_cap, table = (int64_t)o->slots * m->stride;
    m->ids = mem_alloc((size_t)(3 * rows + table), sizeof *m->ids);
    m->position = m->ids + rows;
    m->slot = m->ids + 2 * rows;
    m->table = m->ids + 3 * rows;
    m->logits = mem_alloc((size_t)rows, sizeof *m->logits);
    m->tokens = mem_alloc((size_t)rows, sizeof *m->tokens);
    if (!m->ids || !m->logits || !m->tokens)
        return err_set(err, E_FATAL, "cuda: no host memory for a step of %d rows", o->rows_cap);
    struct cuda_backend *b = cuda_self(m->backend);
    int rc = cuda_noise(b->kv, (size_t)(b->kv_layer_elements * b->opts.n_layers) * 2, err);
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < MARKS_MAX && e == cudaSuccess; i++)
        e = cudaEventCreate(&marks.at[i]);
    marks.stream = b->stream;
    return rc < 0 ? rc : e == cudaSuccess ? E_OK : cuda_fail(err, e, "events");
}

int cuda_meter_open(struct cuda_meter **out, const struct model *model,
                    const struct cuda_meter_opts *opts, struct err *err)
{
    const struct model_config *c = model_config(model);
    const struct backend_opts b = {.threads = 1,
                                   .rows_cap = opts->rows_cap,
                                   .logits_cap = opts->logits_cap,
                                   .n_layers = c->n_layers,
                                   .n_pages = opts->n_pages,
                                   .slots = opts->slots,
                                   .pages_per_slot =
                                       (opts->max_model_len + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS,
                                   .n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .vocab_size = c->vocab_size,
                                   .dtype = c->dtype};
    struct cuda_meter *m = mem_alloc(1, sizeof *m);
    if (!m)
        return err_set(err, E_FATAL, "cuda: no memory for a meter");
    m->model = model;
    m->opts = *opts;
    m->stride = b.pages_per_slot;
    int rc = backend_cuda_open(&m->backend, &b, opts->device, err);
    if (rc == E_OK)
        rc = network_open(&m->network, model, m->backend, opts->rows_cap, opts->max_model_len, err);
    if (rc == E_OK)
        rc = open_step(m, err);
    if (rc < 0) {
        cuda_meter_close(m);
        return rc;
    }
    set_timed(m);
    *out = m;
    return E_OK;
}

void cuda_meter_close(struct cuda_meter *m)
{
    if (!m)
        return;
    network_close(m->network);
    if (m->backend)
        m->backend->ops->close(m->backend);
    for (int i = 0; i < MARKS_MAX; i++)
        if (marks.at[i])
            cudaEventDestroy(marks.at[i]);
    memset(&marks, 0, sizeof marks);
    for (int i = 0; i < CUDA_PRODUCTS; i++)
        for (int k = 0; k < COPIES; k++)
            mem_free(m->weights[i][k]);
    mem_free(m->ids);
    mem_free(m->logits);
    mem_free(m->tokens);
    mem_free(m);
}

/* ---- products ---- */
static const char *const product_names[CUDA_PRODUCTS] = {"qkv", "o", "gate_up", "down", "head"};

static int products_open(struct cuda_meter *m, struct err *err)
{
    const struct model_config *c = model_config(m->model);
    const int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    const int64_t n[] = {q + 2 * kv, c->hidden, 2 * (int64_t)c->inner, c->hidden, c->vocab_size};
    const int64_t k[] = {c->hidden, q, c->hidden, c->inner, c->hidden};
    const int64_t widest = TR_MAX(2 * (int64_t)c->inner, q + 2 * kv);
    const struct backend_ops *ops = m->backend->ops;
    int rc = E_OK;
    if (m->in.data)
        return E_OK;
    for (int i = 0; i < CUDA_PRODUCTS; i++)
        for (int copy = 0; copy < (i == 4 ? 1 : COPIES) && rc == E_OK; copy++) {
            rc = ops->weight_open(m->backend, &m->weights[i][copy], n[i], k[i], DTYPE_BF16, err);
            if (rc == E_OK)
                rc = cuda_noise(m->weights[i][copy]->data, (size_t)(n[i] * k[i]) * 2, err);
            m->k[i] = k[i];
        }
    if (rc == E_OK)
        rc = ops->buffer_open(m->backend, &m->in, m->opts.rows_cap,
                              TR_MAX((int64_t)c->inner, (int64_t)c->hidden), err);
    if (rc == E_OK)
        rc = ops->buffer_open(m->backend, &m->out, m->opts.rows_cap, widest, err);
    float *zeros = mem_alloc((size_t)widest, sizeof *zeros);
    if (rc == E_OK)
        rc = zeros ? ops->vector_open(m->backend, &m->bias, zeros, n[0], err)
                   : err_set(err, E_FATAL, "cuda: no memory for a bias");
    mem_free(zeros);
    return rc == E_OK ? cuda_noise(m->in.data, (size_t)(m->in.rows_cap * m->in.cols) * 2, err) : rc;
}

static void product_run(struct cuda_meter *m, int i, int copy, int64_t rows)
{
    struct cuda_backend *b = cuda_self(m->backend);
    const struct weight *w = m->weights[i][copy];
    const bool bias = i == 0 && model_config(m->model)->qkv_bias, residual = i == 1 || i == 3;
    const struct product on = {m->in.data, w, bias ? (const void *)(m->bias + w->n) : NULL,
                               residual ? m->out.data : NULL};
    const int kind = i == 4     ? LINEAR_LOGITS
                     : bias     ? LINEAR_BIAS
                     : residual ? LINEAR_RESIDUAL
                                : LINEAR_PLAIN;
    cuda_gemm(b, i == 4 ? (void *)b->logits : m->out.data, &on, kind, rows);
}

int cuda_meter_products(struct cuda_meter *m, int64_t rows, struct cuda_product out[CUDA_PRODUCTS],
                        struct err *err)
{
    struct cuda_backend *b = cuda_self(m->backend);
    int rc = products_open(m, err);
    float ms = 0;
    cudaError_t e = cudaSuccess;
    b->launch_error = 0;
    for (int i = 0; i < CUDA_PRODUCTS && rc == E_OK && e == cudaSuccess; i++) {
        const int64_t m_rows = i == 4 ? TR_MIN(rows, m->opts.logits_cap) : rows;
        const int copies = i == 4 ? 1 : COPIES;
        for (int turn = 0; turn < COPIES; turn++)
            product_run(m, i, turn % copies, m_rows);
        e = cudaEventRecord(marks.at[0], b->stream);
        for (int turn = 0; turn < PRODUCT_TURNS && e == cudaSuccess; turn++)
            product_run(m, i, turn % copies, m_rows);
        if (e == cudaSuccess)
            e = cudaEventRecord(marks.at[1], b->stream);
        if (e == cudaSuccess)
            e = cudaEventSynchronize(marks.at[1]);
        if (e == cudaSuccess)
            e = cudaEventElapsedTime(&ms, marks.at[0], marks.at[1]);
        if (e == cudaSuccess)
            e = (cudaError_t)b->launch_error;
        out[i] = (struct cuda_product){product_names[i], m_rows, m->weights[i][0]->n, m->k[i],
                                       ms * 1e-3 / PRODUCT_TURNS};
    }
    return rc < 0 ? rc : e == cudaSuccess ? E_OK : cuda_fail(err, e, "products");
}

/* ---- steps ---- */
static int build(struct cuda_meter *m, const struct cuda_step_shape *c, struct step *out,
                 struct err *err)
{
    static const struct sample_params sampling = {
        .temperature = 0.6f, .top_p = 0.95f, .repetition_penalty = 1, .n_top = -1};
    const int64_t rows = c->decodes + (int64_t)c->prompts * c->prompt;
    const int32_t slots = c->decodes + c->prompts;
    int32_t at = 0, next = c->shared_pages;
    if (rows > m->opts.rows_cap || slots > m->opts.slots)
        return err_set(err, E_USAGE, "bench step %s: %lld rows of %d slots, room for %d and %d",
                       c->name, (long long)rows, slots, m->opts.rows_cap, m->opts.slots);
    for (int32_t s = 0; s < slots; s++) {
        const int32_t n = s < c->decodes ? 1 : c->prompt;
        const int32_t before = s < c->decodes ? c->context - 1 : c->before;
        if (before + n > m->stride * KV_PAGE_TOKENS)
            return err_set(err, E_USAGE, "bench step %s: %d tokens in a slot of %d", c->name,
                           before + n, m->stride * KV_PAGE_TOKENS);
        for (int32_t k = 0; k < n; k++, at++) {
            m->ids[at] = (int32_t)((uint32_t)at * 7919u % (uint32_t)1024);
            m->position[at] = before + k;
            m->slot[at] = s;
        }
        for (int32_t p = 0; p * KV_PAGE_TOKENS < before + n; p++)
            m->table[(int64_t)s * m->stride + p] = p < c->shared_pages ? p : next++;
        m->logits[s] = (struct step_logit){
            .row = at - 1, .slot = s, .sample = {.params = &sampling, .n_output = 5, .forced = -1}};
    }
    if (next > m->opts.n_pages)
        return err_set(err, E_USAGE, "bench step %s: %d pages, room for %d", c->name, next,
                       m->opts.n_pages);
    *out = (struct step){.rows = {at, m->position, m->slot, m->table, m->stride},
                         .tokens = m->ids,
                         .logits = m->logits,
                         .n_logits = slots};
    return E_OK;
}

static int add_marks(struct cuda_step_times *out, struct err *err)
{
    out->n_ops = 0;
    for (int i = 0; i + 1 < marks.n; i++) {
        float ms = 0;
        int k = 0;
        const cudaError_t e = cudaEventElapsedTime(&ms, marks.at[i], marks.at[i + 1]);
        if (e != cudaSuccess)
            return cuda_fail(err, e, "marks");
        while (k < out->n_ops && strcmp(out->ops[k].name, marks.what[i]) != 0)
            k++;
        if (k == CUDA_OPS_MAX)
            return err_set(err, E_FATAL, "cuda: more than %d kinds of ops", CUDA_OPS_MAX);
        if (k == out->n_ops) {
            out->ops[k].name = marks.what[i];
            out->ops[k].seconds = 0;
            out->n_ops++;
        }
        out->ops[k].seconds += ms * 1e-3;
    }
    return E_OK;
}

static int run_steps(struct cuda_meter *m, const struct step *step, int turns, struct err *err)
{
    int rc = E_OK;
    for (int i = 0; i < turns && rc == E_OK; i++)
        rc = network_forward(m->network, step, m->tokens, err);
    return rc == E_OK ? backend_cuda_drain(m->backend, m->tokens, err) : rc;
}

/* A step through `ops`, which set marks, out of graphs; what they say into out->ops. */
static int run_marked(struct cuda_meter *m, const struct backend_ops *ops, const struct step *step,
                      struct cuda_step_times *out, struct err *err)
{
    backend_cuda_graphs(m->backend, false);
    marks.real = m->real;
    m->backend->ops = ops;
    int rc = run_steps(m, step, OP_TURNS, err);
    m->backend->ops = m->real;
    backend_cuda_graphs(m->backend, !m->opts.no_graphs);
    return rc == E_OK ? add_marks(out, err) : rc;
}

int cuda_meter_attention(struct cuda_meter *m, const struct cuda_step_shape *shape, double *seconds,
                         struct err *err)
{
    struct step step;
    struct cuda_step_times times;
    int rc = build(m, shape, &step, err);
    if (rc == E_OK)
        rc = run_marked(m, &m->lone, &step, &times, err);
    for (int i = 0; rc == E_OK && i < times.n_ops; i++)
        if (strcmp(times.ops[i].name, "attention") == 0)
            *seconds = times.ops[i].seconds;
    return rc;
}

int cuda_meter_step(struct cuda_meter *m, const struct cuda_step_shape *shape,
                    struct cuda_step_times *out, struct err *err)
{
    struct cuda_backend *b = cuda_self(m->backend);
    struct step step;
    int rc = build(m, shape, &step, err);
    if (rc == E_OK)
        rc = run_marked(m, &m->timed, &step, out, err);
    if (rc == E_OK)
        rc = run_steps(m, &step, 2, err);
    const int64_t start_ns = clock_mono_ns(clock_system()), waited_ns = b->waited_ns;
    if (rc == E_OK)
        rc = run_steps(m, &step, WHOLE_TURNS, err);
    const double ns = (double)(clock_mono_ns(clock_system()) - start_ns);
    out->seconds = ns * 1e-9 / WHOLE_TURNS;
    out->host_seconds = (ns - (double)(b->waited_ns - waited_ns)) * 1e-9 / WHOLE_TURNS;
    return rc;
}
