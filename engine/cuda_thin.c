/* cuda_thin: when a product of few rows runs in gemm_thin_cuda, which streams the weights, instead
 * of cuBLASLt, whose plans for few rows and many inputs leave most of the card idle. Its bits must
 * be those of the proven plan, and it must be the faster one: both are tried on the first operands
 * of each shape and number of rows, weights out of the cache. */
#include "engine/backend_cuda_impl.h"
#include "engine/log.h"

enum { TIMED_RUNS = 5 };

/* It has a form for 16, 32 and 64 rows. */
static int form_of(int64_t rows)
{
    return rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

static bool fits(const struct cuda_backend *b, const struct product *on, int kind, int64_t rows)
{
    return b->hopper && kind != LINEAR_LOGITS && rows <= THIN_ROWS_MAX && on->w->n % 16 == 0 &&
           on->w->k % 64 == 0;
}

static cudaError_t thin_run(struct cuda_backend *b, void *out, const struct product *on,
                            int64_t rows)
{
    const struct thin_product p = {.bias = on->bias,
                                   .residual = on->residual,
                                   .rows = (int32_t)rows,
                                   .n = (int32_t)on->w->n,
                                   .k = (int32_t)on->w->k};
    return (cudaError_t)gemm_thin_cuda(out, on->x, on->w->data, &p, b->stream);
}

static cudaError_t by_kernel(struct cuda_backend *b, const struct trial *t, void *out,
                             const struct product *on)
{
    return thin_run(b, out, on, t->rows);
}

static cudaError_t by_plan(struct cuda_backend *b, const struct trial *t, void *out,
                           const struct product *on)
{
    cuda_gemm_planned(b, out, on, t->kind, t->rows);
    return cudaSuccess; /* what failed there is told at the step's end */
}

static cudaError_t choose(struct cuda_backend *b, struct thin *t, const struct product *on,
                          int kind, int64_t rows)
{
    void *want = NULL, *out = NULL;
    const size_t bytes = (size_t)(rows * on->w->n) * 2;
    const struct trial plan = {by_plan, on, bytes, rows, kind, NULL};
    const struct trial kernel = {by_kernel, on, bytes, rows, kind, NULL};
    double plan_s = 0, kernel_s = 0;
    bool proven = false;
    if (!cuda_gemm_for_proof(b, on, kind, rows, &want, &out))
        return cudaSuccess; /* what failed there is told at the step's end */
    cudaError_t e = cuda_trial_same(b, &kernel, want, false, out, &proven);
    if (e == cudaSuccess && proven)
        e = cuda_trial_time(b, &plan, out, TIMED_RUNS, &plan_s);
    if (e == cudaSuccess && proven)
        e = cuda_trial_time(b, &kernel, out, TIMED_RUNS, &kernel_s);
    t->chosen = e == cudaSuccess && proven && kernel_s < plan_s;
    LOG(LOG_DEBUG, "cuda_gemm_thin", LOG_I("rows", t->form), LOG_I("n", t->n), LOG_I("k", t->k),
        LOG_I("kind", kind), LOG_I("proven", proven), LOG_F("plan_us", plan_s * 1e6),
        LOG_F("us", kernel_s * 1e6));
    return e;
}

/* Whether the kernel is to be used, after the one trial of its shape. */
static bool chosen(struct cuda_backend *b, const struct product *on, int kind, int64_t rows)
{
    for (int i = 0; i < b->n_thin; i++) {
        const struct thin *t = &b->thin[i];
        if (t->n == on->w->n && t->k == on->w->k && t->kind == kind && t->form == form_of(rows))
            return t->chosen;
    }
    if (b->n_thin == THIN_MAX || b->recording)
        return false;
    struct thin *t = &b->thin[b->n_thin++];
    *t = (struct thin){.n = on->w->n, .k = on->w->k, .kind = kind, .form = form_of(rows)};
    cuda_launched(b, (int)choose(b, t, on, kind, rows));
    return t->chosen;
}

bool cuda_thin(struct cuda_backend *b, void *out, const struct product *on, int kind, int64_t rows)
{
    if (!fits(b, on, kind, rows) || !chosen(b, on, kind, rows))
        return false;
    cuda_launched(b, (int)thin_run(b, out, on, rows));
    return true;
}
