/* jinja_repr: see jinja_repr.h. */
#include "engine/jinja_repr.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "engine/jinja_compare.h"
#include "engine/jinja_text.h"

struct writer {
    struct jinja_run *run;
    struct jinja_builder b;
    bool marked; /* any string written held content bytes */
    const struct jinja_json_options *json;
};

static int put(struct writer *w, const char *literal)
{
    return jinja_put_str(w->run, &w->b, str_of(literal));
}

static int finish(struct writer *w, struct jinja_text *out)
{
    if (jinja_built(w->run, &w->b, out) < 0)
        return E_JOB;
    if (w->marked)
        out->marks = &jinja_marks_all;
    return E_OK;
}

struct str jinja_float_repr(double f, char buf[32])
{
    if (isnan(f) || isinf(f)) {
        snprintf(buf, 32, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return str_of(buf);
    }
    char digits[32];
    int n = 1;
    for (; n < 17; n++) {
        snprintf(digits, sizeof digits, "%.*e", n - 1, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    snprintf(digits, sizeof digits, "%.*e", n - 1, f);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16)
        snprintf(buf, 32, "%s", digits);
    else if (n - 1 > exponent)
        snprintf(buf, 32, "%.*f", n - 1 - exponent, f);
    else
        snprintf(buf, 32, "%.1f", f);
    return str_of(buf);
}

static int put_number(struct writer *w, const struct jinja_value *v)
{
    char buf[32];
    if (v->type == JINJA_FLOAT)
        return jinja_put_str(w->run, &w->b, jinja_float_repr(v->as.f, buf));
    snprintf(buf, sizeof buf, "%lld", (long long)v->as.i);
    return put(w, buf);
}

static bool printable(int32_t cp)
{
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return cp == ' ';
    default:
        return true;
    }
}

static int put_repr_char(struct writer *w, int32_t cp, char quote)
{
    char buf[16];
    if (cp == quote || cp == '\\')
        snprintf(buf, sizeof buf, "\\%c", (char)cp);
    else if (cp == '\n' || cp == '\r' || cp == '\t')
        snprintf(buf, sizeof buf, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
    else if (printable(cp))
        return jinja_put_char(w->run, &w->b, cp);
    else
        snprintf(buf, sizeof buf,
                 cp < 0x100     ? "\\x%02x"
                 : cp < 0x10000 ? "\\u%04x"
                                : "\\U%08x",
                 (unsigned)cp);
    return put(w, buf);
}

static int put_repr_string(struct writer *w, struct jinja_text t)
{
    bool single = jinja_text_find(t, STR("'"), 0) != SIZE_MAX;
    bool both = single && jinja_text_find(t, STR("\""), 0) != SIZE_MAX;
    char quote = single && !both ? '"' : '\'';
    char mark[2] = {quote, '\0'};
    w->marked |= jinja_is_marked(t);
    if (put(w, mark) < 0)
        return E_JOB;
    for (size_t at = 0; at < t.len; at = jinja_text_next(t, at))
        if (put_repr_char(w, jinja_text_char(t, at), quote) < 0)
            return E_JOB;
    return put(w, mark);
}

static int put_repr(struct writer *w, const struct jinja_value *v, int depth);

static int put_items(struct writer *w, const struct jinja_list *list, const char *open,
                     const char *close, int depth)
{
    if (put(w, open) < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++)
        if ((i && put(w, ", ") < 0) || put_repr(w, &list->items[i], depth + 1) < 0)
            return E_JOB;
    return put(w, close);
}

static int put_repr_dict(struct writer *w, const struct jinja_dict *dict, int depth)
{
    if (put(w, "{") < 0)
        return E_JOB;
    for (size_t i = 0; i < dict->n; i++)
        if ((i && put(w, ", ") < 0) || put_repr(w, &dict->keys[i], depth + 1) < 0 ||
            put(w, ": ") < 0 || put_repr(w, &dict->values[i], depth + 1) < 0)
            return E_JOB;
    return put(w, "}");
}

static int put_range(struct writer *w, const struct jinja_list *range)
{
    char buf[96];
    if (range->step == 0)
        return jinja_fail(w->run, "integer beyond 64 bits");
    if (range->step == 1)
        snprintf(buf, sizeof buf, "range(%lld, %lld)", (long long)range->start,
                 (long long)range->stop);
    else
        snprintf(buf, sizeof buf, "range(%lld, %lld, %lld)", (long long)range->start,
                 (long long)range->stop, (long long)range->step);
    return put(w, buf);
}

static int put_repr(struct writer *w, const struct jinja_value *v, int depth)
{
    static const char *const views[] = {"dict_keys([", "dict_values([", "dict_items(["};
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_limit(w->run, "values nested deeper than %d", JINJA_VALUE_DEPTH_MAX);
    if (jinja_step(w->run, 1) < 0)
        return E_JOB;
    switch ((enum jinja_type)v->type) {
    case JINJA_UNDEFINED:
        return put(w, "Undefined");
    case JINJA_NONE:
        return put(w, "None");
    case JINJA_BOOL:
        return put(w, v->as.truth ? "True" : "False");
    case JINJA_INT:
    case JINJA_FLOAT:
        return put_number(w, v);
    case JINJA_STRING:
        if (v->which)
            return jinja_fail(w->run, "cannot print a list that holds a safe string");
        return put_repr_string(w, v->as.text);
    case JINJA_LIST:
        return put_items(w, v->as.list, "[", "]", depth);
    case JINJA_TUPLE:
        return put_items(w, v->as.list, "(", v->as.list->n == 1 ? ",)" : ")", depth);
    case JINJA_RANGE:
        return put_range(w, v->as.list);
    case JINJA_VIEW:
        return put_items(w, v->as.list, views[v->which], "])", depth);
    case JINJA_DICT:
        return put_repr_dict(w, v->as.dict, depth);
    case JINJA_NAMESPACE:
        if (put(w, "<Namespace ") < 0 || put_repr_dict(w, v->as.dict, depth + 1) < 0)
            return E_JOB;
        return put(w, ">");
    default:
        return jinja_fail(w->run, "a %s has no text", jinja_type_name(v));
    }
}

int jinja_to_text(struct jinja_run *run, const struct jinja_value *v, struct jinja_text *out)
{
    struct writer w = {.run = run};
    if (v->type == JINJA_STRING) {
        *out = v->as.text;
        return E_OK;
    }
    if (v->type == JINJA_UNDEFINED) {
        *out = (struct jinja_text){0};
        return E_OK;
    }
    if (put_repr(&w, v, 0) < 0)
        return E_JOB;
    return finish(&w, out);
}

/* ---- JSON ---- */

static int put_json_escape(struct writer *w, int32_t cp)
{
    char buf[16];
    static const char named[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *at = cp && cp < 0x80 ? strchr(named, (char)cp) : NULL;
    if (at)
        snprintf(buf, sizeof buf, "\\%c", letters[at - named]);
    else if (cp < 0x10000)
        snprintf(buf, sizeof buf, "\\u%04x", (unsigned)cp);
    else
        snprintf(buf, sizeof buf, "\\u%04x\\u%04x", 0xD800 + ((unsigned)(cp - 0x10000) >> 10),
                 0xDC00 + ((unsigned)cp & 0x3FF));
    return put(w, buf);
}

static int put_json_string(struct writer *w, struct jinja_text t)
{
    size_t from = 0;
    w->marked |= jinja_is_marked(t);
    t.marks = NULL;
    if (put(w, "\"") < 0)
        return E_JOB;
    for (size_t at = 0, next; at < t.len; at = next) {
        next = at + 1;
        unsigned char c = (unsigned char)t.ptr[at];
        if (c >= 0x20 && c != '"' && c != '\\' && !(w->json->ascii && c >= 0x7F))
            continue;
        int32_t cp = jinja_text_char(t, at);
        next = jinja_text_next(t, at);
        if (jinja_put(w->run, &w->b, jinja_cut(t, from, at)) < 0 || put_json_escape(w, cp) < 0)
            return E_JOB;
        from = next;
    }
    if (jinja_put(w->run, &w->b, jinja_cut(t, from, t.len)) < 0)
        return E_JOB;
    return put(w, "\"");
}

static int put_json(struct writer *w, const struct jinja_value *v, int depth);

static int json_line(struct writer *w, int depth)
{
    if (!w->json->indented)
        return E_OK;
    if (put(w, "\n") < 0)
        return E_JOB;
    for (int i = 0; i < depth; i++)
        if (jinja_put_str(w->run, &w->b, w->json->indent) < 0)
            return E_JOB;
    return E_OK;
}

static int json_separator(struct writer *w, size_t i, int depth)
{
    if (i && jinja_put_str(w->run, &w->b, w->json->item_separator) < 0)
        return E_JOB;
    return json_line(w, depth + 1);
}

static int put_json_list(struct writer *w, const struct jinja_list *list, int depth)
{
    if (list->n == 0)
        return put(w, "[]");
    if (put(w, "[") < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++)
        if (json_separator(w, i, depth) < 0 || put_json(w, &list->items[i], depth + 1) < 0)
            return E_JOB;
    if (json_line(w, depth) < 0)
        return E_JOB;
    return put(w, "]");
}

static int put_json_key(struct writer *w, const struct jinja_value *key)
{
    if (key->type == JINJA_STRING)
        return put_json_string(w, key->as.text);
    if (!jinja_is_num(key) && key->type != JINJA_NONE)
        return jinja_fail(w->run, "keys must be str, int, float, bool or None, not %s",
                          jinja_type_name(key));
    if (put(w, "\"") < 0 || put_json(w, key, 0) < 0)
        return E_JOB;
    return put(w, "\"");
}

static int sorted_dict(struct jinja_run *run, const struct jinja_dict *dict, struct jinja_dict *out)
{
    *out = *dict;
    out->keys = jinja_alloc(run, dict->n, sizeof *out->keys);
    out->values = jinja_alloc(run, dict->n, sizeof *out->values);
    if (!out->keys || !out->values)
        return E_JOB;
    memcpy(out->keys, dict->keys, dict->n * sizeof *out->keys);
    memcpy(out->values, dict->values, dict->n * sizeof *out->values);
    return jinja_sort(run, out->values, out->keys, out->n, false);
}

static int put_json_dict(struct writer *w, const struct jinja_dict *dict, int depth)
{
    struct jinja_dict sorted;
    if (dict->n == 0)
        return put(w, "{}");
    if (w->json->sort_keys) {
        if (sorted_dict(w->run, dict, &sorted) < 0)
            return E_JOB;
        dict = &sorted;
    }
    if (put(w, "{") < 0)
        return E_JOB;
    for (size_t i = 0; i < dict->n; i++)
        if (json_separator(w, i, depth) < 0 || put_json_key(w, &dict->keys[i]) < 0 ||
            jinja_put_str(w->run, &w->b, w->json->key_separator) < 0 ||
            put_json(w, &dict->values[i], depth + 1) < 0)
            return E_JOB;
    if (json_line(w, depth) < 0)
        return E_JOB;
    return put(w, "}");
}

static int put_json(struct writer *w, const struct jinja_value *v, int depth)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_limit(w->run, "values nested deeper than %d", JINJA_VALUE_DEPTH_MAX);
    if (jinja_step(w->run, 1) < 0)
        return E_JOB;
    switch ((enum jinja_type)v->type) {
    case JINJA_NONE:
        return put(w, "null");
    case JINJA_BOOL:
        return put(w, v->as.truth ? "true" : "false");
    case JINJA_FLOAT:
        if (isnan(v->as.f) || isinf(v->as.f))
            return put(w, isnan(v->as.f) ? "NaN" : v->as.f < 0 ? "-Infinity" : "Infinity");
        return put_number(w, v);
    case JINJA_INT:
        return put_number(w, v);
    case JINJA_STRING:
        return put_json_string(w, v->as.text);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return put_json_list(w, v->as.list, depth);
    case JINJA_DICT:
        return put_json_dict(w, v->as.dict, depth);
    default:
        return jinja_fail(w->run, "Object of type %s is not JSON serializable", jinja_type_name(v));
    }
}

int jinja_to_json(struct jinja_run *run, const struct jinja_value *v,
                  const struct jinja_json_options *options, struct jinja_text *out)
{
    struct writer w = {.run = run, .json = options};
    if (put_json(&w, v, 0) < 0)
        return E_JOB;
    return finish(&w, out);
}
