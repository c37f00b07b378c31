/* jinja_value: what a chat template computes with: values, strings that remember which of their
 * bytes came from message contents, and the bounded memory, step count and error of one render.
 *
 * Values are immutable once built (the sandbox forbids mutation), but for namespaces. All memory of
 * a render lives in its heap and is freed at once. Strings are valid UTF-8 and may hold NULs. */
#ifndef TRANCHE_ENGINE_JINJA_VALUE_H
#define TRANCHE_ENGINE_JINJA_VALUE_H

#include "engine/base.h"

enum {
    JINJA_HEAP_MAX = 64 << 20,   /* bytes of values in one render, and of one compiled template */
    JINJA_VALUE_DEPTH_MAX = 128, /* lists in lists, for printing and comparing */
    JINJA_STACK_MAX = 1000,      /* evaluations inside one another in one render */
    JINJA_ARGS_MAX = 32,         /* arguments of one call, macro parameters */
    JINJA_RANGE_MAX = 100000,    /* range(n): Jinja2's sandbox has the same limit */
    JINJA_BYTES_A_STEP = 256,    /* string work counts as steps, too */
};

/* ---- heap: bump allocation in growing blocks up to a budget. ---- */
struct jinja_block;
struct jinja_region {
    struct jinja_block *blocks;
    char *cursor, *end;
};
struct jinja_heap {
    struct jinja_region objects,
        bytes;   /* apart, so that a string can grow at the end of its region */
    size_t left; /* budget */
};
void jinja_heap_open(struct jinja_heap *heap, size_t budget);
void jinja_heap_close(struct jinja_heap *heap);
/* Zeroed, aligned to 16; NULL when the budget is spent or the system refuses. */
void *jinja_heap_object(struct jinja_heap *heap, size_t size);
/* Bytes without alignment, not zeroed. */
char *jinja_heap_bytes(struct jinja_heap *heap, size_t size);

/* ---- strings ---- */
struct jinja_span {
    size_t begin, end;
};
struct jinja_marks { /* ascending, disjoint, not touching */
    const struct jinja_span *spans;
    size_t n;
};
extern const struct jinja_marks jinja_marks_all; /* every byte is message content */

struct jinja_text {
    const char *ptr;
    size_t len;
    const struct jinja_marks *marks; /* NULL: no byte is message content */
    size_t base;                     /* where ptr stands in the coordinates of marks->spans */
};

enum jinja_type {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_RANGE,
    JINJA_VIEW, /* dict.items(), .keys(), .values() */
    JINJA_ITER, /* what a generator is in Jinja2: can be walked once */
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_FUNCTION,
    JINJA_METHOD, /* "x".strip without the call */
    JINJA_LOOP,
};

struct jinja_value {
    uint8_t type;  /* enum jinja_type */
    uint8_t which; /* string: 1 for markup; view: its name; function and method: their number */
    union {
        bool truth;
        int64_t i;
        double f;
        struct jinja_text text;
        struct {
            struct str name; /* what was looked for */
            const char
                *owner; /* type of the object that lacks it; NULL: a variable; "": name is text */
        } missing;
        struct jinja_list *list; /* also of views */
        struct jinja_dict *dict; /* also of namespaces */
        struct jinja_macro *macro;
        struct jinja_value *self; /* of a method */
        struct jinja_loop *loop;
    } as;
};
enum { JINJA_VIEW_KEYS, JINJA_VIEW_VALUES, JINJA_VIEW_ITEMS };

struct jinja_list {
    struct jinja_value *items;
    size_t n;
    size_t next;               /* iter: how far it was walked */
    int64_t start, stop, step; /* range; step 0: one of them is beyond 64 bits */
};
struct jinja_dict { /* in insertion order, as in Python */
    struct jinja_value *keys, *values;
    size_t n, cap;
};
struct jinja_loop {
    const struct jinja_list *list;
    size_t index0;
    int depth;
    struct jinja_value changed; /* last arguments of loop.changed */
    bool changed_set;
};

/* ---- one render ---- */
struct jinja_builder { /* text under construction, with its marks */
    char *buf;
    size_t len, cap;
    struct jinja_span *spans;
    size_t n_spans, spans_cap;
    size_t max; /* 0: bounded by the heap alone */
};
struct jinja_scope;
struct jinja_run {
    struct jinja_heap heap;
    const char *name; /* of the template, for messages */
    int line;
    uint64_t steps;
    int depth, macro_depth;
    struct jinja_builder *out;
    struct jinja_value *globals; /* by name id */
    bool *globals_set;
    int64_t date_ns;
    struct err *err;
};
/* Both record E_JOB and return it: "NAME: line 3: ..." with type template_error, template_limit. */
int jinja_fail(struct jinja_run *run, const char *fmt, ...) TR_PRINTF(2, 3);
int jinja_limit(struct jinja_run *run, const char *fmt, ...) TR_PRINTF(2, 3);
int jinja_fail_memory(struct jinja_run *run); /* template_limit: the heap is spent */
int jinja_step(struct jinja_run *run, size_t n) TR_MUSTCHECK;
int jinja_step_bytes(struct jinja_run *run, size_t bytes) TR_MUSTCHECK;
/* As the heap's; NULL has recorded template_limit. */
void *jinja_alloc(struct jinja_run *run, size_t count, size_t size);

/* ---- building ---- */
static inline struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.type = JINJA_NONE};
}
static inline struct jinja_value jinja_bool(bool truth)
{
    return (struct jinja_value){.type = JINJA_BOOL, .as.truth = truth};
}
static inline struct jinja_value jinja_int(int64_t i)
{
    return (struct jinja_value){.type = JINJA_INT, .as.i = i};
}
static inline struct jinja_value jinja_float(double f)
{
    return (struct jinja_value){.type = JINJA_FLOAT, .as.f = f};
}
static inline struct jinja_value jinja_string(struct jinja_text text)
{
    return (struct jinja_value){.type = JINJA_STRING, .as.text = text};
}
static inline struct jinja_text jinja_plain(struct str s)
{
    return (struct jinja_text){.ptr = s.ptr, .len = s.len};
}
static inline struct str jinja_str(struct jinja_text t)
{
    return (struct str){t.ptr, t.len};
}
/* The bytes [from, to) of a text; no allocation. */
static inline struct jinja_text jinja_cut(struct jinja_text t, size_t from, size_t to)
{
    return (struct jinja_text){t.ptr ? t.ptr + from : NULL, to - from, t.marks, t.base + from};
}
struct jinja_value jinja_undefined(struct str name, const char *owner);
bool jinja_is_marked(struct jinja_text t); /* any byte from message contents */

int jinja_concat(struct jinja_run *run, struct jinja_text a, struct jinja_text b,
                 struct jinja_text *out) TR_MUSTCHECK;
int jinja_put(struct jinja_run *run, struct jinja_builder *b, struct jinja_text t) TR_MUSTCHECK;
int jinja_put_str(struct jinja_run *run, struct jinja_builder *b, struct str s) TR_MUSTCHECK;
int jinja_built(struct jinja_run *run, struct jinja_builder *b,
                struct jinja_text *out) TR_MUSTCHECK;

/* A list-like of `n` zeroed (undefined) items. */
int jinja_list_new(struct jinja_run *run, enum jinja_type type, size_t n,
                   struct jinja_value *out) TR_MUSTCHECK;
int jinja_dict_new(struct jinja_run *run, enum jinja_type type, size_t cap,
                   struct jinja_value *out) TR_MUSTCHECK;
/* Adds or replaces. Fails on a key that Python cannot hash. */
int jinja_dict_set(struct jinja_run *run, struct jinja_dict *dict, const struct jinja_value *key,
                   const struct jinja_value *value) TR_MUSTCHECK;
/* Borrowed pointer or NULL. By string, and by any hashable value. */
int jinja_dict_str(struct jinja_run *run, const struct jinja_dict *dict, struct str key,
                   struct jinja_value **out) TR_MUSTCHECK;
int jinja_dict_find(struct jinja_run *run, const struct jinja_dict *dict,
                    const struct jinja_value *key, struct jinja_value **out) TR_MUSTCHECK;

/* ---- asking ---- */
bool jinja_truth(const struct jinja_value *v);
bool jinja_is_seq(const struct jinja_value *v); /* list, tuple, range: can be indexed */
bool jinja_is_num(const struct jinja_value *v); /* int, float, bool */
bool jinja_as_int(const struct jinja_value *v, int64_t *out); /* int or bool */
const char *jinja_type_name(const struct jinja_value *v);     /* Python's */
const char *jinja_owner_name(const struct jinja_value *v);    /* "dict object", "None" */
/* Records "'x' is undefined" and the like for an undefined value. */
int jinja_fail_undefined(struct jinja_run *run, const struct jinja_value *v);
/* Everything that `for` would see, as a list; walks an iter to its end. Fails on what is no
 * iterable. */
int jinja_iterate(struct jinja_run *run, const struct jinja_value *v,
                  struct jinja_list **out) TR_MUSTCHECK;

#endif
