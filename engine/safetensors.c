/* safetensors: see safetensors.h. */
#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/json.h"
#include "engine/plain_file.h"

enum { LENGTH_BYTES = 8, NAME_SHOWN = 96 };

static const struct {
    const char *tag, *name;
    uint32_t bits;
} dtypes[ST_DTYPES] = {
    [ST_BOOL] = {"BOOL", "bool", 8},
    [ST_U8] = {"U8", "u8", 8},
    [ST_I8] = {"I8", "i8", 8},
    [ST_F8_E5M2] = {"F8_E5M2", "f8_e5m2", 8},
    [ST_F8_E4M3] = {"F8_E4M3", "f8_e4m3", 8},
    [ST_F8_E8M0] = {"F8_E8M0", "f8_e8m0", 8},
    [ST_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", "f8_e4m3fnuz", 8},
    [ST_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", "f8_e5m2fnuz", 8},
    [ST_I16] = {"I16", "i16", 16},
    [ST_U16] = {"U16", "u16", 16},
    [ST_F16] = {"F16", "f16", 16},
    [ST_BF16] = {"BF16", "bf16", 16},
    [ST_I32] = {"I32", "i32", 32},
    [ST_U32] = {"U32", "u32", 32},
    [ST_F32] = {"F32", "f32", 32},
    [ST_I64] = {"I64", "i64", 64},
    [ST_U64] = {"U64", "u64", 64},
    [ST_F64] = {"F64", "f64", 64},
    [ST_C64] = {"C64", "c64", 64},
    [ST_F4] = {"F4", "f4", 4},
    [ST_F6_E2M3] = {"F6_E2M3", "f6_e2m3", 6},
    [ST_F6_E3M2] = {"F6_E3M2", "f6_e3m2", 6},
};

const char *safetensors_dtype_name(enum safetensors_dtype d)
{
    return dtypes[d].name;
}

bool safetensors_dtype_float(enum safetensors_dtype d, enum dtype *out)
{
    if (d != ST_F32 && d != ST_BF16 && d != ST_F16)
        return false;
    *out = d == ST_F32 ? DTYPE_F32 : d == ST_BF16 ? DTYPE_BF16 : DTYPE_F16;
    return true;
}

void safetensors_describe(enum safetensors_dtype dtype, const int64_t *shape, int32_t rank,
                          char *text, size_t cap)
{
    size_t n = (size_t)snprintf(text, cap, "%s [", dtypes[dtype].name);
    for (int32_t i = 0; i < rank; i++) {
        char dim[32];
        int k = snprintf(dim, sizeof dim, i ? ",%lld" : "%lld", (long long)shape[i]);
        if (n + (size_t)k + 5 > cap) { /* "...]" and the NUL */
            n += (size_t)snprintf(text + n, cap - n, "...");
            break;
        }
        memcpy(text + n, dim, (size_t)k + 1);
        n += (size_t)k;
    }
    snprintf(text + n, cap - n, "]");
}

/* A tensor's name for a message: hostile names may be megabytes long. */
static struct str shown(const char *name, size_t len)
{
    if (len > NAME_SHOWN) {
        len = NAME_SHOWN;
        while (len > 0 && ((unsigned char)name[len] & 0xC0) == 0x80)
            len--;
    }
    return (struct str){name, len};
}

/* One pass for the sizes, so that everything lies in one arena; also the checks of types. */
static int measure(const json_t *root, const char *file, size_t *arena_bytes, struct err *err)
{
    size_t bytes = json_object_size(root) * sizeof(struct safetensors_tensor) + 16, n = 0;
    const char *key;
    size_t key_len;
    json_t *entry;
    json_object_keylen_foreach((json_t *)root, key, key_len, entry)
    {
        if (key_len == 12 && memcmp(key, "__metadata__", 12) == 0)
            continue;
        struct str s = shown(key, key_len);
        const json_t *shape = json_object_get(entry, "shape");
        if (!json_is_object(entry) || !json_is_string(json_object_get(entry, "dtype")) ||
            !json_is_array(shape) || !json_is_array(json_object_get(entry, "data_offsets")))
            return err_set(err, E_FATAL,
                           "%s: " STR_FMT ": want an object with dtype, shape and data_offsets, "
                           "header has %s",
                           file, STR_ARG(s), json_type_name(entry));
        if (++n > SAFETENSORS_TENSORS_MAX)
            return err_set(err, E_FATAL, "%s: want at most %d tensors, header has %zu", file,
                           SAFETENSORS_TENSORS_MAX, json_object_size(root));
        /* Bounded by the header's 16 MiB: a dimension takes two bytes of text, a name its own. */
        bytes += (json_array_size(shape) * sizeof(int64_t) + 15) + (key_len + 1 + 15);
    }
    *arena_bytes = bytes;
    return E_OK;
}

static int check_metadata(const json_t *root, const char *file, struct err *err)
{
    json_t *meta = json_object_get(root, "__metadata__");
    if (!meta || json_is_null(meta))
        return E_OK;
    const char *key;
    json_t *value;
    if (!json_is_object(meta))
        return err_set(err, E_FATAL, "%s: __metadata__: want an object, header has %s", file,
                       json_type_name(meta));
    json_object_foreach(meta, key, value)
    {
        if (!json_is_string(value))
            return err_set(err, E_FATAL, "%s: __metadata__." STR_FMT ": want a string, it is %s",
                           file, STR_ARG(shown(key, strlen(key))), json_type_name(value));
    }
    return E_OK;
}

static int parse_dtype(struct safetensors_tensor *t, const json_t *entry, const char *file,
                       struct err *err)
{
    struct str tag = json_str(json_object_get(entry, "dtype"));
    for (int d = 0; d < ST_DTYPES; d++) {
        if (str_eq(tag, str_of(dtypes[d].tag))) {
            t->dtype = (enum safetensors_dtype)d;
            return E_OK;
        }
    }
    return err_set(err, E_FATAL, "%s: " STR_FMT ": dtype: unknown \"" STR_FMT "\"", file,
                   STR_ARG(shown(t->name.ptr, t->name.len)), STR_ARG(shown(tag.ptr, tag.len)));
}

/* Shape and offsets; the byte count must be the shape's, overflow-checked in the reference's order.
 * Offsets become absolute only after the tiling check. */
static int parse_extent(struct safetensors_tensor *t, int64_t *dims, const json_t *entry,
                        const char *file, struct err *err)
{
    struct str s = shown(t->name.ptr, t->name.len);
    const json_t *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t bits = 1;
    bool overflow = false;
    t->rank = (int32_t)json_array_size(shape);
    t->shape = dims;
    for (int32_t i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(err, E_FATAL,
                           "%s: " STR_FMT ": shape[%d]: want an integer >= 0, it is %s", file,
                           STR_ARG(s), i, json_is_integer(dim) ? "negative" : json_type_name(dim));
        dims[i] = json_integer_value(dim);
        overflow |= __builtin_mul_overflow(bits, (uint64_t)dims[i], &bits);
    }
    overflow |= __builtin_mul_overflow(bits, dtypes[t->dtype].bits, &bits);
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e) ||
        json_integer_value(b) < 0 || json_integer_value(e) < json_integer_value(b))
        return err_set(err, E_FATAL,
                       "%s: " STR_FMT ": data_offsets: want two integers 0 <= begin <= end", file,
                       STR_ARG(s));
    t->begin = (uint64_t)json_integer_value(b);
    t->end = (uint64_t)json_integer_value(e);
    if (overflow || bits % 8 != 0 || bits / 8 != t->end - t->begin) {
        char text[96];
        safetensors_describe(t->dtype, t->shape, t->rank, text, sizeof text);
        return err_set(err, E_FATAL, "%s: " STR_FMT ": %s does not fill %llu bytes exactly", file,
                       STR_ARG(s), text, (unsigned long long)(t->end - t->begin));
    }
    return E_OK;
}

static int by_offsets(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int name_order(struct str a, struct str b)
{
    int c = memcmp(a.ptr, b.ptr, TR_MIN(a.len, b.len));
    return c ? c : a.len < b.len ? -1 : a.len > b.len;
}

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return name_order(x->name, y->name);
}

/* The tensors must tile the data: no hole, no overlap, nothing behind the last. */
static int check_tiling(struct safetensors *s, uint64_t data_at, struct err *err)
{
    uint64_t at = 0;
    if (s->n_tensors)
        qsort(s->tensors, s->n_tensors, sizeof *s->tensors, by_offsets);
    for (size_t i = 0; i < s->n_tensors; i++) {
        struct safetensors_tensor *t = &s->tensors[i];
        if (t->begin != at)
            return err_set(err, E_FATAL,
                           "%s: " STR_FMT ": want data at %llu, header says %llu (%s)", s->name,
                           STR_ARG(shown(t->name.ptr, t->name.len)), (unsigned long long)at,
                           (unsigned long long)t->begin, t->begin > at ? "a hole" : "an overlap");
        at = t->end;
        t->begin += data_at; /* cannot overflow: JSON integers stay below 2^63 */
        t->end += data_at;
    }
    if (at + data_at != s->file_bytes)
        return err_set(err, E_FATAL, "%s: want %llu bytes by its header, file has %llu%s", s->name,
                       (unsigned long long)(at + data_at), (unsigned long long)s->file_bytes,
                       at + data_at > s->file_bytes ? ": it is cut short" : "");
    if (s->n_tensors)
        qsort(s->tensors, s->n_tensors, sizeof *s->tensors, by_name);
    return E_OK;
}

/* N, the header's length. The texts that are no safetensors file at all are named. */
static int header_length(struct str head, uint64_t file_bytes, const char *name, uint64_t *n,
                         struct err *err)
{
    if (head.len >= 8 && memcmp(head.ptr, "version ", 8) == 0)
        return err_set(err, E_FATAL,
                       "%s: a Git LFS pointer of %llu bytes, not the weights: run `git lfs pull`",
                       name, (unsigned long long)file_bytes);
    if (file_bytes < LENGTH_BYTES || head.len < LENGTH_BYTES)
        return err_set(err, E_FATAL, "%s: want at least 8 bytes, file has %llu", name,
                       (unsigned long long)file_bytes);
    uint64_t length = 0;
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)(unsigned char)head.ptr[i] << (8 * i);
    if (length > SAFETENSORS_HEADER_MAX)
        return err_set(err, E_FATAL, "%s: want a header of at most %d bytes, file says %llu", name,
                       SAFETENSORS_HEADER_MAX, (unsigned long long)length);
    if (length > file_bytes - LENGTH_BYTES)
        return err_set(err, E_FATAL, "%s: header says %llu bytes, file has %llu: it is cut short",
                       name, (unsigned long long)length, (unsigned long long)file_bytes);
    *n = length;
    return E_OK;
}

static int parse_tensors(struct safetensors *s, const json_t *root, struct err *err)
{
    size_t bytes = 0;
    int rc = measure(root, s->name, &bytes, err);
    if (rc == E_OK)
        rc = arena_open(&s->arena, bytes, err);
    if (rc != E_OK)
        return rc;
    s->tensors = arena_alloc(&s->arena, json_object_size(root) * sizeof *s->tensors);
    CHECK(s->tensors);
    const char *key;
    size_t key_len;
    json_t *entry;
    json_object_keylen_foreach((json_t *)root, key, key_len, entry)
    {
        if (key_len == 12 && memcmp(key, "__metadata__", 12) == 0)
            continue;
        struct safetensors_tensor *t = &s->tensors[s->n_tensors++];
        size_t rank = json_array_size(json_object_get(entry, "shape"));
        t->name = arena_str(&s->arena, (struct str){key, key_len});
        int64_t *dims = arena_alloc(&s->arena, rank * sizeof *dims);
        CHECK(t->name.ptr && dims); /* measured */
        if ((rc = parse_dtype(t, entry, s->name, err)) != E_OK ||
            (rc = parse_extent(t, dims, entry, s->name, err)) != E_OK)
            return rc;
    }
    return E_OK;
}

static void set_name(struct safetensors *s, const char *path)
{
    const char *slash = strrchr(path, '/');
    snprintf(s->name, sizeof s->name, "%s", slash ? slash + 1 : path);
}

int safetensors_parse(struct safetensors *out, struct str head, uint64_t file_bytes,
                      const char *name, struct err *err)
{
    static const struct json_limits limits = {.bytes_max = SAFETENSORS_HEADER_MAX, .depth_max = 64};
    uint64_t n = 0;
    json_t *root = NULL;
    *out = (struct safetensors){.fd = -1, .file_bytes = file_bytes};
    set_name(out, name);
    int rc = header_length(head, file_bytes, out->name, &n, err);
    if (rc != E_OK)
        return rc;
    if (head.len - LENGTH_BYTES < n || n == 0 || head.ptr[LENGTH_BYTES] != '{')
        return err_set(err, E_FATAL, "%s: want a header that starts with '{', it has %llu bytes",
                       out->name, (unsigned long long)n);
    out->header_bytes = n;
    struct str text = {head.ptr + LENGTH_BYTES, (size_t)n};
    if (json_parse(&root, text, out->name, &limits, err) != E_OK) {
        rc = err->code = E_FATAL;
        goto out;
    }
    rc = check_metadata(root, out->name, err);
    if (rc == E_OK)
        rc = parse_tensors(out, root, err);
    if (rc == E_OK)
        rc = check_tiling(out, LENGTH_BYTES + n, err);
out:
    json_decref(root);
    if (rc != E_OK)
        safetensors_close(out);
    return rc;
}

static int file_shrank(const struct safetensors *s, struct err *err)
{
    struct stat st = {0};
    (void)fstat(s->fd, &st);
    return err_set(err, E_FATAL, "%s: want %llu bytes as when opened, file has %lld now", s->name,
                   (unsigned long long)s->file_bytes, (long long)st.st_size);
}

int safetensors_read(const struct safetensors *s, uint64_t offset, void *into, size_t bytes,
                     struct err *err)
{
    char *p = into;
    while (bytes > 0) {
        ssize_t got = pread(s->fd, p, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, E_FATAL, "%s: cannot read %zu bytes at %llu", s->name, bytes,
                             (unsigned long long)offset);
        if (got == 0)
            return file_shrank(s, err);
        p += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return E_OK;
}

int safetensors_open(struct safetensors *out, const char *path, struct err *err)
{
    int rc = E_OK;
    char *head = NULL;
    struct stat st;
    /* a FIFO is refused below, not waited for */
    struct safetensors file = {.fd = plain_file_open(AT_FDCWD, path)};
    *out = (struct safetensors){.fd = -1};
    if (file.fd < 0)
        return err_errno(err, E_FATAL, "%s: cannot open", path);
    set_name(&file, path);
    if (fstat(file.fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = err_set(err, E_FATAL, "%s: want a regular file", path);
        goto out;
    }
    file.file_bytes = (uint64_t)st.st_size;
    char first[LENGTH_BYTES] = {0};
    size_t n_first = TR_MIN(file.file_bytes, sizeof first);
    uint64_t n = 0;
    if ((rc = safetensors_read(&file, 0, first, n_first, err)) != E_OK ||
        (rc = header_length((struct str){first, n_first}, file.file_bytes, file.name, &n, err)) !=
            E_OK)
        goto out;
    head = mem_alloc(1, LENGTH_BYTES + (size_t)n);
    if (!head) {
        rc = err_set(err, E_FATAL, "%s: no memory for a header of %llu bytes", file.name,
                     (unsigned long long)n);
        goto out;
    }
    if ((rc = safetensors_read(&file, 0, head, LENGTH_BYTES + (size_t)n, err)) != E_OK)
        goto out;
    rc = safetensors_parse(out, (struct str){head, LENGTH_BYTES + (size_t)n}, file.file_bytes,
                           file.name, err);
out:
    mem_free(head);
    if (rc != E_OK)
        close(file.fd);
    else
        out->fd = file.fd;
    return rc;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    if (s->fd > 0)
        close(s->fd);
    arena_close(&s->arena);
    *s = (struct safetensors){.fd = -1};
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, struct str name)
{
    size_t lo = 0, hi = s->n_tensors;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = name_order(s->tensors[mid].name, name);
        if (c == 0)
            return &s->tensors[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}
