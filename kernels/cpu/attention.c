/* attention: shares the rows of a step out over the pool. The arithmetic is in attention_inner.h;
 * this comment is its specification, for every backend.
 *
 * A query (row r at position p, head h) sees the keys j of its sequence with lo <= j <= p, where
 * lo = 0, or max(0, p - window + 1) with a window. The keys fall into splits of 128 at absolute
 * positions: split s holds 128 s .. 128 s + 127. Splits without a visible key do not exist. All
 * arithmetic is fp32.
 *
 * Split. For each visible key j:
 *     dot_j   = sum over d of q_d k_jd: lane i of 16 chains fused multiply-adds from 0 over d = i,
 *               i + 16, ...; the lanes then add as a tree: i with i + 8, then i + 4, i + 2, i + 1
 *     s_j     = dot_j * Dh^-0.5
 *     m       = max over j of s_j
 *     e_j     = exp(s_j - m)
 *     l       = sum of e_j: lane i of 16 adds keys i, i + 16, ... of the split in rising order
 *               (absent keys count 0), then the same tree
 *     o_d     = chain of fused multiply-adds from 0 over rising j of round(e_j) * v_jd      (R5)
 * Merge of two parts A (left) and B (right), the only formula:
 *     m = max(mA, mB),  a = exp(mA - m),  b = exp(mB - m)
 *     l = fma(lB, b, lA * a),  o_d = fma(oB_d, b, oA_d * a)
 * Tree. Splits of one block of 512 keys merge left to right, starting with the first that exists as
 * it is; then the blocks, likewise. Output: round(o_d * (1 / l)).                        (R5)
 *
 * The merge is that of Dao 2023 (FlashAttention-2, section 3.1). */
#include "kernels/cpu/cpu.h"

struct attention_task {
    struct attention_job job;
    struct cpu *cpu;
};

/* A task holds some neighbouring rows and one key/value head; runs of one slot share its reads. */
static void attention_run(void *ctx, int i, int thread)
{
    const struct attention_task *task = ctx;
    const struct attention_job *job = &task->job;
    const int32_t groups = job->kv->n_kv_heads, *slot = job->rows->slot;
    int32_t row = i / groups * job->rows_per_task, end = row + job->rows_per_task;
    if (end > job->rows->n)
        end = job->rows->n;
    while (row < end) {
        int32_t stop = row + 1;
        while (stop < end && slot[stop] == slot[row] &&
               job->rows->position[stop] == job->rows->position[stop - 1] + 1)
            stop++;
        cpu_ops(task->cpu)->attention_run(job, row, stop, i % groups,
                                          &cpu_scratch(task->cpu, thread)->attention);
        row = stop;
    }
}

void attention_cpu(struct cpu *cpu, float *out, const float *qkv, const struct kv_layer *kv,
                   const struct kv_rows *rows, int32_t n_heads, int32_t window, enum dtype round)
{
    const int32_t groups = kv->n_kv_heads;
    KERNEL_CHECK(groups > 0);
    KERNEL_CHECK(n_heads % groups == 0);
    KERNEL_CHECK(n_heads / groups <= ATTENTION_QUERIES);
    KERNEL_CHECK(kv->head_dim > 0);
    KERNEL_CHECK(kv->head_dim <= ATTENTION_HEAD_DIM);
    KERNEL_CHECK(window >= 0);
    /* As many rows as fill the scratch, but at least four tasks a thread. */
    int32_t most = ATTENTION_QUERIES / (n_heads / groups);
    int64_t fair = (int64_t)rows->n * groups / (4 * cpu_threads(cpu));
    int32_t per_task = fair < 1 ? 1 : fair > most ? most : (int32_t)fair;
    struct attention_task task = {
        .cpu = cpu,
        .job = {out, qkv, kv, rows, n_heads, window, per_task, round},
    };
    cpu_run_on(cpu, (rows->n + per_task - 1) / per_task * groups, attention_run, &task);
}
