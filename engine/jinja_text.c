/* jinja_text: see jinja_text.h. Searching, cutting and joining; case mapping is in jinja_casing.c.
 */
#include "engine/jinja_text.h"

size_t jinja_text_next(struct jinja_text t, size_t at)
{
    for (at++; at < t.len && ((unsigned char)t.ptr[at] & 0xC0) == 0x80;)
        at++;
    return at;
}

size_t jinja_text_prev(struct jinja_text t, size_t at)
{
    for (at--; at > 0 && ((unsigned char)t.ptr[at] & 0xC0) == 0x80;)
        at--;
    return at;
}

size_t jinja_text_length(struct jinja_text t)
{
    size_t n = 0;
    for (size_t i = 0; i < t.len; i++)
        n += ((unsigned char)t.ptr[i] & 0xC0) != 0x80;
    return n;
}

int32_t jinja_text_char(struct jinja_text t, size_t at)
{
    const unsigned char *p = (const unsigned char *)t.ptr + at;
    if (p[0] < 0x80)
        return p[0];
    if (p[0] < 0xE0)
        return (p[0] & 0x1F) << 6 | (p[1] & 0x3F);
    if (p[0] < 0xF0)
        return (p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F);
    return (p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

int jinja_put_char(struct jinja_run *run, struct jinja_builder *b, int32_t cp)
{
    char buf[4];
    size_t n = 0;
    if (cp < 0x80) {
        buf[n++] = (char)cp;
    } else if (cp < 0x800) {
        buf[n++] = (char)(0xC0 | cp >> 6);
        buf[n++] = (char)(0x80 | (cp & 0x3F));
    } else if (cp < 0x10000) {
        buf[n++] = (char)(0xE0 | cp >> 12);
        buf[n++] = (char)(0x80 | (cp >> 6 & 0x3F));
        buf[n++] = (char)(0x80 | (cp & 0x3F));
    } else {
        buf[n++] = (char)(0xF0 | cp >> 18);
        buf[n++] = (char)(0x80 | (cp >> 12 & 0x3F));
        buf[n++] = (char)(0x80 | (cp >> 6 & 0x3F));
        buf[n++] = (char)(0x80 | (cp & 0x3F));
    }
    return jinja_put_str(run, b, (struct str){buf, n});
}

bool jinja_is_space(int32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1F);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

size_t jinja_text_find(struct jinja_text t, struct str needle, size_t from)
{
    if (from > t.len || needle.len > t.len - from)
        return SIZE_MAX;
    if (needle.len == 0)
        return from;
    const char *hit = memmem(t.ptr + from, t.len - from, needle.ptr, needle.len);
    return hit ? (size_t)(hit - t.ptr) : SIZE_MAX;
}

size_t jinja_text_rfind(struct jinja_text t, struct str needle)
{
    size_t last = SIZE_MAX;
    if (needle.len == 0)
        return t.len;
    for (size_t at = 0; (at = jinja_text_find(t, needle, at)) != SIZE_MAX; at++)
        last = at;
    return last;
}

size_t jinja_text_count(struct jinja_text t, struct str needle)
{
    size_t n = 0;
    if (needle.len == 0)
        return jinja_text_length(t) + 1;
    for (size_t at = 0; (at = jinja_text_find(t, needle, at)) != SIZE_MAX; at += needle.len)
        n++;
    return n;
}

static bool in_set(struct jinja_text t, size_t at, size_t next, const struct str *chars)
{
    if (!chars)
        return jinja_is_space(jinja_text_char(t, at));
    return jinja_text_find(jinja_plain(*chars), (struct str){t.ptr + at, next - at}, 0) != SIZE_MAX;
}

struct jinja_text jinja_text_strip(struct jinja_text t, const struct str *chars, int sides)
{
    size_t from = 0, to = t.len;
    while ((sides & JINJA_LEFT) && from < to) {
        size_t next = jinja_text_next(t, from);
        if (!in_set(t, from, next, chars))
            break;
        from = next;
    }
    while ((sides & JINJA_RIGHT) && to > from) {
        size_t prev = jinja_text_prev(t, to);
        if (!in_set(t, prev, to, chars))
            break;
        to = prev;
    }
    return jinja_cut(t, from, to);
}

int jinja_text_trim(struct jinja_run *run, struct jinja_text *t, const struct str *chars, int sides)
{
    size_t before = t->len;
    *t = jinja_text_strip(*t, chars, sides);
    return jinja_step(run, (before - t->len) / 16); /* each looked up: slower than comparing */
}

/* Items that are collected without knowing their number. */
struct pieces {
    struct jinja_value list;
    size_t cap;
};

static int piece_add(struct jinja_run *run, struct pieces *p, struct jinja_text t)
{
    struct jinja_list *list = p->list.as.list;
    if (list->n == p->cap) {
        size_t cap = TR_MAX(p->cap * 2, (size_t)4);
        struct jinja_value *items = jinja_alloc(run, cap, sizeof *items);
        if (!items)
            return E_JOB;
        if (list->n)
            memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        p->cap = cap;
    }
    list->items[list->n++] = jinja_string(t);
    return jinja_step_bytes(run, 16);
}

static void reverse(struct jinja_list *list)
{
    for (size_t i = 0; i < list->n / 2; i++) {
        struct jinja_value swap = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = swap;
    }
}

static int split_space(struct jinja_run *run, struct jinja_text t, int64_t max, struct pieces *p)
{
    struct jinja_text rest = jinja_text_strip(t, NULL, JINJA_LEFT);
    while (rest.len) {
        size_t end = 0;
        while (end < rest.len && !jinja_is_space(jinja_text_char(rest, end)))
            end = jinja_text_next(rest, end);
        if (max >= 0 && max-- == 0)
            return piece_add(run, p, rest);
        if (piece_add(run, p, jinja_cut(rest, 0, end)) < 0)
            return E_JOB;
        rest = jinja_text_strip(jinja_cut(rest, end, rest.len), NULL, JINJA_LEFT);
    }
    return E_OK;
}

static int rsplit_space(struct jinja_run *run, struct jinja_text t, int64_t max, struct pieces *p)
{
    struct jinja_text rest = jinja_text_strip(t, NULL, JINJA_RIGHT);
    while (rest.len) {
        size_t begin = rest.len;
        while (begin > 0) {
            size_t prev = jinja_text_prev(rest, begin);
            if (jinja_is_space(jinja_text_char(rest, prev)))
                break;
            begin = prev;
        }
        if (max >= 0 && max-- == 0)
            return piece_add(run, p, rest);
        if (piece_add(run, p, jinja_cut(rest, begin, rest.len)) < 0)
            return E_JOB;
        rest = jinja_text_strip(jinja_cut(rest, 0, begin), NULL, JINJA_RIGHT);
    }
    return E_OK;
}

static int split_at(struct jinja_run *run, struct jinja_text t, struct str sep, int64_t max,
                    struct pieces *p)
{
    size_t from = 0;
    for (size_t at; (at = jinja_text_find(t, sep, from)) != SIZE_MAX; from = at + sep.len) {
        if (max >= 0 && max-- == 0)
            break;
        if (piece_add(run, p, jinja_cut(t, from, at)) < 0)
            return E_JOB;
    }
    return piece_add(run, p, jinja_cut(t, from, t.len));
}

static int rsplit_at(struct jinja_run *run, struct jinja_text t, struct str sep, int64_t max,
                     struct pieces *p)
{
    size_t end = t.len;
    for (size_t at = end; at >= sep.len && max != 0;) {
        if (memcmp(t.ptr + at - sep.len, sep.ptr, sep.len) != 0) {
            at--;
            continue;
        }
        if (piece_add(run, p, jinja_cut(t, at, end)) < 0)
            return E_JOB;
        at -= sep.len;
        end = at;
        max--;
    }
    return piece_add(run, p, jinja_cut(t, 0, end));
}

int jinja_text_split(struct jinja_run *run, struct jinja_text t, const struct str *sep, int64_t max,
                     bool from_right, struct jinja_value *out)
{
    struct pieces p = {0};
    int rc;
    if (jinja_step_bytes(run, t.len) < 0 || jinja_list_new(run, JINJA_LIST, 0, &p.list) < 0)
        return E_JOB;
    if (sep && sep->len == 0)
        return jinja_fail(run, "split: empty separator");
    if (sep)
        rc = from_right ? rsplit_at(run, t, *sep, max, &p) : split_at(run, t, *sep, max, &p);
    else
        rc = from_right ? rsplit_space(run, t, max, &p) : split_space(run, t, max, &p);
    if (from_right && rc >= 0)
        reverse(p.list.as.list);
    *out = p.list;
    return rc;
}

static bool is_line_end(int32_t cp)
{
    return (cp >= 0x0A && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

int jinja_text_lines(struct jinja_run *run, struct jinja_text t, bool keep_ends,
                     struct jinja_value *out)
{
    struct pieces p = {0};
    size_t from = 0;
    if (jinja_step_bytes(run, t.len) < 0 || jinja_list_new(run, JINJA_LIST, 0, &p.list) < 0)
        return E_JOB;
    for (size_t at = 0; at < t.len;) {
        size_t next = jinja_text_next(t, at);
        if (is_line_end(jinja_text_char(t, at))) {
            if (t.ptr[at] == '\r' && next < t.len && t.ptr[next] == '\n')
                next++;
            if (piece_add(run, &p, jinja_cut(t, from, keep_ends ? next : at)) < 0)
                return E_JOB;
            from = next;
        }
        at = next;
    }
    if (from < t.len && piece_add(run, &p, jinja_cut(t, from, t.len)) < 0)
        return E_JOB;
    *out = p.list;
    return E_OK;
}

/* An empty `old` stands between all characters, as in Python. */
static int replace_empty(struct jinja_run *run, struct jinja_text t, struct jinja_text new_text,
                         int64_t max, struct jinja_builder *b)
{
    size_t at = 0;
    for (bool more = true; more && max != 0; max--) {
        if (jinja_put(run, b, new_text) < 0 || jinja_step(run, 1) < 0)
            return E_JOB;
        more = at < t.len;
        if (more) {
            size_t next = jinja_text_next(t, at);
            if (jinja_put(run, b, jinja_cut(t, at, next)) < 0)
                return E_JOB;
            at = next;
        }
    }
    return jinja_put(run, b, jinja_cut(t, at, t.len));
}

int jinja_text_replace(struct jinja_run *run, struct jinja_text t, struct str old,
                       struct jinja_text new_text, int64_t max, struct jinja_text *out)
{
    struct jinja_builder b = {0};
    size_t from = 0;
    if (jinja_step_bytes(run, t.len) < 0)
        return E_JOB;
    if (old.len == 0) {
        if (replace_empty(run, t, new_text, max, &b) < 0)
            return E_JOB;
        return jinja_built(run, &b, out);
    }
    for (size_t at; max != 0 && (at = jinja_text_find(t, old, from)) != SIZE_MAX; max--) {
        if (jinja_step_bytes(run, 16) < 0 || jinja_put(run, &b, jinja_cut(t, from, at)) < 0 ||
            jinja_put(run, &b, new_text) < 0)
            return E_JOB;
        from = at + old.len;
    }
    if (from == 0) {
        *out = t;
        return E_OK;
    }
    if (jinja_put(run, &b, jinja_cut(t, from, t.len)) < 0)
        return E_JOB;
    return jinja_built(run, &b, out);
}

static int64_t clamp_bound(const int64_t *bound, int64_t n, int64_t low, int64_t high)
{
    int64_t at = *bound < 0 ? (*bound < -n ? low : *bound + n) : *bound;
    return at < low ? low : at > high ? high : at;
}

int64_t jinja_slice_bounds(int64_t n, const int64_t *start, const int64_t *stop, int64_t step,
                           int64_t *first, int64_t *end)
{
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    int64_t from = start ? clamp_bound(start, n, low, high) : step < 0 ? high : low;
    int64_t to = stop ? clamp_bound(stop, n, low, high) : step < 0 ? low : high;
    *first = from;
    *end = to;
    if (step > 0)
        return from < to ? (to - from - 1) / step + 1 : 0;
    /* -(step + 1) + 1 never overflows, -step would for INT64_MIN; as unsigned the sum is right */
    uint64_t width = (uint64_t) - (step + 1) + 1;
    return from > to ? (int64_t)((uint64_t)(from - to - 1) / width) + 1 : 0;
}

int jinja_text_slice(struct jinja_run *run, struct jinja_text t, const int64_t *start,
                     const int64_t *stop, int64_t step, struct jinja_text *out)
{
    struct jinja_builder b = {0};
    if (jinja_step_bytes(run, t.len) < 0)
        return E_JOB;
    int64_t first, end, n = (int64_t)jinja_text_length(t);
    int64_t take = jinja_slice_bounds(n, start, stop, step, &first, &end);
    size_t at = 0;
    if (take <= 0) {
        *out = jinja_cut(t, 0, 0);
        return E_OK;
    }
    for (int64_t i = 0; i < first; i++)
        at = jinja_text_next(t, at);
    if (step == 1) {
        size_t to = at;
        for (int64_t i = 0; i < take; i++)
            to = jinja_text_next(t, to);
        *out = jinja_cut(t, at, to);
        return E_OK;
    }
    for (int64_t i = 0; i < take; i++) {
        if (jinja_put(run, &b, jinja_cut(t, at, jinja_text_next(t, at))) < 0 ||
            jinja_step_bytes(run, 16) < 0)
            return E_JOB;
        for (int64_t k = 0; i + 1 < take && k < (step < 0 ? -step : step); k++)
            at = step < 0 ? jinja_text_prev(t, at) : jinja_text_next(t, at);
    }
    return jinja_built(run, &b, out);
}
