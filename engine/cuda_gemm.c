/* cuda_gemm: products by cuBLASLt, restricted to algorithms without split-K and proven: each bucket
 * of rows must give every row the bits that the widest bucket gives it (plan_prove, on first use;
 * the engine uses every bucket once before it opens). */
#include "engine/backend_cuda_impl.h"
#include "engine/log.h"

enum { TIMED_RUNS = 3, WIDEST_ROWS_MIN = 256, WIDER_ROWS = 256 };

int32_t backend_cuda_rows_below(int32_t m)
{
    int32_t below = m - 1;
    while (below > 0 && cuda_gemm_rows(below) == cuda_gemm_rows(m))
        below--;
    return below;
}

static int plan_make(struct cuda_backend *b, struct plan *p, struct err *err)
{
    const cudaDataType_t out_type = p->kind == LINEAR_LOGITS ? CUDA_R_32F : CUDA_R_16BF;
    const cublasOperation_t t = CUBLAS_OP_T;
    cublasStatus_t s = cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    if (s == CUBLAS_STATUS_SUCCESS && p->kind == LINEAR_BIAS) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const cudaDataType_t bias_type = CUDA_R_16BF;
        s = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                           sizeof epilogue);
        if (s == CUBLAS_STATUS_SUCCESS)
            s = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                                               &bias_type, sizeof bias_type);
    }
    /* Column-major view: out^T [n, m] = W^T(k x n)^T . x^T(k x m). */
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutCreate(&p->a, CUDA_R_16BF, (uint64_t)p->k, (uint64_t)p->n, p->k);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutCreate(&p->b, CUDA_R_16BF, (uint64_t)p->k, (uint64_t)p->m, p->k);
    const int64_t ldc = p->kind == LINEAR_LOGITS ? b->logits_stride : p->n;
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutCreate(&p->c, out_type, (uint64_t)p->n, (uint64_t)p->m, ldc);
    cublasLtMatmulPreference_t pref = NULL;
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulPreferenceCreate(&pref);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &workspace, sizeof workspace);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                 &no_reduction, sizeof no_reduction);
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int n = 0;
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulAlgoGetHeuristic(b->blas, p->desc, p->a, p->b, p->c, p->c, pref,
                                           CANDIDATES, found, &n);
    if (pref)
        cublasLtMatmulPreferenceDestroy(pref);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        int32_t split_k = 0;
        size_t got = 0;
        cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                             &split_k, sizeof split_k, &got);
        if (found[i].state == CUBLAS_STATUS_SUCCESS && split_k <= 1)
            p->candidates[kept++] = found[i].algo;
    }
    p->n_candidates = kept;
    if (s != CUBLAS_STATUS_SUCCESS || kept == 0)
        return err_set(err, E_FATAL,
                       "cublasLt: no algorithm without split-K for m %lld n %lld k %lld (%d)",
                       (long long)p->m, (long long)p->n, (long long)p->k, (int)s);
    p->algo = p->candidates[0];
    return E_OK;
}

static cublasStatus_t plan_run(struct cuda_backend *b, const struct plan *p, void *out,
                               const struct product *on)
{
    const float one = 1.f, zero = 0.f;
    if (p->kind == LINEAR_BIAS)
        cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &on->bias,
                                       sizeof on->bias);
    return cublasLtMatmul(b->blas, p->desc, &one, on->w->data, p->a, on->x, p->b,
                          on->residual ? &one : &zero, on->residual ? on->residual : out, p->c, out,
                          p->c, &p->algo, b->workspace, WORKSPACE_BYTES, b->stream);
}

static cudaError_t by_plan(struct cuda_backend *b, const struct trial *t, void *out,
                           const struct product *on)
{
    return plan_run(b, t->plan, out, on) == CUBLAS_STATUS_SUCCESS ? cudaSuccess
                                                                  : cudaErrorNotSupported;
}

static struct trial trial_of(const struct cuda_backend *b, const struct plan *p,
                             const struct product *on)
{
    const int64_t stride = p->kind == LINEAR_LOGITS ? b->logits_stride * 4 : p->n * 2;
    return (struct trial){by_plan, on, (size_t)(p->m * stride), p->m, p->kind, p};
}

/* Whether the candidate in p->algo runs and gives the rows of `against` twice; the widest plan's
 * first candidate, `*first`, makes these rows. */
static cudaError_t candidate_prove(struct cuda_backend *b, struct plan *p, void *against, void *out,
                                   const struct product *on, bool *first, bool *proven)
{
    const struct trial t = trial_of(b, p, on);
    const cudaError_t e = cuda_trial_same(b, &t, against, *first, out, proven);
    *first = *first && !*proven;
    return e == cudaErrorNotSupported ? cudaSuccess : e;
}

/* Every candidate of a few widths is timed: the widest, which most steps have, and what a drain
 * comes through. The others take the first that is proven: timing all would cost the start 3 s. */
static bool is_timed(const struct plan *p)
{
    static const int64_t widths[] = {16, 32, 64, 128, 192, WIDER_ROWS, 512, 1024};
    bool timed = p->widest;
    for (size_t i = 0; i < TR_COUNT(widths); i++)
        timed = timed || p->m == widths[i];
    return timed;
}

/* Row independence of the products: a plan must give each of its rows the bits that the widest plan
 * gives it, twice. Takes the first candidate that does, or the fastest; without one it is not used.
 * The widest plan's bits are those of the first of its candidates that agrees with itself.
 * `against` holds its rows. */
static int plan_prove(struct cuda_backend *b, struct plan *p, void *against, void *out,
                      const struct product *on, struct err *err)
{
    cudaError_t e = cudaSuccess;
    const bool timed = is_timed(p);
    bool first = p->widest;
    double best = 0, at_first = 0;
    for (int i = 0; i < p->n_candidates && e == cudaSuccess && !(p->proven && !timed); i++) {
        bool proven = false;
        double seconds = 0;
        p->algo = p->candidates[i];
        e = candidate_prove(b, p, against, out, on, &first, &proven);
        if (e != cudaSuccess || !proven)
            continue;
        const struct trial t = trial_of(b, p, on);
        if (timed)
            e = cuda_trial_time(b, &t, out, TIMED_RUNS, &seconds);
        at_first = p->proven ? at_first : seconds;
        /* A later one must be faster by more than the noise. */
        if (!p->proven || seconds < best * 0.98) {
            best = seconds;
            p->chosen = i;
        }
        p->proven = true;
    }
    p->algo = p->candidates[p->chosen];
    p->us = best * 1e6;
    LOG(LOG_DEBUG, "cuda_gemm_plan", LOG_I("m", p->m), LOG_I("n", p->n), LOG_I("k", p->k),
        LOG_I("kind", p->kind), LOG_I("candidates", p->n_candidates), LOG_I("chosen", p->chosen),
        LOG_I("proven", p->proven), LOG_F("first_us", at_first * 1e6), LOG_F("us", best * 1e6));
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "GEMM test");
}

static void plan_destroy(struct plan *p)
{
    if (p->desc)
        cublasLtMatmulDescDestroy(p->desc);
    if (p->a)
        cublasLtMatrixLayoutDestroy(p->a);
    if (p->b)
        cublasLtMatrixLayoutDestroy(p->b);
    if (p->c)
        cublasLtMatrixLayoutDestroy(p->c);
    *p = (struct plan){0};
}

static struct plan *plan_find(struct cuda_backend *b, int64_t n, int64_t k, int64_t m, int kind)
{
    for (int i = 0; i < b->n_plans; i++) {
        struct plan *p = &b->plans[i];
        if (p->n == n && p->k == k && p->m == m && p->kind == kind)
            return p;
    }
    return NULL;
}

/* Two blocks for products under proof; logits have their own two already. */
static int proof_blocks(struct cuda_backend *b, int kind, void **against, void **out,
                        struct err *err)
{
    *against = b->logits;
    *out = b->scratch;
    if (kind == LINEAR_LOGITS)
        return E_OK;
    const int64_t rows = (b->opts.rows_cap + 255) / 256 * 256;
    for (int i = 0; i < 2 && !b->proof[1]; i++) {
        int rc = cuda_take(b, &b->proof[i], (size_t)(rows * b->widest_n) * 2, &b->bytes_other,
                           "GEMM proofs", err);
        if (rc < 0)
            return rc;
    }
    *against = b->proof[0];
    *out = b->proof[1];
    return E_OK;
}

/* Takes over what was chosen for this shape before, where the library still accepts it. */
static bool plan_from_cache(struct cuda_backend *b, struct plan *p)
{
    const struct plan_record *r = cuda_plans_find(b, p);
    cublasLtMatmulHeuristicResult_t verdict;
    if (!r ||
        cublasLtMatmulAlgoCheck(b->blas, p->desc, p->a, p->b, p->c, p->c, &r->algo, &verdict) !=
            CUBLAS_STATUS_SUCCESS ||
        verdict.workspaceSize > WORKSPACE_BYTES)
        return false;
    p->algo = r->algo;
    p->chosen = r->chosen;
    p->proven = r->proven;
    p->run_as = r->run_as;
    return true;
}

/* Makes the plan for m rows and proves it on the operands at hand; NULL on an error. A plan that
 * was not proven stands in the list as such. */
static struct plan *plan_add(struct cuda_backend *b, const struct product *on, int64_t m, int kind,
                             struct plan *widest, struct err *err)
{
    struct plan *p = &b->plans[b->n_plans];
    void *against = NULL, *out = NULL;
    CHECK(b->n_plans < PLANS_MAX);
    *p = (struct plan){.n = on->w->n, .k = on->w->k, .m = m, .kind = kind, .widest = !widest};
    if (plan_make(b, p, err) < 0 || proof_blocks(b, kind, &against, &out, err) < 0) {
        plan_destroy(p);
        return NULL;
    }
    b->n_plans++;
    if (plan_from_cache(b, p))
        return p;
    b->plans_new = true;
    if (widest) {
        const struct trial t = trial_of(b, widest, on);
        const cudaError_t e = cuda_trial_run(b, &t, against);
        if (e != cudaSuccess) {
            cuda_fail(err, e, "GEMM test");
            return NULL;
        }
    }
    if (plan_prove(b, p, against, out, on, err) < 0)
        return NULL;
    if (!widest && !p->proven) {
        err_set(err, E_FATAL, "cublasLt: m %lld n %lld k %lld: two runs give other bits",
                (long long)m, (long long)p->n, (long long)p->k);
        return NULL;
    }
    return p;
}

/* Up to 256 rows the weights are what takes the time, and the plans of few rows that sum as the
 * wide ones do may leave most of the card idle (K 8,960, H100: 43 us at 64 rows, 18 at 256): then
 * the rows run as 256, which every buffer has. */
static bool run_wider(struct cuda_backend *b, const struct product *on, struct plan *p,
                      struct plan *widest, struct err *err)
{
    if (!p->proven || p->us == 0 || p->m >= WIDER_ROWS || p->kind == LINEAR_LOGITS)
        return true;
    struct plan *wider = plan_find(b, p->n, p->k, WIDER_ROWS, p->kind);
    if (!wider)
        wider = plan_add(b, on, WIDER_ROWS, p->kind, widest, err);
    if (wider && wider->proven && wider->us > 0 && wider->us < 0.9 * p->us)
        p->run_as = WIDER_ROWS;
    return wider != NULL;
}

/* The plan for m rows, or that of a wider bucket: the next that is proven, or a faster one. */
static struct plan *plan_get(struct cuda_backend *b, const struct product *on, int64_t m, int kind,
                             struct err *err)
{
    const int64_t n = on->w->n, k = on->w->k;
    /* At least 256 rows, which every buffer has: at K = 8,960 and up to 64 rows most candidates sum
     * in another order, and an engine of small steps must give the bits of any other. */
    const int64_t widest_m = kind == LINEAR_LOGITS
                                 ? b->logits_rows
                                 : TR_MAX(cuda_gemm_rows(b->opts.rows_cap), WIDEST_ROWS_MIN);
    CHECK(m <= widest_m); /* the operands' blocks have no more rows */
    struct plan *widest = plan_find(b, n, k, widest_m, kind);
    if (!widest)
        widest = plan_add(b, on, widest_m, kind, NULL, err);
    while (widest && m < widest_m) {
        struct plan *p = plan_find(b, n, k, m, kind);
        if (!p) {
            p = plan_add(b, on, m, kind, widest, err);
            if (!p || !run_wider(b, on, p, widest, err))
                return NULL;
        }
        if (p->proven && !p->run_as)
            return p;
        m = p->run_as ? p->run_as : cuda_gemm_rows(m + 1);
    }
    return widest;
}

void cuda_gemm_planned(struct cuda_backend *b, void *out, const struct product *on, int kind,
                       int64_t rows)
{
    struct err err = {0};
    struct plan *p = plan_get(b, on, cuda_gemm_rows(rows), kind, &err);
    if (!p) {
        LOG(LOG_ERROR, "cuda_gemm", LOG_S("why", err.msg));
        cuda_launched(b, (int)cudaErrorNotSupported);
    } else if (plan_run(b, p, out, on) != CUBLAS_STATUS_SUCCESS) {
        cuda_launched(b, (int)cudaErrorLaunchFailure);
    }
}

void cuda_gemm(struct cuda_backend *b, void *out, const struct product *on, int kind, int64_t rows)
{
    if (!cuda_thin(b, out, on, kind, rows))
        cuda_gemm_planned(b, out, on, kind, rows);
}

bool cuda_gemm_for_proof(struct cuda_backend *b, const struct product *on, int kind, int64_t rows,
                         void **made, void **other)
{
    struct err err = {0};
    struct plan *p = plan_get(b, on, cuda_gemm_rows(rows), kind, &err);
    if (!p || proof_blocks(b, kind, made, other, &err) < 0) {
        LOG(LOG_ERROR, "cuda_gemm", LOG_S("why", err.msg));
        cuda_launched(b, (int)cudaErrorNotSupported);
        return false;
    }
    const struct trial t = trial_of(b, p, on);
    const cudaError_t e = cuda_trial_run(b, &t, *made);
    cuda_launched(b, (int)e);
    return e == cudaSuccess;
}

void cuda_gemm_close(struct cuda_backend *b)
{
    for (int i = 0; i < b->n_plans; i++)
        plan_destroy(&b->plans[i]);
    if (b->blas)
        cublasLtDestroy(b->blas);
    mem_free(b->records);
}
