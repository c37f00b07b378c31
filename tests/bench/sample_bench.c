/* sample_bench: processor time of the sampler for a row of 151,936 logits: flat ones (normal,
 * deviation 2.5) and peaked ones (eleven stand 20 above). Each figure is the best of twelve. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base.h"
#include "kernels/kernels.h"

enum { V = 151936 };

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}
static double best(double a, double b)
{
    return a < b ? a : b;
}
static void *take(size_t bytes)
{
    void *p = mem_alloc(bytes, 1);
    if (!p) {
        fprintf(stderr, "sample_bench: cannot take %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}
static double sample_time(float *logits, const float *from, const struct sample_params *params,
                          void *scratch)
{
    struct sample_row row = {.params = params, .forced = -1};
    struct sample_token token;
    double least = 1e9;
    for (int run = 0; run < 12; run++) {
        memcpy(logits, from, V * sizeof *logits);
        row.n_output = run;
        double start = now();
        sample_cpu(logits, V, &row, &token, scratch);
        least = best(least, now() - start);
    }
    return least;
}
int main(void)
{
    static float flat[V], peaked[V], logits[V];
    uint64_t seed = 1;
    for (int i = 0; i < V; i++) {
        float sum = 0;
        for (int j = 0; j < 8; j++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(seed >> 40) * 0x1p-24f - 0.5f;
        }
        flat[i] = sum * 1.2f * 2.5f; /* deviation 2.5 */
        peaked[i] = flat[i] + (i % 15013 == 7 ? 20.0f : 0);
    }
    void *scratch = take(sample_scratch_bytes(V));
    const struct sample_params base = {
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_top = -1};
    struct sample_params greedy = base, logprobs = base, nucleus = base, top_k = base;
    greedy.temperature = 0;
    logprobs.temperature = 0;
    logprobs.n_top = 20;
    nucleus.temperature = 0.6f;
    nucleus.top_p = 0.95f;
    top_k.top_k = 50;
    const struct {
        const char *name;
        const struct sample_params *params;
    } cases[] = {{"greedy", &greedy},
                 {"greedy, logprobs, top 20", &logprobs},
                 {"temperature 1", &base},
                 {"temperature 0.6, top_p 0.95", &nucleus},
                 {"temperature 1, top_k 50", &top_k}};
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        for (int kind = 0; kind < 2; kind++) {
            char what[64];
            snprintf(what, sizeof what, "sample %s, %s logits", cases[i].name,
                     kind ? "peaked" : "flat");
            printf("%-56s %10.2f us/row\n", what,
                   1e6 * sample_time(logits, kind ? peaked : flat, cases[i].params, scratch));
        }
    mem_free(scratch);
    return 0;
}
