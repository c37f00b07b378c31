/* linear: packing weights into panels and sharing a product out over the pool. The arithmetic is
 * in linear_inner.h.
 *
 * A panel is 64 outputs: [N/64][K][64] in the weight's dtype, so one k of one panel is a line of 64
 * weights that stand in the lanes of four vectors. In a bf16 line the outputs i and i+16 share a
 * 32-bit word (low, high): one shift or one mask widens sixteen of them. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "kernels/cpu/convert.h"

enum {
    PACK_K = 256
}; /* inputs transposed at a time: shorter reads wait on memory (64: 0.7 GB/s,
      256: 1.8 GB/s of bf16 on one Zen 4 core) */

static int64_t panels_of(int64_t n)
{
    return (n + LINEAR_PANEL - 1) / LINEAR_PANEL;
}

/* Where output o of a panel (0..63) stands in a line. */
static int64_t line_slot(int64_t o, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? o / 32 * 32 + o % 16 * 2 + o % 32 / 16 : o;
}

size_t cpu_weight_bytes(int64_t n, int64_t k, enum dtype dtype)
{
    KERNEL_CHECK(n > 0);
    KERNEL_CHECK(k > 0);
    size_t bytes;
    KERNEL_CHECK(!__builtin_mul_overflow((size_t)panels_of(n) * LINEAR_PANEL, (size_t)k, &bytes));
    KERNEL_CHECK(!__builtin_mul_overflow(bytes, dtype_size(dtype), &bytes));
    return bytes;
}

struct pack_job {
    struct cpu_weight *w;
    const char *src;
    int64_t row0, row1;
};

static void pack_panel(void *ctx, int i)
{
    const struct pack_job *job = ctx;
    const struct cpu_weight *w = job->w;
    const int64_t size = (int64_t)dtype_size(w->dtype), panel = job->row0 / LINEAR_PANEL + i;
    const int64_t base = panel * LINEAR_PANEL;
    int64_t from = job->row0 > base ? job->row0 : base;
    int64_t to = job->row1 < base + LINEAR_PANEL ? job->row1 : base + LINEAR_PANEL;
    char *dst = (char *)w->data + base * w->k * size;
    for (int64_t k0 = 0; k0 < w->k; k0 += PACK_K) {
        int64_t k1 = k0 + PACK_K < w->k ? k0 + PACK_K : w->k;
        for (int64_t row = from; row < to; row++) {
            const char *in = job->src + ((row - job->row0) * w->k + k0) * size;
            char *out = dst + (k0 * LINEAR_PANEL + line_slot(row - base, w->dtype)) * size;
            if (size == 2)
                for (int64_t k = k0; k < k1; k++, in += 2, out += 2 * LINEAR_PANEL)
                    memcpy(out, in, 2);
            else
                for (int64_t k = k0; k < k1; k++, in += 4, out += 4 * LINEAR_PANEL)
                    memcpy(out, in, 4);
        }
        /* Outputs past the last one: zeros, so that no stray subnormal slows the product. */
        for (int64_t o = w->n - base; to == w->n && o < LINEAR_PANEL; o++)
            for (int64_t k = k0; k < k1; k++)
                memset(dst + (k * LINEAR_PANEL + line_slot(o, w->dtype)) * size, 0, (size_t)size);
    }
}

void cpu_weight_pack(struct cpu *cpu, struct cpu_weight *w, int64_t row0, const void *src,
                     int64_t rows)
{
    KERNEL_CHECK(row0 >= 0);
    KERNEL_CHECK(rows > 0);
    KERNEL_CHECK(row0 + rows <= w->n);
    KERNEL_CHECK((uintptr_t)w->data % 64 == 0);
    struct pack_job job = {.w = w, .src = src, .row0 = row0, .row1 = row0 + rows};
    int64_t panels = panels_of(row0 + rows) - row0 / LINEAR_PANEL;
    cpu_run(cpu, (int)panels, pack_panel, &job);
}

void cpu_weight_row(const struct cpu_weight *w, int64_t n, float *out)
{
    KERNEL_CHECK(n >= 0);
    KERNEL_CHECK(n < w->n);
    const int64_t panel = n / LINEAR_PANEL;
    int64_t at = panel * LINEAR_PANEL * w->k + line_slot(n % LINEAR_PANEL, w->dtype);
    for (int64_t k = 0; k < w->k; k++, at += LINEAR_PANEL)
        out[k] = float_of(w->data, at, w->dtype);
}

struct linear_task {
    struct linear_job job;
    struct cpu *cpu;
};
static void linear_run(void *ctx, int i, int thread)
{
    const struct linear_task *task = ctx;
    const struct linear_job *job = &task->job;
    /* Row blocks of one set of panels follow each other: its weights are then in a cache. */
    int64_t panel0 = i / job->row_tasks * job->panels_per_task;
    int64_t panel1 = panel0 + job->panels_per_task;
    int64_t row0 = i % job->row_tasks * job->rows_per_task, row1 = row0 + job->rows_per_task;
    cpu_ops(task->cpu)->linear_block(job, panel0, panel1 < job->panels ? panel1 : job->panels, row0,
                                     row1 < job->t ? row1 : job->t,
                                     &cpu_scratch(task->cpu, thread)->linear);
}

void linear_cpu(struct cpu *cpu, float *out, const float *x, const struct cpu_weight *w,
                const float *bias, const float *residual, int64_t t, enum dtype round)
{
    KERNEL_CHECK(t >= 0);
    KERNEL_CHECK(out != x);
    if (t == 0)
        return;
    struct linear_task task = {
        .cpu = cpu,
        .job = {out, x, w, bias, residual, t, round, .panels = panels_of(w->n)},
    };
    struct linear_job *job = &task.job;
    job->row_tasks = (t + LINEAR_ROWS - 1) / LINEAR_ROWS;
    job->rows_per_task = (t + job->row_tasks - 1) / job->row_tasks;
    job->rows_per_task = (job->rows_per_task + 5) / 6 * 6; /* whole tiles; <= LINEAR_ROWS */
    job->row_tasks = (t + job->rows_per_task - 1) / job->rows_per_task;
    /* At least eight tasks a thread where there is that much: one slow thread then costs little. */
    job->panels_per_task = job->panels * job->row_tasks / (8 * cpu_threads(cpu));
    if (job->panels_per_task > LINEAR_PANELS)
        job->panels_per_task = LINEAR_PANELS;
    if (job->panels_per_task < 1)
        job->panels_per_task = 1;
    int64_t tasks =
        (job->panels + job->panels_per_task - 1) / job->panels_per_task * job->row_tasks;
    KERNEL_CHECK(tasks <= INT32_MAX);
    cpu_run_on(cpu, (int)tasks, linear_run, &task);
}
