/* kernels: every launcher, C linkage, shapes and units in the comment. Includes nothing of engine.
 *
 * The one rule (row independence): the value of an output row depends on that row's inputs alone,
 * never on how many rows a call has, on its neighbours, on the number of threads or on the vector
 * unit. So every sum has one fixed order, and the scalar, AVX2 and AVX-512 variants of an op give
 * the same bits: lanes run across outputs, or a fixed tree of 16 partial sums is used everywhere; a
 * fused multiply-add is written as such in all variants.
 *
 * CPU activations are fp32 arrays whose values are rounded to the model's dtype at named points
 * (R1..R9 below, the same points as on CUDA); DTYPE_F32 rounds nowhere.
 *   R1 embedding row  R2 norm output  R3 linear output, bias included (one rounding)
 *   R4 q, k after q/k norm and RoPE   R5 probabilities before P.V, and the attention output
 *   R6 linear + residual (one rounding)  R7 silu(gate) * up  R8 final norm output  R9 logits: none
 *
 * Dimensions: T rows of a step, D model, H query heads, G key/value heads, Dh head, F inner,
 * V vocabulary, N x K a weight's rows (outputs) and columns (inputs). All arrays are row-major. */
#ifndef TRANCHE_KERNELS_KERNELS_H
#define TRANCHE_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };
static inline size_t dtype_size(enum dtype d)
{
    return d == DTYPE_F32 ? 4 : 2;
}

enum {
    KV_PAGE_TOKENS = 64,   /* tokens of one KV page */
    ATTENTION_SPLIT = 128, /* keys of one split: own maximum, own sum, own fp32 output */
    ATTENTION_BLOCK = 512, /* keys of one block: its splits merge left to right, blocks likewise */
    /* What the CPU's scratch holds: the caller keeps to them. */
    ATTENTION_QUERIES = 64,   /* most (row, head) pairs of one task, so also heads a kv head */
    ATTENTION_HEAD_DIM = 256, /* largest head */
    SAMPLE_TOP_MAX = 20,      /* most top_logprobs a token can have */
};

/* ---- execution context: a fixed pool of threads and the chosen vector variant ---- */
struct cpu;
enum cpu_isa { CPU_ISA_SCALAR, CPU_ISA_AVX2, CPU_ISA_AVX512 };
enum cpu_isa cpu_isa_best(void); /* by cpuid and the operating system's saved state */
const char *cpu_isa_name(enum cpu_isa);
/* `threads` >= 1 counts the caller. NULL when memory or threads are refused, or the isa is not
 * supported here. cpu_close(NULL) is legal. One owner thread calls all ops of one context. */
struct cpu *cpu_open(int threads, enum cpu_isa isa);
void cpu_close(struct cpu *cpu);
int cpu_threads(const struct cpu *cpu);
enum cpu_isa cpu_isa(const struct cpu *cpu);
/* Runs task(ctx, i) for every i < n on the pool; returns when all are done. */
void cpu_run(struct cpu *cpu, int n, void (*task)(void *ctx, int i), void *ctx);

/* ---- weights: packed once at load; lanes across outputs ---- */
struct cpu_weight {
    void *data;       /* panels; layout private to kernels/cpu/linear */
    enum dtype dtype; /* as in the file; never widened */
    int64_t n, k;
};
size_t cpu_weight_bytes(int64_t n, int64_t k, enum dtype dtype); /* 64-byte aligned block needed */
/* Packs `rows` rows of src [rows, k] (dtype of w, unaligned allowed) as outputs row0 ..
 * row0+rows-1. */
void cpu_weight_pack(struct cpu *cpu, struct cpu_weight *w, int64_t row0, const void *src,
                     int64_t rows);
/* out[K] = row n of the packed weight as fp32: the embedding of a tied head. */
void cpu_weight_row(const struct cpu_weight *w, int64_t n, float *out);

/* out[T,N] = round(x[T,K] . w[N,K]^T + bias[N] + residual[T,N]); bias, residual may be NULL;
 * residual may equal out. Each output: one chain of fused multiply-adds over k = 0..K-1, from 0. */
void linear_cpu(struct cpu *cpu, float *out, const float *x, const struct cpu_weight *w,
                const float *bias, const float *residual, int64_t t, enum dtype round);

/* ---- elementwise and norms ---- */
/* out[T,D] = rows ids[T] of the packed table [V,D] (R1). Each id < table->n, checked. */
void embed_cpu(struct cpu *cpu, float *out, const struct cpu_weight *table, const int32_t *ids,
               int64_t t);
/* Zhang & Sennrich 2019. out[T,D] = round(x * rsqrt(mean(x^2) + eps) * w), one rounding. out may be
 * x. */
void rmsnorm_cpu(struct cpu *cpu, float *out, const float *x, const float *w, float eps, int64_t t,
                 int64_t d, enum dtype round);
/* out[T,F] = round(silu(gate_up[T,0:F]) * gate_up[T,F:2F]); Shazeer 2020. */
void swiglu_cpu(struct cpu *cpu, float *out, const float *gate_up, int64_t t, int64_t f,
                enum dtype round);

/* ---- paged KV ---- */
/* One layer's arena: [page][G][K|V][64][Dh], dtype. K is stored after RoPE. */
struct kv_layer {
    void *base;
    enum dtype dtype;
    int32_t n_kv_heads, head_dim;
};
/* The rows of one step. Row r is token `position[r]` of the sequence in slot[r]; its keys are found
 * through block_table[slot * stride + position / 64]. Rows of one sequence stand together, in order
 * of position. */
struct kv_rows {
    int32_t n;
    const int32_t *position, *slot, *block_table;
    int32_t block_table_stride;
};
/* qkv[T, (H+2G)*Dh]: q and k are normalised (q_norm, k_norm [Dh] or NULL), rotated (Su et al. 2021,
 * rotate-half pairs i and i+Dh/2; cos_sin [max_positions, Dh]: Dh/2 cosines, then Dh/2 sines, fp32,
 * attention factor included), rounded (R4); q is left in place, k and v go to the pages. */
struct rope_args {
    const float *cos_sin, *q_norm, *k_norm;
    float eps;
    int32_t n_heads;
    enum dtype round;
};
void rope_kv_cpu(struct cpu *cpu, float *qkv, const struct kv_layer *kv, const struct kv_rows *rows,
                 const struct rope_args *args);
/* Causal attention of each row over its own keys 0..position, grouped query heads (Ainslie et al.
 * 2023), scale Dh^-0.5. window > 0: only keys j with position - window < j. Splits of 128 keys at
 * absolute positions, merged in the one tree (Dao 2023 for the merge formula). Reads q from
 * qkv[T,(H+2G)*Dh]; out[T,H*Dh]. Dh <= ATTENTION_HEAD_DIM, H <= G * ATTENTION_QUERIES. */
void attention_cpu(struct cpu *cpu, float *out, const float *qkv, const struct kv_layer *kv,
                   const struct kv_rows *rows, int32_t n_heads, int32_t window, enum dtype round);
/* Copies the first n_tokens of K and V of every head from one page to another. */
void kv_copy_cpu(const struct kv_layer *kv, int32_t page_from, int32_t page_to, int32_t n_tokens);

/* ---- sampling: one row, fixed order; vLLM's order and names ---- */
struct sample_params {
    float temperature, top_p, min_p;                               /* temperature < 1e-5: greedy */
    float repetition_penalty, frequency_penalty, presence_penalty; /* 1, 0, 0: off */
    int32_t top_k;                                                 /* <= 0: off */
    uint64_t rng_key; /* hash of the request body and seed */
    uint32_t choice;
    const int32_t *bias_ids; /* [n_bias], each < V */
    const float *bias;       /* [n_bias] */
    int32_t n_bias;
    int32_t n_top; /* top_logprobs wanted, 0..20; -1: no logprobs at all */
};
struct sample_row {
    const struct sample_params *params;
    const int32_t *prompt, *output; /* ids for the penalties */
    int32_t n_prompt, n_output;     /* n_output is also the position of the RNG's counter */
    const int32_t *banned;          /* ids masked to -inf (EOS and stop ids below min_tokens) */
    int32_t n_banned;
    int32_t forced; /* >= 0: this id is emitted; its raw logprob is still reported */
};
struct sample_token {
    int32_t id;
    float logprob; /* raw: log_softmax of the logits before any change */
    int32_t n_top;
    int32_t top_ids[SAMPLE_TOP_MAX]; /* by falling logprob, ties to the lower id */
    float top_logprobs[SAMPLE_TOP_MAX];
};
/* Bytes of scratch that sample_cpu needs for a vocabulary of v. */
size_t sample_scratch_bytes(int64_t v);
/* logits[V] are changed in place. The draw: argmax over survivors of p / q with q ~ Exp(1) from
 * Philox4x32-10 (Salmon et al. 2011), key rng_key, counter (block, n_output, choice, 0): id
 * 64 g + 16 w + i takes word w of block 16 g + i. Ties go to the lowest id. Probability mass for
 * top_p is counted in whole units of 2^-40 of the greatest weight, so its sum has no order. NaN or
 * +infinity in the logits, or no id left: id -1 (the caller fails that row). */
void sample_cpu(float *logits, int64_t v, const struct sample_row *row, struct sample_token *out,
                void *scratch);
/* Logprob of `target` and the n_top best of one row of raw logits: prompt_logprobs. */
void logprobs_cpu(const float *logits, int64_t v, int32_t target, int32_t n_top,
                  struct sample_token *out);

#ifdef __cplusplus
}
#endif
#endif
