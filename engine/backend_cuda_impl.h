/* backend_cuda_impl: the inside of the CUDA backend: its state, and what its files share. Private
 * to backend_cuda.c and cuda_*.c.
 *
 * One stream of work, one thread. A step's metadata is packed into one of two pinned blocks and
 * goes up in few copies, on a stream of its own, while the step before it runs; its tokens come
 * back into one of two pinned blocks behind an event. step_end of step k waits for step k-1's
 * event, so the GPU always has the next step queued while the host thinks. The ops of a step are
 * recorded as a graph and launched at once (cuda_graph.c). */
#ifndef TRANCHE_ENGINE_BACKEND_CUDA_IMPL_H
#define TRANCHE_ENGINE_BACKEND_CUDA_IMPL_H

#include <cublasLt.h>
#include <cuda_runtime.h>

#include "engine/backend_cuda.h"
#include "engine/gemm_rows.h"
#include "kernels/kernels_cuda.h"

enum {
    STEPS_IN_FLIGHT = 2,
    STEPS_TIMED = 4, /* whose events are kept: a step's start is timed against the end before it */
    GRAPHS_MAX = 32,
    GRAPH_ROWS_MAX = 32, /* of a step that runs as a graph */
    LOAD_EVENTS = 16,
    DEVICES_MAX = 64,
    PLAN_RULE = 3, /* raised when plans are chosen otherwise: those kept by older builds are void */
    OWNED_MAX = 8192,
    CANDIDATES = 16,
    FUSED_MAX = 8,              /* shapes of gate_up, one a model */
    THIN_MAX = 32,              /* shapes and forms of products of few rows */
    WORKSPACE_BYTES = 32 << 20, /* what NVIDIA recommends for Hopper */
    BLOCK_TABLE_DELTAS_PER_ROW = 2,
    TILE_ROWS = 128,       /* packed rows of one tile of the attention tile kernel */
    DECODE_WARPS = 4,      /* of a CTA of the decode kernel */
    PARTIALS_MAX = 65536,  /* states of prefixes and of cut rows; rows beyond stay whole */
    HISTORY_IDS = 1 << 17, /* that one step uploads at most, if no sequence is longer */
    SAMPLE_IDS_MAX = 1200, /* banned + biased ids of one row */
};

#define INT2(a, b)       ((int2){(a), (b)})
#define INT4(a, b, c, d) ((int4){(a), (b), (c), (d)})

struct weight {
    bf16 *data;
    int64_t n, k;
};

struct plan { /* one GEMM shape */
    int64_t n, k, m;
    int kind; /* enum linear_kind */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algo, candidates[CANDIDATES];
    int n_candidates, chosen;
    bool widest;    /* of its shape: the others are compared with it */
    bool proven;    /* its bits for every row are those of the widest bucket */
    double us;      /* measured; 0: it was not */
    int64_t run_as; /* rows of the plan to take instead, a wider one that is faster; 0: this one */
};
enum linear_kind { LINEAR_PLAIN, LINEAR_BIAS, LINEAR_RESIDUAL, LINEAR_LOGITS };

/* Metadata of one step, laid out once at open; the same offsets on host and device. */
struct step_block {
    int32_t *tokens, *position, *slot, *logit_rows, *tile_starts, *decode_starts, *tile_rows;
    int4 *decode, *merges, *tiles, *copies;
    int2 *deltas;
    struct sample_cuda *samples;
    int32_t *ids;
    float *bias;
    int32_t *history; /* ids of the sequences whose penalty counts are built anew */
    struct counts_cuda *histories;
    unsigned char *base;
    size_t bytes;
};

struct plan_record { /* of the plan cache: what was chosen for a shape, and the verdict */
    int64_t n, k, m;
    int32_t kind, widest, proven, chosen;
    int64_t run_as;
    cublasLtMatmulAlgo_t algo;
};

struct flight {
    struct step_block host, device;
    struct sample_token *tokens_host, *tokens_device;
    cudaEvent_t uploaded;
    int32_t n_logits;
    bool used;
};

/* Host side of a step's attention lists (cuda_attention.c). */
struct shared_prefix { /* of a decode row: splits that tiles do; kv head h's states stand at
                        * partial + h * blocks */
    int32_t splits, partial, blocks;
};
struct attention_tile { /* two int4 of struct attention_cuda; who does it */
    int4 place, keys;
    int32_t cost, cta;
};
struct attention_load {
    int32_t load, cta;
};
struct attention_lists {
    struct shared_prefix *shared; /* [rows_cap] */
    int32_t *members, *next;      /* [rows_cap]: rows of a page's chain */
    int32_t *first;               /* [n_pages]: of the chain, or -1 */
    int32_t *with;                /* [pages_per_slot + 1]: rows by splits in common */
    struct attention_tile *tiles; /* [tiles_cap] */
    struct attention_load *loads; /* [n_sms] */
    int32_t tiles_cap, n_tiles, n_shared_tiles, n_rows, n_partials, row_splits;
    int32_t decode_ctas; /* of the step: two a multiprocessor, or one where its warps have much */
};

struct step_clock { /* when the device began and ended a step */
    cudaEvent_t begin, end;
    int64_t step;
};

struct graph {
    uint64_t key; /* of its make-up; 0: free */
    cudaGraphExec_t exec;
    int64_t used; /* step that used it last */
};

struct fused { /* a shape's product with SwiGLU in its epilogue */
    int64_t n, k;
    bool proven;
};

struct thin { /* a product of few rows: by gemm_thin_cuda? */
    int64_t n, k;
    int kind, form;
    bool chosen;
};

struct slot_history { /* what the counts row of a slot stands for */
    const int32_t *prompt, *output;
    int32_t n_output;
};

struct cuda_backend {
    struct backend base;
    struct backend_opts opts;
    int device, n_sms;
    bool hopper; /* the kernels for 9.0 run; else the portable ones */
    cudaStream_t stream, up;
    cudaEvent_t loads[LOAD_EVENTS], tune[2];
    struct graph graphs[GRAPHS_MAX];
    bool use_graphs, recording;
    int64_t graphs_made;
    struct step_clock clocks[STEPS_TIMED];
    int64_t busy_ns, idle_ns, waited_ns;
    cublasLtHandle_t blas;
    const char *plan_cache; /* folder, or NULL */
    struct plan_record *records;
    int n_records; /* -1: the cache has not been read */
    bool plans_new;
    void *workspace;
    struct plan plans[PLANS_MAX];
    int n_plans;
    bf16 *kv;
    int64_t kv_layer_elements;
    int32_t *block_table, *last_token;
    int32_t *block_table_shadow;
    struct slot_history *history;
    uint16_t *counts;
    int32_t n_history, n_histories; /* of the step: ids, sequences */
    float *logits, *scratch, *partial, *totals;
    int64_t logits_stride, logits_rows; /* of logits and of scratch: a bucket's rows */
    struct fused fused[FUSED_MAX];
    int n_fused;
    struct thin thin[THIN_MAX];
    int n_thin;
    void *proof[2]; /* where plan_prove's products go; taken with the first plan */
    int32_t *differ;
    int64_t widest_n; /* of the weights that are no head */
    struct flight flights[STEPS_IN_FLIGHT];
    int64_t step_count;
    const struct step *step;
    struct flight *now;
    struct attention_lists lists;
    int32_t n_spans, n_merges; /* of the step */
    int64_t bytes_weights, bytes_kv, bytes_other;
    int64_t spans_cap, deltas_cap;
    int launch_error;       /* first failing launch of the step */
    void *owned[OWNED_MAX]; /* every device block, given back at close */
    int n_owned;
};

/* A block of device memory, zeroed, the backend's until close; its bytes are added to *account.
 * E_FATAL with the bytes wanted and free. */
int cuda_take(struct cuda_backend *b, void **out, size_t bytes, int64_t *account, const char *what,
              struct err *err) TR_MUSTCHECK;
static inline int cuda_fail(struct err *err, cudaError_t e, const char *what)
{
    return err_set(err, E_FATAL, "cuda: %s: %s", what, cudaGetErrorString(e));
}
static inline struct cuda_backend *cuda_self(const struct backend *b)
{
    return (struct cuda_backend *)b;
}
/* The first failing launch of a step is kept for step_end. */
static inline void cuda_launched(struct cuda_backend *b, int e)
{
    if (b->launch_error == 0)
        b->launch_error = e;
}

/* Warps that walk the decode lists, at most. */
static inline int32_t cuda_decode_workers(const struct cuda_backend *b)
{
    return 2 * DECODE_WARPS * b->n_sms;
}

/* cuda_memory.c: the memory ops, and what is taken at open. */
int cuda_buffer_open(struct backend *base, struct buffer *out, int64_t rows, int64_t cols,
                     struct err *err) TR_MUSTCHECK;
int cuda_weight_open(struct backend *base, struct weight **out, int64_t n, int64_t k,
                     enum dtype dtype, struct err *err) TR_MUSTCHECK;
int cuda_weight_load(struct backend *base, struct weight *w, int64_t row0, const void *src,
                     int64_t rows, struct err *err) TR_MUSTCHECK;
int cuda_vector_open(struct backend *base, const float **out, const float *src, int64_t n,
                     struct err *err) TR_MUSTCHECK;
int64_t cuda_bytes(const struct backend *base, const char *what);
void *cuda_staging(struct backend *base, size_t bytes, struct err *err);
void cuda_staging_end(struct backend *base, void *staging);
int cuda_load_mark(struct backend *base, int mark, struct err *err) TR_MUSTCHECK;
int cuda_load_wait(struct backend *base, int mark, struct err *err) TR_MUSTCHECK;
int cuda_memory_open(struct cuda_backend *b, struct err *err) TR_MUSTCHECK;
void cuda_memory_close(struct cuda_backend *b);

/* cuda_gemm.c: out[rows,n] = x[rows,k] . w[n,k]^T in the kind's manner. */
struct product { /* operands of one GEMM */
    const bf16 *x;
    const struct weight *w;
    const void *bias, *residual; /* or NULL */
};
/* cuda_trial.c: a way to make a product, tried on the operands at hand. Errors are CUDA's; run
 * gives cudaErrorNotSupported where the library refuses. */
enum { TRIAL_RUNS_MAX = 5 };
struct trial {
    cudaError_t (*run)(struct cuda_backend *b, const struct trial *t, void *out,
                       const struct product *on);
    const struct product *on;
    size_t bytes; /* of the product */
    int64_t rows;
    int kind;
    const struct plan *plan; /* or NULL */
};
/* Once into `out`; a residual is copied there first and added in place, as in a step. */
cudaError_t cuda_trial_run(struct cuda_backend *b, const struct trial *t, void *out);
/* Whether two runs give the bits of `want`; `makes`: the first of them makes these. */
cudaError_t cuda_trial_same(struct cuda_backend *b, const struct trial *t, void *want, bool makes,
                            void *out, bool *same);
/* The middle of a few runs into `out`, weights out of the cache. */
cudaError_t cuda_trial_time(struct cuda_backend *b, const struct trial *t, void *out, int runs,
                            double *seconds);

void cuda_gemm(struct cuda_backend *b, void *out, const struct product *on, int kind, int64_t rows);
/* The same by cuBLASLt alone. */
void cuda_gemm_planned(struct cuda_backend *b, void *out, const struct product *on, int kind,
                       int64_t rows);
/* The product by its plan into a block that no step uses, for a comparison; *other: a second such
 * block, as large. False: it failed, and the step's end tells. */
bool cuda_gemm_for_proof(struct cuda_backend *b, const struct product *on, int kind, int64_t rows,
                         void **made, void **other);
void cuda_gemm_close(struct cuda_backend *b);

/* cuda_swiglu.c: the product with SwiGLU in its epilogue: whether it is the better one for these
 * rows, and whether its bits are those of the product and swiglu_cuda. */
bool cuda_swiglu_fits(const struct cuda_backend *b, const struct weight *w, int64_t rows);
bool cuda_swiglu_proven(struct cuda_backend *b, struct buffer *out, struct buffer *gate_up,
                        const struct buffer *x, const struct weight *w);

/* cuda_thin.c: the product of few rows in a kernel that streams the weights, if it has the plan's
 * bits and is faster; false: not done. */
bool cuda_thin(struct cuda_backend *b, void *out, const struct product *on, int kind, int64_t rows);

/* cuda_attention.c: the attention kernels' work lists of a step, into h. */
int64_t cuda_tiles_cap(const struct backend_opts *o);
int cuda_attention_open(struct cuda_backend *b, struct err *err) TR_MUSTCHECK;
void cuda_attention_close(struct cuda_backend *b);
void cuda_attention_lists(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h);

/* cuda_plans.c: the plans of this card, library and build in a file, so that they are chosen and
 * proven once. A file that is missing, stale or damaged counts as empty. */
const struct plan_record *cuda_plans_find(struct cuda_backend *b, const struct plan *p);
void cuda_plans_write(const struct cuda_backend *b);

/* cuda_graph.c: a step's launches recorded, then launched as one. */
cudaError_t cuda_graph_begin(struct cuda_backend *b);
cudaError_t cuda_graph_end(struct cuda_backend *b);
void cuda_graph_close(struct cuda_backend *b);

/* cuda_measure.c: random bf16 of moderate size; the middle of n times in ms, in seconds. */
int cuda_noise(void *device, size_t bytes, struct err *err) TR_MUSTCHECK;
double cuda_median(float *ms, int n);

/* cuda_step.c: a step's metadata up, its tokens down. */
void cuda_block_layout(struct step_block *s, const struct cuda_backend *b, unsigned char *base);
int cuda_step_begin(struct backend *base, const struct step *s, struct err *err) TR_MUSTCHECK;
int cuda_step_end(struct backend *base, struct sample_token *tokens, struct err *err) TR_MUSTCHECK;

#endif
