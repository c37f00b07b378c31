/* cuda_plans: GEMM plans from one start to the next. One file a card and library:
 *   8 bytes of magic, the key (text that names everything the plans depend on), their number, the
 *   records, a hash of all that.
 * The key holds the rule of proof (PLAN_RULE), the card, its multiprocessors, the driver, cuBLASLt
 * and this build's layout of a record; another key is another file name, and a file whose key,
 * length or hash differs is not used. What a record says was proven on this very card model, driver
 * and library. */
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/backend_cuda_impl.h"
#include "engine/log.h"

enum { KEY_BYTES = 512, RECORDS_MAX = PLANS_MAX };
static const char magic[8] = "TRPLANS1";

struct plan_file {
    char magic[8];
    char key[KEY_BYTES];
    int64_t n;
    struct plan_record records[RECORDS_MAX];
};

void backend_cuda_libraries(size_t *cublas_lt, int *runtime)
{
    *cublas_lt = cublasLtGetVersion();
    if (cudaRuntimeGetVersion(runtime) != cudaSuccess)
        *runtime = 0;
}

static void key_of(const struct cuda_backend *b, char key[static KEY_BYTES])
{
    struct cudaDeviceProp prop;
    int driver = 0, runtime = 0;
    memset(key, 0, KEY_BYTES);
    if (cudaGetDeviceProperties(&prop, b->device) != cudaSuccess ||
        cudaDriverGetVersion(&driver) != cudaSuccess ||
        cudaRuntimeGetVersion(&runtime) != cudaSuccess)
        return;
    snprintf(key, KEY_BYTES,
             "rule %d %s sm_%d%d x%d driver %d runtime %d cublasLt %zu rows %d logits %d %zu",
             PLAN_RULE, prop.name, prop.major, prop.minor, prop.multiProcessorCount, driver,
             runtime, cublasLtGetVersion(), b->opts.rows_cap, b->opts.logits_cap,
             sizeof(struct plan_record));
}

static bool path_of(const struct cuda_backend *b, const char *key, char *out, size_t cap)
{
    return b->plan_cache && key[0] &&
           (size_t)snprintf(out, cap, "%s/gemm-%016llx.plans", b->plan_cache,
                            (unsigned long long)hash_bytes(key, KEY_BYTES, 1)) < cap;
}

static size_t bytes_of(int64_t n)
{
    return offsetof(struct plan_file, records) + (size_t)n * sizeof(struct plan_record);
}

static bool good(const struct plan_file *file, size_t bytes, const char *key, uint64_t sum)
{
    return bytes >= bytes_of(0) && memcmp(file->magic, magic, sizeof magic) == 0 &&
           memcmp(file->key, key, KEY_BYTES) == 0 && file->n >= 0 && file->n <= RECORDS_MAX &&
           bytes == bytes_of(file->n) && hash_bytes(file, bytes, 2) == sum;
}

static void read_records(struct cuda_backend *b)
{
    char key[KEY_BYTES], path[PATH_MAX];
    uint64_t sum = 0;
    b->n_records = 0;
    key_of(b, key);
    if (!path_of(b, key, path, sizeof path))
        return;
    FILE *f = fopen(path, "re");
    struct plan_file *file = f ? mem_alloc(1, sizeof *file + sizeof sum) : NULL;
    size_t bytes = file ? fread(file, 1, sizeof *file + sizeof sum, f) : 0;
    if (bytes > sizeof sum) {
        bytes -= sizeof sum;
        memcpy(&sum, (char *)file + bytes, sizeof sum);
        if (good(file, bytes, key, sum) && file->n > 0)
            b->records = mem_alloc((size_t)file->n, sizeof *b->records);
        if (b->records) {
            memcpy(b->records, file->records, (size_t)file->n * sizeof *b->records);
            b->n_records = (int)file->n;
        }
        LOG(LOG_DEBUG, "cuda_plans_read", LOG_S("path", path), LOG_I("plans", b->n_records));
    }
    if (f)
        fclose(f);
    mem_free(file);
}

const struct plan_record *cuda_plans_find(struct cuda_backend *b, const struct plan *p)
{
    if (b->n_records < 0)
        read_records(b);
    for (int i = 0; i < b->n_records; i++) {
        const struct plan_record *r = &b->records[i];
        if (r->n == p->n && r->k == p->k && r->m == p->m && r->kind == p->kind &&
            r->widest == p->widest)
            return r;
    }
    return NULL;
}

static int fill(const struct cuda_backend *b, struct plan_file *file)
{
    int n = 0;
    for (; n < b->n_plans; n++) {
        const struct plan *p = &b->plans[n];
        file->records[n] = (struct plan_record){p->n,      p->k,      p->m,      p->kind, p->widest,
                                                p->proven, p->chosen, p->run_as, p->algo};
    }
    /* What other models on this card left there stays. */
    for (int i = 0; i < b->n_records && n < RECORDS_MAX; i++) {
        const struct plan_record *r = &b->records[i];
        bool known = false;
        for (int k = 0; k < b->n_plans && !known; k++)
            known = b->plans[k].n == r->n && b->plans[k].k == r->k && b->plans[k].m == r->m &&
                    b->plans[k].kind == r->kind;
        if (!known)
            file->records[n++] = *r;
    }
    return n;
}

void cuda_plans_write(const struct cuda_backend *b)
{
    char key[KEY_BYTES], path[PATH_MAX], fresh[PATH_MAX + 32];
    struct plan_file *file = mem_alloc(1, sizeof *file + sizeof(uint64_t));
    key_of(b, key);
    if (!file || !path_of(b, key, path, sizeof path)) {
        mem_free(file);
        return;
    }
    memcpy(file->magic, magic, sizeof magic);
    memcpy(file->key, key, sizeof file->key);
    file->n = fill(b, file);
    const size_t bytes = bytes_of(file->n);
    const uint64_t sum = hash_bytes(file, bytes, 2);
    memcpy((char *)file + bytes, &sum, sizeof sum);
    snprintf(fresh, sizeof fresh, "%s.%d.%d", path, (int)getpid(), b->device);
    FILE *f = fopen(fresh, "we");
    bool written = f && fwrite(file, 1, bytes + sizeof sum, f) == bytes + sizeof sum;
    written = f && fclose(f) == 0 && written;
    if (!written || rename(fresh, path) != 0) {
        unlink(fresh);
        LOG(LOG_WARN, "cuda_plans_not_kept", LOG_S("path", path));
    }
    mem_free(file);
}
