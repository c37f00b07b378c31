/* act: SwiGLU rows over the pool. The arithmetic is in rows_inner.h. */
#include "kernels/cpu/cpu.h"

enum { ACT_COLUMNS = 2048 }; /* outputs of one task: a row of one token is shared out, too */

struct act_job {
    const struct cpu_ops *ops;
    float *out;
    const float *gate_up;
    int64_t f, parts;
    enum dtype round;
};

static void act_run(void *ctx, int i)
{
    const struct act_job *job = ctx;
    int64_t row = i / job->parts, from = i % job->parts * ACT_COLUMNS;
    int64_t count = job->f - from < ACT_COLUMNS ? job->f - from : ACT_COLUMNS;
    const float *gate = job->gate_up + row * 2 * job->f + from;
    job->ops->swiglu_row(job->out + row * job->f + from, gate, gate + job->f, count, job->round);
}

void swiglu_cpu(struct cpu *cpu, float *out, const float *gate_up, int64_t t, int64_t f,
                enum dtype round)
{
    KERNEL_CHECK(f > 0);
    int64_t parts = (f + ACT_COLUMNS - 1) / ACT_COLUMNS;
    struct act_job job = {cpu_ops(cpu), out, gate_up, f, parts, round};
    KERNEL_CHECK(t * parts <= INT32_MAX);
    cpu_run(cpu, (int)(t * parts), act_run, &job);
}
