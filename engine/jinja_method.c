/* jinja_method: the methods of str, dict, list, tuple and loop that templates may call. */
#include "engine/jinja_builtin.h"
#include "engine/jinja_compare.h"
#include "engine/jinja_repr.h"
#include "engine/jinja_text.h"

enum { ON_STR = 1, ON_DICT = 2, ON_LIST = 4, ON_LOOP = 8 };

typedef int method_fn(struct jinja_run *run, const struct jinja_value *self,
                      const struct jinja_args *args, const struct jinja_bound *b, int variant,
                      struct jinja_value *out);

static int text_out(const struct jinja_value *self, struct jinja_text t, struct jinja_value *out)
{
    *out = jinja_string(t);
    out->which = self->which;
    return E_OK;
}

/* Searching a long text for a long needle, byte by byte in the worst case. */
static int charge(struct jinja_run *run, struct jinja_text t, struct jinja_text needle)
{
    return jinja_step(run, (t.len / JINJA_BYTES_A_STEP) * (needle.len / JINJA_BYTES_A_STEP + 1));
}

/* ---- searching; variants: */
enum { FIND, RFIND, INDEX, RINDEX, COUNT, STARTS, ENDS };

static int bound_int(struct jinja_run *run, const struct jinja_value *v, int64_t *buf,
                     const int64_t **out)
{
    *out = NULL;
    if (!v || v->type == JINJA_NONE)
        return E_OK;
    *out = buf;
    return jinja_arg_int(run, v, 0, buf);
}

static bool affix(struct jinja_text t, struct jinja_text with, bool at_end)
{
    if (with.len > t.len)
        return false;
    return with.len == 0 ||
           memcmp(t.ptr + (at_end ? t.len - with.len : 0), with.ptr, with.len) == 0;
}

static int any_affix(struct jinja_run *run, struct jinja_text t, const struct jinja_value *with,
                     bool at_end, struct jinja_value *out)
{
    bool tuple = with->type == JINJA_TUPLE;
    const struct jinja_value *items = tuple ? with->as.list->items : with;
    size_t n = tuple ? with->as.list->n : 1;
    *out = jinja_bool(false);
    for (size_t i = 0; i < n && !out->as.truth; i++) { /* Python looks at none behind a hit */
        struct jinja_text one;
        if (jinja_arg_text(run, &items[i], &one) < 0 || jinja_step(run, 1) < 0 ||
            jinja_step_bytes(run, one.len) < 0)
            return E_JOB;
        out->as.truth = affix(t, one, at_end);
    }
    return E_OK;
}

/* (sub, start=, end=) over code points. */
static int search(struct jinja_run *run, const struct jinja_value *self,
                  const struct jinja_args *args, const struct jinja_bound *b, int variant,
                  struct jinja_value *out)
{
    int64_t start_buf, stop_buf, first = 0, end;
    const int64_t *start, *stop;
    struct jinja_text t = self->as.text, needle;
    (void)args;
    if (bound_int(run, b->v[1], &start_buf, &start) < 0 ||
        bound_int(run, b->v[2], &stop_buf, &stop) < 0)
        return E_JOB;
    if (start || stop) {
        if (jinja_step_bytes(run, t.len) < 0)
            return E_JOB;
        int64_t n = (int64_t)jinja_text_length(t);
        jinja_slice_bounds(n, start, stop, 1, &first, &end);
        if (start && *start > n) { /* not even an empty needle is found behind the end */
            *out = variant == STARTS || variant == ENDS ? jinja_bool(false)
                                                        : jinja_int(variant == COUNT ? 0 : -1);
            return variant == INDEX || variant == RINDEX ? jinja_fail(run, "substring not found")
                                                         : E_OK;
        }
        if (jinja_text_slice(run, t, start, stop, 1, &t) < 0)
            return E_JOB;
    }
    if (variant == STARTS || variant == ENDS)
        return any_affix(run, t, b->v[0], variant == ENDS, out);
    if (jinja_arg_text(run, b->v[0], &needle) < 0 || charge(run, t, needle) < 0)
        return E_JOB;
    if (variant == COUNT) {
        *out = jinja_int((int64_t)jinja_text_count(t, jinja_str(needle)));
        return E_OK;
    }
    bool right = variant == RFIND || variant == RINDEX;
    size_t at =
        right ? jinja_text_rfind(t, jinja_str(needle)) : jinja_text_find(t, jinja_str(needle), 0);
    if (at == SIZE_MAX && (variant == INDEX || variant == RINDEX))
        return jinja_fail(run, "substring not found");
    *out = jinja_int(at == SIZE_MAX ? -1 : first + (int64_t)jinja_text_length(jinja_cut(t, 0, at)));
    return E_OK;
}

static int strip(struct jinja_run *run, const struct jinja_value *self,
                 const struct jinja_args *args, const struct jinja_bound *b, int variant,
                 struct jinja_value *out)
{
    struct jinja_text chars, t = self->as.text;
    struct str set;
    bool has_set = b->v[0] && b->v[0]->type != JINJA_NONE;
    (void)args;
    if (has_set) {
        if (jinja_arg_text(run, b->v[0], &chars) < 0 || charge(run, t, chars) < 0)
            return E_JOB;
        set = jinja_str(chars);
    }
    if (jinja_text_trim(run, &t, has_set ? &set : NULL, variant) < 0)
        return E_JOB;
    return text_out(self, t, out);
}

static int split(struct jinja_run *run, const struct jinja_value *self,
                 const struct jinja_args *args, const struct jinja_bound *b, int variant,
                 struct jinja_value *out)
{
    struct jinja_text sep = {0};
    int64_t max;
    bool has_sep = b->v[0] && b->v[0]->type != JINJA_NONE;
    (void)args;
    if ((has_sep && jinja_arg_text(run, b->v[0], &sep) < 0) ||
        jinja_arg_int(run, b->v[1], -1, &max) < 0 || charge(run, self->as.text, sep) < 0)
        return E_JOB;
    struct str by = jinja_str(sep);
    return jinja_text_split(run, self->as.text, has_sep ? &by : NULL, max, variant == 1, out);
}

static int splitlines(struct jinja_run *run, const struct jinja_value *self,
                      const struct jinja_args *args, const struct jinja_bound *b, int variant,
                      struct jinja_value *out)
{
    (void)args, (void)variant;
    return jinja_text_lines(run, self->as.text, b->v[0] && jinja_truth(b->v[0]), out);
}

static int partition(struct jinja_run *run, const struct jinja_value *self,
                     const struct jinja_args *args, const struct jinja_bound *b, int variant,
                     struct jinja_value *out)
{
    struct jinja_text t = self->as.text, sep;
    (void)args;
    if (jinja_arg_text(run, b->v[0], &sep) < 0 || charge(run, t, sep) < 0 ||
        jinja_list_new(run, JINJA_TUPLE, 3, out) < 0)
        return E_JOB;
    if (sep.len == 0)
        return jinja_fail(run, "partition: empty separator");
    size_t at =
        variant ? jinja_text_rfind(t, jinja_str(sep)) : jinja_text_find(t, jinja_str(sep), 0);
    bool found = at != SIZE_MAX;
    size_t from = found ? at : variant ? 0 : t.len, to = found ? at + sep.len : from;
    out->as.list->items[0] = jinja_string(jinja_cut(t, 0, from));
    out->as.list->items[1] = jinja_string(jinja_cut(t, from, to));
    out->as.list->items[2] = jinja_string(jinja_cut(t, to, t.len));
    return E_OK;
}

static int replace(struct jinja_run *run, const struct jinja_value *self,
                   const struct jinja_args *args, const struct jinja_bound *b, int variant,
                   struct jinja_value *out)
{
    struct jinja_text old, new_text, t;
    int64_t max;
    (void)args, (void)variant;
    if (jinja_arg_text(run, b->v[0], &old) < 0 || jinja_arg_text(run, b->v[1], &new_text) < 0 ||
        jinja_arg_int(run, b->v[2], -1, &max) < 0 ||
        jinja_text_replace(run, self->as.text, jinja_str(old), new_text, max, &t) < 0)
        return E_JOB;
    return text_out(self, t, out);
}

static int remove_affix(struct jinja_run *run, const struct jinja_value *self,
                        const struct jinja_args *args, const struct jinja_bound *b, int at_end,
                        struct jinja_value *out)
{
    struct jinja_text t = self->as.text, with;
    (void)args;
    if (jinja_arg_text(run, b->v[0], &with) < 0 || jinja_step_bytes(run, with.len) < 0)
        return E_JOB;
    if (affix(t, with, at_end))
        t = at_end ? jinja_cut(t, 0, t.len - with.len) : jinja_cut(t, with.len, t.len);
    return text_out(self, t, out);
}

static int change_case(struct jinja_run *run, const struct jinja_value *self,
                       const struct jinja_args *args, const struct jinja_bound *b, int how,
                       struct jinja_value *out)
{
    struct jinja_text t;
    (void)args, (void)b;
    if (jinja_text_case(run, self->as.text, (enum jinja_case)how, &t) < 0)
        return E_JOB;
    return text_out(self, t, out);
}

static int is_class(struct jinja_run *run, const struct jinja_value *self,
                    const struct jinja_args *args, const struct jinja_bound *b, int what,
                    struct jinja_value *out)
{
    (void)args, (void)b;
    if (jinja_step_bytes(run, self->as.text.len) < 0)
        return E_JOB;
    *out = jinja_bool(jinja_text_is(self->as.text, (enum jinja_class)what));
    return E_OK;
}

static int join(struct jinja_run *run, const struct jinja_value *self,
                const struct jinja_args *args, const struct jinja_bound *b, int variant,
                struct jinja_value *out)
{
    struct jinja_builder builder = {0};
    struct jinja_list *list;
    (void)args, (void)variant;
    if (jinja_iterate(run, b->v[0], &list) < 0)
        return E_JOB;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_text item;
        if (jinja_arg_text(run, &list->items[i], &item) < 0 ||
            (i && jinja_put(run, &builder, self->as.text) < 0) ||
            jinja_put(run, &builder, item) < 0 || jinja_step(run, 1) < 0)
            return E_JOB;
    }
    *out = jinja_string((struct jinja_text){0});
    return jinja_built(run, &builder, &out->as.text);
}

/* ljust, rjust, center, zfill; variants: */
enum { LJUST, RJUST, CENTER, ZFILL };

static int pad(struct jinja_run *run, const struct jinja_value *self, const struct jinja_args *args,
               const struct jinja_bound *b, int variant, struct jinja_value *out)
{
    struct jinja_builder builder = {0};
    struct jinja_text t = self->as.text, fill = jinja_plain(variant == ZFILL ? STR("0") : STR(" "));
    int64_t width, n = (int64_t)jinja_text_length(t);
    (void)args;
    if (jinja_arg_int(run, b->v[0], 0, &width) < 0 ||
        (b->v[1] && jinja_arg_text(run, b->v[1], &fill) < 0))
        return E_JOB;
    if (jinja_text_length(fill) != 1)
        return jinja_fail(run, "the fill character must be exactly one character long");
    int64_t more = width > n ? width - n : 0, left = variant == LJUST ? 0 : more;
    if (variant == CENTER) /* Python puts the odd one left where the width is odd */
        left = more / 2 + (more & width & 1);
    if (variant == ZFILL && t.len && (t.ptr[0] == '-' || t.ptr[0] == '+')) {
        if (jinja_put(run, &builder, jinja_cut(t, 0, 1)) < 0)
            return E_JOB;
        t = jinja_cut(t, 1, t.len);
    }
    for (int64_t i = 0; i < left; i++)
        if (jinja_put(run, &builder, fill) < 0 || jinja_step_bytes(run, 64) < 0)
            return E_JOB;
    if (jinja_put(run, &builder, t) < 0)
        return E_JOB;
    for (int64_t i = left; i < more; i++)
        if (jinja_put(run, &builder, fill) < 0 || jinja_step_bytes(run, 64) < 0)
            return E_JOB;
    *out = jinja_string((struct jinja_text){0});
    return jinja_built(run, &builder, &out->as.text);
}

/* ---- dict, list, loop ---- */

static int dict_get(struct jinja_run *run, const struct jinja_value *self,
                    const struct jinja_args *args, const struct jinja_bound *b, int variant,
                    struct jinja_value *out)
{
    struct jinja_value *found;
    (void)args, (void)variant;
    if (jinja_dict_find(run, self->as.dict, b->v[0], &found) < 0)
        return E_JOB;
    *out = found ? *found : b->v[1] ? *b->v[1] : jinja_none();
    return E_OK;
}

static int dict_view(struct jinja_run *run, const struct jinja_value *self,
                     const struct jinja_args *args, const struct jinja_bound *b, int variant,
                     struct jinja_value *out)
{
    const struct jinja_dict *dict = self->as.dict;
    (void)args, (void)b;
    if (jinja_list_new(run, JINJA_VIEW, dict->n, out) < 0)
        return E_JOB;
    out->which = (uint8_t)variant;
    for (size_t i = 0; i < dict->n; i++) {
        struct jinja_value *item = &out->as.list->items[i];
        if (variant != JINJA_VIEW_ITEMS) {
            *item = variant == JINJA_VIEW_KEYS ? dict->keys[i] : dict->values[i];
            continue;
        }
        if (jinja_list_new(run, JINJA_TUPLE, 2, item) < 0)
            return E_JOB;
        item->as.list->items[0] = dict->keys[i];
        item->as.list->items[1] = dict->values[i];
    }
    return E_OK;
}

static int copy(struct jinja_run *run, const struct jinja_value *self,
                const struct jinja_args *args, const struct jinja_bound *b, int variant,
                struct jinja_value *out)
{
    (void)run, (void)args, (void)b, (void)variant;
    *out = *self; /* nothing can change it */
    return E_OK;
}

static int list_find(struct jinja_run *run, const struct jinja_value *self,
                     const struct jinja_args *args, const struct jinja_bound *b, int variant,
                     struct jinja_value *out)
{
    int64_t n = 0;
    (void)args;
    for (size_t i = 0; i < self->as.list->n; i++) {
        int same = jinja_equal(run, &self->as.list->items[i], b->v[0], 0);
        if (same < 0)
            return same;
        if (same && variant == INDEX) {
            *out = jinja_int((int64_t)i);
            return E_OK;
        }
        n += same;
    }
    if (variant == INDEX)
        return jinja_fail(run, "index: value is not in list");
    *out = jinja_int(n);
    return E_OK;
}

static int loop_cycle(struct jinja_run *run, const struct jinja_value *self,
                      const struct jinja_args *args, const struct jinja_bound *b, int variant,
                      struct jinja_value *out)
{
    (void)b, (void)variant;
    if (!args->n_pos)
        return jinja_fail(run, "no items for cycling given");
    *out = args->pos[self->as.loop->index0 % (size_t)args->n_pos];
    return E_OK;
}

static int loop_changed(struct jinja_run *run, const struct jinja_value *self,
                        const struct jinja_args *args, const struct jinja_bound *b, int variant,
                        struct jinja_value *out)
{
    struct jinja_loop *loop = self->as.loop;
    struct jinja_value now;
    (void)b, (void)variant;
    if (jinja_list_new(run, JINJA_TUPLE, (size_t)args->n_pos, &now) < 0)
        return E_JOB;
    for (int i = 0; i < args->n_pos; i++)
        now.as.list->items[i] = args->pos[i];
    int same = loop->changed_set ? jinja_equal(run, &now, &loop->changed, 0) : 0;
    if (same < 0)
        return same;
    loop->changed = now;
    loop->changed_set = true;
    *out = jinja_bool(!same);
    return E_OK;
}

/* Rows of one name stand together. params NULL: arguments go raw. */
static const struct {
    const char *name;
    int on;
    const char *params;
    method_fn *fn;
    int variant;
} methods[] = {
    {"capitalize", ON_STR, "", change_case, JINJA_CAPITALIZE},
    {"center", ON_STR, "/width,/fillchar=", pad, CENTER},
    {"changed", ON_LOOP, NULL, loop_changed, 0},
    {"copy", ON_DICT, "", copy, 0},
    {"copy", ON_LIST, "", copy, 0},
    {"count", ON_STR, "/sub,/start=,/end=", search, COUNT},
    {"count", ON_LIST, "/value", list_find, COUNT},
    {"cycle", ON_LOOP, NULL, loop_cycle, 0},
    {"endswith", ON_STR, "/suffix,/start=,/end=", search, ENDS},
    {"find", ON_STR, "/sub,/start=,/end=", search, FIND},
    {"get", ON_DICT, "/key,/default=", dict_get, 0},
    {"index", ON_STR, "/sub,/start=,/end=", search, INDEX},
    {"index", ON_LIST, "/value", list_find, INDEX},
    {"isalnum", ON_STR, "", is_class, JINJA_IS_ALNUM},
    {"isalpha", ON_STR, "", is_class, JINJA_IS_ALPHA},
    {"isdigit", ON_STR, "", is_class, JINJA_IS_DIGIT},
    {"islower", ON_STR, "", is_class, JINJA_IS_LOWER},
    {"isspace", ON_STR, "", is_class, JINJA_IS_SPACE},
    {"isupper", ON_STR, "", is_class, JINJA_IS_UPPER},
    {"items", ON_DICT, "", dict_view, JINJA_VIEW_ITEMS},
    {"join", ON_STR, "/iterable", join, 0},
    {"keys", ON_DICT, "", dict_view, JINJA_VIEW_KEYS},
    {"ljust", ON_STR, "/width,/fillchar=", pad, LJUST},
    {"lower", ON_STR, "", change_case, JINJA_LOWER},
    {"lstrip", ON_STR, "/chars=", strip, JINJA_LEFT},
    {"partition", ON_STR, "/sep", partition, 0},
    {"removeprefix", ON_STR, "/prefix", remove_affix, 0},
    {"removesuffix", ON_STR, "/suffix", remove_affix, 1},
    {"replace", ON_STR, "/old,/new,/count=", replace, 0},
    {"rfind", ON_STR, "/sub,/start=,/end=", search, RFIND},
    {"rindex", ON_STR, "/sub,/start=,/end=", search, RINDEX},
    {"rjust", ON_STR, "/width,/fillchar=", pad, RJUST},
    {"rpartition", ON_STR, "/sep", partition, 1},
    {"rsplit", ON_STR, "sep=,maxsplit=", split, 1},
    {"rstrip", ON_STR, "/chars=", strip, JINJA_RIGHT},
    {"split", ON_STR, "sep=,maxsplit=", split, 0},
    {"splitlines", ON_STR, "keepends=", splitlines, 0},
    {"startswith", ON_STR, "/prefix,/start=,/end=", search, STARTS},
    {"strip", ON_STR, "/chars=", strip, JINJA_LEFT | JINJA_RIGHT},
    {"title", ON_STR, "", change_case, JINJA_TITLE},
    {"upper", ON_STR, "", change_case, JINJA_UPPER},
    {"values", ON_DICT, "", dict_view, JINJA_VIEW_VALUES},
    {"zfill", ON_STR, "/width", pad, ZFILL},
};

int jinja_method_find(struct str name)
{
    for (size_t i = 0; i < TR_COUNT(methods); i++)
        if (str_eq(name, str_of(methods[i].name)))
            return (int)i;
    return -1;
}

static int kind_of(const struct jinja_value *v)
{
    return v->type == JINJA_STRING ? ON_STR
           : v->type == JINJA_DICT ? ON_DICT
           : v->type == JINJA_LOOP ? ON_LOOP
           : jinja_is_seq(v)       ? ON_LIST
                                   : 0;
}

int jinja_method_call(struct jinja_run *run, int method, const struct jinja_value *self,
                      const struct jinja_args *args, struct jinja_value *out)
{
    size_t i = (size_t)method, first = i;
    struct jinja_bound bound = {{NULL}};
    int kind = kind_of(self);
    while (i < TR_COUNT(methods) && methods[i].on != kind &&
           strcmp(methods[i].name, methods[first].name) == 0)
        i++;
    if (i >= TR_COUNT(methods) || methods[i].on != kind)
        return jinja_fail(run, "'%s' object is not callable here", jinja_type_name(self));
    method_fn *fn = methods[i].fn;
    /* Markup escapes what these take in or give out; nobody needs that in a chat template */
    if (self->type == JINJA_STRING && self->which &&
        (fn == replace || fn == split || fn == join || fn == partition || fn == pad))
        return jinja_fail(run, "unsupported: %s() of a safe string", methods[i].name);
    if (methods[i].params && jinja_bind(run, methods[i].name, methods[i].params, args, &bound) < 0)
        return E_JOB;
    return fn(run, self, args, &bound, methods[i].variant, out);
}
