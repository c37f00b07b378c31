/* bench_folder: see bench_folder.h. One model.safetensors: u64 length, JSON header, data by rising
 * name within the layers' order; several threads write pieces out of one block of random numbers,
 * each piece from another place in it. */
#include "worker/bench/bench_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "worker/job/text.h"

enum { LAYERS_MAX = 28, TENSORS_MAX = 3 + LAYERS_MAX * 12, PIECE_BYTES = 16 << 20, WRITERS = 8 };
/* Odd, so that rows of no even length meet the same numbers again. */
enum { BLOCK_VALUES = PIECE_BYTES / 2 + (1 << 20) + 7 };

const struct bench_shape bench_shape_r1 = {28, 1536, 8960, 12, 2, 128, 151936};

enum fill { FILL_WEIGHT, FILL_BIAS, FILL_ONES, FILLS };
struct tensor {
    char name[64];
    int64_t n, k; /* k 0: a vector */
    enum fill fill;
    uint64_t begin, bytes; /* of the data */
};
struct piece {
    uint64_t at; /* of the file */
    size_t bytes, from;
    enum fill fill;
};
struct writing {
    struct tensor tensors[TENSORS_MAX];
    int n_tensors;
    uint64_t bytes; /* of all data */
    uint16_t *blocks[FILLS];
    struct piece *pieces;
    size_t n_pieces;
    int fd;
    atomic_size_t next;
    atomic_int failed; /* errno of the first that failed */
};

static void add(struct writing *w, const char *name, int layer, int64_t n, int64_t k,
                enum fill fill)
{
    CHECK(w->n_tensors < TENSORS_MAX);
    struct tensor *t = &w->tensors[w->n_tensors++];
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, name);
    t->n = n;
    t->k = k;
    t->fill = fill;
    t->begin = w->bytes;
    t->bytes = (uint64_t)(n * TR_MAX(k, 1)) * 2;
    w->bytes += t->bytes;
}

static void plan(struct writing *w, const struct bench_shape *s)
{
    const int64_t d = s->hidden, q = (int64_t)s->heads * s->head_dim;
    const int64_t kv = (int64_t)s->kv_heads * s->head_dim;
    add(w, "lm_head.weight", -1, s->vocab, d, FILL_WEIGHT);
    add(w, "model.embed_tokens.weight", -1, s->vocab, d, FILL_WEIGHT);
    for (int i = 0; i < s->layers; i++) {
        add(w, "input_layernorm.weight", i, d, 0, FILL_ONES);
        add(w, "mlp.down_proj.weight", i, d, s->inner, FILL_WEIGHT);
        add(w, "mlp.gate_proj.weight", i, s->inner, d, FILL_WEIGHT);
        add(w, "mlp.up_proj.weight", i, s->inner, d, FILL_WEIGHT);
        add(w, "post_attention_layernorm.weight", i, d, 0, FILL_ONES);
        add(w, "self_attn.k_proj.bias", i, kv, 0, FILL_BIAS);
        add(w, "self_attn.k_proj.weight", i, kv, d, FILL_WEIGHT);
        add(w, "self_attn.o_proj.weight", i, d, q, FILL_WEIGHT);
        add(w, "self_attn.q_proj.bias", i, q, 0, FILL_BIAS);
        add(w, "self_attn.q_proj.weight", i, q, d, FILL_WEIGHT);
        add(w, "self_attn.v_proj.bias", i, kv, 0, FILL_BIAS);
        add(w, "self_attn.v_proj.weight", i, kv, d, FILL_WEIGHT);
    }
    add(w, "model.norm.weight", -1, d, 0, FILL_ONES);
}

static uint16_t bf16_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static bool fill_blocks(struct writing *w)
{
    static const float spread[FILLS] = {0.034641f, 0.0034641f, 0}; /* sqrt 3 deviations */
    uint64_t x = 0x9E3779B97F4A7C15u;
    for (int f = 0; f < FILLS; f++) {
        w->blocks[f] = mem_alloc(BLOCK_VALUES, sizeof *w->blocks[f]);
        if (!w->blocks[f])
            return false;
        for (size_t i = 0; i < BLOCK_VALUES; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            float u = (float)(int32_t)(x >> 32) * 0x1p-31f;
            w->blocks[f][i] = bf16_of(f == FILL_ONES ? 1 : spread[f] * u);
        }
    }
    return true;
}

/* Cuts the data into pieces; the first call, without room for them, counts. */
static size_t cut(struct writing *w, uint64_t data_at)
{
    size_t n = 0;
    for (int i = 0; i < w->n_tensors; i++) {
        const struct tensor *t = &w->tensors[i];
        for (uint64_t at = 0; at < t->bytes; at += PIECE_BYTES, n++)
            if (w->pieces)
                w->pieces[n] = (struct piece){data_at + t->begin + at,
                                              (size_t)TR_MIN(t->bytes - at, (uint64_t)PIECE_BYTES),
                                              hash_bytes(&n, sizeof n, 1) % (1 << 20), t->fill};
    }
    return n;
}

static int write_all(int fd, const char *from, size_t bytes, uint64_t at)
{
    while (bytes > 0) {
        ssize_t n = pwrite(fd, from, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ENOSPC;
        from += n;
        at += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static void *write_pieces(void *arg)
{
    struct writing *w = arg;
    size_t i;
    while (atomic_load(&w->failed) == 0 && (i = atomic_fetch_add(&w->next, 1)) < w->n_pieces) {
        const struct piece *p = &w->pieces[i];
        int e = write_all(w->fd, (const char *)(w->blocks[p->fill] + p->from), p->bytes, p->at);
        if (e != 0)
            atomic_store(&w->failed, e);
    }
    return NULL;
}

static int write_data(struct writing *w, uint64_t data_at, struct err *err)
{
    pthread_t threads[WRITERS];
    int n = 0;
    w->n_pieces = cut(w, data_at);
    w->pieces = mem_alloc(w->n_pieces, sizeof *w->pieces);
    if (!w->pieces || !fill_blocks(w))
        return err_set(err, E_FATAL, "bench: no memory for random weights");
    cut(w, data_at);
    while (n < WRITERS && pthread_create(&threads[n], NULL, write_pieces, w) == 0)
        n++;
    write_pieces(w);
    while (n-- > 0)
        pthread_join(threads[n], NULL);
    errno = atomic_load(&w->failed);
    return errno ? err_errno(err, E_FATAL, "bench: random weights") : E_OK;
}

static int write_weights(struct writing *w, const char *folder, struct err *err)
{
    char path[PATH_MAX];
    struct text header = {0};
    text_f(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < w->n_tensors; i++) {
        const struct tensor *t = &w->tensors[i];
        text_f(&header, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%lld", t->name, (long long)t->n);
        if (t->k > 0)
            text_f(&header, ",%lld", (long long)t->k);
        text_f(&header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin,
               (unsigned long long)(t->begin + t->bytes));
    }
    text_f(&header, "}");
    while (text_view(&header).len % 8 != 0)
        text_f(&header, " ");
    const struct str h = text_view(&header);
    const uint64_t length = h.len; /* little-endian, as every machine this runs on */
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = w->fd < 0       ? err_errno(err, E_FATAL, "bench: %s", path)
             : header.failed ? err_set(err, E_FATAL, "bench: no memory for a header")
                             : E_OK;
    if (rc == E_OK && (errno = write_all(w->fd, (const char *)&length, sizeof length, 0)) == 0)
        errno = write_all(w->fd, h.ptr, h.len, sizeof length);
    if (rc == E_OK && errno != 0)
        rc = err_errno(err, E_FATAL, "bench: %s", path);
    if (rc == E_OK)
        rc = write_data(w, sizeof length + h.len, err);
    if (w->fd >= 0 && close(w->fd) != 0 && rc == E_OK)
        rc = err_errno(err, E_FATAL, "bench: %s", path);
    text_close(&header);
    return rc;
}

static int write_config(const char *folder, const struct bench_shape *s, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "we");
    if (!f)
        return err_errno(err, E_FATAL, "bench: %s", path);
    fprintf(f,
            "{\"architectures\":[\"Qwen2ForCausalLM\"],\"bos_token_id\":%d,"
            "\"eos_token_id\":%d,\"hidden_act\":\"silu\",\"hidden_size\":%d,"
            "\"intermediate_size\":%d,\"max_position_embeddings\":131072,\"model_type\":\"qwen2\","
            "\"num_attention_heads\":%d,\"num_hidden_layers\":%d,\"num_key_value_heads\":%d,"
            "\"head_dim\":%d,"
            "\"rms_norm_eps\":1e-06,\"rope_theta\":10000,\"tie_word_embeddings\":false,"
            "\"torch_dtype\":\"bfloat16\",\"use_sliding_window\":false,\"vocab_size\":%d}\n",
            s->vocab - 1, s->vocab - 1, s->hidden, s->inner, s->heads, s->layers, s->kv_heads,
            s->head_dim, s->vocab);
    return fclose(f) == 0 ? E_OK : err_errno(err, E_FATAL, "bench: %s", path);
}

static int check_room(const char *folder, uint64_t bytes, struct err *err)
{
    struct statvfs fs;
    if (statvfs(folder, &fs) != 0)
        return err_errno(err, E_FATAL, "bench: %s", folder);
    const uint64_t left = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (left >= bytes + (64 << 20))
        return E_OK;
    return err_set(err, E_USAGE,
                   "bench: random weights take %llu MiB, but %s has %llu MiB left; set TMPDIR, or "
                   "name a folder with --model",
                   (unsigned long long)(bytes >> 20), folder, (unsigned long long)(left >> 20));
}

int bench_folder_make(char *path, size_t cap, const struct bench_shape *shape, struct err *err)
{
    const char *base = getenv("TMPDIR");
    struct writing *w = mem_alloc(1, sizeof *w);
    if (!w)
        return err_set(err, E_FATAL, "bench: no memory");
    CHECK(shape->layers >= 1 && shape->layers <= LAYERS_MAX);
    snprintf(path, cap, "%s/tranche-bench-XXXXXX", base && *base ? base : "/tmp");
    int rc = mkdtemp(path) ? E_OK : err_errno(err, E_FATAL, "bench: %s", path);
    if (rc == E_OK) {
        plan(w, shape);
        rc = check_room(path, w->bytes, err);
        if (rc == E_OK)
            rc = write_config(path, shape, err);
        if (rc == E_OK)
            rc = write_weights(w, path, err);
        if (rc != E_OK)
            bench_folder_remove(path);
    }
    for (int f = 0; f < FILLS; f++)
        mem_free(w->blocks[f]);
    mem_free(w->pieces);
    mem_free(w);
    return rc;
}

void bench_folder_remove(const char *path)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char file[PATH_MAX];
    for (size_t i = 0; i < TR_COUNT(names); i++) {
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        unlink(file);
    }
    rmdir(path);
}
