/* rope: head norms, rotation and the write into KV pages, a row at a time. The arithmetic is in
 * rows_inner.h. Also the copy of a page's first tokens. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "kernels/cpu/kv.h"

struct rope_job {
    const struct cpu_ops *ops;
    float *qkv;
    const struct kv_layer *kv;
    const struct kv_rows *rows;
    const struct rope_args *args;
    int32_t rows_per_task;
};

static void rope_row(const struct rope_job *job, int32_t row)
{
    const struct rope_args *args = job->args;
    const struct kv_layer *kv = job->kv;
    const int64_t dh = kv->head_dim, heads = args->n_heads, groups = kv->n_kv_heads;
    const int32_t position = job->rows->position[row];
    const float *cos_sin = args->cos_sin + position * dh;
    float *q = job->qkv + row * (heads + 2 * groups) * dh;
    float *k = q + heads * dh, *v = k + groups * dh;
    for (int64_t h = 0; h < heads; h++)
        job->ops->rope_head(q + h * dh, args->q_norm, args->eps, cos_sin, dh, args->round);
    for (int32_t g = 0; g < groups; g++) {
        float *head = k + g * dh;
        job->ops->rope_head(head, args->k_norm, args->eps, cos_sin, dh, args->round);
        int64_t slot = job->rows->slot[row];
        job->ops->store_row(kv_row(kv, job->rows, slot, position, g, 0), head, dh, kv->dtype);
        job->ops->store_row(kv_row(kv, job->rows, slot, position, g, 1), v + g * dh, dh, kv->dtype);
    }
}

static void rope_run(void *ctx, int i)
{
    const struct rope_job *job = ctx;
    int32_t row = i * job->rows_per_task, end = row + job->rows_per_task;
    for (; row < end && row < job->rows->n; row++)
        rope_row(job, row);
}

void rope_kv_cpu(struct cpu *cpu, float *qkv, const struct kv_layer *kv, const struct kv_rows *rows,
                 const struct rope_args *args)
{
    KERNEL_CHECK(kv->head_dim > 0);
    KERNEL_CHECK(kv->head_dim % 2 == 0);
    int32_t per_task = 1 + (1 << 13) / ((args->n_heads + 2 * kv->n_kv_heads) * kv->head_dim);
    struct rope_job job = {cpu_ops(cpu), qkv, kv, rows, args, per_task};
    cpu_run(cpu, (rows->n + per_task - 1) / per_task, rope_run, &job);
}

void kv_copy_cpu(const struct kv_layer *kv, int32_t page_from, int32_t page_to, int32_t n_tokens)
{
    KERNEL_CHECK(n_tokens >= 0);
    KERNEL_CHECK(n_tokens <= KV_PAGE_TOKENS);
    const size_t bytes = (size_t)n_tokens * (size_t)kv->head_dim * dtype_size(kv->dtype);
    for (int32_t g = 0; g < kv->n_kv_heads; g++)
        for (int side = 0; side < 2; side++)
            memcpy(kv_page_row(kv, page_to, g, side, 0), kv_page_row(kv, page_from, g, side, 0),
                   bytes);
}
