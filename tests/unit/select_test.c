/* select: top_k and top_p on large rows keep what a full sort keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

static void *take(size_t bytes)
{
    void *p = malloc(bytes);
    assert_non_null(p);
    memset(p, 0xee, bytes); /* scratch holds anything */
    return p;
}

static const float *sorted_by;
static int falling(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sorted_by[x] != sorted_by[y])
        return sorted_by[x] > sorted_by[y] ? -1 : 1;
    return x < y ? -1 : 1;
}
static int mass_kept(const float *logits, const int32_t *order, int n, double t, double top_p)
{
    uint64_t total = 0, sum = 0;
    const double top = (double)logits[order[0]];
    for (int i = 0; i < n; i++)
        total += (uint64_t)(exp(((double)logits[order[i]] - top) / t) * 0x1p40);
    for (int i = 0; i < n; i++) {
        sum += (uint64_t)(exp(((double)logits[order[i]] - top) / t) * 0x1p40);
        if ((double)sum >= top_p * (double)total)
            return i + 1;
    }
    return n;
}
static void cuts_agree_with_a_sort(void **state)
{
    (void)state;
    enum { V = 30011 };
    float *logits = take(V * sizeof *logits), *p = take((V + 64) * sizeof *p);
    int32_t *order = take(V * sizeof *order), *ids = take(V * 4);
    uint64_t seed = 5;
    for (int round = 0; round < 6; round++) {
        float max = -INFINITY;
        for (int i = 0; i < V; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            logits[i] = (float)(seed >> 40) * 0x1p-21f - (round % 2 ? 4.0f : 0.0f);
            if (round == 4)
                logits[i] = floorf(logits[i]); /* many ties */
            max = logits[i] > max ? logits[i] : max;
            order[i] = i;
        }
        sorted_by = logits;
        qsort(order, V, sizeof *order, falling);
        const double t = round % 3 == 0 ? 0.6 : 2.0;
        const float top_p = round % 2 ? 0.95f : 0.4f;
        const int top_k = round == 2 ? 700 : 0;
        int want = mass_kept(logits, order, top_k ? top_k : V, t, (double)top_p);
        const struct cpu_ops *ops = cpu_ops_best();
        ops->sample_weights(p, logits, V, max, (float)(1 / t), 0x1p-40f);
        select_cut(ops, &(struct select){p, logits, V, max, (float)t, ids}, top_k, top_p);
        int kept = 0;
        for (int i = 0; i < V; i++)
            kept += p[i] > 0;
        /* Weights in fp32 differ from double in the last place: the edge may move a little. */
        assert_true(abs(kept - want) <= 2 + want / 10000);
        for (int i = 0; i < kept; i++)
            assert_true(p[order[i]] > 0);
    }
    free(logits);
    free(p);
    free(order);
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cuts_agree_with_a_sort)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
