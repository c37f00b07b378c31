/* jinja_literal: see jinja_literal.h. */
#include "engine/jinja_literal.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/jinja_text.h"

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 99;
}

/* Behind the digits of `base` with single underscores between them; `at` when there are none. */
static size_t skip_digits(struct jinja_text t, size_t at, int base)
{
    size_t end = at;
    while (at < t.len && digit_of(t.ptr[at]) < base) {
        end = ++at;
        if (at < t.len && t.ptr[at] == '_')
            at++;
    }
    return end;
}

/* Behind a float at `at`: digits, then a fraction or an exponent or both. 0 when it is none. */
static size_t skip_float(struct jinja_text t, size_t at)
{
    size_t whole = skip_digits(t, at, 10), end = whole;
    if (end + 1 < t.len && t.ptr[end] == '.' && digit_of(t.ptr[end + 1]) < 10)
        end = skip_digits(t, end + 1, 10);
    if (end + 1 < t.len && (t.ptr[end] | 0x20) == 'e') {
        size_t exponent = end + 1;
        if (t.ptr[exponent] == '+' || t.ptr[exponent] == '-')
            exponent++;
        size_t behind = skip_digits(t, exponent, 10);
        if (behind > exponent)
            end = behind;
    }
    return end > whole ? end : 0;
}

static int read_float(const struct jinja_source *source, struct jinja_text t, size_t from,
                      size_t to, struct jinja_token *out)
{
    char buf[512];
    size_t n = 0;
    if (to - from >= sizeof buf)
        return jinja_bad(source, out->line, "number with more than %zu digits", sizeof buf - 1);
    for (size_t i = from; i < to; i++)
        if (t.ptr[i] != '_')
            buf[n++] = t.ptr[i];
    buf[n] = '\0';
    out->kind = TOKEN_FLOAT;
    out->f = strtod(buf, NULL);
    return E_OK;
}

int jinja_read_number(const struct jinja_source *source, struct jinja_text t, size_t *at,
                      bool after_dot, struct jinja_token *out)
{
    size_t from = *at, end = after_dot ? 0 : skip_float(t, from);
    int base = 10;
    if (end) {
        *at = end;
        return read_float(source, t, from, end, out);
    }
    if (t.ptr[from] == '0' && from + 2 < t.len) {
        char c = (char)(t.ptr[from + 1] | 0x20);
        base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
        size_t digits = from + 2 + (t.ptr[from + 2] == '_');
        if (base != 10 && skip_digits(t, digits, base) == digits)
            base = 10;
        else if (base != 10)
            from = digits;
    }
    /* a number that begins with 0 is all zeros: Python has no 007 */
    end = base == 10 && t.ptr[from] == '0' ? skip_digits(t, from, 1) : skip_digits(t, from, base);
    int64_t value = 0;
    for (size_t i = from; i < end; i++) {
        if (t.ptr[i] == '_')
            continue;
        if (__builtin_mul_overflow(value, base, &value) ||
            __builtin_add_overflow(value, digit_of(t.ptr[i]), &value))
            return jinja_bad(source, out->line, "integer beyond 64 bits: %.*s",
                             (int)TR_MIN(end - from, (size_t)40), t.ptr + from);
    }
    out->kind = TOKEN_INT;
    out->i = value;
    out->text = (struct str){t.ptr + *at, end - *at};
    *at = end;
    return E_OK;
}

/* \ooo, \xhh, \uhhhh, \Uhhhhhhhh: -1 when digits are missing. */
static int64_t read_code(struct jinja_text t, size_t *at, size_t stop, int base, int min, int max)
{
    int64_t value = 0;
    int n = 0;
    for (; n < max && *at < stop && digit_of(t.ptr[*at]) < base; n++, (*at)++)
        value = value * base + digit_of(t.ptr[*at]);
    return n < min ? -1 : value;
}

/* One escape behind its backslash, into buf (4 bytes). Returns the bytes written or an error. */
static int read_escape(const struct jinja_source *source, int line, struct jinja_text t, size_t *at,
                       size_t stop, char *buf)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = t.ptr[*at];
    const char *simple = c ? strchr(from, c) : NULL;
    if (c == '\n') {
        (*at)++;
        return 0;
    }
    if (simple) {
        (*at)++;
        buf[0] = to[simple - from];
        return 1;
    }
    int64_t code;
    if (c >= '0' && c <= '7') {
        code = read_code(t, at, stop, 8, 1, 3);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        int digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        (*at)++;
        code = read_code(t, at, stop, 16, digits, digits);
    } else if (c == 'N') {
        return jinja_bad(source, line, "unsupported escape \\N in a string");
    } else {
        buf[0] = '\\'; /* Python keeps what it does not know */
        return 1;
    }
    if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        return jinja_bad(source, line, "escape \\%c in a string is no character", c);
    char *p = buf;
    int32_t cp = (int32_t)code;
    if (cp < 0x80) {
        *p++ = (char)cp;
    } else {
        int more = cp < 0x800 ? 1 : cp < 0x10000 ? 2 : 3;
        static const unsigned char leads[] = {0, 0xC0, 0xE0, 0xF0};
        *p++ = (char)(leads[more] | cp >> (6 * more));
        while (more--)
            *p++ = (char)(0x80 | (cp >> (6 * more) & 0x3F));
    }
    return (int)(p - buf);
}

int jinja_read_string(const struct jinja_source *source, struct jinja_text t, size_t *at,
                      struct jinja_token *out)
{
    char quote = t.ptr[*at];
    size_t from = *at + 1, stop = from;
    bool escapes = false;
    while (stop < t.len && t.ptr[stop] != quote) {
        escapes |= t.ptr[stop] == '\\';
        stop += t.ptr[stop] == '\\' ? 2 : 1;
    }
    if (stop >= t.len)
        return jinja_bad(source, out->line, "string without end: %c", quote);
    *at = stop + 1;
    out->kind = TOKEN_STRING;
    out->text = (struct str){t.ptr + from, stop - from};
    if (!escapes)
        return E_OK;
    char *buf = jinja_heap_bytes(source->heap, stop - from); /* no escape grows */
    size_t n = 0;
    if (!buf)
        return jinja_bad(source, out->line, "template too large: strings do not fit");
    while (from < stop) {
        if (t.ptr[from] != '\\') {
            buf[n++] = t.ptr[from++];
            continue;
        }
        char code[4];
        from++;
        int got = read_escape(source, out->line, t, &from, stop, code);
        if (got < 0)
            return got;
        memcpy(buf + n, code, (size_t)got);
        n += (size_t)got;
    }
    out->text = (struct str){buf, n};
    return E_OK;
}
