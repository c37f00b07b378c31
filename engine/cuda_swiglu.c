/* cuda_swiglu: when the gate and up product runs with SwiGLU in its epilogue (gemm_swiglu_cuda).
 * Its bits must be those of cuBLASLt's product followed by swiglu_cuda, which smaller steps use:
 * proven on the first operands of each shape, all rows, twice; a shape whose bits differ never uses
 * it. */
#include "engine/backend_cuda_impl.h"
#include "engine/log.h"

/* It computes rows by 256, and the weights pass in whole turns of all multiprocessors: measured to
 * win from here on (H100, us, for the product and swiglu_cuda: 256 rows 41 for 35, 704 rows 71 for
 * 76, 2,816 rows 219 for 256). */
enum { FUSED_ROWS_MIN = 700 };

bool cuda_swiglu_fits(const struct cuda_backend *b, const struct weight *w, int64_t rows)
{
    return b->hopper && rows >= FUSED_ROWS_MIN && (w->n / 2) % 128 == 0 && w->k % 64 == 0 &&
           w->k >= 512 && (int64_t)b->opts.rows_cap >= rows;
}

static cudaError_t fused(struct cuda_backend *b, const struct trial *t, void *out,
                         const struct product *on)
{
    return (cudaError_t)gemm_swiglu_cuda(out, on->x, on->w->data, (int)t->rows, (int)(on->w->n / 2),
                                         (int)on->w->k, b->n_sms, b->stream);
}

static cudaError_t prove(struct cuda_backend *b, struct buffer *out, struct buffer *gate_up,
                         const struct buffer *x, const struct weight *w, bool *proven)
{
    const int rows = b->step->rows.n, f = (int)(w->n / 2);
    const struct product on = {x->data, w, NULL, NULL};
    *proven = false;
    cuda_gemm(b, gate_up->data, &on, LINEAR_PLAIN, rows); /* its plan takes b->proof */
    if (b->launch_error != 0)
        return cudaSuccess; /* step_end tells */
    const struct trial t = {fused, &on, (size_t)rows * (size_t)f * 2, rows, LINEAR_PLAIN, NULL};
    cudaError_t e = (cudaError_t)swiglu_cuda(b->proof[0], gate_up->data, rows, f, b->stream);
    if (e == cudaSuccess)
        e = cuda_trial_same(b, &t, b->proof[0], false, out->data, proven);
    LOG(LOG_DEBUG, "cuda_gemm_swiglu", LOG_I("rows", rows), LOG_I("n", w->n), LOG_I("k", w->k),
        LOG_I("proven", *proven));
    return e;
}

bool cuda_swiglu_proven(struct cuda_backend *b, struct buffer *out, struct buffer *gate_up,
                        const struct buffer *x, const struct weight *w)
{
    for (int i = 0; i < b->n_fused; i++)
        if (b->fused[i].n == w->n && b->fused[i].k == w->k)
            return b->fused[i].proven;
    if (b->n_fused == FUSED_MAX || b->recording)
        return false;
    struct fused *f = &b->fused[b->n_fused++];
    *f = (struct fused){.n = w->n, .k = w->k};
    cuda_launched(b, (int)prove(b, out, gate_up, x, w, &f->proven));
    return f->proven;
}
