/* norm: RMSNorm rows over the pool. The arithmetic is in rows_inner.h. */
#include "kernels/cpu/cpu.h"

struct norm_job {
    const struct cpu_ops *ops;
    float *out;
    const float *x, *w;
    float eps;
    int64_t t, d, rows_per_task;
    enum dtype round;
};

static void norm_run(void *ctx, int i)
{
    const struct norm_job *job = ctx;
    int64_t row = i * job->rows_per_task, end = row + job->rows_per_task;
    for (; row < end && row < job->t; row++)
        job->ops->rmsnorm_row(job->out + row * job->d, job->x + row * job->d, job->w, job->eps,
                              job->d, job->round);
}

void rmsnorm_cpu(struct cpu *cpu, float *out, const float *x, const float *w, float eps, int64_t t,
                 int64_t d, enum dtype round)
{
    KERNEL_CHECK(d > 0);
    /* A task of some 16,000 elements takes as long as it takes to hand one over. */
    int64_t rows = 1 + (1 << 14) / d;
    struct norm_job job = {cpu_ops(cpu), out, x, w, eps, t, d, rows, round};
    cpu_run(cpu, (int)((t + rows - 1) / rows), norm_run, &job);
}
