/* jinja_compare: see jinja_compare.h. */
#include "engine/jinja_compare.h"

#include <math.h>

#include "engine/jinja_text.h"

/* Exact: an int and a float are compared as numbers, not after rounding the int. NaN: 2. */
static int number_order(const struct jinja_value *a, const struct jinja_value *b)
{
    int64_t x, y;
    bool a_int = jinja_as_int(a, &x), b_int = jinja_as_int(b, &y);
    if (a_int && b_int)
        return x < y ? -1 : x > y;
    if (!a_int && !b_int) {
        if (isnan(a->as.f) || isnan(b->as.f))
            return 2;
        return a->as.f < b->as.f ? -1 : a->as.f > b->as.f;
    }
    if (!a_int) {
        int order = number_order(b, a);
        return order == 2 ? 2 : -order;
    }
    double f = b->as.f;
    if (isnan(f))
        return 2;
    if (f >= 0x1p63)
        return -1;
    if (f < -0x1p63)
        return 1;
    int64_t whole = (int64_t)f;
    if (x != whole)
        return x < whole ? -1 : 1;
    double rest = f - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

static int equal_lists(struct jinja_run *run, const struct jinja_list *a,
                       const struct jinja_list *b, int depth)
{
    if (a->n != b->n)
        return 0;
    for (size_t i = 0; i < a->n; i++) {
        int same = jinja_equal(run, &a->items[i], &b->items[i], depth + 1);
        if (same != 1)
            return same;
    }
    return 1;
}

static int equal_dicts(struct jinja_run *run, const struct jinja_dict *a,
                       const struct jinja_dict *b, int depth)
{
    if (a->n != b->n)
        return 0;
    for (size_t i = 0; i < a->n; i++) {
        struct jinja_value *other;
        if (jinja_dict_find(run, b, &a->keys[i], &other) < 0)
            return E_JOB;
        if (!other)
            return 0;
        int same = jinja_equal(run, &a->values[i], other, depth + 1);
        if (same != 1)
            return same;
    }
    return 1;
}

static int equal_texts(struct jinja_run *run, struct jinja_text a, struct jinja_text b)
{
    if (a.len != b.len)
        return 0;
    if (a.len == 0 || a.ptr == b.ptr)
        return 1;
    if (jinja_step_bytes(run, a.len) < 0)
        return E_JOB;
    return memcmp(a.ptr, b.ptr, a.len) == 0;
}

int jinja_equal(struct jinja_run *run, const struct jinja_value *a, const struct jinja_value *b,
                int depth)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_limit(run, "values nested deeper than %d", JINJA_VALUE_DEPTH_MAX);
    if (jinja_step(run, 1) < 0)
        return E_JOB;
    if (jinja_is_num(a) && jinja_is_num(b))
        return number_order(a, b) == 0;
    if (a->type != b->type)
        return 0;
    switch ((enum jinja_type)a->type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return 1;
    case JINJA_STRING:
        return equal_texts(run, a->as.text, b->as.text);
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        return a->as.list == b->as.list ? 1 : equal_lists(run, a->as.list, b->as.list, depth);
    case JINJA_DICT:
        return a->as.dict == b->as.dict ? 1 : equal_dicts(run, a->as.dict, b->as.dict, depth);
    case JINJA_FUNCTION:
        return a->which == b->which;
    case JINJA_METHOD:
        return a->which == b->which && a->as.self == b->as.self;
    default:
        return a->as.list == b->as.list; /* identity: every other kind is one pointer */
    }
}

static int unordered(struct jinja_run *run, const struct jinja_value *a,
                     const struct jinja_value *b, const char *op)
{
    if (a->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, a);
    if (b->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, b);
    return jinja_fail(run, "'%s' not supported between instances of '%s' and '%s'", op,
                      jinja_type_name(a), jinja_type_name(b));
}

static int order_at(struct jinja_run *run, const struct jinja_value *a, const struct jinja_value *b,
                    const char *op, int *order, int depth)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_limit(run, "values nested deeper than %d", JINJA_VALUE_DEPTH_MAX);
    if (jinja_step(run, 1) < 0)
        return E_JOB;
    if (jinja_is_num(a) && jinja_is_num(b)) {
        *order = number_order(a, b);
        return E_OK;
    }
    if (a->type == JINJA_STRING && b->type == JINJA_STRING) {
        /* UTF-8 sorts like code points */
        struct jinja_text x = a->as.text, y = b->as.text;
        size_t n = TR_MIN(x.len, y.len);
        if (jinja_step_bytes(run, n) < 0)
            return E_JOB;
        int c = n ? memcmp(x.ptr, y.ptr, n) : 0;
        *order = c ? c : x.len < y.len ? -1 : x.len > y.len;
        return E_OK;
    }
    if (a->type != b->type || (a->type != JINJA_LIST && a->type != JINJA_TUPLE))
        return unordered(run, a, b, op);
    const struct jinja_list *x = a->as.list, *y = b->as.list;
    for (size_t i = 0; i < x->n && i < y->n; i++) {
        int same = jinja_equal(run, &x->items[i], &y->items[i], depth + 1);
        if (same < 0)
            return same;
        if (!same)
            return order_at(run, &x->items[i], &y->items[i], op, order, depth + 1);
    }
    *order = x->n < y->n ? -1 : x->n > y->n;
    return E_OK;
}

int jinja_order(struct jinja_run *run, const struct jinja_value *a, const struct jinja_value *b,
                const char *op, int *order)
{
    return order_at(run, a, b, op, order, 0);
}

int jinja_contains(struct jinja_run *run, const struct jinja_value *box,
                   const struct jinja_value *item)
{
    struct jinja_list *list;
    if (box->type == JINJA_STRING) {
        if (item->type != JINJA_STRING)
            return jinja_fail(run, "'in <string>' requires string as left operand, not %s",
                              jinja_type_name(item));
        if (jinja_step_bytes(run, box->as.text.len) < 0)
            return E_JOB;
        return jinja_text_find(box->as.text, jinja_str(item->as.text), 0) != SIZE_MAX;
    }
    if (box->type == JINJA_DICT) {
        struct jinja_value *found;
        if (jinja_dict_find(run, box->as.dict, item, &found) < 0)
            return E_JOB;
        return found != NULL;
    }
    if (jinja_iterate(run, box, &list) < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++) {
        int same = jinja_equal(run, &list->items[i], item, 0);
        if (same != 0)
            return same;
    }
    return 0;
}

/* One merge of two sorted runs; `items` and `keys` each have a spare copy. */
struct sorting {
    struct jinja_value *items, *keys, *items_to, *keys_to;
    bool descending;
};

static int merge(struct jinja_run *run, struct sorting *s, size_t low, size_t mid, size_t high)
{
    size_t a = low, b = mid;
    for (size_t at = low; at < high; at++) {
        bool take_a = a < mid;
        if (take_a && b < high) {
            int order;
            if (jinja_order(run, &s->keys[b], &s->keys[a], "<", &order) < 0)
                return E_JOB;
            /* stable in both directions: Python's reverse keeps the order of equals */
            take_a = s->descending ? !(order > 0 && order != 2) : !(order < 0);
        }
        size_t from = take_a ? a++ : b++;
        s->items_to[at] = s->items[from];
        s->keys_to[at] = s->keys[from];
    }
    return E_OK;
}

int jinja_sort(struct jinja_run *run, struct jinja_value *items, struct jinja_value *keys, size_t n,
               bool descending)
{
    struct sorting s = {items, keys, NULL, NULL, descending};
    s.items_to = jinja_alloc(run, n, sizeof *items);
    s.keys_to = jinja_alloc(run, n, sizeof *keys);
    if (!s.items_to || !s.keys_to)
        return E_JOB;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0; low < n; low += 2 * width)
            if (merge(run, &s, low, TR_MIN(low + width, n), TR_MIN(low + 2 * width, n)) < 0)
                return E_JOB;
        struct jinja_value *swap = s.items;
        s.items = s.items_to;
        s.items_to = swap;
        swap = s.keys;
        s.keys = s.keys_to;
        s.keys_to = swap;
    }
    if (s.items != items && n) {
        memcpy(items, s.items, n * sizeof *items);
        memcpy(keys, s.keys, n * sizeof *keys);
    }
    return E_OK;
}
