/* text: see text.h. */
#include "worker/job/text.h"

#include <math.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>

void text_close(struct text *t)
{
    if (!t)
        return;
    mem_free(t->ptr);
    *t = (struct text){0};
}

char *text_room(struct text *t, size_t n)
{
    if (t->cap - t->len >= n)
        return t->ptr + t->len;
    size_t want = TR_MAX(t->cap * 2, (size_t)4096);
    while (want - t->len < n)
        want *= 2;
    char *grown = n < SIZE_MAX / 4 ? mem_alloc(want, 1) : NULL;
    if (!grown) {
        t->failed = true;
        return NULL;
    }
    if (t->len)
        memcpy(grown, t->ptr, t->len);
    mem_free(t->ptr);
    t->ptr = grown;
    t->cap = want;
    return t->ptr + t->len;
}

void text_add(struct text *t, struct str s)
{
    char *at = s.len ? text_room(t, s.len) : NULL;
    if (!at)
        return;
    memcpy(at, s.ptr, s.len);
    t->len += s.len;
}

void text_char(struct text *t, char c)
{
    text_add(t, (struct str){&c, 1});
}

void text_f(struct text *t, const char *fmt, ...)
{
    char small[256];
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof small) {
        text_add(t, (struct str){small, (size_t)n});
    } else if (n >= 0) {
        char *at = text_room(t, (size_t)n + 1);
        if (at) {
            vsnprintf(at, (size_t)n + 1, fmt, again);
            t->len += (size_t)n;
        }
    }
    va_end(again);
}

static const char *escape_of(unsigned char c)
{
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    default:
        return NULL;
    }
}

void text_json_str(struct text *t, struct str s)
{
    size_t from = 0;
    text_char(t, '"');
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7F)
            continue;
        text_add(t, (struct str){s.ptr + from, i - from});
        const char *escape = escape_of(c);
        if (escape)
            text_add(t, str_of(escape));
        else
            text_f(t, "\\u%04x", c);
        from = i + 1;
    }
    if (from < s.len) /* a NULL has no bytes to point at */
        text_add(t, (struct str){s.ptr + from, s.len - from});
    text_char(t, '"');
}

static void put_number(struct text *t, const char *digits)
{
    text_add(t, str_of(digits));
    if (!strpbrk(digits, ".eE"))
        text_add(t, STR(".0"));
}

void text_json_real(struct text *t, double v)
{
    char digits[40];
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, v);
        if (strtod(digits, NULL) == v)
            break;
    }
    put_number(t, digits);
}

void text_json_float(struct text *t, float v)
{
    char digits[40];
    for (int precision = 6; precision <= 9; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, (double)v);
        if (strtof(digits, NULL) == v)
            break;
    }
    put_number(t, digits);
}

static int key_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void canonical_object(struct text *t, const json_t *object)
{
    size_t n = json_object_size(object), i = 0;
    const char *few[32], **keys = n <= TR_COUNT(few) ? few : mem_alloc(n, sizeof *keys);
    if (!keys) {
        t->failed = true;
        return;
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) keys[i++] = key;
    qsort(keys, n, sizeof *keys, key_order);
    text_char(t, '{');
    for (i = 0; i < n; i++) {
        if (i)
            text_char(t, ',');
        text_json_str(t, str_of(keys[i]));
        text_char(t, ':');
        text_json_canonical(t, json_object_get(object, keys[i]));
    }
    text_char(t, '}');
    if (keys != few)
        mem_free(keys);
}

void text_json_canonical(struct text *t, const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        canonical_object(t, value);
        break;
    case JSON_ARRAY:
        text_char(t, '[');
        for (size_t i = 0; i < json_array_size(value); i++) {
            if (i)
                text_char(t, ',');
            text_json_canonical(t, json_array_get(value, i));
        }
        text_char(t, ']');
        break;
    case JSON_STRING:
        text_json_str(t, json_str(value));
        break;
    case JSON_INTEGER:
        text_f(t, "%lld", (long long)json_integer_value(value));
        break;
    case JSON_REAL:
        text_json_real(t, json_real_value(value));
        break;
    default:
        text_add(t, str_of(json_type_name(value)));
    }
}

void sha256_hex(const uint8_t sha256[32], char out[65])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 32; i++) {
        out[2 * i] = digits[sha256[i] >> 4];
        out[2 * i + 1] = digits[sha256[i] & 15];
    }
    out[64] = '\0';
}

void sha256_of(struct str bytes, uint8_t out[32])
{
    SHA256((const unsigned char *)(bytes.len ? bytes.ptr : ""), bytes.len, out);
}

/* Levenshtein distance, one row of the table; names are short. */
static size_t edits(struct str a, struct str b)
{
    enum { NAME_MAX_LEN = 48 };
    if (a.len > NAME_MAX_LEN || b.len > NAME_MAX_LEN)
        return NAME_MAX_LEN;
    size_t row[NAME_MAX_LEN + 1];
    for (size_t j = 0; j <= b.len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.len; j++) {
            size_t swap = diagonal + (a.ptr[i - 1] != b.ptr[j - 1]);
            diagonal = row[j];
            row[j] = TR_MIN(swap, TR_MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[b.len];
}

const char *nearest_name(struct str name, const char *const *candidates, size_t n)
{
    const char *best = NULL;
    size_t limit = TR_MIN((size_t)2, name.len / 3), least = limit + 1;
    for (size_t i = 0; i < n; i++) {
        size_t d = edits(name, str_of(candidates[i]));
        if (d < least) {
            least = d;
            best = candidates[i];
        }
    }
    return best;
}
