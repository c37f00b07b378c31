/* Every CUDA op against its CPU reference over generated shapes, and row independence bit for bit:
 * decode against prefill, alone against in company. Needs a GPU; a plain program (no test library),
 * so it runs on a machine that has only the driver. Exit 0: all held. */
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda.h"
#include "engine/log.h"
#include "kernels/kernels_cuda.h"

static int passed, failed;
static void verdict(bool ok, const char *name, double got, double limit)
{
    printf("%s %-58s %.3g (limit %.3g)\n", ok ? "ok  " : "FAIL", name, got, limit);
    ok ? passed++ : failed++;
}

static uint64_t state = 88172645463325252u;
static float uniform(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (float)((double)(state >> 11) / 9007199254740992.0 * 2 - 1);
}
static uint16_t narrow(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static float widen(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

struct rig {
    struct backend *b;
    struct backend_opts o;
    struct cpu *cpu;
    struct kv_layer cpu_kv;
    struct buffer qkv, out;
    const float *cos_sin_device;
    float *cos_sin;
};

static void must(int rc, const struct err *err)
{
    if (rc < 0) {
        printf("FAIL %s\n", err->msg);
        exit(1);
    }
}

static void rig_open_slots(struct rig *r, int heads, int kv_heads, int head_dim, int positions,
                           int rows, int slots)
{
    struct err err = {0};
    memset(r, 0, sizeof *r);
    const int pages_per_slot = (positions + 63) / 64;
    r->o = (struct backend_opts){.rows_cap = rows,
                                 .logits_cap = 16,
                                 .n_layers = 1,
                                 .slots = slots,
                                 .n_pages = slots * pages_per_slot,
                                 .pages_per_slot = pages_per_slot,
                                 .n_heads = heads,
                                 .n_kv_heads = kv_heads,
                                 .head_dim = head_dim,
                                 .vocab_size = 1000,
                                 .dtype = DTYPE_BF16};
    must(backend_cuda_open(&r->b, &r->o, 0, &err), &err);
    const int64_t cols = (int64_t)(heads + 2 * kv_heads) * head_dim;
    must(r->b->ops->buffer_open(r->b, &r->qkv, rows, cols, &err), &err);
    must(r->b->ops->buffer_open(r->b, &r->out, rows, (int64_t)heads * head_dim, &err), &err);
    r->cos_sin = malloc((size_t)positions * (size_t)head_dim * 4);
    for (int p = 0; p < positions; p++)
        for (int i = 0; i < head_dim / 2; i++) {
            const double angle = p * pow(10000.0, -2.0 * i / head_dim);
            r->cos_sin[p * head_dim + i] = (float)cos(angle);
            r->cos_sin[p * head_dim + head_dim / 2 + i] = (float)sin(angle);
        }
    must(r->b->ops->vector_open(r->b, &r->cos_sin_device, r->cos_sin, (int64_t)positions * head_dim,
                                &err),
         &err);
    r->cpu = cpu_open((int)TR_MIN(8, (long)8), cpu_isa_best());
    r->cpu_kv =
        (struct kv_layer){.dtype = DTYPE_BF16, .n_kv_heads = kv_heads, .head_dim = head_dim};
    r->cpu_kv.base = calloc((size_t)r->o.n_pages, (size_t)kv_heads * 2 * 64 * (size_t)head_dim * 2);
}

static void rig_open(struct rig *r, int heads, int kv_heads, int head_dim, int positions, int rows)
{
    rig_open_slots(r, heads, kv_heads, head_dim, positions, rows, 8);
}

static void rig_close(struct rig *r)
{
    r->b->ops->close(r->b);
    cpu_close(r->cpu);
    free(r->cpu_kv.base);
    free(r->cos_sin);
}

/* Runs rope_kv and attention of rows [from, to) of one sequence of `slot`; the bytes of out come
 * back. */
static void gpu_rows(struct rig *r, const uint16_t *qkv, int from, int to, int slot,
                     const int32_t *table, int window, uint16_t *out)
{
    struct err err = {0};
    const int n = to - from;
    const int64_t cols = r->qkv.cols, out_cols = r->out.cols;
    int32_t *position = malloc((size_t)n * 4), *slots = malloc((size_t)n * 4),
            *tokens = calloc((size_t)n, 4);
    for (int i = 0; i < n; i++) {
        position[i] = from + i;
        slots[i] = slot;
    }
    struct step step = {.rows = {n, position, slots, table, r->o.pages_per_slot}, .tokens = tokens};
    must(r->b->ops->step_begin(r->b, &step, &err), &err);
    cudaDeviceSynchronize();
    cudaMemcpy(r->qkv.data, qkv + from * cols, (size_t)(n * cols) * 2, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize(); /* small pageable copies return before the bytes have arrived */
    const struct rope_args rope = {r->cos_sin_device, NULL, NULL, 1e-6f, r->o.n_heads, DTYPE_BF16};
    const struct attention_shape shape = {r->o.n_heads, r->o.n_kv_heads, r->o.head_dim, window};
    r->b->ops->rope_kv(r->b, &r->qkv, 0, &rope);
    r->b->ops->attention(r->b, &r->out, &r->qkv, 0, &shape);
    struct sample_token none[1];
    must(r->b->ops->step_end(r->b, none, &err), &err);
    cudaDeviceSynchronize();
    cudaMemcpy(out, r->out.data, (size_t)(n * out_cols) * 2, cudaMemcpyDeviceToHost);
    free(position), free(slots), free(tokens);
}

static double rms_gap(const uint16_t *got, const float *want, int64_t n)
{
    double gap = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)widen(got[i]) - want[i];
        gap += d * d, size += (double)want[i] * want[i];
    }
    return isfinite(gap) ? sqrt(gap / (size + 1e-30)) : INFINITY;
}

static void attention_case(int heads, int kv_heads, int head_dim, int n_keys, int window)
{
    struct rig r;
    rig_open(&r, heads, kv_heads, head_dim, n_keys, n_keys);
    const int64_t cols = r.qkv.cols, out_cols = r.out.cols;
    uint16_t *qkv = malloc((size_t)(n_keys * cols) * 2);
    float *wide = malloc((size_t)(n_keys * cols) * 4),
          *want = malloc((size_t)(n_keys * out_cols) * 4);
    for (int64_t i = 0; i < n_keys * cols; i++) {
        qkv[i] = narrow(2.f * uniform());
        wide[i] = widen(qkv[i]);
    }
    int32_t *table = malloc((size_t)r.o.slots * (size_t)r.o.pages_per_slot * 4);
    for (int i = 0; i < r.o.slots * r.o.pages_per_slot; i++) /* scattered pages, each its own */
        table[i] = (i * 7 + 3) % r.o.n_pages;
    for (int i = 0; r.o.n_pages % 7 == 0 && i < r.o.slots * r.o.pages_per_slot; i++)
        table[i] = i;
    int32_t *position = malloc((size_t)n_keys * 4), *slots = malloc((size_t)n_keys * 4);
    for (int i = 0; i < n_keys; i++)
        position[i] = i, slots[i] = 2;
    const struct kv_rows rows = {n_keys, position, slots, table, r.o.pages_per_slot};
    const struct rope_args rope = {r.cos_sin, NULL, NULL, 1e-6f, heads, DTYPE_BF16};
    rope_kv_cpu(r.cpu, wide, &r.cpu_kv, &rows, &rope);
    attention_cpu(r.cpu, want, wide, &r.cpu_kv, &rows, heads, window, DTYPE_BF16);

    uint16_t *whole = malloc((size_t)(n_keys * out_cols) * 2),
             *part = malloc((size_t)(n_keys * out_cols) * 2);
    char name[128];
    gpu_rows(&r, qkv, 0, n_keys, 2, table, window, whole);
    snprintf(name, sizeof name, "attention H%d G%d Dh%d keys %d window %d: CPU", heads, kv_heads,
             head_dim, n_keys, window);
    const double gap = rms_gap(whole, want, n_keys * out_cols);
    verdict(gap < 1e-2, name, gap, 1e-2);

    /* The same rows in odd chunks on another slot, then the last ones as decodes: same bytes. */
    int64_t differ = 0;
    for (int from = 0, chunk = 1; from < n_keys; chunk = chunk * 3 % 200 + 2) {
        const int to = TR_MIN(n_keys, from + chunk);
        gpu_rows(&r, qkv, from, to, 5, table, window, part + from * out_cols);
        from = to;
    }
    differ += memcmp(whole, part, (size_t)(n_keys * out_cols) * 2) != 0;
    for (int row = TR_MAX(0, n_keys - 3); row < n_keys; row++) {
        gpu_rows(&r, qkv, row, row + 1, 5, table, window, part);
        differ += memcmp(whole + row * out_cols, part, (size_t)out_cols * 2) != 0;
    }
    snprintf(name, sizeof name, "attention H%d G%d Dh%d keys %d window %d: chunks, decode", heads,
             kv_heads, head_dim, n_keys, window);
    verdict(differ == 0, name, (double)differ, 0);
    free(qkv), free(wide), free(want), free(table), free(position), free(slots), free(whole),
        free(part);
    rig_close(&r);
}

/* The attention of one step over pages full of noise. */
static void step_attention(struct rig *r, const struct kv_rows *rows, int window, uint16_t *out)
{
    struct err err = {0};
    int32_t *tokens = calloc((size_t)rows->n, 4);
    const struct step step = {.rows = *rows, .tokens = tokens};
    const struct attention_shape shape = {r->o.n_heads, r->o.n_kv_heads, r->o.head_dim, window};
    struct sample_token none[1];
    must(r->b->ops->step_begin(r->b, &step, &err), &err);
    cudaMemset(r->out.data, 0xff, (size_t)(rows->n * r->out.cols) * 2);
    cudaDeviceSynchronize();
    r->b->ops->attention(r->b, &r->out, &r->qkv, 0, &shape);
    must(r->b->ops->step_end(r->b, none, &err), &err);
    cudaDeviceSynchronize();
    cudaMemcpy(out, r->out.data, (size_t)(rows->n * r->out.cols) * 2, cudaMemcpyDeviceToHost);
    free(tokens);
}

static void noise(void *device, int64_t n, float size)
{
    uint16_t *host = malloc((size_t)n * 2);
    for (int64_t i = 0; i < n; i++)
        host[i] = narrow(size * (uniform() + uniform()));
    cudaMemcpy(device, host, (size_t)n * 2, cudaMemcpyHostToDevice);
    free(host);
}

/* Decode rows of two groups, each with a prefix of its own, one row in eight with none, and one
 * sequence that prefills behind the first prefix: the same bytes with and without the groups. */
static void shared_case(int heads, int kv_heads, int head_dim, int n, int pages, int window)
{
    struct rig r;
    const int prefill = 5, positions = (pages + 12) * 64, rows_n = n + prefill;
    rig_open_slots(&r, heads, kv_heads, head_dim, positions, rows_n, n + 1);
    const int stride = r.o.pages_per_slot;
    int32_t *table = malloc((size_t)(n + 1) * (size_t)stride * 4);
    int32_t *position = malloc((size_t)rows_n * 4), *slots = malloc((size_t)rows_n * 4);
    for (int i = 0; i <= n; i++) {
        const int with = i % 8 == 7 ? 0 : i < n ? pages + i % 2 * 3 : pages;
        for (int p = 0; p < stride; p++)
            table[i * stride + p] = (p < with ? i % 2 * stride : i * stride) + p;
        position[i] = TR_MAX(0, pages * 64 - 70 + i * 37 % 500);
        slots[i] = i;
    }
    for (int k = 0; k < prefill; k++)
        position[n + k] = pages * 64 + 30 + k, slots[n + k] = n;
    noise(backend_cuda_kv(r.b), (int64_t)r.o.n_pages * 2 * kv_heads * 64 * head_dim, 1.f);
    noise(r.qkv.data, rows_n * r.qkv.cols, 1.5f);
    const struct kv_rows rows = {rows_n, position, slots, table, stride};
    const size_t bytes = (size_t)(rows_n * r.out.cols) * 2;
    uint16_t *apart = malloc(bytes), *together = malloc(bytes);
    backend_cuda_share_from(1 << 30);
    step_attention(&r, &rows, window, apart);
    const int none = backend_cuda_shared_rows(r.b);
    int64_t differ = 0;
    backend_cuda_share_from(1);
    for (int turn = 0; turn < 6; turn++) { /* again: a race moves */
        backend_cuda_deep_from(turn % 2 ? 1 : 1 << 30);
        step_attention(&r, &rows, window, together);
        for (int64_t i = 0; i < rows_n; i++)
            differ += memcmp(apart + i * r.out.cols, together + i * r.out.cols,
                             (size_t)r.out.cols * 2) != 0;
    }
    const int some = backend_cuda_shared_rows(r.b);
    backend_cuda_share_from(0);
    backend_cuda_deep_from(0);
    char name[128];
    snprintf(name, sizeof name, "shared H%d G%d Dh%d rows %d pages %d window %d: %d in groups",
             heads, kv_heads, head_dim, n, pages, window, some);
    verdict(differ == 0 && none == 0 && (n >= 24 && pages >= 4 ? some > n / 2 : n > 2 || some == 0),
            name, (double)differ, 0);
    free(table), free(position), free(slots), free(apart), free(together);
    rig_close(&r);
}

/* The last rows of a long sequence: as one prefill, then each as a decode, whose keys are cut over
 * many warps: the same bytes. */
static void long_case(int heads, int kv_heads, int head_dim, int keys, int window)
{
    enum { LAST = 3 };
    struct rig r;
    rig_open_slots(&r, heads, kv_heads, head_dim, keys, LAST, 1);
    int32_t *table = malloc((size_t)r.o.pages_per_slot * 4), position[LAST], slots[LAST] = {0};
    for (int p = 0; p < r.o.pages_per_slot; p++)
        table[p] = p;
    for (int i = 0; i < LAST; i++)
        position[i] = keys - LAST + i;
    noise(backend_cuda_kv(r.b), (int64_t)r.o.n_pages * 2 * kv_heads * 64 * head_dim, 1.f);
    noise(r.qkv.data, LAST * r.qkv.cols, 1.5f);
    const size_t row = (size_t)r.qkv.cols * 2, out_row = (size_t)r.out.cols * 2;
    uint16_t *qkv = malloc(LAST * row), *whole = malloc(LAST * out_row), *one = malloc(out_row);
    cudaMemcpy(qkv, r.qkv.data, LAST * row, cudaMemcpyDeviceToHost);
    struct kv_rows rows = {LAST, position, slots, table, r.o.pages_per_slot};
    step_attention(&r, &rows, window, whole);
    int differ = 0;
    for (int k = 0; k < 2 * LAST; k++) {
        const int i = k % LAST;
        backend_cuda_deep_from(k < LAST ? 1 : 1 << 30);
        rows = (struct kv_rows){1, position + i, slots, table, r.o.pages_per_slot};
        cudaMemcpy(r.qkv.data, qkv + (size_t)i * (row / 2), row, cudaMemcpyHostToDevice);
        step_attention(&r, &rows, window, one);
        differ += memcmp(whole + (size_t)i * (out_row / 2), one, out_row) != 0;
    }
    char name[128];
    backend_cuda_deep_from(0);
    snprintf(name, sizeof name, "long H%d G%d Dh%d keys %d window %d: prefill, decode", heads,
             kv_heads, head_dim, keys, window);
    verdict(differ == 0, name, differ, 0);
    free(table), free(qkv), free(whole), free(one);
    rig_close(&r);
}

static void linear_case(int64_t n, int64_t k, bool bias, bool residual)
{
    struct err err = {0};
    struct rig r;
    const int rows = 700;
    rig_open(&r, 4, 2, 64, 64, rows);
    struct buffer x, y;
    struct weight *w;
    must(r.b->ops->buffer_open(r.b, &x, rows, k, &err), &err);
    must(r.b->ops->buffer_open(r.b, &y, rows, n, &err), &err);
    must(r.b->ops->weight_open(r.b, &w, n, k, DTYPE_BF16, &err), &err);
    uint16_t *hw = malloc((size_t)(n * k) * 2), *hx = malloc((size_t)(rows * k) * 2);
    uint16_t *hy = malloc((size_t)(rows * n) * 2), *first = malloc((size_t)n * 2);
    float *hb = malloc((size_t)n * 4), *wx = malloc((size_t)(rows * k) * 4),
          *want = malloc((size_t)(rows * n) * 4);
    float *res = malloc((size_t)(rows * n) * 4);
    uint16_t *hres = malloc((size_t)(rows * n) * 2);
    for (int64_t i = 0; i < n * k; i++)
        hw[i] = narrow(uniform() * 0.1f);
    for (int64_t i = 0; i < rows * k; i++)
        hx[i] = narrow(uniform()), wx[i] = widen(hx[i]);
    for (int64_t i = 0; i < n; i++)
        hb[i] = widen(narrow(uniform()));
    for (int64_t i = 0; i < rows * n; i++)
        hres[i] = narrow(uniform()), res[i] = widen(hres[i]);
    must(r.b->ops->weight_load(r.b, w, 0, hw, n, &err), &err);
    const float *db = NULL;
    must(r.b->ops->vector_open(r.b, &db, hb, n, &err), &err);
    struct cpu_weight cw = {.dtype = DTYPE_BF16, .n = n, .k = k};
    cw.data = mem_alloc(cpu_weight_bytes(n, k, DTYPE_BF16), 1);
    cpu_weight_pack(r.cpu, &cw, 0, hw, n);
    linear_cpu(r.cpu, want, wx, &cw, bias ? hb : NULL, residual ? res : NULL, rows, DTYPE_BF16);
    cudaMemcpy(x.data, hx, (size_t)(rows * k) * 2, cudaMemcpyHostToDevice);
    int64_t differ = 0;
    double gap = 0;
    int32_t zeros[700] = {0}, *table = calloc((size_t)r.o.slots * (size_t)r.o.pages_per_slot, 4);
    int32_t slots[700], positions[700];
    for (int i = 0; i < rows; i++)
        slots[i] = 0, positions[i] = i % 64;
    static const int counts[] = {700, 700, 1, 2, 17, 64, 65, 256, 512};
    for (size_t c = 0; c < TR_COUNT(counts); c++) {
        struct step step = {.rows = {counts[c], positions, slots, table, r.o.pages_per_slot},
                            .tokens = zeros};
        must(r.b->ops->step_begin(r.b, &step, &err), &err);
        if (residual)
            cudaMemcpy(y.data, hres, (size_t)(rows * n) * 2, cudaMemcpyHostToDevice);
        cudaDeviceSynchronize();
        r.b->ops->linear(r.b, &y, &x, w, bias ? db : NULL, residual ? &y : NULL);
        struct sample_token none[1];
        must(r.b->ops->step_end(r.b, none, &err), &err);
        cudaDeviceSynchronize();
        cudaMemcpy(hy, y.data, (size_t)(counts[c] * n) * 2, cudaMemcpyDeviceToHost);
        gap = fmax(gap, rms_gap(hy, want, counts[c] * n));
        if (c == 0)
            memcpy(first, hy, (size_t)n * 2);
        differ += memcmp(first, hy, (size_t)n * 2) != 0;
        if (memcmp(first, hy, (size_t)n * 2) != 0)
            printf("     %d rows differ from %d\n", counts[c], counts[0]);
    }
    char name[128];
    snprintf(name, sizeof name, "linear %lldx%lld%s%s: CPU", (long long)n, (long long)k,
             bias ? " bias" : "", residual ? " residual" : "");
    verdict(gap < 5e-3, name, gap, 5e-3);
    snprintf(name, sizeof name, "linear %lldx%lld: row 0 at 8 step sizes", (long long)n,
             (long long)k);
    verdict(differ == 0, name, (double)differ, 0);
    free(hw), free(hx), free(hy), free(first), free(hb), free(wx), free(want), free(res),
        free(hres), free(table);
    mem_free(cw.data);
    rig_close(&r);
}

/* A few small cases, for compute-sanitizer; attention alone for racecheck, which cannot run
 * cuBLASLt's kernels. */
static int small_cases(bool attention)
{
    attention_case(12, 2, 128, 200, 0);
    attention_case(6, 2, 32, 129, 0);
    attention_case(4, 2, 64, 600, 100);
    shared_case(12, 2, 128, 40, 7, 0);
    shared_case(4, 4, 32, 9, 4, 0);
    long_case(12, 2, 128, 9000, 0);
    if (!attention)
        linear_case(1152, 896, true, false);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/* usage: kernels_cuda_test [portable] [small [attention]]   portable: the kernels of other cards */
int main(int argc, char **argv)
{
    log_setup(getenv("VERBOSE") ? LOG_DEBUG : LOG_WARN, LOG_LOGFMT, 1);
    printf("device %s\n", backend_cuda_device_name(0));
    if (argc > 1 && strcmp(argv[1], "portable") == 0) {
        backend_cuda_portable(true);
        argc--, argv++;
    }
    if (argc > 1 && strcmp(argv[1], "small") == 0)
        return small_cases(argc > 2);
    static const int keys[] = {1, 2, 31, 64, 127, 128, 129, 200, 511, 513, 1025, 1500, 4097};
    for (size_t i = 0; i < TR_COUNT(keys); i++) {
        attention_case(12, 2, 128, keys[i], 0);
        attention_case(6, 2, 32, keys[i], 0);
        attention_case(14, 2, 64, keys[i], 0);
        attention_case(8, 8, 128, keys[i], 0);
        attention_case(16, 2, 128, keys[i], 100);
    }
    static const int far[] = {8192, 8321, 16385, 32768};
    for (size_t i = 0; i < TR_COUNT(far); i++) {
        long_case(12, 2, 128, far[i], 0);
        long_case(14, 2, 64, far[i], i % 2 ? 9000 : 0);
        long_case(6, 2, 32, far[i], i % 2 ? 0 : 300);
    }
    static const int members[] = {1, 2, 6, 7, 24, 43, 129, 300};
    static const int pages[] = {3, 4, 5, 8, 15, 16, 33};
    for (size_t i = 0; i < TR_COUNT(members); i++)
        for (size_t k = 0; k < TR_COUNT(pages); k++)
            shared_case(12, 2, 128, members[i], pages[k], k % 3 == 2 ? 300 : 0);
    for (size_t k = 0; k < TR_COUNT(pages); k++) {
        shared_case(14, 2, 64, 40, pages[k], 0);
        shared_case(6, 2, 32, 40, pages[k], k % 2 ? 200 : 0);
        shared_case(8, 8, 128, 150, pages[k], 0);
        shared_case(16, 2, 128, 50, pages[k], 0);
    }
    linear_case(2048, 1536, true, false);
    linear_case(1536, 1536, false, true);
    linear_case(17920, 1536, false, false);
    linear_case(1536, 8960, false, true);
    linear_case(1152, 896, true, false);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
