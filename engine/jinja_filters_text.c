/* jinja_filters_text: filters that make one string or number of one value. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/jinja_builtin.h"
#include "engine/jinja_repr.h"
#include "engine/jinja_text.h"

#define FILTER(name)                                                                               \
    static int name(struct jinja_run *run, const struct jinja_value *v,                            \
                    const struct jinja_args *args, const struct jinja_bound *b,                    \
                    struct jinja_value *out)

/* str(v), and whether it was Markup. */
static int soft(struct jinja_run *run, const struct jinja_value *v, struct jinja_value *out)
{
    struct jinja_text t;
    if (jinja_to_text(run, v, &t) < 0)
        return E_JOB;
    *out = jinja_string(t);
    out->which = v->type == JINJA_STRING ? v->which : 0;
    return E_OK;
}

static int cased(struct jinja_run *run, const struct jinja_value *v, enum jinja_case how,
                 struct jinja_value *out)
{
    return soft(run, v, out) < 0 ? E_JOB : jinja_text_case(run, out->as.text, how, &out->as.text);
}

FILTER(filter_capitalize)
{
    (void)args, (void)b;
    return cased(run, v, JINJA_CAPITALIZE, out);
}

FILTER(filter_lower)
{
    (void)args, (void)b;
    return cased(run, v, JINJA_LOWER, out);
}

FILTER(filter_upper)
{
    (void)args, (void)b;
    return cased(run, v, JINJA_UPPER, out);
}

FILTER(filter_title)
{
    (void)args, (void)b;
    int rc = cased(run, v, JINJA_TITLE_FILTER, out);
    out->which = 0;
    return rc;
}

FILTER(filter_string)
{
    (void)args, (void)b;
    return soft(run, v, out);
}

FILTER(filter_safe)
{
    (void)args, (void)b;
    int rc = soft(run, v, out);
    out->which = 1;
    return rc;
}

FILTER(filter_escape)
{
    (void)args, (void)b;
    return jinja_escape(run, v, out);
}

FILTER(filter_trim)
{
    struct jinja_text chars;
    (void)args;
    if (soft(run, v, out) < 0)
        return E_JOB;
    if (!b->v[0] || b->v[0]->type == JINJA_NONE)
        return jinja_text_trim(run, &out->as.text, NULL, JINJA_LEFT | JINJA_RIGHT);
    if (jinja_arg_text(run, b->v[0], &chars) < 0 ||
        jinja_step(run, out->as.text.len / 64 * (chars.len / 64 + 1)) < 0)
        return E_JOB;
    struct str set = jinja_str(chars);
    return jinja_text_trim(run, &out->as.text, &set, JINJA_LEFT | JINJA_RIGHT);
}

FILTER(filter_replace)
{
    struct jinja_text text, old, new_text;
    int64_t max = -1;
    (void)args;
    bool limited = b->v[2] && b->v[2]->type != JINJA_NONE;
    if (jinja_to_text(run, v, &text) < 0 || jinja_to_text(run, b->v[0], &old) < 0 ||
        jinja_to_text(run, b->v[1], &new_text) < 0 ||
        (limited && jinja_arg_int(run, b->v[2], -1, &max) < 0))
        return E_JOB;
    *out = jinja_string((struct jinja_text){0});
    return jinja_text_replace(run, text, jinja_str(old), new_text, max, &out->as.text);
}

static int indentation(struct jinja_run *run, const struct jinja_value *width,
                       struct jinja_text *out)
{
    struct jinja_builder b = {0};
    int64_t n;
    if (width && width->type == JINJA_STRING) {
        *out = width->as.text;
        return E_OK;
    }
    if (jinja_arg_int(run, width, 4, &n) < 0)
        return E_JOB;
    for (int64_t i = 0; i < n; i++)
        if (jinja_put_str(run, &b, STR(" ")) < 0 || jinja_step_bytes(run, 64) < 0)
            return E_JOB;
    return jinja_built(run, &b, out);
}

FILTER(filter_indent)
{
    struct jinja_builder builder = {0};
    struct jinja_text text, indent;
    struct jinja_value lines;
    bool first = b->v[1] && jinja_truth(b->v[1]), blank = b->v[2] && jinja_truth(b->v[2]);
    (void)args;
    if (v->type == JINJA_STRING && v->which)
        return jinja_fail(run, "unsupported: indent of a safe string");
    if (jinja_arg_text(run, v, &text) < 0 || indentation(run, b->v[0], &indent) < 0)
        return E_JOB;
    if (jinja_concat(run, text, jinja_plain(STR("\n")), &text) < 0 ||
        jinja_text_lines(run, text, false, &lines) < 0)
        return E_JOB;
    if (first && jinja_put(run, &builder, indent) < 0)
        return E_JOB;
    for (size_t i = 0; i < lines.as.list->n; i++) {
        struct jinja_text line = lines.as.list->items[i].as.text;
        if (i && jinja_put_str(run, &builder, STR("\n")) < 0)
            return E_JOB;
        if (i && (line.len || blank) && jinja_put(run, &builder, indent) < 0)
            return E_JOB;
        if (jinja_put(run, &builder, line) < 0)
            return E_JOB;
    }
    *out = jinja_string((struct jinja_text){0});
    return jinja_built(run, &builder, &out->as.text);
}

FILTER(filter_default)
{
    (void)run, (void)args;
    bool falsy = b->v[1] && jinja_truth(b->v[1]) && !jinja_truth(v);
    *out = *v;
    if (v->type == JINJA_UNDEFINED || falsy)
        *out = b->v[0] ? *b->v[0] : jinja_string((struct jinja_text){0});
    return E_OK;
}

/* ---- JSON ---- */

static int json_separators(struct jinja_run *run, const struct jinja_value *v,
                           struct jinja_json_options *json)
{
    if (!v || v->type == JINJA_NONE)
        return E_OK;
    if (!jinja_is_seq(v) || v->as.list->n != 2 || v->as.list->items[0].type != JINJA_STRING ||
        v->as.list->items[1].type != JINJA_STRING)
        return jinja_fail(run, "tojson: separators must be two strings");
    json->item_separator = jinja_str(v->as.list->items[0].as.text);
    json->key_separator = jinja_str(v->as.list->items[1].as.text);
    return E_OK;
}

FILTER(filter_tojson)
{
    struct jinja_json_options json = {.item_separator = STR(", "), .key_separator = STR(": ")};
    struct jinja_text indent = {0};
    (void)args;
    json.ascii = b->v[0] && jinja_truth(b->v[0]);
    json.indented = b->v[1] && b->v[1]->type != JINJA_NONE;
    json.sort_keys = b->v[3] && jinja_truth(b->v[3]);
    if (json.indented) {
        if (indentation(run, b->v[1], &indent) < 0)
            return E_JOB;
        json.item_separator = STR(",");
        json.indent = jinja_str(indent);
    }
    if (json_separators(run, b->v[2], &json) < 0)
        return E_JOB;
    *out = jinja_string((struct jinja_text){0});
    return jinja_to_json(run, v, &json, &out->as.text);
}

/* ---- numbers ---- */

/* float(text) of Python: white space around, underscores between digits, inf and nan. */
static bool read_float(struct jinja_text t, double *out)
{
    char buf[512];
    size_t n = 0;
    t = jinja_text_strip(t, NULL, JINJA_LEFT | JINJA_RIGHT);
    if (t.len == 0 || t.len >= sizeof buf)
        return false;
    for (size_t i = 0; i < t.len; i++) {
        char c = t.ptr[i];
        bool digit_before = i && t.ptr[i - 1] >= '0' && t.ptr[i - 1] <= '9';
        bool digit_behind = i + 1 < t.len && t.ptr[i + 1] >= '0' && t.ptr[i + 1] <= '9';
        if (c == '_' && digit_before && digit_behind)
            continue;
        if (!strchr("0123456789+-.eEinfatyINFATY", c) || c == '\0')
            return false; /* strtod would take hexadecimal, too */
        buf[n++] = c;
    }
    buf[n] = '\0';
    char *end;
    *out = strtod(buf, &end);
    return *end == '\0' && !strchr(buf, '(');
}

static int digit_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'z' ? c - 'a' + 10
           : c >= 'A' && c <= 'Z' ? c - 'A' + 10
                                  : 99;
}

/* What reading a number may walk through: spaces, zeros. */
static int charge_number(struct jinja_run *run, const struct jinja_value *v)
{
    return v->type == JINJA_STRING ? jinja_step(run, v->as.text.len / 16) : E_OK;
}

/* int(text, base) of Python. 1: read, 0: no integer, negative: too large for 64 bits. */
static int read_int(struct jinja_text t, int64_t base, int64_t *out)
{
    t = jinja_text_strip(t, NULL, JINJA_LEFT | JINJA_RIGHT);
    size_t i = t.len && (t.ptr[0] == '-' || t.ptr[0] == '+');
    bool negative = t.len && t.ptr[0] == '-', digit = false, spill = false;
    if (i + 1 < t.len && t.ptr[i] == '0') {
        char c = (char)(t.ptr[i + 1] | 0x20);
        int64_t prefix = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
        if (prefix && (base == prefix || base == 0)) {
            base = prefix;
            i += 2;
            i += i < t.len && t.ptr[i] == '_';
        }
    }
    base = base == 0 ? 10 : base;
    for (*out = 0; i < t.len; i++) {
        if (t.ptr[i] == '_' && digit && i + 1 < t.len) {
            digit = false;
            continue;
        }
        int d = digit_value(t.ptr[i]);
        if (d >= base)
            return 0;
        digit = true;
        spill |= __builtin_mul_overflow(*out, base, out) ||
                 __builtin_add_overflow(*out, negative ? -d : d, out);
    }
    return !digit ? 0 : spill ? E_JOB : 1;
}

static bool float_to_int(double f, int64_t *out)
{
    if (!(f >= -0x1p63 && f < 0x1p63))
        return false;
    *out = (int64_t)f;
    return true;
}

FILTER(filter_int)
{
    int64_t base, i;
    double f;
    (void)args;
    *out = b->v[0] ? *b->v[0] : jinja_int(0);
    if (jinja_arg_int(run, b->v[1], 10, &base) < 0 || charge_number(run, v) < 0)
        return E_JOB;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (v->type == JINJA_STRING) {
        int got = base == 0 || (base >= 2 && base <= 36) ? read_int(v->as.text, base, &i) : 0;
        if (got < 0)
            return jinja_fail(run, "int: integer beyond 64 bits");
        if (got)
            *out = jinja_int(i);
        else if (read_float(v->as.text, &f) && float_to_int(f, &i))
            *out = jinja_int(i);
        else if (read_float(v->as.text, &f) && isfinite(f))
            return jinja_fail(run, "int: integer beyond 64 bits");
        return E_OK;
    }
    if (jinja_as_int(v, &i)) {
        *out = jinja_int(i);
    } else if (v->type == JINJA_FLOAT) {
        if (isinf(v->as.f) || (isfinite(v->as.f) && !float_to_int(v->as.f, &i)))
            return jinja_fail(run, "int: cannot convert %g", v->as.f);
        if (isfinite(v->as.f))
            *out = jinja_int(i);
    }
    return E_OK;
}

FILTER(filter_float)
{
    double f;
    int64_t i;
    (void)args;
    *out = b->v[0] ? *b->v[0] : jinja_float(0.0);
    if (charge_number(run, v) < 0)
        return E_JOB;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (v->type == JINJA_FLOAT)
        *out = *v;
    else if (jinja_as_int(v, &i))
        *out = jinja_float((double)i);
    else if (v->type == JINJA_STRING && read_float(v->as.text, &f))
        *out = jinja_float(f);
    return E_OK;
}

FILTER(filter_abs)
{
    int64_t i;
    (void)args, (void)b;
    if (v->type == JINJA_FLOAT) {
        *out = jinja_float(fabs(v->as.f));
        return E_OK;
    }
    if (!jinja_as_int(v, &i))
        return v->type == JINJA_UNDEFINED
                   ? jinja_fail_undefined(run, v)
                   : jinja_fail(run, "bad operand type for abs(): '%s'", jinja_type_name(v));
    return jinja_negate(run, v, i < 0, out);
}

/* Python's round(f, places): the decimal nearest to the exact value, ties to even. */
static double round_places(double f, int64_t places)
{
    char buf[400];
    if (!isfinite(f) || places > 300)
        return f;
    if (places < -308)
        return copysign(0.0, f);
    if (places < 0) {
        double scale = pow(10, (double)-places);
        return nearbyint(f / scale) * scale;
    }
    if (places > 60 || fabs(f) > 1e300)
        return f;
    snprintf(buf, sizeof buf, "%.*f", (int)places, f);
    return strtod(buf, NULL);
}

FILTER(filter_round)
{
    int64_t places, i;
    struct jinja_text how = jinja_plain(STR("common"));
    (void)args;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (jinja_arg_int(run, b->v[0], 0, &places) < 0 ||
        (b->v[1] && jinja_arg_text(run, b->v[1], &how) < 0))
        return E_JOB;
    bool whole = jinja_as_int(v, &i), up = str_eq(jinja_str(how), STR("ceil"));
    if (!whole && v->type != JINJA_FLOAT)
        return jinja_fail(run, "type %s doesn't define __round__ method", jinja_type_name(v));
    double f = whole ? (double)i : v->as.f;
    if (!up && !str_eq(jinja_str(how), STR("floor"))) {
        if (!str_eq(jinja_str(how), STR("common")))
            return jinja_fail(run, "round: method must be common, ceil or floor");
        if (whole && places < 0)
            return jinja_fail(run, "unsupported: round of an integer to tens");
        *out = whole ? jinja_int(i) : jinja_float(round_places(f, places));
        return E_OK;
    }
    if (places < 0 || places > 300 || !isfinite(f))
        return jinja_fail(run, "unsupported: round(%lld)", (long long)places);
    double scale = pow(10, (double)places), scaled = up ? ceil(f * scale) : floor(f * scale);
    *out = jinja_float(scaled / scale);
    return E_OK;
}

int jinja_escape(struct jinja_run *run, const struct jinja_value *v, struct jinja_value *out)
{
    struct jinja_builder b = {0};
    struct jinja_text t;
    if (v->type == JINJA_STRING && v->which) {
        *out = *v;
        return E_OK;
    }
    if (jinja_to_text(run, v, &t) < 0)
        return E_JOB;
    for (size_t at = 0; at < t.len; at = jinja_text_next(t, at)) {
        char c = t.ptr[at];
        struct jinja_text piece = jinja_cut(t, at, jinja_text_next(t, at));
        struct str entity = c == '&'    ? STR("&amp;")
                            : c == '<'  ? STR("&lt;")
                            : c == '>'  ? STR("&gt;")
                            : c == '\'' ? STR("&#39;")
                            : c == '"'  ? STR("&#34;")
                                        : (struct str){NULL, 0};
        if (entity.ptr)
            piece = (struct jinja_text){entity.ptr, entity.len,
                                        jinja_is_marked(piece) ? &jinja_marks_all : NULL, 0};
        if (jinja_put(run, &b, piece) < 0)
            return E_JOB;
    }
    *out = jinja_string((struct jinja_text){0});
    out->which = 1;
    return jinja_built(run, &b, &out->as.text);
}

const struct jinja_filter jinja_filters_text[] = {
    {"abs", "", filter_abs},
    {"capitalize", "", filter_capitalize},
    {"d", "default_value=,boolean=", filter_default},
    {"default", "default_value=,boolean=", filter_default},
    {"e", "", filter_escape},
    {"escape", "", filter_escape},
    {"float", "default=", filter_float},
    {"indent", "width=,first=,blank=", filter_indent},
    {"int", "default=,base=", filter_int},
    {"lower", "", filter_lower},
    {"replace", "old,new,count=", filter_replace},
    {"round", "precision=,method=", filter_round},
    {"safe", "", filter_safe},
    {"string", "", filter_string},
    {"title", "", filter_title},
    {"tojson", "ensure_ascii=,indent=,separators=,sort_keys=", filter_tojson},
    {"trim", "chars=", filter_trim},
    {"upper", "", filter_upper},
};
const int jinja_filters_text_n = (int)TR_COUNT(jinja_filters_text);
