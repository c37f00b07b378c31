/* backend: the op table under the forward pass. CPU is the readable reference; CUDA fills the same
 * table. Chosen once in engine_open; no #ifdef outside a backend's own file.
 *
 * Ops are asynchronous until `step_end`; buffers are the backend's memory, taken at open. The model
 * writes the forward pass once over these ops (network_forward). A step's arrays are borrowed from
 * step_begin to step_end. */
#ifndef TRANCHE_ENGINE_BACKEND_H
#define TRANCHE_ENGINE_BACKEND_H

#include "engine/base.h"
#include "kernels/kernels.h"

struct backend;
struct weight; /* a matrix [N,K] in the backend's own layout */

struct buffer { /* activations [rows_cap, cols] */
    void *data;
    int64_t rows_cap, cols;
};

enum { LOAD_MARKS = 16 };
enum { STEP_TOKEN_LAST = -1 }; /* the token that the slot sampled last (still on the device) */

enum step_logit_kind { STEP_SAMPLE, STEP_PROMPT_LOGPROB };
struct step_logit {
    int32_t row; /* of the step */
    int32_t slot;
    enum step_logit_kind kind;
    int32_t target, n_top;    /* STEP_PROMPT_LOGPROB */
    struct sample_row sample; /* STEP_SAMPLE */
};
struct step_copy {
    int32_t page_from, page_to, n_tokens;
};
struct step {
    struct kv_rows rows;             /* rows.n tokens; positions, slots, block tables */
    const int32_t *tokens;           /* [rows.n] ids, or STEP_TOKEN_LAST */
    const struct step_logit *logits; /* [n_logits] rows that need logits */
    int32_t n_logits;
    const struct step_copy *copies; /* [n_copies] done before the forward pass */
    int32_t n_copies;
};

struct attention_shape {
    int32_t n_heads, n_kv_heads, head_dim, window; /* window 0: full */
};

struct backend_opts {
    int32_t threads;    /* >= 1 */
    int32_t isa;        /* enum cpu_isa, or -1: the best one here */
    int32_t rows_cap;   /* most rows of a step */
    int32_t logits_cap; /* most logit rows computed at once (more run in turns) */
    int32_t n_layers, n_pages;
    int32_t slots, pages_per_slot;
    int32_t n_heads, n_kv_heads, head_dim;
    int64_t vocab_size;
    enum dtype dtype;
};

struct backend_ops {
    const char *name;
    int lag; /* 0: step_end returns this step's tokens; 1: the last one's */

    /* Memory; all at open. E_FATAL with the bytes asked for when it is refused. */
    int (*buffer_open)(struct backend *, struct buffer *, int64_t rows, int64_t cols, struct err *);
    int (*weight_open)(struct backend *, struct weight **, int64_t n, int64_t k, enum dtype,
                       struct err *);
    /* Rows row0 .. row0+rows-1 from host memory src [rows,k] of the weight's dtype. */
    int (*weight_load)(struct backend *, struct weight *, int64_t row0, const void *src,
                       int64_t rows, struct err *);
    /* NULL: weight_load has read src when it returns. Else it only enqueues, and src lies in memory
     * that staging gave (the backend's, until staging_end; fast to copy from): load_mark puts a
     * mark, 0 .. LOAD_MARKS-1, behind the loads so far, load_wait waits until they are done. */
    void *(*staging)(struct backend *, size_t bytes, struct err *);
    int (*load_mark)(struct backend *, int mark, struct err *);
    int (*load_wait)(struct backend *, int mark, struct err *);
    void (*staging_end)(struct backend *, void *staging);
    /* A vector (norm weight, bias) or table (RoPE) as fp32 [n]. */
    int (*vector_open)(struct backend *, const float **, const float *src, int64_t n, struct err *);
    /* Of what was taken so far: "weights" "kv pages" "activations"; 0 for another word. */
    int64_t (*bytes)(const struct backend *, const char *what);
    void (*close)(struct backend *);

    /* One step: copies, then the ops in order, then the tokens. */
    int (*step_begin)(struct backend *, const struct step *, struct err *);
    void (*embed)(struct backend *, struct buffer *out, const struct weight *table);
    void (*rmsnorm)(struct backend *, struct buffer *out, const struct buffer *x, const float *w,
                    float eps);
    void (*linear)(struct backend *, struct buffer *out, const struct buffer *x,
                   const struct weight *, const float *bias, const struct buffer *residual);
    void (*rope_kv)(struct backend *, struct buffer *qkv, int32_t layer, const struct rope_args *);
    void (*attention)(struct backend *, struct buffer *out, const struct buffer *qkv, int32_t layer,
                      const struct attention_shape *);
    /* out = silu(gate) * up, where gate and up are the halves of x . w^T (+ bias), rounded like any
     * product. gate_up [rows, 2F] is the op's to write in; nobody reads it afterwards. */
    void (*linear_swiglu)(struct backend *, struct buffer *out, struct buffer *gate_up,
                          const struct buffer *x, const struct weight *, const float *bias);
    /* Gathers the logit rows of x into `scratch` (of x's shape), applies the final norm and the
     * head, samples each row; in turns of logits_cap rows. */
    void (*head)(struct backend *, const struct buffer *x, struct buffer *scratch,
                 const float *norm, float eps, const struct weight *head);
    /* Waits; tokens [n_logits of the step they belong to], in its order. */
    int (*step_end)(struct backend *, struct sample_token *tokens, struct err *);
};
/* First member of every backend's own struct. */
struct backend {
    const struct backend_ops *ops;
};

int backend_cpu_open(struct backend **out, const struct backend_opts *, struct err *) TR_MUSTCHECK;
/* For tests: from now on the logits of each step, before sampling, go to `into` [n_logits of the
 * step, V] as well, which is the caller's. NULL ends it. */
void backend_cpu_keep_logits(struct backend *b, float *into);

#endif
