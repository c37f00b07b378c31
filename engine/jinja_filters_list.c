/* jinja_filters_list: filters over sequences and dicts, and the table of all filters. */
#include "engine/jinja_builtin.h"
#include "engine/jinja_compare.h"
#include "engine/jinja_lex.h"
#include "engine/jinja_repr.h"
#include "engine/jinja_text.h"

#define FILTER(name)                                                                               \
    static int name(struct jinja_run *run, const struct jinja_value *v,                            \
                    const struct jinja_args *args, const struct jinja_bound *b,                    \
                    struct jinja_value *out)

FILTER(filter_length)
{
    size_t n = 0;
    (void)args, (void)b;
    if (v->type == JINJA_STRING)
        n = jinja_text_length(v->as.text);
    else if (jinja_is_seq(v) || v->type == JINJA_VIEW)
        n = v->as.list->n;
    else if (v->type == JINJA_DICT)
        n = v->as.dict->n;
    else if (v->type == JINJA_LOOP)
        n = v->as.loop->list->n;
    else if (v->type != JINJA_UNDEFINED)
        return jinja_fail(run, "object of type '%s' has no len()", jinja_type_name(v));
    *out = jinja_int((int64_t)n);
    return v->type == JINJA_STRING ? jinja_step_bytes(run, v->as.text.len) : E_OK;
}

FILTER(filter_first)
{
    struct jinja_list *list;
    (void)args, (void)b;
    *out = jinja_undefined(STR("No first item, sequence was empty."), "");
    if (v->type == JINJA_STRING) {
        if (v->as.text.len)
            *out = jinja_string(jinja_cut(v->as.text, 0, jinja_text_next(v->as.text, 0)));
        return E_OK;
    }
    if (v->type == JINJA_ITER) {
        struct jinja_list *iter = v->as.list;
        if (iter->next < iter->n)
            *out = iter->items[iter->next++];
        return E_OK;
    }
    if (jinja_iterate(run, v, &list) < 0)
        return E_JOB;
    if (list->n)
        *out = list->items[0];
    return E_OK;
}

FILTER(filter_last)
{
    struct jinja_list *list;
    (void)args, (void)b;
    *out = jinja_undefined(STR("No last item, sequence was empty."), "");
    if (v->type == JINJA_STRING) {
        struct jinja_text t = v->as.text;
        if (t.len)
            *out = jinja_string(jinja_cut(t, jinja_text_prev(t, t.len), t.len));
        return E_OK;
    }
    if (v->type == JINJA_ITER)
        return jinja_fail(run, "'generator' object is not reversible");
    if (jinja_iterate(run, v, &list) < 0)
        return E_JOB;
    if (list->n)
        *out = list->items[list->n - 1];
    return E_OK;
}

/* A copy of what `v` iterates over. */
static int to_list(struct jinja_run *run, const struct jinja_value *v, enum jinja_type type,
                   struct jinja_value *out)
{
    struct jinja_list *list;
    if (jinja_iterate(run, v, &list) < 0 || jinja_list_new(run, type, list->n, out) < 0)
        return E_JOB;
    if (list->n)
        memcpy(out->as.list->items, list->items, list->n * sizeof *list->items);
    return E_OK;
}

FILTER(filter_list)
{
    (void)args, (void)b;
    return to_list(run, v, JINJA_LIST, out);
}

FILTER(filter_reverse)
{
    (void)args, (void)b;
    if (v->type == JINJA_STRING) {
        *out = *v;
        out->which = 0;
        return jinja_text_slice(run, v->as.text, NULL, NULL, -1, &out->as.text);
    }
    if (v->type == JINJA_UNDEFINED || v->type == JINJA_LOOP)
        return jinja_fail(run, "argument of reverse must be iterable");
    /* what Python's reversed() takes comes back as an iterator, what it does not as a list */
    if (to_list(run, v, v->type == JINJA_ITER ? JINJA_LIST : JINJA_ITER, out) < 0)
        return E_JOB;
    struct jinja_list *list = out->as.list;
    for (size_t i = 0; i < list->n / 2; i++) {
        struct jinja_value swap = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = swap;
    }
    return E_OK;
}

FILTER(filter_join)
{
    struct jinja_builder builder = {0};
    struct jinja_text between = {0};
    struct jinja_list *list;
    (void)args;
    if ((b->v[0] && jinja_to_text(run, b->v[0], &between) < 0) || jinja_iterate(run, v, &list) < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value item;
        struct jinja_text text;
        if (jinja_get_path(run, &list->items[i], b->v[1], &item) < 0 ||
            jinja_to_text(run, &item, &text) < 0 || jinja_step(run, 1) < 0 ||
            (i && jinja_put(run, &builder, between) < 0) || jinja_put(run, &builder, text) < 0)
            return E_JOB;
    }
    *out = jinja_string((struct jinja_text){0});
    return jinja_built(run, &builder, &out->as.text);
}

static int pairs(struct jinja_run *run, const struct jinja_dict *dict, enum jinja_type type,
                 struct jinja_value *out)
{
    if (jinja_list_new(run, type, dict->n, out) < 0)
        return E_JOB;
    for (size_t i = 0; i < dict->n; i++) {
        struct jinja_value *pair = &out->as.list->items[i];
        if (jinja_list_new(run, JINJA_TUPLE, 2, pair) < 0)
            return E_JOB;
        pair->as.list->items[0] = dict->keys[i];
        pair->as.list->items[1] = dict->values[i];
    }
    return E_OK;
}

FILTER(filter_items)
{
    (void)args, (void)b;
    if (v->type == JINJA_UNDEFINED)
        return jinja_list_new(run, JINJA_ITER, 0, out);
    if (v->type != JINJA_DICT)
        return jinja_fail(run, "Can only get item pairs from a mapping.");
    return pairs(run, v->as.dict, JINJA_ITER, out);
}

/* ---- order ---- */

static int fold_case(struct jinja_run *run, bool sensitive, struct jinja_value *key)
{
    if (sensitive || key->type != JINJA_STRING)
        return E_OK;
    return jinja_text_case(run, key->as.text, JINJA_LOWER, &key->as.text);
}

/* The sort key of an item: v.a, or a list of them where the path has commas. */
static int sort_key(struct jinja_run *run, const struct jinja_value *item,
                    const struct jinja_value *path, bool sensitive, struct jinja_value *key)
{
    bool several = path && path->type == JINJA_STRING &&
                   jinja_text_find(path->as.text, STR(","), 0) != SIZE_MAX;
    if (!several) {
        if (jinja_get_path(run, item, path, key) < 0)
            return E_JOB;
        return fold_case(run, sensitive, key);
    }
    struct jinja_value paths;
    struct str comma = STR(",");
    if (jinja_text_split(run, path->as.text, &comma, -1, false, &paths) < 0 ||
        jinja_list_new(run, JINJA_LIST, paths.as.list->n, key) < 0)
        return E_JOB;
    for (size_t i = 0; i < paths.as.list->n; i++) {
        struct jinja_value *part = &key->as.list->items[i];
        if (jinja_get_path(run, item, &paths.as.list->items[i], part) < 0 ||
            fold_case(run, sensitive, part) < 0)
            return E_JOB;
    }
    return E_OK;
}

FILTER(filter_sort)
{
    struct jinja_value keys;
    bool sensitive = b->v[1] && jinja_truth(b->v[1]);
    (void)args;
    if (to_list(run, v, JINJA_LIST, out) < 0)
        return E_JOB;
    size_t n = out->as.list->n;
    if (jinja_list_new(run, JINJA_LIST, n, &keys) < 0)
        return E_JOB;
    for (size_t i = 0; i < n; i++)
        if (sort_key(run, &out->as.list->items[i], b->v[2], sensitive, &keys.as.list->items[i]) < 0)
            return E_JOB;
    return jinja_sort(run, out->as.list->items, keys.as.list->items, n,
                      b->v[0] && jinja_truth(b->v[0]));
}

FILTER(filter_dictsort)
{
    struct jinja_value keys;
    struct jinja_text by = jinja_plain(STR("key"));
    bool sensitive = b->v[0] && jinja_truth(b->v[0]);
    (void)args;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (v->type != JINJA_DICT)
        return jinja_fail(run, "'%s' object has no attribute 'items'", jinja_type_name(v));
    if (b->v[1] && jinja_arg_text(run, b->v[1], &by) < 0)
        return E_JOB;
    bool by_key = str_eq(jinja_str(by), STR("key"));
    if (!by_key && !str_eq(jinja_str(by), STR("value")))
        return jinja_fail(run, "You can only sort by either \"key\" or \"value\"");
    size_t n = v->as.dict->n;
    if (pairs(run, v->as.dict, JINJA_LIST, out) < 0 ||
        jinja_list_new(run, JINJA_LIST, n, &keys) < 0)
        return E_JOB;
    for (size_t i = 0; i < n; i++) {
        keys.as.list->items[i] = by_key ? v->as.dict->keys[i] : v->as.dict->values[i];
        if (fold_case(run, sensitive, &keys.as.list->items[i]) < 0)
            return E_JOB;
    }
    return jinja_sort(run, out->as.list->items, keys.as.list->items, n,
                      b->v[2] && jinja_truth(b->v[2]));
}

static int extreme(struct jinja_run *run, const struct jinja_value *v, const struct jinja_bound *b,
                   bool greatest, struct jinja_value *out)
{
    struct jinja_list *list;
    struct jinja_value best;
    bool sensitive = b->v[0] && jinja_truth(b->v[0]);
    *out = jinja_undefined(STR("No aggregated item, sequence was empty."), "");
    if (jinja_iterate(run, v, &list) < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value key;
        int order = 0;
        if (jinja_get_path(run, &list->items[i], b->v[1], &key) < 0 ||
            fold_case(run, sensitive, &key) < 0)
            return E_JOB;
        if (i && jinja_order(run, &key, &best, greatest ? ">" : "<", &order) < 0)
            return E_JOB;
        if (i && (order == 2 || !(greatest ? order > 0 : order < 0)))
            continue;
        best = key;
        *out = list->items[i];
    }
    return E_OK;
}

FILTER(filter_min)
{
    (void)args;
    return extreme(run, v, b, false, out);
}

FILTER(filter_max)
{
    (void)args;
    return extreme(run, v, b, true, out);
}

FILTER(filter_unique)
{
    struct jinja_list *list;
    struct jinja_value seen;
    bool sensitive = b->v[0] && jinja_truth(b->v[0]);
    (void)args;
    if (jinja_iterate(run, v, &list) < 0 || jinja_dict_new(run, JINJA_DICT, 0, &seen) < 0 ||
        jinja_list_new(run, JINJA_ITER, list->n, out) < 0)
        return E_JOB;
    out->as.list->n = 0;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value key, none = jinja_none();
        size_t before = seen.as.dict->n;
        if (jinja_get_path(run, &list->items[i], b->v[1], &key) < 0 ||
            fold_case(run, sensitive, &key) < 0 ||
            jinja_dict_set(run, seen.as.dict, &key, &none) < 0)
            return E_JOB;
        if (seen.as.dict->n > before)
            out->as.list->items[out->as.list->n++] = list->items[i];
    }
    return E_OK;
}

FILTER(filter_sum)
{
    struct jinja_list *list;
    (void)args;
    *out = b->v[1] ? *b->v[1] : jinja_int(0);
    if (out->type == JINJA_STRING)
        return jinja_fail(run, "sum() can't sum strings [use ''.join(seq) instead]");
    if (jinja_iterate(run, v, &list) < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value item, sum = *out;
        if (jinja_get_path(run, &list->items[i], b->v[0], &item) < 0 ||
            jinja_binary(run, TOKEN_ADD, &sum, &item, out) < 0)
            return E_JOB;
    }
    return E_OK;
}

FILTER(filter_attr)
{
    struct jinja_text name;
    (void)args;
    if (jinja_arg_text(run, b->v[0], &name) < 0)
        return E_JOB;
    *out = jinja_undefined(jinja_str(name), jinja_owner_name(v));
    if (v->type == JINJA_DICT && !jinja_has_method(v, jinja_str(name)))
        return E_OK; /* unlike v.name, never a key */
    return jinja_get_attr(run, v, jinja_str(name), out);
}

/* ---- map, select, reject ---- */

static int need_find(struct jinja_run *run, const struct jinja_value *name, bool test, int *out)
{
    struct jinja_text text;
    if (jinja_arg_text(run, name, &text) < 0)
        return E_JOB;
    *out = test ? jinja_test_find(jinja_str(text)) : jinja_filter_find(jinja_str(text));
    if (*out < 0)
        return jinja_fail(run, "unknown %s '%.*s'", test ? "test" : "filter",
                          (int)TR_MIN(text.len, (size_t)40), text.ptr);
    return E_OK;
}

/* Arguments without the first `n` positional ones. */
static struct jinja_args behind(const struct jinja_args *args, int n)
{
    struct jinja_args rest = *args;
    rest.n_pos = args->n_pos > n ? args->n_pos - n : 0;
    rest.pos = rest.n_pos ? args->pos + n : NULL;
    return rest;
}

static int map_attribute(struct jinja_run *run, const struct jinja_list *list,
                         const struct jinja_args *args, struct jinja_value *out)
{
    struct jinja_bound bound;
    if (jinja_bind(run, "map", "attribute,default=", args, &bound) < 0)
        return E_JOB;
    const struct jinja_value *other = bound.v[1];
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value *item = &out->as.list->items[i];
        if (jinja_step(run, 1) < 0 || jinja_get_path(run, &list->items[i], bound.v[0], item) < 0)
            return E_JOB;
        if (item->type == JINJA_UNDEFINED && other && other->type != JINJA_NONE)
            *item = *other;
    }
    return E_OK;
}

FILTER(filter_map)
{
    struct jinja_list *list;
    int filter;
    (void)b;
    if (!jinja_truth(v))
        return jinja_list_new(run, JINJA_ITER, 0, out);
    if (jinja_iterate(run, v, &list) < 0 || jinja_list_new(run, JINJA_ITER, list->n, out) < 0)
        return E_JOB;
    if (args->n_pos == 0)
        return map_attribute(run, list, args, out);
    if (need_find(run, &args->pos[0], false, &filter) < 0)
        return E_JOB;
    struct jinja_args rest = behind(args, 1);
    for (size_t i = 0; i < list->n; i++) {
        if (run->depth++ >= JINJA_STACK_MAX)
            return jinja_limit(run, "nested deeper than %d evaluations", JINJA_STACK_MAX);
        if (jinja_step(run, 1) < 0 ||
            jinja_filter_call(run, filter, &list->items[i], &rest, &out->as.list->items[i]) < 0)
            return E_JOB;
        run->depth--;
    }
    return E_OK;
}

static int choose(struct jinja_run *run, const struct jinja_value *v, const struct jinja_args *args,
                  bool by_attr, bool keep, struct jinja_value *out)
{
    struct jinja_list *list;
    int test = -1, used = by_attr;
    if (!jinja_truth(v))
        return jinja_list_new(run, JINJA_ITER, 0, out);
    if (by_attr && !args->n_pos)
        return jinja_fail(run, "Missing parameter for attribute name");
    if (args->n_pos > used && need_find(run, &args->pos[used++], true, &test) < 0)
        return E_JOB;
    if (jinja_iterate(run, v, &list) < 0 || jinja_list_new(run, JINJA_ITER, list->n, out) < 0)
        return E_JOB;
    struct jinja_args rest = behind(args, used);
    size_t n = 0;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value item;
        if (jinja_step(run, 1) < 0 ||
            jinja_get_path(run, &list->items[i], by_attr ? &args->pos[0] : NULL, &item) < 0)
            return E_JOB;
        int yes = test < 0 ? jinja_truth(&item) : jinja_test_call(run, test, &item, &rest);
        if (yes < 0)
            return yes;
        if ((yes != 0) == keep)
            out->as.list->items[n++] = list->items[i];
    }
    out->as.list->n = n;
    return E_OK;
}

FILTER(filter_select)
{
    (void)b;
    return choose(run, v, args, false, true, out);
}

FILTER(filter_reject)
{
    (void)b;
    return choose(run, v, args, false, false, out);
}

FILTER(filter_selectattr)
{
    (void)b;
    return choose(run, v, args, true, true, out);
}

FILTER(filter_rejectattr)
{
    (void)b;
    return choose(run, v, args, true, false, out);
}

const struct jinja_filter jinja_filters_list[] = {
    {"attr", "name", filter_attr},
    {"count", "", filter_length},
    {"dictsort", "case_sensitive=,by=,reverse=", filter_dictsort},
    {"first", "", filter_first},
    {"items", "", filter_items},
    {"join", "d=,attribute=", filter_join},
    {"last", "", filter_last},
    {"length", "", filter_length},
    {"list", "", filter_list},
    {"map", NULL, filter_map},
    {"max", "case_sensitive=,attribute=", filter_max},
    {"min", "case_sensitive=,attribute=", filter_min},
    {"reject", NULL, filter_reject},
    {"rejectattr", NULL, filter_rejectattr},
    {"reverse", "", filter_reverse},
    {"select", NULL, filter_select},
    {"selectattr", NULL, filter_selectattr},
    {"sort", "reverse=,case_sensitive=,attribute=", filter_sort},
    {"sum", "attribute=,start=", filter_sum},
    {"unique", "case_sensitive=,attribute=", filter_unique},
};
const int jinja_filters_list_n = (int)TR_COUNT(jinja_filters_list);

static const struct jinja_filter *filter_at(int i)
{
    return i < jinja_filters_text_n ? &jinja_filters_text[i]
                                    : &jinja_filters_list[i - jinja_filters_text_n];
}

int jinja_filter_find(struct str name)
{
    for (int i = 0; i < jinja_filters_text_n + jinja_filters_list_n; i++)
        if (str_eq(name, str_of(filter_at(i)->name)))
            return i;
    return -1;
}

int jinja_filter_call(struct jinja_run *run, int filter, const struct jinja_value *v,
                      const struct jinja_args *args, struct jinja_value *out)
{
    const struct jinja_filter *f = filter_at(filter);
    struct jinja_bound bound = {{NULL}};
    struct jinja_value from = *v; /* out may be v */
    if (f->params && jinja_bind(run, f->name, f->params, args, &bound) < 0)
        return E_JOB;
    return f->fn(run, &from, args, &bound, out);
}
