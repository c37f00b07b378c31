/* jinja_value: see jinja_value.h. Heap, strings under construction, lists, dicts. */
#include "engine/jinja_value.h"

#include <stdio.h>

#include "engine/chat_template.h"
#include "engine/jinja_compare.h"
#include "engine/jinja_text.h"

enum { BLOCK_MIN = 32 << 10, BLOCK_MAX = 4 << 20 };

struct jinja_block {
    struct jinja_block *older;
    size_t size;
};

void jinja_heap_open(struct jinja_heap *heap, size_t budget)
{
    *heap = (struct jinja_heap){.left = budget};
}

static void region_close(struct jinja_region *region)
{
    while (region->blocks) {
        struct jinja_block *older = region->blocks->older;
        mem_free(region->blocks);
        region->blocks = older;
    }
}

void jinja_heap_close(struct jinja_heap *heap)
{
    region_close(&heap->objects);
    region_close(&heap->bytes);
    *heap = (struct jinja_heap){0};
}

static bool region_grow(struct jinja_heap *heap, struct jinja_region *region, size_t want)
{
    size_t last = region->blocks ? region->blocks->size : BLOCK_MIN / 2;
    size_t size = TR_MIN(last * 2, (size_t)BLOCK_MAX);
    if (want > heap->left)
        return false;
    size = TR_MAX(size, want + 64);
    if (size > heap->left)
        size = heap->left;
    if (size < want + 64)
        return false;
    struct jinja_block *block = mem_alloc(size, 1);
    if (!block)
        return false;
    heap->left -= size;
    *block = (struct jinja_block){region->blocks, size};
    region->blocks = block;
    region->cursor = (char *)block + 64;
    region->end = (char *)block + size;
    return true;
}

void *jinja_heap_object(struct jinja_heap *heap, size_t size)
{
    struct jinja_region *r = &heap->objects;
    if (size > JINJA_HEAP_MAX)
        return NULL;
    size = (TR_MAX(size, (size_t)1) + 15) & ~(size_t)15;
    if (size > (size_t)(r->end - r->cursor) && !region_grow(heap, r, size))
        return NULL;
    void *ptr = r->cursor; /* blocks come zeroed and nothing is given back, so this is zero */
    r->cursor += size;
    return ptr;
}

char *jinja_heap_bytes(struct jinja_heap *heap, size_t size)
{
    struct jinja_region *r = &heap->bytes;
    if (size > JINJA_HEAP_MAX)
        return NULL;
    if (size > (size_t)(r->end - r->cursor) && !region_grow(heap, r, size))
        return NULL;
    char *ptr = r->cursor;
    r->cursor += size;
    return ptr;
}

static int fail(struct jinja_run *run, const char *type, const char *fmt, va_list ap)
{
    char text[sizeof run->err->msg];
    vsnprintf(text, sizeof text, fmt, ap);
    return err_typed(run->err, E_JOB, type, "%s: line %d: %s", run->name, run->line, text);
}

int jinja_fail(struct jinja_run *run, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = fail(run, "template_error", fmt, ap);
    va_end(ap);
    return rc;
}

int jinja_limit(struct jinja_run *run, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = fail(run, "template_limit", fmt, ap);
    va_end(ap);
    return rc;
}

int jinja_step(struct jinja_run *run, size_t n)
{
    run->steps += n;
    if (run->steps > CHAT_TEMPLATE_STEPS_MAX)
        return jinja_limit(run, "more than %d steps", CHAT_TEMPLATE_STEPS_MAX);
    return E_OK;
}

int jinja_step_bytes(struct jinja_run *run, size_t bytes)
{
    return bytes < JINJA_BYTES_A_STEP ? E_OK : jinja_step(run, bytes / JINJA_BYTES_A_STEP);
}

int jinja_fail_memory(struct jinja_run *run)
{
    return jinja_limit(run, "values take more than %d bytes", JINJA_HEAP_MAX);
}

void *jinja_alloc(struct jinja_run *run, size_t count, size_t size)
{
    size_t bytes;
    void *ptr = NULL;
    if (!__builtin_mul_overflow(count, size, &bytes))
        ptr = jinja_heap_object(&run->heap, bytes);
    if (!ptr)
        jinja_fail_memory(run);
    return ptr;
}

/* ---- lists, dicts ---- */

struct jinja_value jinja_undefined(struct str name, const char *owner)
{
    return (struct jinja_value){.type = JINJA_UNDEFINED, .as.missing = {name, owner}};
}

int jinja_list_new(struct jinja_run *run, enum jinja_type type, size_t n, struct jinja_value *out)
{
    struct jinja_list *list = jinja_alloc(run, 1, sizeof *list);
    if (!list || jinja_step(run, n / 8) < 0)
        return E_JOB;
    if (n && !(list->items = jinja_alloc(run, n, sizeof *list->items)))
        return E_JOB;
    list->n = n;
    *out = (struct jinja_value){.type = (uint8_t)type, .as.list = list};
    return E_OK;
}

int jinja_dict_new(struct jinja_run *run, enum jinja_type type, size_t cap, struct jinja_value *out)
{
    struct jinja_dict *dict = jinja_alloc(run, 1, sizeof *dict);
    if (!dict)
        return E_JOB;
    if (cap) {
        dict->keys = jinja_alloc(run, cap, sizeof *dict->keys);
        dict->values = jinja_alloc(run, cap, sizeof *dict->values);
        if (!dict->keys || !dict->values)
            return E_JOB;
    }
    dict->cap = cap;
    *out = (struct jinja_value){.type = (uint8_t)type, .as.dict = dict};
    return E_OK;
}

int jinja_dict_str(struct jinja_run *run, const struct jinja_dict *dict, struct str key,
                   struct jinja_value **out)
{
    *out = NULL;
    if (jinja_step(run, dict->n / 8) < 0)
        return E_JOB;
    for (size_t i = 0; i < dict->n; i++) {
        const struct jinja_value *k = &dict->keys[i];
        if (k->type != JINJA_STRING || k->as.text.len != key.len)
            continue;
        if (jinja_step_bytes(run, key.len) < 0) /* long keys may differ in the last byte only */
            return E_JOB;
        if (str_eq(jinja_str(k->as.text), key)) {
            *out = &dict->values[i];
            break;
        }
    }
    return E_OK;
}

/* 1, 0 or an error. A tuple in itself many times over is walked each time: its items are steps. */
static int hashable(struct jinja_run *run, const struct jinja_value *v, int depth)
{
    if (v->type == JINJA_LIST || v->type == JINJA_DICT || v->type == JINJA_VIEW || depth > 16)
        return 0;
    for (size_t i = 0; v->type == JINJA_TUPLE && i < v->as.list->n; i++) {
        int rc = jinja_step(run, 1) < 0 ? E_JOB : hashable(run, &v->as.list->items[i], depth + 1);
        if (rc != 1)
            return rc;
    }
    return 1;
}

int jinja_dict_find(struct jinja_run *run, const struct jinja_dict *dict,
                    const struct jinja_value *key, struct jinja_value **out)
{
    *out = NULL;
    int can = hashable(run, key, 0);
    if (can <= 0)
        return can < 0 ? can : jinja_fail(run, "unhashable type: '%s'", jinja_type_name(key));
    if (key->type == JINJA_STRING)
        return jinja_dict_str(run, dict, jinja_str(key->as.text), out);
    if (jinja_step(run, dict->n / 8) < 0)
        return E_JOB;
    for (size_t i = 0; i < dict->n; i++) {
        int same = jinja_equal(run, &dict->keys[i], key, 0);
        if (same < 0)
            return same;
        if (same) {
            *out = &dict->values[i];
            break;
        }
    }
    return E_OK;
}

static int dict_grow(struct jinja_run *run, struct jinja_dict *dict)
{
    size_t cap = TR_MAX(dict->cap * 2, (size_t)4);
    struct jinja_value *keys = jinja_alloc(run, cap, sizeof *keys);
    struct jinja_value *values = jinja_alloc(run, cap, sizeof *values);
    if (!keys || !values)
        return E_JOB;
    if (dict->n) {
        memcpy(keys, dict->keys, dict->n * sizeof *keys);
        memcpy(values, dict->values, dict->n * sizeof *values);
    }
    dict->keys = keys;
    dict->values = values;
    dict->cap = cap;
    return E_OK;
}

int jinja_dict_set(struct jinja_run *run, struct jinja_dict *dict, const struct jinja_value *key,
                   const struct jinja_value *value)
{
    struct jinja_value *old;
    if (jinja_dict_find(run, dict, key, &old) < 0)
        return E_JOB;
    if (old) {
        *old = *value;
        return E_OK;
    }
    if (dict->n == dict->cap && dict_grow(run, dict) < 0)
        return E_JOB;
    dict->keys[dict->n] = *key;
    dict->values[dict->n++] = *value;
    return E_OK;
}

/* ---- asking ---- */

bool jinja_truth(const struct jinja_value *v)
{
    switch ((enum jinja_type)v->type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v->as.truth;
    case JINJA_INT:
        return v->as.i != 0;
    case JINJA_FLOAT:
        return v->as.f != 0.0;
    case JINJA_STRING:
        return v->as.text.len != 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW:
        return v->as.list->n != 0;
    case JINJA_DICT:
        return v->as.dict->n != 0;
    default:
        return true;
    }
}

bool jinja_is_seq(const struct jinja_value *v)
{
    return v->type == JINJA_LIST || v->type == JINJA_TUPLE || v->type == JINJA_RANGE;
}

bool jinja_is_num(const struct jinja_value *v)
{
    return v->type == JINJA_INT || v->type == JINJA_FLOAT || v->type == JINJA_BOOL;
}

bool jinja_as_int(const struct jinja_value *v, int64_t *out)
{
    if (v->type == JINJA_INT)
        *out = v->as.i;
    else if (v->type == JINJA_BOOL)
        *out = v->as.truth;
    else
        return false;
    return true;
}

const char *jinja_type_name(const struct jinja_value *v)
{
    static const char *const names[] = {
        "Undefined", "NoneType", "bool",     "int",       "float",      "str",
        "list",      "tuple",    "range",    "dict view", "generator",  "dict",
        "Namespace", "Macro",    "function", "method",    "LoopContext"};
    return names[v->type];
}

const char *jinja_owner_name(const struct jinja_value *v)
{
    static const char *const names[] = {"Undefined",         "None",
                                        "bool object",       "int object",
                                        "float object",      "str object",
                                        "list object",       "tuple object",
                                        "range object",      "dict view object",
                                        "generator object",  "dict object",
                                        "Namespace object",  "Macro object",
                                        "function object",   "method object",
                                        "LoopContext object"};
    return names[v->type];
}

int jinja_fail_undefined(struct jinja_run *run, const struct jinja_value *v)
{
    struct str name = v->as.missing.name;
    name.len = TR_MIN(name.len, (size_t)100);
    if (!v->as.missing.owner)
        return jinja_fail(run, "'" STR_FMT "' is undefined", STR_ARG(name));
    if (!*v->as.missing.owner)
        return jinja_fail(run, STR_FMT, STR_ARG(name));
    return jinja_fail(run, "'%s' has no attribute '" STR_FMT "'", v->as.missing.owner,
                      STR_ARG(name));
}

static int iterate_string(struct jinja_run *run, struct jinja_text t, struct jinja_list **out)
{
    struct jinja_value list;
    size_t at = 0, n = jinja_text_length(t);
    if (jinja_step(run, n / 8) < 0 || jinja_list_new(run, JINJA_LIST, n, &list) < 0)
        return E_JOB;
    for (size_t i = 0; i < n; i++) {
        size_t next = jinja_text_next(t, at);
        list.as.list->items[i] = jinja_string(jinja_cut(t, at, next));
        at = next;
    }
    *out = list.as.list;
    return E_OK;
}

int jinja_iterate(struct jinja_run *run, const struct jinja_value *v, struct jinja_list **out)
{
    struct jinja_list *list;
    switch ((enum jinja_type)v->type) {
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW:
        *out = v->as.list;
        return E_OK;
    case JINJA_ITER:
    case JINJA_DICT:
    case JINJA_UNDEFINED:
        list = jinja_alloc(run, 1, sizeof *list);
        if (!list)
            return E_JOB;
        if (v->type == JINJA_ITER) {
            if (v->as.list->n)
                *list = (struct jinja_list){.items = v->as.list->items + v->as.list->next,
                                            .n = v->as.list->n - v->as.list->next};
            v->as.list->next = v->as.list->n;
        } else if (v->type == JINJA_DICT) {
            *list = (struct jinja_list){.items = v->as.dict->keys, .n = v->as.dict->n};
        }
        *out = list;
        return E_OK;
    case JINJA_STRING:
        return iterate_string(run, v->as.text, out);
    default:
        return jinja_fail(run, "'%s' object is not iterable", jinja_type_name(v));
    }
}
