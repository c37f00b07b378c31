/* cuda_thin: when a product of few rows runs in gemm_thin_cuda, which streams the weights, instead
 * of cuBLASLt, whose plans for few rows and many inputs leave most of the card idle. Its bits must
 * be those of the proven plan, and it must be the faster one: both are tried on the first operands
 * of each shape and number of rows, weights out of the cache. */
#include "engine/backend_cuda_impl.h"
#include "engine/log.h"

enum { TIMED_RUNS = 5, FLUSH_BYTES = 160 << 20 };

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

/* Whether two runs give the bits of `want`; the residual is added in place, as in a step. */
static cudaError_t prove(struct cuda_backend *b, const void *want, void *out,
                         const struct product *on, int64_t rows, bool *proven)
{
    const size_t bytes = (size_t)(rows * on->w->n) * 2;
    struct product in_place = *on;
    int32_t differ = 0;
    *proven = false;
    cudaError_t e = cudaMemsetAsync(b->differ, 0, sizeof differ, b->stream);
    for (int turn = 0; turn < 2 && e == cudaSuccess; turn++) {
        if (on->residual) {
            e = cudaMemcpyAsync(out, on->residual, bytes, cudaMemcpyDeviceToDevice, b->stream);
            in_place.residual = out;
        }
        if (e == cudaSuccess)
            e = thin_run(b, out, &in_place, rows);
        if (e == cudaSuccess)
            e = (cudaError_t)differ_cuda(want, out, (int64_t)bytes / 16, b->differ, b->stream);
    }
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(&differ, b->differ, sizeof differ, cudaMemcpyDeviceToHost, b->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(b->stream);
    *proven = e == cudaSuccess && differ == 0;
    return e;
}

/* The middle of a few runs into `out`, by the plan or by the kernel. */
static cudaError_t timed(struct cuda_backend *b, void *out, const struct product *on, int kind,
                         int64_t rows, bool thin, double *us)
{
    const size_t flush =
        TR_MIN((size_t)FLUSH_BYTES, (size_t)b->logits_stride * 4 * (size_t)b->opts.logits_cap);
    struct product in_place = *on;
    float ms[TIMED_RUNS];
    cudaError_t e = cudaSuccess;
    in_place.residual = on->residual ? out : NULL;
    for (int i = 0; i < TIMED_RUNS && e == cudaSuccess; i++) {
        e = cudaMemsetAsync(b->scratch, i, flush, b->stream);
        if (e == cudaSuccess)
            e = cudaEventRecord(b->tune[0], b->stream);
        if (e == cudaSuccess && thin)
            e = thin_run(b, out, &in_place, rows);
        else if (e == cudaSuccess)
            cuda_gemm_planned(b, out, &in_place, kind, rows);
        if (e == cudaSuccess)
            e = cudaEventRecord(b->tune[1], b->stream);
        if (e == cudaSuccess)
            e = cudaEventSynchronize(b->tune[1]);
        if (e == cudaSuccess)
            e = cudaEventElapsedTime(&ms[i], b->tune[0], b->tune[1]);
    }
    *us = e == cudaSuccess ? cuda_median(ms, TIMED_RUNS) * 1e6 : 0;
    return e;
}

static cudaError_t choose(struct cuda_backend *b, struct thin *t, const struct product *on,
                          int kind, int64_t rows)
{
    void *want = NULL, *out = NULL;
    double by_plan = 0, by_thin = 0;
    bool proven = false;
    if (!cuda_gemm_for_proof(b, on, kind, rows, &want, &out))
        return cudaSuccess; /* what failed there is told at the step's end */
    cudaError_t e = prove(b, want, out, on, rows, &proven);
    if (e == cudaSuccess && proven)
        e = timed(b, out, on, kind, rows, false, &by_plan);
    if (e == cudaSuccess && proven)
        e = timed(b, out, on, kind, rows, true, &by_thin);
    t->chosen = e == cudaSuccess && proven && by_thin < by_plan;
    LOG(LOG_DEBUG, "cuda_gemm_thin", LOG_I("rows", t->form), LOG_I("n", t->n), LOG_I("k", t->k),
        LOG_I("kind", kind), LOG_I("proven", proven), LOG_F("plan_us", by_plan),
        LOG_F("us", by_thin));
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
