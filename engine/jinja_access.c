/* jinja_access: binding of arguments; attributes and subscripts as Jinja2's sandbox resolves them.
 */
#include "engine/jinja_builtin.h"
#include "engine/jinja_text.h"

/* ---- arguments ---- */

static int bind_named(struct jinja_run *run, const char *function, const char *params,
                      const struct jinja_args *args, struct jinja_bound *out)
{
    for (int k = 0; k < args->n_named; k++) {
        struct str name = args->names[k];
        const char *p = params;
        int i = 0;
        for (; *p; i++) {
            size_t n = strcspn(p, "=,");
            if (*p != '/' && str_eq((struct str){p, n}, name))
                break;
            p += strcspn(p, ",");
            p += *p == ',';
        }
        if (!*p || out->v[i])
            return jinja_fail(run, *p ? "%s() got '%.*s' twice" : "%s() has no argument '%.*s'",
                              function, (int)TR_MIN(name.len, (size_t)40), name.ptr);
        out->v[i] = &args->named[k];
    }
    return E_OK;
}

int jinja_bind(struct jinja_run *run, const char *function, const char *params,
               const struct jinja_args *args, struct jinja_bound *out)
{
    int n = 0;
    *out = (struct jinja_bound){{NULL}};
    if (!*params && !args->n_pos && !args->n_named)
        return E_OK;
    for (const char *p = params; *p; n++) {
        p += strcspn(p, ",");
        p += *p == ',';
    }
    CHECK(n <= JINJA_PARAMS_MAX);
    if (args->n_pos > n)
        return jinja_fail(run, "%s() takes at most %d arguments, got %d", function, n, args->n_pos);
    for (int i = 0; i < args->n_pos; i++)
        out->v[i] = &args->pos[i];
    if (bind_named(run, function, params, args, out) < 0)
        return E_JOB;
    const char *p = params;
    for (int i = 0; i < n; i++) {
        size_t len = strcspn(p, ",");
        if (!out->v[i] && p[len - 1] != '=')
            return jinja_fail(run, "%s() misses argument '%.*s'", function, (int)len, p);
        p += len + (p[len] == ',');
    }
    return E_OK;
}

int jinja_arg_int(struct jinja_run *run, const struct jinja_value *v, int64_t absent, int64_t *out)
{
    *out = absent;
    if (!v)
        return E_OK;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (!jinja_as_int(v, out))
        return jinja_fail(run, "'%s' object cannot be interpreted as an integer",
                          jinja_type_name(v));
    return E_OK;
}

int jinja_arg_text(struct jinja_run *run, const struct jinja_value *v, struct jinja_text *out)
{
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (v->type != JINJA_STRING)
        return jinja_fail(run, "want a string, got '%s'", jinja_type_name(v));
    *out = v->as.text;
    return E_OK;
}

/* ---- attributes ---- */

static bool in_list(struct str name, const char *const *list)
{
    for (; *list; list++)
        if (str_eq(name, str_of(*list)))
            return true;
    return false;
}

/* Python's own, whether we can call them or not: they hide a dict's key of the same name. */
static const char *const str_methods[] = {
    "capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
    "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
    "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
    "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
    "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
    "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
    "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
    "swapcase",     "title",       "translate", "upper",      "zfill",        NULL};
static const char *const dict_methods[] = {"copy", "fromkeys", "get", "items",
                                           "keys", "values",   NULL};
static const char *const dict_mutators[] = {"clear",      "pop",    "popitem",
                                            "setdefault", "update", NULL};
static const char *const list_methods[] = {"copy", "count", "index", NULL};
static const char *const list_mutators[] = {"append", "clear",   "extend", "insert", "pop",
                                            "remove", "reverse", "sort",   NULL};
static const char *const tuple_methods[] = {"count", "index", NULL};
static const char *const loop_methods[] = {"cycle", "changed", NULL};

bool jinja_method_mutates(struct str name)
{
    return in_list(name, dict_mutators) || in_list(name, list_mutators);
}

bool jinja_has_method(const struct jinja_value *v, struct str name)
{
    switch ((enum jinja_type)v->type) {
    case JINJA_STRING:
        return in_list(name, str_methods);
    case JINJA_DICT:
        return in_list(name, dict_methods) || in_list(name, dict_mutators);
    case JINJA_LIST:
        return in_list(name, list_methods) || in_list(name, list_mutators);
    case JINJA_TUPLE:
    case JINJA_RANGE:
        return in_list(name, tuple_methods);
    case JINJA_LOOP:
        return in_list(name, loop_methods);
    default:
        return false;
    }
}

static int method_value(struct jinja_run *run, const struct jinja_value *v, struct str name,
                        struct jinja_value *out)
{
    bool mutator = (v->type == JINJA_DICT && in_list(name, dict_mutators)) ||
                   (v->type == JINJA_LIST && in_list(name, list_mutators));
    if (mutator) { /* the sandbox hides it */
        *out = jinja_undefined(name, jinja_owner_name(v));
        return E_OK;
    }
    struct jinja_value *self = jinja_alloc(run, 1, sizeof *self);
    if (!self)
        return E_JOB;
    *self = *v;
    int method = jinja_method_find(name);
    *out = (struct jinja_value){
        .type = JINJA_METHOD, .which = (uint8_t)(method < 0 ? UINT8_MAX : method), .as.self = self};
    return E_OK;
}

static void loop_attr(const struct jinja_loop *loop, struct str name, struct jinja_value *out)
{
    int64_t i = (int64_t)loop->index0, n = (int64_t)loop->list->n;
    *out = jinja_undefined(name, "LoopContext object");
    if (str_eq(name, STR("index")))
        *out = jinja_int(i + 1);
    else if (str_eq(name, STR("index0")))
        *out = jinja_int(i);
    else if (str_eq(name, STR("first")))
        *out = jinja_bool(i == 0);
    else if (str_eq(name, STR("last")))
        *out = jinja_bool(i + 1 == n);
    else if (str_eq(name, STR("length")))
        *out = jinja_int(n);
    else if (str_eq(name, STR("revindex")))
        *out = jinja_int(n - i);
    else if (str_eq(name, STR("revindex0")))
        *out = jinja_int(n - i - 1);
    else if (str_eq(name, STR("depth")))
        *out = jinja_int(loop->depth);
    else if (str_eq(name, STR("depth0")))
        *out = jinja_int(loop->depth - 1);
    else if (str_eq(name, STR("previtem")))
        *out = i ? loop->list->items[i - 1] : jinja_undefined(STR("there is no previous item"), "");
    else if (str_eq(name, STR("nextitem")))
        *out = i + 1 < n ? loop->list->items[i + 1]
                         : jinja_undefined(STR("there is no next item"), "");
}

int jinja_get_attr(struct jinja_run *run, const struct jinja_value *v, struct str name,
                   struct jinja_value *out)
{
    struct jinja_value *found = NULL;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (jinja_has_method(v, name))
        return method_value(run, v, name, out);
    if (v->type == JINJA_LOOP) {
        loop_attr(v->as.loop, name, out);
        return E_OK;
    }
    if ((v->type == JINJA_DICT || v->type == JINJA_NAMESPACE) &&
        jinja_dict_str(run, v->as.dict, name, &found) < 0)
        return E_JOB;
    *out = found ? *found : jinja_undefined(name, jinja_owner_name(v));
    return E_OK;
}

static bool index_of(const struct jinja_value *key, size_t n, size_t *out)
{
    int64_t i;
    if (!jinja_as_int(key, &i))
        return false;
    if (i < 0)
        i += (int64_t)n;
    *out = (size_t)i;
    return i >= 0 && i < (int64_t)n;
}

static int string_item(struct jinja_run *run, const struct jinja_value *v,
                       const struct jinja_value *key, struct jinja_value *out)
{
    int64_t i;
    struct jinja_text t;
    if (!jinja_as_int(key, &i) || i == INT64_MAX)
        return E_OK;
    int64_t stop = i + 1;
    if (jinja_text_slice(run, v->as.text, &i, i == -1 ? NULL : &stop, 1, &t) < 0)
        return E_JOB;
    /* a slice is forgiving where an index is not */
    if (t.len && (i >= 0 || -(uint64_t)i <= jinja_text_length(v->as.text))) {
        *out = jinja_string(t);
        out->which = v->which;
    }
    return E_OK;
}

int jinja_get_item(struct jinja_run *run, const struct jinja_value *v,
                   const struct jinja_value *key, struct jinja_value *out)
{
    size_t i;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    *out = jinja_undefined(key->type == JINJA_STRING ? jinja_str(key->as.text) : STR("element"),
                           jinja_owner_name(v));
    if (jinja_is_seq(v) && index_of(key, v->as.list->n, &i)) {
        *out = v->as.list->items[i];
        return E_OK;
    }
    if (v->type == JINJA_STRING && key->type != JINJA_STRING)
        return string_item(run, v, key, out);
    if (v->type == JINJA_DICT && key->type != JINJA_LIST && key->type != JINJA_DICT) {
        struct jinja_value *found;
        if (jinja_dict_find(run, v->as.dict, key, &found) < 0)
            return E_JOB;
        if (found) {
            *out = *found;
            return E_OK;
        }
    }
    if (key->type == JINJA_STRING)
        return jinja_get_attr(run, v, jinja_str(key->as.text), out);
    return E_OK;
}

static bool all_digits(struct str s, int64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] < '0' || s.ptr[i] > '9' || i > 17)
            return false;
        *out = *out * 10 + (s.ptr[i] - '0');
    }
    return s.len > 0;
}

int jinja_get_path(struct jinja_run *run, const struct jinja_value *v,
                   const struct jinja_value *path, struct jinja_value *out)
{
    *out = *v;
    if (!path || path->type == JINJA_NONE)
        return E_OK;
    if (path->type != JINJA_STRING) {
        struct jinja_value from = *out;
        return jinja_get_item(run, &from, path, out);
    }
    struct str rest = jinja_str(path->as.text);
    for (;;) {
        const char *dot = rest.len ? memchr(rest.ptr, '.', rest.len) : NULL;
        struct str part = {rest.ptr, dot ? (size_t)(dot - rest.ptr) : rest.len};
        int64_t number;
        struct jinja_value from = *out;
        struct jinja_value key =
            all_digits(part, &number) ? jinja_int(number) : jinja_string(jinja_plain(part));
        if (jinja_get_item(run, &from, &key, out) < 0)
            return E_JOB;
        if (!dot)
            return E_OK;
        rest = (struct str){dot + 1, rest.len - part.len - 1};
    }
}
