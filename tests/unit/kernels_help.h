/* kernels_help: what the kernel tests share: random values and the contexts under test. */
#ifndef TRANCHE_TESTS_UNIT_KERNELS_HELP_H
#define TRANCHE_TESTS_UNIT_KERNELS_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static uint64_t seed = 1;
static inline uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) << 1 | (uint32_t)(seed >> 63);
}
static inline float random_float(void) /* roughly normal */
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)random_bits() * 0x1p-32f - 0.5f;
    return sum * 1.7f;
}
static inline int random_below(int n)
{
    return (int)(random_bits() % (uint32_t)n);
}
static inline void *take(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    assert_non_null(p);
    return p;
}
static inline float *random_array(int64_t n, enum dtype round)
{
    float *a = take((size_t)n * sizeof *a);
    for (int64_t i = 0; i < n; i++)
        a[i] = float_rounded(random_float(), round);
    return a;
}

/* The contexts under test: each vector unit with one thread, the best one with more. */
enum { CONTEXTS_MAX = 6 };
static struct cpu *contexts[CONTEXTS_MAX];
static int n_contexts;
static inline int contexts_open(void **state)
{
    (void)state;
    for (enum cpu_isa isa = CPU_ISA_SCALAR; isa <= CPU_ISA_AVX512; isa++) {
        struct cpu *cpu = cpu_open(1, isa);
        if (cpu)
            contexts[n_contexts++] = cpu;
        else
            print_message("no %s here\n", cpu_isa_name(isa));
    }
    contexts[n_contexts++] = cpu_open(2, cpu_isa_best());
    contexts[n_contexts++] = cpu_open(5, cpu_isa_best());
    return contexts[0] && contexts[n_contexts - 1] && contexts[n_contexts - 2] ? 0 : -1;
}
static inline int contexts_close(void **state)
{
    (void)state;
    for (int i = 0; i < n_contexts; i++)
        cpu_close(contexts[i]);
    cpu_close(NULL);
    return 0;
}

static inline void same_bits(const char *what, int context, const float *got, const float *want,
                             int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (bits_of_float(got[i]) != bits_of_float(want[i]))
            fail_msg("%s, %s with %d threads: element %lld: %a, want %a", what,
                     cpu_isa_name(cpu_isa(contexts[context])), cpu_threads(contexts[context]),
                     (long long)i, (double)got[i], (double)want[i]);
}

#endif
