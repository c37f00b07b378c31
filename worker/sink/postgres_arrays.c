/* postgres_arrays: see postgres_arrays.h. */
#include "worker/sink/postgres_arrays.h"

enum { HEADER_BYTES = 20 };
/* Microseconds from 1970 to 2000, where PostgreSQL's clock begins. */
static const int64_t EPOCH_US = 946684800000000;

/* Type numbers: the server's catalog/pg_type.dat, which never change. */
static void type_numbers(char letter, unsigned *element, unsigned *array)
{
    static const struct {
        char letter;
        unsigned element, array;
    } numbers[] = {{ARRAY_TEXT, 25, 1009},  {ARRAY_INT, 23, 1007},   {ARRAY_BIGINT, 20, 1016},
                   {ARRAY_REAL, 701, 1022}, {ARRAY_BYTES, 17, 1001}, {ARRAY_TIME, 1184, 1185}};
    size_t i = 0;
    while (i < TR_COUNT(numbers) && numbers[i].letter != letter)
        i++;
    CHECK(i < TR_COUNT(numbers));
    *element = numbers[i].element;
    *array = numbers[i].array;
}

static void put_be32(char *at, uint32_t v)
{
    for (int i = 3; i >= 0; i--, v >>= 8)
        at[i] = (char)(v & 255);
}

static void put_be64(char *at, uint64_t v)
{
    put_be32(at, (uint32_t)(v >> 32));
    put_be32(at + 4, (uint32_t)v);
}

void arrays_begin(struct postgres_arrays *a, const char *layout)
{
    a->layout = layout;
    a->n_columns = (int)strlen(layout);
    CHECK(a->n_columns <= ARRAYS_MAX);
    a->at = 0;
    a->rows = 0;
    a->bytes = 0;
    a->too_large = false;
    for (int i = 0; i < a->n_columns; i++) {
        text_reset(&a->columns[i]);
        char *at = text_room(&a->columns[i], HEADER_BYTES);
        if (at)
            a->columns[i].len = HEADER_BYTES;
    }
}

static size_t bytes_max(const struct postgres_arrays *a)
{
    return a->bytes_max ? a->bytes_max : ARRAYS_BYTES_MAX;
}

/* Room for one element of n bytes behind its length; NULL: no memory, or too large. Moves on to the
 * next column. */
static char *element(struct postgres_arrays *a, size_t n, bool null)
{
    struct text *t = &a->columns[a->at];
    a->bytes += 4 + n;
    a->too_large = a->too_large || a->bytes > bytes_max(a);
    char *at = a->too_large ? NULL : text_room(t, 4 + n);
    if (++a->at == a->n_columns) {
        a->at = 0;
        a->rows++;
    }
    if (!at)
        return NULL;
    put_be32(at, null ? UINT32_MAX : (uint32_t)n);
    t->len += 4 + n;
    return at + 4;
}

static char column_letter(const struct postgres_arrays *a)
{
    return a->layout[a->at];
}

void arrays_null(struct postgres_arrays *a)
{
    (void)element(a, 0, true);
}

void arrays_str(struct postgres_arrays *a, struct str v)
{
    CHECK(column_letter(a) == ARRAY_TEXT || column_letter(a) == ARRAY_BYTES);
    char *at = element(a, v.ptr ? v.len : 0, !v.ptr);
    if (at && v.ptr && v.len)
        memcpy(at, v.ptr, v.len);
}

void arrays_int(struct postgres_arrays *a, int64_t v)
{
    bool wide = column_letter(a) == ARRAY_BIGINT;
    CHECK(wide || (column_letter(a) == ARRAY_INT && v >= INT32_MIN && v <= INT32_MAX));
    char *at = element(a, wide ? 8 : 4, false);
    if (at && wide)
        put_be64(at, (uint64_t)v);
    else if (at)
        put_be32(at, (uint32_t)(int32_t)v);
}

void arrays_real(struct postgres_arrays *a, double v)
{
    uint64_t bits;
    CHECK(column_letter(a) == ARRAY_REAL);
    memcpy(&bits, &v, 8);
    char *at = element(a, 8, false);
    if (at)
        put_be64(at, bits);
}

void arrays_time(struct postgres_arrays *a, int64_t wall_ns)
{
    CHECK(column_letter(a) == ARRAY_TIME);
    char *at = element(a, wall_ns > 0 ? 8 : 0, wall_ns <= 0);
    if (at && wall_ns > 0)
        put_be64(at, (uint64_t)(wall_ns / 1000 - EPOCH_US));
}

void arrays_hash(struct postgres_arrays *a, const uint8_t sha256[32])
{
    char hex[65];
    sha256_hex(sha256, hex);
    arrays_str(a, (struct str){hex, 64});
}

int arrays_end(struct postgres_arrays *a, const char **values, int *lengths, int *formats,
               unsigned *types, struct err *err)
{
    CHECK(a->at == 0);
    if (a->too_large)
        return err_set(err, E_JOB, "want at most %zu bytes in a statement, have %zu", bytes_max(a),
                       a->bytes);
    for (int i = 0; i < a->n_columns; i++) {
        struct text *t = &a->columns[i];
        unsigned type = 0;
        if (t->failed)
            return err_set(err, E_FATAL, "no memory for a statement of %zu bytes", a->bytes);
        type_numbers(a->layout[i], &type, &types[i]);
        /* No row: an array without dimensions. The flag for NULLs may stand where there is none. */
        put_be32(t->ptr, a->rows ? 1 : 0);
        put_be32(t->ptr + 4, 1);
        put_be32(t->ptr + 8, type);
        put_be32(t->ptr + 12, (uint32_t)a->rows);
        put_be32(t->ptr + 16, 1);
        values[i] = t->ptr;
        lengths[i] = a->rows ? (int)t->len : 12;
        formats[i] = 1;
    }
    return E_OK;
}

void arrays_close(struct postgres_arrays *a)
{
    for (int i = 0; i < ARRAYS_MAX; i++)
        text_close(&a->columns[i]);
}
