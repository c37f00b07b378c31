/* embed: rows of the packed token table. R1 needs no rounding here: a row has the weights' dtype,
 * and the model's is the same. */
#include "kernels/cpu/cpu.h"

struct embed_job {
    float *out;
    const struct cpu_weight *table;
    const int32_t *ids;
};

static void embed_run(void *ctx, int i)
{
    const struct embed_job *job = ctx;
    cpu_weight_row(job->table, job->ids[i], job->out + i * job->table->k);
}

void embed_cpu(struct cpu *cpu, float *out, const struct cpu_weight *table, const int32_t *ids,
               int64_t t)
{
    struct embed_job job = {out, table, ids};
    KERNEL_CHECK(t <= INT32_MAX);
    cpu_run(cpu, (int)t, embed_run, &job);
}
