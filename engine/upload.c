/* upload: see upload.h. A ring of blocks: block i lies in slot i % SLOTS; readers take the next
 * block when its slot is free, the consumer takes blocks in order. */
#include "engine/upload.h"

#include <pthread.h>

#include "engine/log.h"

enum {
    BLOCK_BYTES = 8 << 20, /* large enough for a disk's sequential rate, small enough for L3 */
    SLOTS = 4,             /* where the backend reads at once */
    READERS = 3,
    SLOTS_AHEAD = LOAD_MARKS, /* where it copies behind our back: half filling, half on their way */
    READERS_AHEAD = 8,        /* one core copies 2 to 5 GB/s out of the page cache */
    ROWS_ALIGN = 64,          /* blocks start at whole panels of the packed layout */
};
static const int64_t progress_ns = 5000000000;

struct block {
    const struct upload_part *part;
    int64_t row, rows; /* of the part */
    size_t bytes;
};
struct ring {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const struct block *blocks;
    size_t n_blocks, next, used; /* next to read; consumed so far */
    size_t slots;
    char *memory; /* slots x BLOCK_BYTES */
    bool ready[SLOTS_AHEAD], stop;
    struct err err; /* the first reader's failure */
};

static size_t row_bytes(const struct weights_tensor *t)
{
    return (size_t)((t->tensor->end - t->tensor->begin) / (uint64_t)t->n);
}

static size_t rows_of_block(const struct weights_tensor *t)
{
    size_t rows = BLOCK_BYTES / row_bytes(t);
    CHECK(rows >= 1); /* the widest row that a configuration may have is 4 MiB */
    return rows > ROWS_ALIGN ? rows - rows % ROWS_ALIGN : rows;
}

/* Cuts parts into blocks; writes them when `blocks` is not NULL. Returns how many. */
static size_t cut(const struct upload_part *parts, size_t n_parts, struct block *blocks)
{
    size_t n = 0;
    for (size_t i = 0; i < n_parts; i++) {
        int64_t rows = (int64_t)rows_of_block(&parts[i].from);
        for (int64_t row = 0; row < parts[i].from.n; row += rows, n++) {
            int64_t count = TR_MIN(rows, parts[i].from.n - row);
            if (blocks)
                blocks[n] = (struct block){&parts[i], row, count,
                                           (size_t)count * row_bytes(&parts[i].from)};
        }
    }
    return n;
}

static void *read_blocks(void *ctx)
{
    struct ring *r = ctx;
    pthread_mutex_lock(&r->lock);
    while (!r->stop && r->next < r->n_blocks) {
        size_t i = r->next++;
        const struct block *b = &r->blocks[i];
        while (!r->stop && i >= r->used + r->slots)
            pthread_cond_wait(&r->changed, &r->lock);
        if (r->stop)
            break;
        pthread_mutex_unlock(&r->lock);
        const struct weights_tensor *t = &b->part->from;
        struct err err = {0};
        uint64_t at = t->tensor->begin + (uint64_t)b->row * row_bytes(t);
        int rc =
            safetensors_read(t->file, at, r->memory + (i % r->slots) * BLOCK_BYTES, b->bytes, &err);
        pthread_mutex_lock(&r->lock);
        if (rc != E_OK && r->err.code == 0) {
            r->err = err;
            r->stop = true;
        }
        r->ready[i % r->slots] = true;
        pthread_cond_broadcast(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void give_back(struct ring *r, size_t used)
{
    pthread_mutex_lock(&r->lock);
    r->used = used;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Block i was handed to the backend: its slot is free at once, or when the copy is done; half the
 * slots may be on their way. The last block waits for all. */
static int release(struct ring *r, struct backend *b, size_t i, struct err *err)
{
    const size_t away = r->slots / 2, last = r->n_blocks - 1;
    if (!b->ops->staging) {
        give_back(r, i + 1);
        return E_OK;
    }
    int rc = b->ops->load_mark(b, (int)(i % r->slots), err);
    for (size_t k = r->used; rc == E_OK && (i == last ? k <= i : k + away <= i); k++) {
        rc = b->ops->load_wait(b, (int)(k % r->slots), err);
        give_back(r, k + 1);
    }
    return rc;
}

/* Hands every block to the backend, in order. */
static int consume(struct ring *r, struct backend *b, int64_t total, const char *path,
                   struct err *err)
{
    int64_t done = 0, start_ns = clock_mono_ns(clock_system()), said_ns = start_ns;
    for (size_t i = 0; i < r->n_blocks; i++) {
        const struct block *k = &r->blocks[i];
        pthread_mutex_lock(&r->lock);
        while (!r->stop && !r->ready[i % r->slots])
            pthread_cond_wait(&r->changed, &r->lock);
        bool stop = r->stop;
        r->ready[i % r->slots] = false;
        pthread_mutex_unlock(&r->lock);
        if (stop)
            return err_set(err, r->err.code, "%s", r->err.msg);
        int rc = b->ops->weight_load(b, k->part->into, k->part->row0 + k->row,
                                     r->memory + (i % r->slots) * BLOCK_BYTES, k->rows, err);
        if (rc == E_OK)
            rc = release(r, b, i, err);
        if (rc != E_OK)
            return rc;
        done += (int64_t)k->bytes;
        int64_t now_ns = clock_mono_ns(clock_system());
        if (now_ns - said_ns >= progress_ns && done < total) {
            said_ns = now_ns;
            LOG(LOG_INFO, "model_weights_loading", LOG_S("path", path), LOG_I("bytes", done),
                LOG_I("of", total), LOG_F("seconds", (double)(now_ns - start_ns) * 1e-9));
        }
    }
    double seconds = (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9;
    LOG(LOG_INFO, "model_weights_loaded", LOG_S("path", path), LOG_I("bytes", done),
        LOG_F("seconds", seconds), LOG_F("gb_per_s", (double)done * 1e-9 / TR_MAX(seconds, 1e-9)));
    return E_OK;
}

static int run(struct ring *r, struct backend *b, int64_t total, const char *path, struct err *err)
{
    pthread_t readers[READERS_AHEAD];
    int n = 0, rc, wanted = b->ops->staging ? READERS_AHEAD : READERS;
    while (n < wanted && pthread_create(&readers[n], NULL, read_blocks, r) == 0)
        n++;
    rc = n ? consume(r, b, total, path, err)
           : err_set(err, E_FATAL, "weights: cannot start a reading thread");
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    while (n-- > 0)
        pthread_join(readers[n], NULL);
    return rc;
}

int upload_run(struct backend *b, const struct upload_part *parts, size_t n_parts, const char *path,
               struct err *err)
{
    struct ring r = {.n_blocks = cut(parts, n_parts, NULL),
                     .slots = b->ops->staging ? SLOTS_AHEAD : SLOTS};
    struct block *blocks = mem_alloc(r.n_blocks, sizeof *blocks);
    int64_t total = 0;
    int rc;
    r.memory = b->ops->staging ? b->ops->staging(b, r.slots * BLOCK_BYTES, err)
                               : mem_alloc(r.slots, BLOCK_BYTES);
    if (!blocks || !r.memory) {
        rc = err_set(err, E_FATAL, "weights: cannot take %zu bytes to read through",
                     r.slots * BLOCK_BYTES);
        goto out;
    }
    cut(parts, n_parts, blocks);
    for (size_t i = 0; i < r.n_blocks; i++)
        total += (int64_t)blocks[i].bytes;
    r.blocks = blocks;
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.changed, NULL);
    rc = run(&r, b, total, path, err);
    pthread_cond_destroy(&r.changed);
    pthread_mutex_destroy(&r.lock);
out:
    if (b->ops->staging && r.memory)
        b->ops->staging_end(b, r.memory);
    else
        mem_free(r.memory);
    mem_free(blocks);
    return rc;
}

/* IEEE 754 binary16 -> binary32, exact. */
static float half_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, bits = h & 1023;
    if (exponent == 0) { /* zero or subnormal: bits x 2^-24 */
        float value = (float)bits * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t wide = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | bits << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

int upload_vector(const struct weights_tensor *from, float *into, struct err *err)
{
    enum dtype dtype;
    size_t n = (size_t)from->n;
    CHECK(safetensors_dtype_float(from->tensor->dtype, &dtype));
    CHECK(from->tensor->end - from->tensor->begin == n * dtype_size(dtype));
    /* Half-width values are read into the upper half of `into` and widened from the front: value i
     * is written to bytes 4i.. only after 2n+2i.. was read. */
    char *raw = (char *)into + n * (4 - dtype_size(dtype));
    int rc = safetensors_read(from->file, from->tensor->begin, raw, n * dtype_size(dtype), err);
    for (size_t i = 0; rc == E_OK && dtype != DTYPE_F32 && i < n; i++) {
        uint16_t half;
        memcpy(&half, raw + 2 * i, sizeof half);
        uint32_t wide = (uint32_t)half << 16;
        if (dtype == DTYPE_F16)
            into[i] = half_value(half);
        else
            memcpy(&into[i], &wide, sizeof wide);
    }
    return rc;
}
