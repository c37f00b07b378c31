/* jinja_function: range, dict, namespace, raise_exception, strftime_now. */
#include <stdio.h>
#include <time.h>

#include "engine/jinja_builtin.h"
#include "engine/jinja_repr.h"
#include "engine/jinja_text.h"

static int call_range(struct jinja_run *run, const struct jinja_args *args, struct jinja_value *out)
{
    struct jinja_bound b;
    int64_t start, stop, step, count = 0;
    if (jinja_bind(run, "range", "/start,/stop=,/step=", args, &b) < 0 ||
        jinja_arg_int(run, b.v[0], 0, &start) < 0 || jinja_arg_int(run, b.v[1], 0, &stop) < 0 ||
        jinja_arg_int(run, b.v[2], 1, &step) < 0)
        return E_JOB;
    if (!b.v[1]) {
        stop = start;
        start = 0;
    }
    if (step == 0)
        return jinja_fail(run, "range() arg 3 must not be zero");
    /* by counting up to the limit no difference of two far numbers is ever computed */
    int64_t at = start;
    while (step > 0 ? at < stop : at > stop) {
        if (++count > JINJA_RANGE_MAX)
            return jinja_fail(run, "range() with more than %d items", JINJA_RANGE_MAX);
        if (__builtin_add_overflow(at, step, &at))
            break;
    }
    if (jinja_list_new(run, JINJA_RANGE, (size_t)count, out) < 0)
        return E_JOB;
    out->as.list->start = start;
    out->as.list->stop = stop;
    out->as.list->step = step;
    at = start;
    for (int64_t i = 0; i < count; i++) {
        out->as.list->items[i] = jinja_int(at);
        if (__builtin_add_overflow(at, step, &at))
            break; /* behind the last */
    }
    return E_OK;
}

/* dict(mapping or pairs, key=value, ...), also for namespace. */
static int call_dict(struct jinja_run *run, const struct jinja_args *args, enum jinja_type type,
                     struct jinja_value *out)
{
    if (args->n_pos > 1)
        return jinja_fail(run, "dict() takes at most 1 argument, got %d", args->n_pos);
    if (jinja_dict_new(run, type, (size_t)args->n_named, out) < 0)
        return E_JOB;
    struct jinja_dict *dict = out->as.dict;
    if (args->n_pos && args->pos[0].type == JINJA_DICT) {
        const struct jinja_dict *from = args->pos[0].as.dict;
        for (size_t i = 0; i < from->n; i++)
            if (jinja_dict_set(run, dict, &from->keys[i], &from->values[i]) < 0)
                return E_JOB;
    } else if (args->n_pos) {
        struct jinja_list *list, *pair;
        if (jinja_iterate(run, &args->pos[0], &list) < 0)
            return E_JOB;
        for (size_t i = 0; i < list->n; i++) {
            if (jinja_iterate(run, &list->items[i], &pair) < 0)
                return E_JOB;
            if (pair->n != 2)
                return jinja_fail(run, "dict() item %zu has length %zu; 2 is required", i, pair->n);
            if (jinja_dict_set(run, dict, &pair->items[0], &pair->items[1]) < 0)
                return E_JOB;
        }
    }
    for (int i = 0; i < args->n_named; i++) {
        struct jinja_value key = jinja_string(jinja_plain(args->names[i]));
        if (jinja_dict_set(run, dict, &key, &args->named[i]) < 0)
            return E_JOB;
    }
    return E_OK;
}

static int call_namespace(struct jinja_run *run, const struct jinja_args *args,
                          struct jinja_value *out)
{
    if (call_dict(run, args, JINJA_NAMESPACE, out) < 0)
        return E_JOB;
    for (size_t i = 0; i < out->as.dict->n; i++) {
        const struct jinja_value *key = &out->as.dict->keys[i];
        if (key->type == JINJA_STRING && key->as.text.len && key->as.text.ptr[0] == '_')
            return jinja_fail(run, "namespace attribute begins with _");
    }
    return E_OK;
}

static int call_raise(struct jinja_run *run, const struct jinja_args *args, struct jinja_value *out)
{
    struct jinja_bound b;
    struct jinja_text t;
    (void)out;
    if (jinja_bind(run, "raise_exception", "message", args, &b) < 0 ||
        jinja_to_text(run, b.v[0], &t) < 0)
        return E_JOB;
    return jinja_fail(run, "%.*s", (int)TR_MIN(t.len, (size_t)250), t.ptr);
}

/* One directive behind a % at *i, which is moved to its last byte. Returns the bytes in buf. */
static size_t put_directive(const struct jinja_run *run, const struct tm *tm, int64_t second,
                            struct jinja_text format, size_t *i, char buf[128])
{
    char spec[8] = "%";
    size_t n = 1;
    while (n < 4 && *i + 2 < format.len && strchr("-_0^#", format.ptr[*i + 1]))
        spec[n++] = format.ptr[++*i];
    char c = spec[n] = format.ptr[++*i];
    if (c == 'f')
        return (size_t)snprintf(buf, 128, "%06d",
                                (int)((run->date_ns - second * 1000000000) / 1000));
    return c == 'z' || c == 'Z' ? 0 : strftime(buf, 128, spec, tm);
}

/* datetime.strftime of a time without zone: %z and %Z are empty there, %f are microseconds. */
static int call_strftime(struct jinja_run *run, const struct jinja_args *args,
                         struct jinja_value *out)
{
    struct jinja_builder builder = {0};
    struct jinja_bound b;
    struct jinja_text format;
    struct tm tm;
    int64_t second = run->date_ns / 1000000000 - (run->date_ns % 1000000000 < 0);
    time_t at = (time_t)second;
    if (jinja_bind(run, "strftime_now", "format", args, &b) < 0 ||
        jinja_arg_text(run, b.v[0], &format) < 0)
        return E_JOB;
    if (!gmtime_r(&at, &tm))
        return jinja_fail(run, "strftime_now: the date is out of range");
    for (size_t i = 0; i < format.len; i++) {
        char buf[128] = {format.ptr[i]};
        size_t n = 1;
        if (format.ptr[i] == '%' && i + 1 < format.len)
            n = put_directive(run, &tm, second, format, &i, buf);
        if (jinja_put_str(run, &builder, (struct str){buf, n}) < 0)
            return E_JOB;
    }
    *out = jinja_string((struct jinja_text){0});
    if (jinja_built(run, &builder, &out->as.text) < 0)
        return E_JOB;
    if (jinja_is_marked(format))
        out->as.text.marks = &jinja_marks_all;
    return E_OK;
}

static int call_plain_dict(struct jinja_run *run, const struct jinja_args *args,
                           struct jinja_value *out)
{
    return call_dict(run, args, JINJA_DICT, out);
}

static const struct {
    const char *name;
    int (*fn)(struct jinja_run *run, const struct jinja_args *args, struct jinja_value *out);
} functions[] = {
    {"range", call_range},           {"dict", call_plain_dict},       {"namespace", call_namespace},
    {"raise_exception", call_raise}, {"strftime_now", call_strftime},
};

int jinja_function_find(struct str name)
{
    for (size_t i = 0; i < TR_COUNT(functions); i++)
        if (str_eq(name, str_of(functions[i].name)))
            return (int)i;
    return -1;
}

int jinja_function_call(struct jinja_run *run, int function, const struct jinja_args *args,
                        struct jinja_value *out)
{
    return functions[function].fn(run, args, out);
}
