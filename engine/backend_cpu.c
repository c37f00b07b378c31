/* backend_cpu: the op table over kernels/cpu. The readable reference and the default without a GPU.
 * Ops run when they are called; step_end has nothing to wait for (lag 0). */
#include <sys/mman.h>

#include "engine/backend.h"

enum { HUGE_PAGE = 2 << 20, TOUCH_BYTES = 16 << 20 };

/* A block of memory in the list of what backend_close gives back. */
struct block {
    struct block *next;
    void *data;
    void *map; /* start of the mapping around data; NULL: mem_alloc */
    size_t map_bytes;
};
struct weight {
    struct cpu_weight packed;
};
struct backend_cpu {
    struct backend base;
    struct backend_opts opts;
    struct cpu *cpu;
    struct block *blocks;
    int64_t weight_bytes, kv_bytes, activation_bytes;
    char *kv; /* [n_layers][n_pages][G][K|V][64][Dh] */
    size_t kv_layer_bytes;
    int32_t *ids;  /* [rows_cap] of the step, STEP_TOKEN_LAST resolved */
    int32_t *last; /* [slots] sampled last */
    float *logits; /* [logits_cap, V] */
    char *scratch; /* [threads][scratch_bytes] */
    size_t scratch_bytes;
    struct sample_token *tokens; /* [tokens_cap] of the step */
    int32_t tokens_cap;
    const struct step *step; /* NULL outside step_begin .. step_end */
    float *keep;
};

static struct backend_cpu *self(struct backend *b)
{
    return (struct backend_cpu *)b;
}

/* Zeroed memory. Large blocks are mapped on 2 MiB pages: weights and KV are read once a step end to
 * end, where 4 KiB pages spend the time in the page walker; and their pages are first touched by
 * the threads that fill them. */
static void *take(struct backend_cpu *c, size_t bytes, int64_t *account)
{
    struct block *k = mem_alloc(1, sizeof *k);
    if (!k)
        return NULL;
    if (bytes < HUGE_PAGE) {
        k->data = mem_alloc(bytes, 1);
    } else if (bytes <= SIZE_MAX - HUGE_PAGE) {
        k->map_bytes = bytes + HUGE_PAGE;
        k->map =
            mmap(NULL, k->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        k->map = k->map == MAP_FAILED ? NULL : k->map;
        uintptr_t at = ((uintptr_t)k->map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
        k->data = k->map ? (void *)at : NULL;
        if (k->map)
            (void)madvise(k->data, bytes, MADV_HUGEPAGE); /* advice: refusal costs speed only */
    }
    if (!k->data) {
        mem_free(k);
        return NULL;
    }
    k->next = c->blocks;
    c->blocks = k;
    *account += (int64_t)bytes;
    return k->data;
}

/* count * size as `what`, or E_FATAL with the bytes. */
static int take_array(struct backend_cpu *c, void **out, const char *what, int64_t count,
                      size_t size, int64_t *account, struct err *err)
{
    size_t bytes;
    *out = NULL;
    CHECK(count >= 0);
    bool overflow = __builtin_mul_overflow((size_t)count, size, &bytes);
    if (!overflow)
        *out = take(c, TR_MAX(bytes, 1), account);
    if (*out)
        return E_OK;
    return err_set(err, E_FATAL, "%s: cannot take %lld x %zu bytes", what, (long long)count, size);
}

static int cpu_buffer_open(struct backend *b, struct buffer *out, int64_t rows, int64_t cols,
                           struct err *err)
{
    struct backend_cpu *c = self(b);
    *out = (struct buffer){.rows_cap = rows, .cols = cols};
    CHECK(rows >= 1 && cols >= 1 && rows <= INT64_MAX / cols);
    return take_array(c, &out->data, "activations", rows * cols, sizeof(float),
                      &c->activation_bytes, err);
}

static int cpu_weight_open(struct backend *b, struct weight **out, int64_t n, int64_t k,
                           enum dtype dtype, struct err *err)
{
    struct backend_cpu *c = self(b);
    struct weight *w;
    int64_t ignored = 0;
    int rc = take_array(c, (void **)&w, "weights", 1, sizeof *w, &ignored, err);
    if (rc != E_OK)
        return rc;
    w->packed = (struct cpu_weight){.dtype = dtype, .n = n, .k = k};
    rc = take_array(c, &w->packed.data, "weights", 1, cpu_weight_bytes(n, k, dtype),
                    &c->weight_bytes, err);
    if (rc == E_OK)
        *out = w;
    return rc;
}

static int cpu_weight_load(struct backend *b, struct weight *w, int64_t row0, const void *src,
                           int64_t rows, struct err *err)
{
    (void)err;
    CHECK(row0 >= 0 && rows >= 0 && row0 + rows <= w->packed.n);
    cpu_weight_pack(self(b)->cpu, &w->packed, row0, src, rows);
    return E_OK;
}

static int cpu_vector_open(struct backend *b, const float **out, const float *src, int64_t n,
                           struct err *err)
{
    struct backend_cpu *c = self(b);
    void *data;
    int rc = take_array(c, &data, "weights", n, sizeof(float), &c->weight_bytes, err);
    if (rc != E_OK)
        return rc;
    memcpy(data, src, (size_t)n * sizeof(float));
    *out = data;
    return E_OK;
}

static int64_t cpu_bytes(const struct backend *b, const char *what)
{
    const struct backend_cpu *c = (const struct backend_cpu *)b;
    if (strcmp(what, "weights") == 0)
        return c->weight_bytes;
    if (strcmp(what, "kv pages") == 0)
        return c->kv_bytes;
    return strcmp(what, "activations") == 0 ? c->activation_bytes : 0;
}

static void cpu_backend_close(struct backend *b)
{
    struct backend_cpu *c = self(b);
    if (!c)
        return;
    cpu_close(c->cpu);
    for (struct block *k = c->blocks, *next; k; k = next) {
        next = k->next;
        if (k->map)
            munmap(k->map, k->map_bytes);
        else
            mem_free(k->data);
        mem_free(k);
    }
    mem_free(c);
}

static struct kv_layer kv_layer(const struct backend_cpu *c, int32_t layer)
{
    CHECK(layer >= 0 && layer < c->opts.n_layers);
    return (struct kv_layer){c->kv + (size_t)layer * c->kv_layer_bytes, c->opts.dtype,
                             c->opts.n_kv_heads, c->opts.head_dim};
}

static int cpu_step_begin(struct backend *b, const struct step *step, struct err *err)
{
    struct backend_cpu *c = self(b);
    (void)err;
    CHECK(!c->step);
    CHECK(step->rows.n >= 1 && step->rows.n <= c->opts.rows_cap);
    CHECK(step->n_logits >= 0 && step->n_logits <= c->tokens_cap);
    c->step = step;
    for (int32_t i = 0; i < step->n_copies; i++) {
        const struct step_copy *copy = &step->copies[i];
        for (int32_t layer = 0; layer < c->opts.n_layers; layer++) {
            struct kv_layer kv = kv_layer(c, layer);
            kv_copy_cpu(&kv, copy->page_from, copy->page_to, copy->n_tokens);
        }
    }
    for (int32_t r = 0; r < step->rows.n; r++) {
        int32_t slot = step->rows.slot[r];
        CHECK(slot >= 0 && slot < c->opts.slots);
        c->ids[r] = step->tokens[r] == STEP_TOKEN_LAST ? c->last[slot] : step->tokens[r];
    }
    return E_OK;
}

static void cpu_embed(struct backend *b, struct buffer *out, const struct weight *table)
{
    struct backend_cpu *c = self(b);
    embed_cpu(c->cpu, out->data, &table->packed, c->ids, c->step->rows.n);
}

static void cpu_rmsnorm(struct backend *b, struct buffer *out, const struct buffer *x,
                        const float *w, float eps)
{
    struct backend_cpu *c = self(b);
    CHECK(out->cols == x->cols);
    rmsnorm_cpu(c->cpu, out->data, x->data, w, eps, c->step->rows.n, x->cols, c->opts.dtype);
}

static void cpu_linear(struct backend *b, struct buffer *out, const struct buffer *x,
                       const struct weight *w, const float *bias, const struct buffer *residual)
{
    struct backend_cpu *c = self(b);
    CHECK(x->cols == w->packed.k && out->cols == w->packed.n);
    CHECK(!residual || residual->cols == out->cols);
    linear_cpu(c->cpu, out->data, x->data, &w->packed, bias, residual ? residual->data : NULL,
               c->step->rows.n, c->opts.dtype);
}

static void cpu_rope_kv(struct backend *b, struct buffer *qkv, int32_t layer,
                        const struct rope_args *args)
{
    struct backend_cpu *c = self(b);
    struct kv_layer kv = kv_layer(c, layer);
    CHECK(qkv->cols == (int64_t)(args->n_heads + 2 * kv.n_kv_heads) * kv.head_dim);
    rope_kv_cpu(c->cpu, qkv->data, &kv, &c->step->rows, args);
}

static void cpu_attention(struct backend *b, struct buffer *out, const struct buffer *qkv,
                          int32_t layer, const struct attention_shape *shape)
{
    struct backend_cpu *c = self(b);
    struct kv_layer kv = kv_layer(c, layer);
    CHECK(shape->n_kv_heads == kv.n_kv_heads && shape->head_dim == kv.head_dim);
    CHECK(out->cols == (int64_t)shape->n_heads * shape->head_dim);
    attention_cpu(c->cpu, out->data, qkv->data, &kv, &c->step->rows, shape->n_heads, shape->window,
                  c->opts.dtype);
}

static void cpu_linear_swiglu(struct backend *b, struct buffer *out, struct buffer *gate_up,
                              const struct buffer *x, const struct weight *w, const float *bias)
{
    struct backend_cpu *c = self(b);
    CHECK(gate_up->cols == 2 * out->cols);
    cpu_linear(b, gate_up, x, w, bias, NULL);
    swiglu_cpu(c->cpu, out->data, gate_up->data, c->step->rows.n, out->cols, c->opts.dtype);
}

/* One turn of the head: logit rows first .. first+n-1. Task t takes rows t, t+tasks, ...: which
 * thread samples a row changes nothing, the row is its own. */
struct sampling_turn {
    struct backend_cpu *c;
    int32_t first, n, tasks;
};

static void sample_rows(void *ctx, int task)
{
    const struct sampling_turn *turn = ctx;
    struct backend_cpu *c = turn->c;
    char *scratch = c->scratch + (size_t)task * c->scratch_bytes;
    for (int32_t i = task; i < turn->n; i += turn->tasks) {
        const struct step_logit *want = &c->step->logits[turn->first + i];
        struct sample_token *token = &c->tokens[turn->first + i];
        float *logits = c->logits + i * c->opts.vocab_size;
        if (want->kind == STEP_SAMPLE)
            sample_cpu(logits, c->opts.vocab_size, &want->sample, token, scratch);
        else
            logprobs_cpu(logits, c->opts.vocab_size, want->target, want->n_top, token);
    }
}

static void cpu_head(struct backend *b, const struct buffer *x, struct buffer *scratch,
                     const float *norm, float eps, const struct weight *head)
{
    struct backend_cpu *c = self(b);
    int64_t d = x->cols, v = c->opts.vocab_size;
    int64_t turn_cap = TR_MIN((int64_t)c->opts.logits_cap, scratch->rows_cap);
    CHECK(head->packed.n == v && head->packed.k == d && scratch->cols == d);
    for (int32_t first = 0; first < c->step->n_logits;) {
        int32_t n = (int32_t)TR_MIN((int64_t)(c->step->n_logits - first), turn_cap);
        float *rows = scratch->data;
        for (int32_t i = 0; i < n; i++) {
            int32_t row = c->step->logits[first + i].row;
            CHECK(row >= 0 && row < c->step->rows.n);
            memcpy(rows + i * d, (const float *)x->data + row * d, (size_t)d * sizeof *rows);
        }
        rmsnorm_cpu(c->cpu, rows, rows, norm, eps, n, d, c->opts.dtype);
        linear_cpu(c->cpu, c->logits, rows, &head->packed, NULL, NULL, n, DTYPE_F32);
        if (c->keep)
            memcpy(c->keep + first * v, c->logits, (size_t)(n * v) * sizeof *c->keep);
        struct sampling_turn turn = {c, first, n, TR_MIN(n, c->opts.threads)};
        cpu_run(c->cpu, turn.tasks, sample_rows, &turn);
        first += n;
    }
}

static int cpu_step_end(struct backend *b, struct sample_token *tokens, struct err *err)
{
    struct backend_cpu *c = self(b);
    (void)err;
    CHECK(c->step);
    for (int32_t i = 0; i < c->step->n_logits; i++) {
        const struct step_logit *want = &c->step->logits[i];
        tokens[i] = c->tokens[i];
        if (want->kind == STEP_SAMPLE)
            c->last[want->slot] = tokens[i].id;
    }
    c->step = NULL;
    return E_OK;
}

void backend_cpu_keep_logits(struct backend *b, float *into)
{
    self(b)->keep = into;
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .lag = 0,
    .buffer_open = cpu_buffer_open,
    .weight_open = cpu_weight_open,
    .weight_load = cpu_weight_load,
    .vector_open = cpu_vector_open,
    .bytes = cpu_bytes,
    .close = cpu_backend_close,
    .step_begin = cpu_step_begin,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .linear = cpu_linear,
    .rope_kv = cpu_rope_kv,
    .attention = cpu_attention,
    .linear_swiglu = cpu_linear_swiglu,
    .head = cpu_head,
    .step_end = cpu_step_end,
};

static void touch_kv(void *ctx, int i)
{
    struct backend_cpu *c = ctx;
    size_t at = (size_t)i * TOUCH_BYTES;
    memset(c->kv + at, 0, TR_MIN((size_t)TOUCH_BYTES, (size_t)c->kv_bytes - at));
}

/* Pages are touched at open: memory that is not there fails now and not in mid-run. */
static int take_kv(struct backend_cpu *c, struct err *err)
{
    const struct backend_opts *o = &c->opts;
    size_t page =
        (size_t)o->n_kv_heads * 2 * KV_PAGE_TOKENS * (size_t)o->head_dim * dtype_size(o->dtype);
    c->kv_layer_bytes = page * (size_t)o->n_pages;
    int rc = take_array(c, (void **)&c->kv, "kv pages", (int64_t)o->n_layers * o->n_pages, page,
                        &c->kv_bytes, err);
    if (rc == E_OK)
        cpu_run(c->cpu, (int)(((size_t)c->kv_bytes + TOUCH_BYTES - 1) / TOUCH_BYTES), touch_kv, c);
    return rc;
}

static int take_memory(struct backend_cpu *c, struct err *err)
{
    const struct backend_opts *o = &c->opts;
    int64_t *account = &c->activation_bytes;
    int rc;
    c->tokens_cap = o->rows_cap + o->slots; /* n > 1: several slots may sample from one row */
    c->scratch_bytes = (sample_scratch_bytes(o->vocab_size) + 63) & ~(size_t)63;
    if ((rc = take_array(c, (void **)&c->ids, "activations", o->rows_cap, sizeof *c->ids, account,
                         err)) != E_OK ||
        (rc = take_array(c, (void **)&c->last, "activations", o->slots, sizeof *c->last, account,
                         err)) != E_OK ||
        (rc = take_array(c, (void **)&c->tokens, "activations", c->tokens_cap, sizeof *c->tokens,
                         account, err)) != E_OK ||
        (rc = take_array(c, (void **)&c->logits, "logits", o->logits_cap * o->vocab_size,
                         sizeof *c->logits, account, err)) != E_OK ||
        (rc = take_array(c, (void **)&c->scratch, "sampler", o->threads, c->scratch_bytes, account,
                         err)) != E_OK)
        return rc;
    return take_kv(c, err);
}

int backend_cpu_open(struct backend **out, const struct backend_opts *opts, struct err *err)
{
    CHECK(opts->threads >= 1 && opts->rows_cap >= 1 && opts->logits_cap >= 1 && opts->slots >= 1);
    CHECK(opts->n_layers >= 1 && opts->n_pages >= 1 && opts->n_kv_heads >= 1);
    CHECK(opts->head_dim >= 1 && opts->vocab_size >= 1);
    struct backend_cpu *c = mem_alloc(1, sizeof *c);
    if (!c)
        return err_set(err, E_FATAL, "cpu backend: cannot take %zu bytes", sizeof *c);
    c->base.ops = &cpu_ops;
    c->opts = *opts;
    enum cpu_isa isa = opts->isa < 0 ? cpu_isa_best() : (enum cpu_isa)opts->isa;
    c->cpu = cpu_open(opts->threads, isa);
    int rc = c->cpu ? take_memory(c, err)
                    : err_set(err, E_FATAL, "cpu backend: cannot run %d threads with %s",
                              opts->threads, cpu_isa_name(isa));
    if (rc != E_OK) {
        cpu_backend_close(&c->base);
        return rc;
    }
    *out = &c->base;
    return E_OK;
}
