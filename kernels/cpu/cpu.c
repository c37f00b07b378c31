/* cpu: which vector unit this machine has and the table of inner loops that goes with it. */
#include "kernels/cpu/cpu.h"

#include <stddef.h>

const char *cpu_isa_name(enum cpu_isa isa)
{
    return isa == CPU_ISA_AVX512 ? "avx512" : isa == CPU_ISA_AVX2 ? "avx2" : "scalar";
}

#if defined(__x86_64__)
/* The compiler's own test reads cpuid and, through xgetbv, what the operating system saves. F16C
 * is not asked for: no processor has AVX2 and FMA without it, and clang 14 lacks its name. */
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const struct cpu_ops *cpu_ops_of(enum cpu_isa isa)
{
    switch (isa) {
    case CPU_ISA_SCALAR:
        return &cpu_ops_scalar;
    case CPU_ISA_AVX2:
        return has_avx2() ? &cpu_ops_avx2 : NULL;
    case CPU_ISA_AVX512:
        return has_avx512() ? &cpu_ops_avx512 : NULL;
    }
    return NULL;
}
#else
const struct cpu_ops *cpu_ops_of(enum cpu_isa isa)
{
    return isa == CPU_ISA_SCALAR ? &cpu_ops_scalar : NULL;
}
#endif

enum cpu_isa cpu_isa_best(void)
{
    return cpu_ops_of(CPU_ISA_AVX512) ? CPU_ISA_AVX512
           : cpu_ops_of(CPU_ISA_AVX2) ? CPU_ISA_AVX2
                                      : CPU_ISA_SCALAR;
}

const struct cpu_ops *cpu_ops_best(void)
{
    return cpu_ops_of(cpu_isa_best());
}
