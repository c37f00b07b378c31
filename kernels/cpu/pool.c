/* pool: the fixed threads of a context and how work reaches them.
 *
 * One 64-bit ticket carries the number of the call and the tasks not yet taken; a thread takes a
 * task by a compare-and-swap on it. So a thread that the system has put aside is never waited for
 * unless it holds a task, and a late one can never take a task of another call. Idle threads spin
 * for some 50 us (the gap between two ops of one step is far shorter), then sleep. */
#include "kernels/cpu/cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPIN_ROUNDS = 4000 };

struct cpu;
struct worker {
    struct cpu *cpu;
    pthread_t thread;
    int number;
};
struct cpu {
    _Alignas(64) _Atomic uint64_t ticket; /* call << 32 | tasks not taken */
    _Alignas(64) _Atomic int32_t done;    /* tasks finished of this call */
    _Alignas(64) _Atomic int32_t sleepers;
    _Atomic bool closing;
    /* Written by the owner while no task is left to take. Atomic because a late thread may look. */
    _Atomic(void (*)(void *, int, int)) task;
    _Atomic(void *) ctx;
    _Atomic int32_t n;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int threads;
    enum cpu_isa isa;
    const struct cpu_ops *ops;
    union cpu_scratch *scratch; /* [threads] */
    struct worker *workers;     /* [threads - 1] started so far: started */
    int started;
};

void kernel_check_failed(const char *file, int line, const char *cond)
{
    fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, cond);
    abort();
}

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes and runs tasks until none is left; returns the ticket seen last. */
static uint64_t pool_work(struct cpu *cpu, int thread)
{
    int32_t finished = 0;
    uint64_t ticket = atomic_load_explicit(&cpu->ticket, memory_order_acquire);
    while ((uint32_t)ticket != 0) {
        void (*task)(void *, int, int) = atomic_load_explicit(&cpu->task, memory_order_relaxed);
        void *ctx = atomic_load_explicit(&cpu->ctx, memory_order_relaxed);
        int32_t n = atomic_load_explicit(&cpu->n, memory_order_relaxed);
        /* Success proves that tasks of this very call were left, so the three loads above belong
         * to it: the owner rewrites them only when none is left. */
        if (!atomic_compare_exchange_weak_explicit(&cpu->ticket, &ticket, ticket - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        task(ctx, n - (int32_t)(uint32_t)ticket, thread);
        finished++;
        ticket = atomic_load_explicit(&cpu->ticket, memory_order_acquire);
        if ((uint32_t)ticket == 0 && finished) {
            atomic_fetch_add_explicit(&cpu->done, finished, memory_order_release);
            finished = 0;
        }
    }
    if (finished)
        atomic_fetch_add_explicit(&cpu->done, finished, memory_order_release);
    return ticket;
}

static void pool_sleep(struct cpu *cpu, uint64_t seen)
{
    pthread_mutex_lock(&cpu->lock);
    atomic_fetch_add(&cpu->sleepers, 1); /* before the look at the ticket: see cpu_run_on */
    while (atomic_load(&cpu->ticket) == seen && !atomic_load(&cpu->closing))
        pthread_cond_wait(&cpu->wake, &cpu->lock);
    atomic_fetch_sub(&cpu->sleepers, 1);
    pthread_mutex_unlock(&cpu->lock);
}

static void *pool_thread(void *arg)
{
    struct worker *worker = arg;
    struct cpu *cpu = worker->cpu;
    while (!atomic_load_explicit(&cpu->closing, memory_order_acquire)) {
        uint64_t seen = pool_work(cpu, worker->number);
        int spin = 0;
        while (atomic_load_explicit(&cpu->ticket, memory_order_relaxed) == seen &&
               spin++ < SPIN_ROUNDS)
            cpu_pause();
        if (spin > SPIN_ROUNDS)
            pool_sleep(cpu, seen);
    }
    return NULL;
}

void cpu_run_on(struct cpu *cpu, int n, void (*task)(void *, int, int), void *ctx)
{
    if (n <= 1 || cpu->threads == 1) {
        for (int i = 0; i < n; i++)
            task(ctx, i, 0);
        return;
    }
    atomic_store_explicit(&cpu->task, task, memory_order_relaxed);
    atomic_store_explicit(&cpu->ctx, ctx, memory_order_relaxed);
    atomic_store_explicit(&cpu->n, n, memory_order_relaxed);
    atomic_store_explicit(&cpu->done, 0, memory_order_relaxed);
    uint64_t call = (atomic_load_explicit(&cpu->ticket, memory_order_relaxed) >> 32) + 1;
    /* Sequentially consistent with the sleepers' count: either the owner sees the sleeper or the
     * sleeper sees the ticket. */
    atomic_store(&cpu->ticket, call << 32 | (uint32_t)n);
    if (atomic_load(&cpu->sleepers) > 0) {
        pthread_mutex_lock(&cpu->lock);
        pthread_cond_broadcast(&cpu->wake);
        pthread_mutex_unlock(&cpu->lock);
    }
    pool_work(cpu, 0);
    for (int spin = 0; atomic_load_explicit(&cpu->done, memory_order_acquire) != n; spin++) {
        cpu_pause();
        if (spin > SPIN_ROUNDS)
            sched_yield();
    }
}

struct plain_task {
    void (*task)(void *ctx, int i);
    void *ctx;
};
static void plain_run(void *ctx, int i, int thread)
{
    (void)thread;
    struct plain_task *plain = ctx;
    plain->task(plain->ctx, i);
}
void cpu_run(struct cpu *cpu, int n, void (*task)(void *ctx, int i), void *ctx)
{
    struct plain_task plain = {task, ctx};
    cpu_run_on(cpu, n, plain_run, &plain);
}

struct cpu *cpu_open(int threads, enum cpu_isa isa)
{
    const struct cpu_ops *ops = cpu_ops_of(isa);
    if (!ops || threads < 1 || threads > CPU_THREADS_MAX)
        return NULL;
    struct cpu *cpu = aligned_alloc(64, (sizeof *cpu + 63) & ~(size_t)63);
    if (!cpu)
        return NULL;
    memset(cpu, 0, sizeof *cpu);
    cpu->threads = threads;
    cpu->isa = isa;
    cpu->ops = ops;
    pthread_mutex_init(&cpu->lock, NULL);
    pthread_cond_init(&cpu->wake, NULL);
    size_t scratch_bytes = ((sizeof *cpu->scratch + 63) & ~(size_t)63) * (size_t)threads;
    cpu->scratch = aligned_alloc(64, scratch_bytes);
    cpu->workers = calloc((size_t)threads, sizeof *cpu->workers);
    if (!cpu->scratch || !cpu->workers)
        goto fail;
    for (; cpu->started < threads - 1; cpu->started++) {
        struct worker *worker = &cpu->workers[cpu->started];
        *worker = (struct worker){.cpu = cpu, .number = cpu->started + 1};
        if (pthread_create(&worker->thread, NULL, pool_thread, worker) != 0)
            goto fail;
    }
    return cpu;
fail:
    cpu_close(cpu);
    return NULL;
}

void cpu_close(struct cpu *cpu)
{
    if (!cpu)
        return;
    pthread_mutex_lock(&cpu->lock);
    atomic_store(&cpu->closing, true);
    /* A new call with no task ends the spinning, too. */
    atomic_fetch_add(&cpu->ticket, (uint64_t)1 << 32);
    pthread_cond_broadcast(&cpu->wake);
    pthread_mutex_unlock(&cpu->lock);
    for (int i = 0; i < cpu->started; i++)
        pthread_join(cpu->workers[i].thread, NULL);
    pthread_cond_destroy(&cpu->wake);
    pthread_mutex_destroy(&cpu->lock);
    free(cpu->workers);
    free(cpu->scratch);
    free(cpu);
}

int cpu_threads(const struct cpu *cpu)
{
    return cpu->threads;
}
enum cpu_isa cpu_isa(const struct cpu *cpu)
{
    return cpu->isa;
}
const struct cpu_ops *cpu_ops(const struct cpu *cpu)
{
    return cpu->ops;
}
union cpu_scratch *cpu_scratch(const struct cpu *cpu, int thread)
{
    return &cpu->scratch[thread];
}
