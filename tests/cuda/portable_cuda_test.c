/* The kernels that other cards run against Hopper's, on a Hopper card: attention of random steps
 * (decode rows, prefill chunks, shared prefixes, windows, rows cut over many warps; NaN wherever
 * nothing was written), then whole engines on the models given: the same bytes. A plain program.
 * usage: portable_cuda_test [MODEL_DIR...] (vocabulary of at least 300) */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/engine.h"
#include "engine/log.h"
#include "engine/model.h"

static int passed, failed;
static void verdict(bool ok, const char *name, int64_t differ, int64_t of)
{
    printf("%s %-62s %lld of %lld differ\n", ok ? "ok  " : "FAIL", name, (long long)differ,
           (long long)of);
    fflush(stdout);
    ok ? passed++ : failed++;
}
static void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}

static uint64_t state = 88172645463325252u;
static uint32_t pick(uint32_t n) /* below n */
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 33) % n;
}
/* n values of 0.125 to 2. */
static void noise(uint16_t *to, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = (uint16_t)((pick(1 << 16) & 0x81ffu) | 0x3e00u);
}

/* ---- attention ---- */
enum { ROWS_MAX = 700, FORMS = 2 };
struct shape {
    int heads, kv_heads, head_dim, slots, pages, window;
};
struct rig {
    struct shape s;
    struct backend *b[FORMS];
    struct buffer qkv[FORMS], out[FORMS];
    struct backend_opts o;
    uint16_t *kv;
    int32_t *table, position[ROWS_MAX], slot[ROWS_MAX], n;
};

static void rig_open(struct rig *r, const struct shape *s)
{
    struct err err = {0};
    memset(r, 0, sizeof *r);
    r->s = *s;
    r->o = (struct backend_opts){.rows_cap = ROWS_MAX,
                                 .logits_cap = 16,
                                 .n_layers = 1,
                                 .slots = s->slots,
                                 .n_pages = s->slots * s->pages,
                                 .pages_per_slot = s->pages,
                                 .n_heads = s->heads,
                                 .n_kv_heads = s->kv_heads,
                                 .head_dim = s->head_dim,
                                 .vocab_size = 1000,
                                 .dtype = DTYPE_BF16};
    for (int form = 0; form < FORMS; form++) {
        backend_cuda_portable(form == 1);
        must(backend_cuda_open(&r->b[form], &r->o, 0, &err), &err);
        const struct backend_ops *ops = r->b[form]->ops;
        must(ops->buffer_open(r->b[form], &r->qkv[form], ROWS_MAX,
                              (int64_t)(s->heads + 2 * s->kv_heads) * s->head_dim, &err),
             &err);
        must(ops->buffer_open(r->b[form], &r->out[form], ROWS_MAX, (int64_t)s->heads * s->head_dim,
                              &err),
             &err);
    }
    backend_cuda_portable(false);
    r->kv = malloc((size_t)r->o.n_pages * (size_t)s->kv_heads * 2 * 64 * (size_t)s->head_dim * 2);
    r->table = malloc((size_t)r->o.n_pages * sizeof *r->table);
}
static void rig_close(struct rig *r)
{
    for (int form = 0; form < FORMS; form++)
        r->b[form]->ops->close(r->b[form]);
    free(r->kv), free(r->table);
}

/* NaN where token `from` of a page and those behind it stand. */
static void page_end(struct rig *r, int page, int from)
{
    const int head = r->s.head_dim, row = TR_MIN(head, 64); /* values: of a head, of a row */
    for (int i = 0; i < r->s.kv_heads * 2 * 2 * (head / row); i++)
        for (int token = 0; token < 32; token++)
            if (i / (head / row) % 2 * 32 + token >= from)
                memset(r->kv +
                           ((int64_t)page * r->s.kv_heads * 2 * 2 * (head / row) + i) * 32 * row +
                           token * row,
                       0xff, (size_t)row * 2);
}

/* Slots of two groups with a prefix each and some alone; most decode, some prefill a chunk. */
static void step_make(struct rig *r, int chunk)
{
    const int stride = r->s.pages, with_max = stride * 2 / 3;
    noise(r->kv, (int64_t)r->o.n_pages * r->s.kv_heads * 2 * 64 * r->s.head_dim);
    r->n = 0;
    for (int slot = 0; slot < r->s.slots; slot++) {
        const int group = slot % 2;
        const int with = slot < 2 ? 0 : slot % 5 == 4 ? 0 : TR_MAX(0, with_max - group * 3);
        const int keys = with * 64 + 1 + (int)pick((uint32_t)((stride - with) * 64));
        for (int p = 0; p < stride; p++)
            r->table[slot * stride + p] = (p < with ? group : slot) * stride + p;
        if (slot >= 2) /* the first two's pages are the prefixes */
            page_end(r, r->table[slot * stride + (keys - 1) / 64], (keys - 1) % 64 + 1);
        const int rows = pick(4) == 0 ? 1 + (int)pick((uint32_t)chunk) : 1;
        for (int i = TR_MAX(0, keys - rows); i < keys && r->n < ROWS_MAX; i++)
            r->position[r->n] = i, r->slot[r->n++] = slot;
    }
}

static void step_run(struct rig *r, int form, const uint16_t *qkv, uint16_t *out)
{
    struct err err = {0};
    struct backend *b = r->b[form];
    int32_t tokens[ROWS_MAX] = {0};
    const struct step step = {.rows = {r->n, r->position, r->slot, r->table, r->s.pages},
                              .tokens = tokens};
    const struct attention_shape shape = {r->s.heads, r->s.kv_heads, r->s.head_dim, r->s.window};
    struct sample_token none[1];
    cudaMemcpy(backend_cuda_kv(b), r->kv,
               (size_t)r->o.n_pages * (size_t)r->s.kv_heads * 2 * 64 * (size_t)r->s.head_dim * 2,
               cudaMemcpyHostToDevice);
    must(b->ops->step_begin(b, &step, &err), &err);
    cudaMemcpy(r->qkv[form].data, qkv, (size_t)(r->n * r->qkv[form].cols) * 2,
               cudaMemcpyHostToDevice);
    cudaMemset(r->out[form].data, 0xff, (size_t)(r->n * r->out[form].cols) * 2);
    cudaDeviceSynchronize();
    b->ops->attention(b, &r->out[form], &r->qkv[form], 0, &shape);
    must(b->ops->step_end(b, none, &err), &err);
    cudaDeviceSynchronize();
    cudaMemcpy(out, r->out[form].data, (size_t)(r->n * r->out[form].cols) * 2,
               cudaMemcpyDeviceToHost);
}

static void attention_case(const struct shape *s, int steps)
{
    struct rig r;
    rig_open(&r, s);
    const int64_t cols = r.out[0].cols;
    uint16_t *qkv = malloc((size_t)(ROWS_MAX * r.qkv[0].cols) * 2);
    uint16_t *out[FORMS] = {malloc((size_t)(ROWS_MAX * cols) * 2),
                            malloc((size_t)(ROWS_MAX * cols) * 2)};
    int64_t differ = 0, nan = 0, rows = 0, grouped = 0;
    for (int step = 0; step < steps; step++) {
        backend_cuda_share_from(step % 2 ? 1 : 0);
        step_make(&r, step % 3 ? 150 : 7);
        noise(qkv, r.n * r.qkv[0].cols);
        for (int form = 0; form < FORMS; form++)
            step_run(&r, form, qkv, out[form]);
        grouped += backend_cuda_shared_rows(r.b[1]);
        for (int i = 0; i < r.n; i++)
            differ += memcmp(out[0] + i * cols, out[1] + i * cols, (size_t)cols * 2) != 0;
        for (int64_t i = 0; i < r.n * cols; i++)
            nan += (out[1][i] & 0x7f80) == 0x7f80;
        rows += r.n;
    }
    backend_cuda_share_from(0);
    char name[128];
    snprintf(name, sizeof name,
             "H%d G%d Dh%d slots %d pages %d window %d: %lld in groups, %lld NaN", s->heads,
             s->kv_heads, s->head_dim, s->slots, s->pages, s->window, (long long)grouped,
             (long long)nan);
    verdict(differ == 0 && nan == 0 && (s->slots < 30 || grouped > 0), name, differ, rows);
    free(qkv), free(out[0]), free(out[1]);
    rig_close(&r);
}

/* ---- engines ---- */
enum { N = 40, LEN = 1024, OUT = 48, TOP = 2 };
struct job {
    int32_t prompt[LEN], ids[OUT], top_ids[OUT * TOP];
    float logprobs[OUT], top_logprobs[OUT * TOP];
    struct generated out;
    struct request r;
};
static struct job jobs[FORMS][N];

/* Prompts of 1 to 900 ids, half of them behind 300 in common; half are sampled. */
static void job_make(struct job *j, int i)
{
    memset(j, 0, sizeof *j);
    const int common = i % 2 ? 300 : 0, n = common + 1 + (int)(i * 211 % 600);
    for (int k = 0; k < n; k++)
        j->prompt[k] = 7 + (k < common ? k * 31 : i * 97 + k * 53 + k * k % 7) % 240;
    j->out = (struct generated){.cap = OUT,
                                .ids = j->ids,
                                .logprobs = j->logprobs,
                                .top_ids = j->top_ids,
                                .top_logprobs = j->top_logprobs};
    j->r = (struct request){.tag = (uint64_t)i, .prompt = j->prompt, .n_prompt = n, .out = &j->out};
    sampling_init(&j->r.sampling);
    j->r.sampling.max_tokens = OUT;
    j->r.sampling.ignore_eos = true;
    j->r.sampling.params.n_top = TOP;
    j->r.sampling.params.rng_key = (uint64_t)i + 5;
    j->r.sampling.params.temperature = i % 4 > 1 ? 0.8f : 0.f;
}

static void engine_run(struct model *model, int form)
{
    struct err err = {0};
    struct engine *e = NULL;
    struct finished f[N];
    const struct model_config *c = model_config(model);
    const struct engine_opts o = {.kind = ENGINE_CUDA,
                                  .model = model,
                                  .slots = form == 0 ? 1 : N,
                                  .queue_cap = N,
                                  .step_tokens = 1024,
                                  .chunk_tokens = 200,
                                  .max_model_len = LEN,
                                  .kv_bytes = (int64_t)c->n_layers * c->n_kv_heads * c->head_dim *
                                              4 * KV_PAGE_TOKENS * (N * LEN / KV_PAGE_TOKENS),
                                  .isa = -1,
                                  .no_prefix_sharing = form == 0};
    backend_cuda_portable(form == 1);
    backend_cuda_share_from(1);
    must(engine_open(&e, &o, &err), &err);
    for (int i = 0; i < N; i++) {
        job_make(&jobs[form][i], i);
        must(engine_submit(e, &jobs[form][i].r, &err), &err);
    }
    while (!engine_idle(e))
        must(engine_step(e, f, N, &err), &err);
    engine_close(e);
    backend_cuda_portable(false);
    backend_cuda_share_from(0);
}

/* Hash of all that came back, to hold builds against each other. */
static uint64_t engine_bytes(int form)
{
    uint64_t hash = 0;
    for (int i = 0; i < N; i++) {
        hash = hash_bytes(jobs[form][i].ids, sizeof jobs[form][i].ids, hash);
        hash = hash_bytes(jobs[form][i].logprobs, sizeof jobs[form][i].logprobs, hash);
    }
    return hash;
}

static void engine_case(const char *folder)
{
    struct err err = {0};
    struct model *model = NULL;
    int64_t differ = 0, ids = 0;
    char name[128];
    must(model_open(&model, folder, &err), &err);
    for (int form = 0; form < FORMS; form++)
        engine_run(model, form);
    for (int i = 0; i < N; i++) {
        const struct job *a = &jobs[0][i], *b = &jobs[1][i];
        ids += b->out.n;
        differ += a->out.n != b->out.n || memcmp(a->ids, b->ids, sizeof a->ids) != 0 ||
                  memcmp(a->logprobs, b->logprobs, sizeof a->logprobs) != 0 ||
                  memcmp(a->top_ids, b->top_ids, sizeof a->top_ids) != 0 ||
                  memcmp(a->top_logprobs, b->top_logprobs, sizeof a->top_logprobs) != 0;
    }
    printf("bytes %016llx of %s\n", (unsigned long long)engine_bytes(1), folder);
    snprintf(name, sizeof name, "engine: Hopper's one by one, portable %d at once: %lld ids", N,
             (long long)ids);
    verdict(differ == 0 && ids == N * OUT, name, differ, N);
    model_close(model);
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {12, 2, 128, 40, 24, 0},  {12, 2, 128, 40, 24, 300}, {14, 2, 64, 40, 24, 0},
        {14, 2, 64, 33, 20, 200}, {6, 2, 32, 40, 24, 0},     {6, 2, 32, 40, 24, 333},
        {8, 8, 128, 30, 12, 0},   {16, 2, 128, 40, 24, 0},   {4, 4, 32, 9, 7, 0},
        {12, 2, 128, 2, 150, 0},  {14, 2, 64, 3, 150, 5000}, {12, 2, 128, 1, 512, 0},
    };
    log_setup(getenv("VERBOSE") ? LOG_DEBUG : LOG_WARN, LOG_LOGFMT, 1);
    printf("device %s\n", backend_cuda_device_name(0));
    for (size_t i = 0; i < TR_COUNT(shapes); i++)
        attention_case(&shapes[i], 8);
    for (int i = 1; i < argc; i++)
        engine_case(argv[i]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
