/* jinja_builder: strings under construction and concatenation, with the marks that say which bytes
 * came from message contents; see jinja_value.h. */
#include "engine/jinja_value.h"

static const struct jinja_span everything = {0, SIZE_MAX};
const struct jinja_marks jinja_marks_all = {&everything, 1};

/* The first span that ends behind `at`. */
static size_t span_from(const struct jinja_marks *marks, size_t at)
{
    size_t low = 0, high = marks->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (marks->spans[mid].end > at)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

bool jinja_is_marked(struct jinja_text t)
{
    if (!t.marks || t.len == 0)
        return false;
    size_t i = span_from(t.marks, t.base);
    return i < t.marks->n && t.marks->spans[i].begin < t.base + t.len;
}

static int grow(struct jinja_run *run, struct jinja_builder *b, size_t more)
{
    size_t want;
    if (__builtin_add_overflow(b->len, more, &want))
        return jinja_fail_memory(run);
    if (b->max && want > b->max)
        return jinja_limit(run, "output is longer than %zu bytes", b->max);
    if (want <= b->cap)
        return E_OK;
    struct jinja_region *r = &run->heap.bytes;
    size_t cap = TR_MAX(want, TR_MAX(b->cap * 2, (size_t)256));
    cap = b->max ? TR_MIN(cap, b->max) : cap;
    if (b->buf && b->buf + b->cap == r->cursor && cap - b->cap <= (size_t)(r->end - r->cursor)) {
        r->cursor += cap - b->cap;
        b->cap = cap;
        return E_OK;
    }
    char *buf = jinja_heap_bytes(&run->heap, cap);
    if (!buf)
        return jinja_fail_memory(run);
    if (b->len)
        memcpy(buf, b->buf, b->len);
    b->buf = buf;
    b->cap = cap;
    return E_OK;
}

/* Marks [begin, end) of the builder; spans that touch become one. */
static int mark(struct jinja_run *run, struct jinja_builder *b, size_t begin, size_t end)
{
    if (b->n_spans && b->spans[b->n_spans - 1].end == begin) {
        b->spans[b->n_spans - 1].end = end;
        return E_OK;
    }
    if (b->n_spans == b->spans_cap) {
        size_t cap = TR_MAX(b->spans_cap * 2, (size_t)4);
        struct jinja_span *spans = jinja_alloc(run, cap, sizeof *spans);
        if (!spans)
            return E_JOB;
        if (b->n_spans)
            memcpy(spans, b->spans, b->n_spans * sizeof *spans);
        b->spans = spans;
        b->spans_cap = cap;
    }
    b->spans[b->n_spans++] = (struct jinja_span){begin, end};
    return E_OK;
}

static int put_marks(struct jinja_run *run, struct jinja_builder *b, struct jinja_text t)
{
    size_t at = b->len, stop = t.base + t.len;
    for (size_t i = span_from(t.marks, t.base); i < t.marks->n; i++) {
        const struct jinja_span *span = &t.marks->spans[i];
        if (span->begin >= stop)
            break;
        size_t begin = TR_MAX(span->begin, t.base) - t.base;
        size_t end = TR_MIN(span->end, stop) - t.base;
        if (jinja_step_bytes(run, 1) < 0 || mark(run, b, at + begin, at + end) < 0)
            return E_JOB;
    }
    return E_OK;
}

int jinja_put(struct jinja_run *run, struct jinja_builder *b, struct jinja_text t)
{
    if (t.len == 0)
        return E_OK;
    if (jinja_step_bytes(run, t.len) < 0 || grow(run, b, t.len) < 0)
        return E_JOB;
    if (t.marks && put_marks(run, b, t) < 0)
        return E_JOB;
    memcpy(b->buf + b->len, t.ptr, t.len);
    b->len += t.len;
    return E_OK;
}

int jinja_put_str(struct jinja_run *run, struct jinja_builder *b, struct str s)
{
    return jinja_put(run, b, jinja_plain(s));
}

int jinja_built(struct jinja_run *run, struct jinja_builder *b, struct jinja_text *out)
{
    *out = (struct jinja_text){.ptr = b->buf, .len = b->len};
    if (b->n_spans == 0)
        return E_OK;
    if (b->n_spans == 1 && b->spans[0].begin == 0 && b->spans[0].end == b->len) {
        out->marks = &jinja_marks_all;
        return E_OK;
    }
    struct jinja_marks *marks = jinja_alloc(run, 1, sizeof *marks);
    if (!marks)
        return E_JOB;
    *marks = (struct jinja_marks){b->spans, b->n_spans};
    out->marks = marks;
    return E_OK;
}

/* Spans of a+b. A chain of n concatenations copies them n times: few spans, and the budget bounds
 * it. */
static int concat_marks(struct jinja_run *run, struct jinja_text a, struct jinja_text b,
                        struct jinja_text *out)
{
    struct jinja_builder spans = {0};
    if (a.marks == &jinja_marks_all && b.marks == &jinja_marks_all) {
        out->marks = &jinja_marks_all;
        return E_OK;
    }
    if (a.marks && put_marks(run, &spans, a) < 0)
        return E_JOB;
    spans.len = a.len;
    if (b.marks && put_marks(run, &spans, b) < 0)
        return E_JOB;
    spans.buf = (char *)(uintptr_t)out->ptr;
    spans.len = out->len;
    return jinja_built(run, &spans, out);
}

int jinja_concat(struct jinja_run *run, struct jinja_text a, struct jinja_text b,
                 struct jinja_text *out)
{
    if (a.len == 0 || b.len == 0) {
        *out = a.len ? a : b;
        return E_OK;
    }
    struct jinja_region *r = &run->heap.bytes;
    if (jinja_step_bytes(run, b.len) < 0)
        return E_JOB;
    /* a + b + c + ... copies every byte once: the left side is the last thing in the region, so the
     * right side is written behind it. */
    if (a.ptr + a.len == r->cursor && b.len <= (size_t)(r->end - r->cursor)) {
        memcpy(r->cursor, b.ptr, b.len);
        r->cursor += b.len;
        *out = (struct jinja_text){.ptr = a.ptr, .len = a.len + b.len};
    } else {
        char *ptr = jinja_heap_bytes(&run->heap, a.len + b.len);
        if (!ptr)
            return jinja_fail_memory(run);
        if (jinja_step_bytes(run, a.len) < 0)
            return E_JOB;
        memcpy(ptr, a.ptr, a.len);
        memcpy(ptr + a.len, b.ptr, b.len);
        *out = (struct jinja_text){.ptr = ptr, .len = a.len + b.len};
    }
    return a.marks || b.marks ? concat_marks(run, a, b, out) : E_OK;
}
