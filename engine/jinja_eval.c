/* jinja_eval: expressions; see jinja_eval.h. */
#include "engine/jinja_eval.h"

#include "engine/jinja_compare.h"
#include "engine/jinja_repr.h"
#include "engine/jinja_text.h"

/* ---- variables ---- */

void jinja_lookup(struct jinja_exec *ex, const struct jinja_scope *scope, int id,
                  struct jinja_value *out)
{
    for (; scope->parent; scope = scope->parent) {
        for (const struct jinja_binding *b = scope->bindings; b; b = b->next) {
            if (b->id == id) {
                *out = b->value;
                return;
            }
        }
    }
    *out = ex->run.globals_set[id] ? ex->run.globals[id]
                                   : jinja_undefined(ex->program->names[id], NULL);
}

int jinja_assign(struct jinja_exec *ex, struct jinja_scope *scope, int id,
                 const struct jinja_value *value)
{
    if (!scope->parent) {
        ex->run.globals[id] = *value;
        ex->run.globals_set[id] = true;
        return E_OK;
    }
    struct jinja_binding *b = scope->bindings;
    while (b && b->id != id)
        b = b->next;
    if (!b) {
        b = ex->spare;
        if (b)
            ex->spare = b->next;
        else if (!(b = jinja_alloc(&ex->run, 1, sizeof *b)))
            return E_JOB;
        b->id = id;
        b->next = scope->bindings;
        scope->bindings = b;
    }
    b->value = *value;
    return E_OK;
}

void jinja_scope_end(struct jinja_exec *ex, struct jinja_scope *scope)
{
    if (scope->kept)
        return;
    while (scope->bindings) {
        struct jinja_binding *b = scope->bindings;
        scope->bindings = b->next;
        b->next = ex->spare;
        ex->spare = b;
    }
}

/* ---- arguments ---- */

/* Most calls have few arguments: these stay on the stack. */
enum { FEW_ARGS = 3 };
struct arg_room {
    struct jinja_value values[FEW_ARGS];
    struct str names[FEW_ARGS];
};

/* Positional arguments stand first (the parser sees to it), keyword ones behind them. */
static int eval_args(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct arg_room *room, struct jinja_args *out)
{
    struct jinja_value *values = room->values;
    struct str *names = room->names;
    *out = (struct jinja_args){0};
    if (node->n_items > FEW_ARGS) {
        values = jinja_alloc(&ex->run, (size_t)node->n_items, sizeof *values);
        names = jinja_alloc(&ex->run, (size_t)node->n_items, sizeof *names);
        if (!values || !names)
            return E_JOB;
    }
    for (int i = 0; i < node->n_items; i++) {
        const struct jinja_node *arg = node->items[i];
        bool keyword = arg->kind == NODE_KEYWORD;
        if (jinja_eval(ex, scope, keyword ? arg->a : arg, &values[i]) < 0)
            return E_JOB;
        if (keyword)
            names[out->n_named++] = arg->text;
        else
            out->n_pos++;
    }
    out->pos = values;
    out->named = values + out->n_pos;
    out->names = names;
    return E_OK;
}

/* ---- calls ---- */

static int call_value(struct jinja_exec *ex, const struct jinja_value *callee,
                      const struct jinja_args *args, const struct jinja_value *caller,
                      struct jinja_value *out)
{
    struct jinja_run *run = &ex->run;
    if (callee->type == JINJA_MACRO)
        return jinja_macro_call(ex, callee->as.macro, args, caller, out);
    if (caller)
        return jinja_fail(run, "a call block calls a %s, want a macro", jinja_type_name(callee));
    if (callee->type == JINJA_FUNCTION)
        return jinja_function_call(run, callee->which, args, out);
    if (callee->type == JINJA_METHOD && callee->which != UINT8_MAX)
        return jinja_method_call(run, callee->which, callee->as.self, args, out);
    if (callee->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, callee);
    return jinja_fail(run, "'%s' object is not callable here", jinja_type_name(callee));
}

int jinja_eval_call(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node,
                    const struct jinja_value *caller, struct jinja_value *out)
{
    const struct jinja_node *callee = node->a;
    struct jinja_value self, found;
    struct jinja_args args;
    struct arg_room room;
    if (callee->kind == NODE_NAME) {
        jinja_lookup(ex, scope, callee->id, &found);
        if (eval_args(ex, scope, node, &room, &args) < 0)
            return E_JOB;
        return call_value(ex, &found, &args, caller, out);
    }
    if (jinja_eval(ex, scope, callee->a, &self) < 0)
        return E_JOB;
    bool method = !caller && jinja_has_method(&self, callee->text);
    if (!method && jinja_get_attr(&ex->run, &self, callee->text, &found) < 0)
        return E_JOB;
    if (eval_args(ex, scope, node, &room, &args) < 0)
        return E_JOB;
    ex->run.line = node->line;
    if (method)
        return jinja_method_call(&ex->run, callee->builtin, &self, &args, out);
    return call_value(ex, &found, &args, caller, out);
}

static int eval_filter(struct jinja_exec *ex, struct jinja_scope *scope,
                       const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_value v = ex->block;
    struct jinja_args args;
    struct arg_room room;
    if ((node->a && jinja_eval(ex, scope, node->a, &v) < 0) ||
        eval_args(ex, scope, node, &room, &args) < 0)
        return E_JOB;
    ex->run.line = node->line;
    return jinja_filter_call(&ex->run, node->builtin, &v, &args, out);
}

static int eval_test(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_value v;
    struct jinja_args args;
    struct arg_room room;
    if (jinja_eval(ex, scope, node->a, &v) < 0 || eval_args(ex, scope, node, &room, &args) < 0)
        return E_JOB;
    ex->run.line = node->line;
    int yes = jinja_test_call(&ex->run, node->builtin, &v, &args);
    *out = jinja_bool(yes > 0);
    return yes < 0 ? yes : E_OK;
}

/* ---- operators ---- */

static int compare(struct jinja_run *run, int op, const struct jinja_value *a,
                   const struct jinja_value *b)
{
    static const char *const names[] = {
        [TOKEN_GT] = ">", [TOKEN_GE] = ">=", [TOKEN_LT] = "<", [TOKEN_LE] = "<="};
    int order, rc;
    switch (op) {
    case TOKEN_EQ:
        return jinja_equal(run, a, b, 0);
    case TOKEN_NE:
        rc = jinja_equal(run, a, b, 0);
        return rc < 0 ? rc : !rc;
    case OP_IN:
        return jinja_contains(run, b, a);
    case OP_NOT_IN:
        rc = jinja_contains(run, b, a);
        return rc < 0 ? rc : !rc;
    default:
        if (jinja_order(run, a, b, names[op], &order) < 0)
            return E_JOB;
        if (order == 2) /* a NaN */
            return 0;
        return op == TOKEN_GT   ? order > 0
               : op == TOKEN_GE ? order >= 0
               : op == TOKEN_LT ? order < 0
                                : order <= 0;
    }
}

static int eval_compare(struct jinja_exec *ex, struct jinja_scope *scope,
                        const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_value left, right;
    int yes = 1;
    if (jinja_eval(ex, scope, node->a, &left) < 0)
        return E_JOB;
    for (int i = 0; i < node->n_items && yes > 0; i++) {
        if (jinja_eval(ex, scope, node->items[i]->a, &right) < 0)
            return E_JOB;
        ex->run.line = node->line;
        yes = compare(&ex->run, node->items[i]->op, &left, &right);
        left = right;
    }
    *out = jinja_bool(yes > 0);
    return yes < 0 ? yes : E_OK;
}

static int eval_concat(struct jinja_exec *ex, struct jinja_scope *scope,
                       const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_builder b = {0};
    for (int i = 0; i < node->n_items; i++) {
        struct jinja_value part;
        struct jinja_text text;
        if (jinja_eval(ex, scope, node->items[i], &part) < 0 ||
            jinja_to_text(&ex->run, &part, &text) < 0 || jinja_put(&ex->run, &b, text) < 0)
            return E_JOB;
    }
    *out = jinja_string((struct jinja_text){0});
    return jinja_built(&ex->run, &b, &out->as.text);
}

/* A slice bound: absent and None are NULL. */
static int slice_bound(struct jinja_exec *ex, struct jinja_scope *scope,
                       const struct jinja_node *node, int64_t *buf, const int64_t **out)
{
    struct jinja_value v;
    *out = NULL;
    if (!node)
        return E_OK;
    if (jinja_eval(ex, scope, node, &v) < 0)
        return E_JOB;
    if (v.type == JINJA_NONE)
        return E_OK;
    *out = buf;
    return jinja_arg_int(&ex->run, &v, 0, buf);
}

/* *out = start + index * step; false where that is beyond 64 bits. */
static bool range_at(const struct jinja_list *range, int64_t index, int64_t *out)
{
    return !__builtin_add_overflow((__int128)index * range->step, range->start, out);
}

static int slice_list(struct jinja_run *run, const struct jinja_value *v, const int64_t *start,
                      const int64_t *stop, int64_t step, struct jinja_value *out)
{
    int64_t at, end, n = jinja_slice_bounds((int64_t)v->as.list->n, start, stop, step, &at, &end);
    enum jinja_type type = (enum jinja_type)v->type;
    if (jinja_list_new(run, type, (size_t)TR_MAX(n, (int64_t)0), out) < 0)
        return E_JOB;
    if (type == JINJA_RANGE) { /* its items are in 64 bits, what it would print as may not be */
        const struct jinja_list *from = v->as.list;
        struct jinja_list *to = out->as.list;
        if (!range_at(from, at, &to->start) || !range_at(from, end, &to->stop) ||
            __builtin_mul_overflow(from->step, step, &to->step))
            to->step = 0;
    }
    for (int64_t i = 0; i < n; i++)
        out->as.list->items[i] = v->as.list->items[at + i * step];
    return E_OK;
}

static int eval_slice(struct jinja_exec *ex, struct jinja_scope *scope,
                      const struct jinja_node *node, struct jinja_value *out)
{
    int64_t buf[3];
    const int64_t *bound[3];
    struct jinja_value v;
    if (jinja_eval(ex, scope, node->a, &v) < 0)
        return E_JOB;
    for (int i = 0; i < 3; i++)
        if (slice_bound(ex, scope, node->items[i], &buf[i], &bound[i]) < 0)
            return E_JOB;
    ex->run.line = node->line;
    int64_t step = bound[2] ? *bound[2] : 1;
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(&ex->run, &v);
    if (v.type != JINJA_STRING && !jinja_is_seq(&v))
        return jinja_fail(&ex->run, "'%s' object cannot be sliced", jinja_type_name(&v));
    if (step == 0)
        return jinja_fail(&ex->run, "slice step cannot be zero");
    if (jinja_is_seq(&v))
        return slice_list(&ex->run, &v, bound[0], bound[1], step, out);
    *out = v;
    return jinja_text_slice(&ex->run, v.as.text, bound[0], bound[1], step, &out->as.text);
}

static int eval_list(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    enum jinja_type type = node->kind == NODE_LIST ? JINJA_LIST : JINJA_TUPLE;
    if (jinja_list_new(&ex->run, type, (size_t)node->n_items, out) < 0)
        return E_JOB;
    for (int i = 0; i < node->n_items; i++)
        if (jinja_eval(ex, scope, node->items[i], &out->as.list->items[i]) < 0)
            return E_JOB;
    return E_OK;
}

static int eval_dict(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    if (jinja_dict_new(&ex->run, JINJA_DICT, (size_t)node->n_items / 2, out) < 0)
        return E_JOB;
    for (int i = 0; i < node->n_items; i += 2) {
        struct jinja_value key, value;
        if (jinja_eval(ex, scope, node->items[i], &key) < 0 ||
            jinja_eval(ex, scope, node->items[i + 1], &value) < 0 ||
            jinja_dict_set(&ex->run, out->as.dict, &key, &value) < 0)
            return E_JOB;
    }
    return E_OK;
}

static int eval_cond(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_value test;
    if (jinja_eval(ex, scope, node->b, &test) < 0)
        return E_JOB;
    if (jinja_truth(&test))
        return jinja_eval(ex, scope, node->a, out);
    if (node->c)
        return jinja_eval(ex, scope, node->c, out);
    *out = jinja_undefined(STR("the inline if was false and has no else"), "");
    return E_OK;
}

/* What has operands a and b and needs both values. */
static int eval_pair(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_value a, b;
    if (jinja_eval(ex, scope, node->a, &a) < 0 || jinja_eval(ex, scope, node->b, &b) < 0)
        return E_JOB;
    ex->run.line = node->line;
    if (node->kind == NODE_ITEM)
        return jinja_get_item(&ex->run, &a, &b, out);
    return jinja_binary(&ex->run, node->op, &a, &b, out);
}

static int eval_one(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node,
                    struct jinja_value *out)
{
    struct jinja_value a;
    if (jinja_eval(ex, scope, node->a, &a) < 0)
        return E_JOB;
    ex->run.line = node->line;
    switch ((enum jinja_kind)node->kind) {
    case NODE_ATTR:
        return jinja_get_attr(&ex->run, &a, node->text, out);
    case NODE_NOT:
        *out = jinja_bool(!jinja_truth(&a));
        return E_OK;
    case NODE_AND:
    case NODE_OR:
        if (jinja_truth(&a) == (node->kind == NODE_AND))
            return jinja_eval(ex, scope, node->b, out);
        *out = a;
        return E_OK;
    default:
        return jinja_negate(&ex->run, &a, node->kind == NODE_NEG, out);
    }
}

static int eval_node(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    switch ((enum jinja_kind)node->kind) {
    case NODE_ATTR:
    case NODE_NOT:
    case NODE_NEG:
    case NODE_POS:
    case NODE_AND:
    case NODE_OR:
        return eval_one(ex, scope, node, out);
    case NODE_ITEM:
    case NODE_BINARY:
        return eval_pair(ex, scope, node, out);
    case NODE_SLICE:
        return eval_slice(ex, scope, node, out);
    case NODE_CALL:
        return jinja_eval_call(ex, scope, node, NULL, out);
    case NODE_FILTER:
        return eval_filter(ex, scope, node, out);
    case NODE_TEST:
        return eval_test(ex, scope, node, out);
    case NODE_COMPARE:
        return eval_compare(ex, scope, node, out);
    case NODE_COND:
        return eval_cond(ex, scope, node, out);
    case NODE_CONCAT:
        return eval_concat(ex, scope, node, out);
    case NODE_DICT:
        return eval_dict(ex, scope, node, out);
    default:
        CHECK(node->kind == NODE_LIST || node->kind == NODE_TUPLE);
        return eval_list(ex, scope, node, out);
    }
}

int jinja_eval(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node,
               struct jinja_value *out)
{
    struct jinja_run *run = &ex->run;
    if (node->kind == NODE_CONST) {
        *out = node->value;
        return E_OK;
    }
    run->line = node->line;
    if (jinja_step(run, 1) < 0)
        return E_JOB;
    if (node->kind == NODE_NAME) {
        jinja_lookup(ex, scope, node->id, out);
        return E_OK;
    }
    if (run->depth >= JINJA_STACK_MAX)
        return jinja_limit(run, "nested deeper than %d evaluations", JINJA_STACK_MAX);
    run->depth++;
    int rc = eval_node(ex, scope, node, out);
    run->depth--;
    return rc;
}
