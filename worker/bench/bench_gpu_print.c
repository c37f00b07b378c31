/* bench_gpu_print: the benchmark's document as tables. See bench_gpu.h. */
#include <stdio.h>
#include <string.h>

#include "worker/bench/bench_gpu.h"
#include "worker/bench/bench_json.h"

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

/* "  x 1.23" where the earlier document has the figure. */
static void print_ratio(double value, double was)
{
    if (was > 0)
        printf(" x %.2f", value / was);
}

static void print_ceilings(const json_t *doc, const json_t *old)
{
    const json_t *c = json_object_get(doc, "ceilings"), *o = json_object_get(old, "ceilings");
    printf("copy %.3f TB/s", number(c, "copy_TBps"));
    print_ratio(number(c, "copy_TBps"), number(o, "copy_TBps"));
    printf(", bf16 8192^3 %.0f TFLOP/s", number(c, "bf16_TFLOPs"));
    print_ratio(number(c, "bf16_TFLOPs"), number(o, "bf16_TFLOPs"));
    putchar('\n');
}

static void print_runs(const json_t *doc, const json_t *old)
{
    size_t i;
    json_t *r;
    if (json_array_size(json_object_get(doc, "runs")) == 0)
        return;
    printf("\n%-9s %8s %9s %9s %9s %8s %8s %8s %7s\n", "workload", "requests", "tok/s", "steady",
           "R_seq", "% whole", "% steady", "drain s", "idle %");
    json_array_foreach(json_object_get(doc, "runs"), i, r)
    {
        printf("%-9s %8.0f %9.0f %9.0f %9.0f %8.1f %8.1f %8.1f %7.2f", text(r, "workload"),
               number(r, "requests"), number(r, "out_tok_s"), number(r, "out_tok_s_steady"),
               number(r, "r_seq_tok_s"), 100 * number(r, "share_r_seq_whole"),
               100 * number(r, "share_r_seq"), number(r, "drain_seconds"),
               100 * number(r, "gpu_idle_share"));
        print_ratio(number(r, "out_tok_s"),
                    bench_earlier(old, "runs", "workload", text(r, "workload"), "out_tok_s"));
        if (json_object_get(r, "share_weights"))
            printf("  %.1f %% of reading the weights", 100 * number(r, "share_weights"));
        putchar('\n');
    }
    printf("device memory in use %.1f GB, engine open %.2f s\n",
           number(json_array_get(json_object_get(doc, "runs"), 0), "peak_bytes") * 1e-9,
           number(doc, "open_seconds"));
}

static void print_steps(const json_t *doc, const json_t *old)
{
    size_t i;
    json_t *s, *value;
    const char *name;
    json_array_foreach(json_object_get(doc, "steps"), i, s)
    {
        const double sum = number(s, "ops_sum_ms");
        printf("\nstep of %s: %.0f decodes at %.0f, %.0f prompt rows: %.2f ms, host %.2f ms",
               text(s, "step"), number(s, "decodes"), number(s, "context"),
               number(s, "prompt_rows"), number(s, "ms"), number(s, "host_ms"));
        print_ratio(number(s, "ms"), bench_earlier(old, "steps", "step", text(s, "step"), "ms"));
        printf("\n");
        json_object_foreach(json_object_get(s, "ops_ms"), name, value)
            printf("  %-18s %8.3f ms %6.1f %%\n", name, json_number_value(value),
                   sum > 0 ? 100 * json_number_value(value) / sum : 0);
    }
}

static void print_lists(const json_t *doc, const json_t *old)
{
    size_t i;
    json_t *m;
    if (json_object_get(doc, "attention"))
        printf("\ndecode attention, %% of copy: in a step, a launch behind the other\n");
    json_array_foreach(json_object_get(doc, "attention"), i, m)
    {
        printf("  %-12s %6.1f %% %6.1f %%", text(m, "attention"), 100 * number(m, "share_copy"),
               100 * number(m, "row_share_copy"));
        print_ratio(number(m, "share_copy"), bench_earlier(old, "attention", "attention",
                                                           text(m, "attention"), "share_copy"));
        putchar('\n');
    }
    if (json_object_get(doc, "slots"))
        printf("\nsteps of the steady state over slots\n");
    json_array_foreach(json_object_get(doc, "slots"), i, m)
    {
        printf("  %-9s %9.2f ms %10.0f tok/s %6.1f %% of R_seq", text(m, "point"), number(m, "ms"),
               number(m, "out_tok_s"),
               100 * number(m, "out_tok_s") / number(m, "r_seq_tok_s_at_slots"));
        print_ratio(number(m, "out_tok_s"),
                    bench_earlier(old, "slots", "point", text(m, "point"), "out_tok_s"));
        putchar('\n');
    }
    if (json_object_get(doc, "gemms"))
        printf("\nproducts\n");
    json_array_foreach(json_object_get(doc, "gemms"), i, m)
    {
        printf("  %-14s %9.1f us %7.0f TFLOP/s", text(m, "gemm"), number(m, "us"),
               number(m, "TFLOPs"));
        print_ratio(number(m, "TFLOPs"),
                    bench_earlier(old, "gemms", "gemm", text(m, "gemm"), "TFLOPs"));
        putchar('\n');
    }
}

void bench_gpu_print(const json_t *doc, const json_t *old)
{
    printf("%s, driver %s, %s\n%s\n", text(doc, "device"), text(doc, "driver"), text(doc, "date"),
           text(doc, "model"));
    print_ceilings(doc, old);
    print_lists(doc, old);
    print_steps(doc, old);
    print_runs(doc, old);
    fflush(stdout);
}
