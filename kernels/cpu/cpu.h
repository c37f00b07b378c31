/* cpu: what the CPU kernels share among themselves: the context with its pool and scratch, and the
 * table of inner loops that each vector unit fills. Private to kernels/cpu and its tests. */
#ifndef TRANCHE_KERNELS_CPU_CPU_H
#define TRANCHE_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

/* A bug, not an error: prints file:line and the condition, then aborts, in every build. */
#define KERNEL_CHECK(cond) ((cond) ? (void)0 : kernel_check_failed(__FILE__, __LINE__, #cond))
__attribute__((noreturn)) void kernel_check_failed(const char *file, int line, const char *cond);

enum {
    CPU_THREADS_MAX = 1024,
    LINEAR_PANEL = 64,     /* outputs of one packed panel */
    LINEAR_K_BLOCK = 512,  /* inputs between two stores of the fp32 accumulators */
    LINEAR_ROWS = 120,     /* most rows of one task: its x block stays in the second-level cache */
    LINEAR_X_STRIDE = 528, /* of the copied x block: off the powers of two, one cache line over */
    LINEAR_PANELS = 4,     /* most panels of one task */
};

/* One call of linear_cpu. */
struct linear_job {
    float *out;
    const float *x;
    const struct cpu_weight *w;
    const float *bias, *residual;
    int64_t t;
    enum dtype round;
    int64_t panels, panels_per_task, rows_per_task, row_tasks;
};

/* One call of attention_cpu. */
struct attention_job {
    float *out;
    const float *qkv;
    const struct kv_layer *kv;
    const struct kv_rows *rows;
    int32_t n_heads, window, rows_per_task;
    enum dtype round;
};

/* One thread's working memory. */
struct attention_scratch {
    float k[ATTENTION_SPLIT * ATTENTION_HEAD_DIM]; /* [key / 16][Dh16][16]: keys across lanes */
    float v[ATTENTION_SPLIT * ATTENTION_HEAD_DIM]; /* [key][Dh16] */
    float q[ATTENTION_QUERIES * ATTENTION_HEAD_DIM];
    float p[ATTENTION_QUERIES * ATTENTION_SPLIT];
    /* Unnormalised outputs, maxima and sums: of the split, the block, all blocks so far. */
    struct attention_part {
        float o[ATTENTION_QUERIES * ATTENTION_HEAD_DIM];
        float m[ATTENTION_QUERIES], l[ATTENTION_QUERIES];
        bool any[ATTENTION_QUERIES];
    } split, block, all;
};
struct linear_scratch {
    float x[LINEAR_ROWS * LINEAR_X_STRIDE];
    float partial[LINEAR_PANELS * LINEAR_ROWS * LINEAR_PANEL];
};
union cpu_scratch {
    struct linear_scratch linear;
    struct attention_scratch attention;
};

/* What lies at or above three logits: mass in units of 2^-40 of the greatest weight, and number. */
struct tally {
    uint64_t mass[3], count[3];
};

/* The inner loops, one table for each vector unit (variant_*.c). */
struct cpu_ops {
    /* Rows row0..row1-1 of the outputs in panels panel0..panel1-1. */
    void (*linear_block)(const struct linear_job *, int64_t panel0, int64_t panel1, int64_t row0,
                         int64_t row1, struct linear_scratch *);
    void (*rmsnorm_row)(float *out, const float *x, const float *w, float eps, int64_t d,
                        enum dtype round);
    void (*swiglu_row)(float *out, const float *gate, const float *up, int64_t f, enum dtype round);
    /* Optional norm, then rotation, then rounding of one head, in place. */
    void (*rope_head)(float *head, const float *norm, float eps, const float *cos_sin, int64_t dh,
                      enum dtype round);
    void (*store_row)(void *out, const float *x, int64_t n, enum dtype dtype);
    /* Rows row0..row1-1, all of one slot, for the query heads of key/value head g. */
    void (*attention_run)(const struct attention_job *, int32_t row0, int32_t row1, int32_t g,
                          struct attention_scratch *);

    /* Largest of x[v]; *good is cleared by a NaN or +infinity. */
    float (*sample_max)(const float *x, int64_t v, bool *good);
    /* Sum of exp(x - max). */
    double (*sample_sum)(const float *x, int64_t v, float max);
    /* p[v rounded up to 64] = exp((x - max) * inverse_t), values below `least` as 0. */
    void (*sample_weights)(float *p, const float *x, int64_t v, float max, float inverse_t,
                           float least);
    int32_t (*sample_find)(const float *x, int64_t v, float value); /* first index, or -1 */
    /* Mass and number of ids with p > 0 and logit >= at[j]. */
    void (*sample_tally)(const float *p, const float *logits, int64_t v, const float at[3],
                         struct tally *);
    /* Ids with p > 0 and lo <= logit < hi, rising; returns how many. */
    int32_t (*sample_range)(int32_t *ids, const float *p, const float *logits, int64_t v, float lo,
                            float hi);
    /* p = 0 where the logit is below the cut, or at it with an id above `last`. */
    void (*sample_keep)(float *p, const float *logits, int64_t v, float cut, int32_t last);
    int32_t (*sample_draw)(const float *p, int64_t v, uint64_t key, uint32_t position,
                           uint32_t choice);
    int32_t (*sample_best)(const float *x, int64_t v, int32_t n, int32_t *ids, float *values);
    float (*log)(float x);
    void (*map)(float *out, const float *x, int64_t n, char which); /* tests: 'e'xp 'l'og 's'ilu */
    void (*philox)(uint32_t out[4][16], const uint32_t in[4][16], uint64_t key);
};
extern const struct cpu_ops cpu_ops_scalar, cpu_ops_avx2, cpu_ops_avx512;
/* NULL when this build or machine has not got it. */
const struct cpu_ops *cpu_ops_of(enum cpu_isa isa);
const struct cpu_ops *cpu_ops_best(void);

const struct cpu_ops *cpu_ops(const struct cpu *cpu);
union cpu_scratch *cpu_scratch(const struct cpu *cpu, int thread);
/* cpu_run with the number of the thread that runs a task. */
void cpu_run_on(struct cpu *cpu, int n, void (*task)(void *ctx, int i, int thread), void *ctx);

/* sample_cpu with a given table: the tests compare the variants. */
void sample_with(const struct cpu_ops *ops, float *logits, int64_t v, const struct sample_row *row,
                 struct sample_token *out, void *scratch);
/* One row under the cuts of select.c. */
struct select {
    float *p;            /* [V rounded up to 64] weights, the greatest 1; what is cut becomes 0 */
    const float *logits; /* [V] */
    int64_t v;
    float max, t; /* greatest logit; temperature */
    int32_t *ids; /* [V] working memory */
};
/* top_k <= 0 and top_p >= 1 are off. Ties of the k-th stay; of ties at the edge of top_p the lowest
 * ids stay. */
void select_cut(const struct cpu_ops *ops, const struct select *row, int32_t top_k, float top_p);

#endif
