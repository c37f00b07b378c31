/* jinja_exec: statements and macros; see jinja_eval.h. */
#include "engine/chat_template.h"
#include "engine/jinja_eval.h"
#include "engine/jinja_repr.h"

static int print_value(struct jinja_exec *ex, const struct jinja_value *v)
{
    struct jinja_text text;
    if (jinja_to_text(&ex->run, v, &text) < 0)
        return E_JOB;
    return jinja_put(&ex->run, ex->run.out, text);
}

/* Scopes are on the heap because a macro may outlive them; a loop uses one again for each item
 * unless a macro kept it. */
static int fresh_scope(struct jinja_exec *ex, struct jinja_scope *parent,
                       struct jinja_scope **scope)
{
    if (*scope && !(*scope)->kept) {
        jinja_scope_end(ex, *scope);
        return E_OK;
    }
    *scope = jinja_alloc(&ex->run, 1, sizeof **scope);
    if (!*scope)
        return E_JOB;
    (*scope)->parent = parent;
    return E_OK;
}

/* Runs statements with their output caught. A break or continue inside drops what was caught. */
static int capture(struct jinja_exec *ex, struct jinja_scope *scope, struct jinja_node **items,
                   int n, struct jinja_value *out)
{
    struct jinja_builder caught = {.max = CHAT_TEMPLATE_OUTPUT_MAX}, *outer = ex->run.out;
    ex->run.out = &caught;
    int flow = jinja_exec_items(ex, scope, items, n);
    ex->run.out = outer;
    *out = jinja_string((struct jinja_text){0});
    if (flow < 0 || jinja_built(&ex->run, &caught, &out->as.text) < 0)
        return E_JOB;
    return flow;
}

/* ---- assignment ---- */

static int assign_field(struct jinja_exec *ex, struct jinja_scope *scope,
                        const struct jinja_node *target, const struct jinja_value *value)
{
    struct jinja_value ns, key = jinja_string(jinja_plain(target->text));
    jinja_lookup(ex, scope, target->id, &ns);
    if (ns.type != JINJA_NAMESPACE)
        return jinja_fail(&ex->run, "cannot assign attribute on non-namespace object");
    return jinja_dict_set(&ex->run, ns.as.dict, &key, value);
}

static int assign_target(struct jinja_exec *ex, struct jinja_scope *scope,
                         const struct jinja_node *target, const struct jinja_value *value)
{
    struct jinja_list *list;
    if (target->kind == NODE_NAME)
        return jinja_assign(ex, scope, target->id, value);
    if (target->kind == NODE_FIELD)
        return assign_field(ex, scope, target, value);
    if (jinja_iterate(&ex->run, value, &list) < 0)
        return E_JOB;
    if (list->n != (size_t)target->n_items)
        return jinja_fail(&ex->run, "cannot unpack %zu values into %d names", list->n,
                          target->n_items);
    for (int i = 0; i < target->n_items; i++)
        if (assign_target(ex, scope, target->items[i], &list->items[i]) < 0)
            return E_JOB;
    return E_OK;
}

static int exec_set(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node)
{
    struct jinja_value value;
    if (jinja_eval(ex, scope, node->a, &value) < 0)
        return E_JOB;
    return assign_target(ex, scope, node->b, &value);
}

/* The filters of a set or filter block over what its body printed. */
static int exec_filters(struct jinja_exec *ex, struct jinja_scope *scope,
                        const struct jinja_node *filters, struct jinja_value *value)
{
    if (!filters)
        return E_OK;
    struct jinja_value outer = ex->block;
    ex->block = *value;
    int rc = jinja_eval(ex, scope, filters, value);
    ex->block = outer;
    return rc;
}

static int exec_capture(struct jinja_exec *ex, struct jinja_scope *scope,
                        const struct jinja_node *node)
{
    struct jinja_scope *body = NULL;
    struct jinja_value value;
    if (fresh_scope(ex, scope, &body) < 0)
        return E_JOB;
    int flow = capture(ex, body, node->items, node->n_items, &value);
    jinja_scope_end(ex, body);
    if (flow != FLOW_NEXT)
        return flow;
    if (exec_filters(ex, scope, node->a, &value) < 0)
        return E_JOB;
    if (node->kind == NODE_FILTERED)
        return print_value(ex, &value);
    return assign_target(ex, scope, node->b, &value);
}

/* ---- loops ---- */

/* Items that pass the loop's `if`, which sees the targets but not `loop`. */
static int filter_items(struct jinja_exec *ex, struct jinja_scope *scope,
                        const struct jinja_node *node, struct jinja_list **list)
{
    struct jinja_value kept;
    struct jinja_list *from = *list;
    if (jinja_list_new(&ex->run, JINJA_LIST, from->n, &kept) < 0)
        return E_JOB;
    kept.as.list->n = 0;
    for (size_t i = 0; i < from->n; i++) {
        struct jinja_scope inner = {.parent = scope};
        struct jinja_value yes;
        if (assign_target(ex, &inner, node->b, &from->items[i]) < 0 ||
            jinja_eval(ex, &inner, node->c, &yes) < 0)
            return E_JOB;
        if (jinja_truth(&yes))
            kept.as.list->items[kept.as.list->n++] = from->items[i];
        jinja_scope_end(ex, &inner);
    }
    *list = kept.as.list;
    return E_OK;
}

static int in_new_scope(struct jinja_exec *ex, struct jinja_scope *scope, struct jinja_node **items,
                        int n)
{
    struct jinja_scope *inner = NULL;
    if (fresh_scope(ex, scope, &inner) < 0)
        return E_JOB;
    int flow = jinja_exec_items(ex, inner, items, n);
    jinja_scope_end(ex, inner);
    return flow;
}

static int loop_over(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, const struct jinja_list *list)
{
    struct jinja_loop *loop = jinja_alloc(&ex->run, 1, sizeof *loop);
    struct jinja_scope *inner = NULL;
    struct jinja_value value = {.type = JINJA_LOOP, .as.loop = loop};
    int flow = FLOW_NEXT, id_loop = ex->program->id_loop;
    bool completed = false;
    if (!loop)
        return E_JOB;
    *loop = (struct jinja_loop){.list = list, .depth = 1}; /* more in recursive loops alone */
    for (; loop->index0 < list->n && flow != FLOW_BREAK; loop->index0++) {
        if (jinja_step(&ex->run, 1) < 0 || fresh_scope(ex, scope, &inner) < 0 ||
            (id_loop >= 0 && jinja_assign(ex, inner, id_loop, &value) < 0) ||
            assign_target(ex, inner, node->b, &list->items[loop->index0]) < 0)
            return E_JOB;
        flow = jinja_exec_items(ex, inner, node->items, node->n_items);
        if (flow < 0)
            return flow;
        completed |= flow == FLOW_NEXT;
    }
    if (inner)
        jinja_scope_end(ex, inner);
    /* as in Jinja2: break and continue leave a body before the line that says that it ran */
    return completed ? FLOW_NEXT : in_new_scope(ex, scope, node->otherwise, node->n_otherwise);
}

static int exec_for(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node)
{
    struct jinja_value over;
    struct jinja_list *list;
    if (jinja_eval(ex, scope, node->a, &over) < 0)
        return E_JOB;
    ex->run.line = node->line;
    if (jinja_iterate(&ex->run, &over, &list) < 0 ||
        (node->c && filter_items(ex, scope, node, &list) < 0))
        return E_JOB;
    return loop_over(ex, scope, node, list);
}

/* ---- macros ---- */

static int new_macro(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, struct jinja_value *out)
{
    struct jinja_macro *macro = jinja_alloc(&ex->run, 1, sizeof *macro);
    if (!macro)
        return E_JOB;
    *macro = (struct jinja_macro){node, scope};
    for (struct jinja_scope *s = scope; s->parent; s = s->parent)
        s->kept = true;
    *out = (struct jinja_value){.type = JINJA_MACRO, .as.macro = macro};
    return E_OK;
}

static const struct jinja_value *named_arg(const struct jinja_args *args, struct str name)
{
    for (int i = 0; i < args->n_named; i++)
        if (str_eq(args->names[i], name))
            return &args->named[i];
    return NULL;
}

static bool is_param(struct jinja_exec *ex, const struct jinja_macro_params *params,
                     struct str name)
{
    for (int i = 0; i < params->n; i++)
        if (str_eq(ex->program->names[params->ids[i]], name))
            return true;
    return false;
}

/* varargs and kwargs take what no parameter does; without them it is an error. */
static int bind_rest(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node, const struct jinja_args *args)
{
    struct jinja_run *run = &ex->run;
    const struct jinja_macro_params *params = node->params;
    struct jinja_value rest, named;
    int extra = args->n_pos > params->n ? args->n_pos - params->n : 0;
    if (extra && !params->uses_varargs)
        return jinja_fail(run, "macro '%.*s' takes not more than %d arguments",
                          (int)TR_MIN(node->text.len, (size_t)40), node->text.ptr, params->n);
    if (jinja_list_new(run, JINJA_TUPLE, (size_t)extra, &rest) < 0 ||
        jinja_dict_new(run, JINJA_DICT, 0, &named) < 0)
        return E_JOB;
    for (int i = 0; i < extra; i++)
        rest.as.list->items[i] = args->pos[params->n + i];
    for (int i = 0; i < args->n_named; i++) {
        struct jinja_value key = jinja_string(jinja_plain(args->names[i]));
        if (is_param(ex, params, args->names[i]))
            continue;
        if (!params->uses_kwargs)
            return jinja_fail(run, "macro has no parameter '%.*s'",
                              (int)TR_MIN(args->names[i].len, (size_t)40), args->names[i].ptr);
        if (jinja_dict_set(run, named.as.dict, &key, &args->named[i]) < 0)
            return E_JOB;
    }
    if (params->uses_varargs && jinja_assign(ex, scope, ex->program->id_varargs, &rest) < 0)
        return E_JOB;
    if (params->uses_kwargs && jinja_assign(ex, scope, ex->program->id_kwargs, &named) < 0)
        return E_JOB;
    return E_OK;
}

static int bind_params(struct jinja_exec *ex, struct jinja_scope *scope,
                       const struct jinja_node *node, const struct jinja_args *args)
{
    const struct jinja_macro_params *params = node->params;
    for (int i = 0; i < params->n; i++) {
        struct str name = ex->program->names[params->ids[i]];
        const struct jinja_value *named = named_arg(args, name);
        struct jinja_value value;
        if (i < args->n_pos && named)
            return jinja_fail(&ex->run, "macro got '%.*s' twice", (int)TR_MIN(name.len, (size_t)40),
                              name.ptr);
        if (i < args->n_pos || named)
            value = i < args->n_pos ? args->pos[i] : *named;
        else if (!params->defaults[i])
            value = jinja_undefined(name, NULL);
        else if (jinja_eval(ex, scope, params->defaults[i], &value) < 0)
            return E_JOB;
        if (jinja_assign(ex, scope, params->ids[i], &value) < 0)
            return E_JOB;
    }
    return bind_rest(ex, scope, node, args);
}

int jinja_macro_call(struct jinja_exec *ex, const struct jinja_macro *macro,
                     const struct jinja_args *args, const struct jinja_value *caller,
                     struct jinja_value *out)
{
    struct jinja_run *run = &ex->run;
    const struct jinja_node *node = macro->node;
    struct jinja_scope *scope = NULL;
    int id_caller = ex->program->id_caller;
    if (run->macro_depth >= CHAT_TEMPLATE_DEPTH_MAX)
        return jinja_limit(run, "macros nested deeper than %d", CHAT_TEMPLATE_DEPTH_MAX);
    if (caller && !node->params->uses_caller)
        return jinja_fail(run, "macro '%.*s' never calls its caller",
                          (int)TR_MIN(node->text.len, (size_t)40), node->text.ptr);
    run->macro_depth++;
    if (fresh_scope(ex, macro->scope, &scope) < 0)
        return E_JOB;
    if (node->params->uses_caller && node->kind == NODE_MACRO) {
        struct jinja_value none = jinja_undefined(STR("No caller defined"), "");
        if (jinja_assign(ex, scope, id_caller, caller ? caller : &none) < 0)
            return E_JOB;
    }
    if (bind_params(ex, scope, node, args) < 0 ||
        capture(ex, scope, node->items, node->n_items, out) < 0)
        return E_JOB;
    jinja_scope_end(ex, scope);
    run->macro_depth--;
    return E_OK;
}

static int exec_macro(struct jinja_exec *ex, struct jinja_scope *scope,
                      const struct jinja_node *node)
{
    struct jinja_value macro;
    if (new_macro(ex, scope, node, &macro) < 0)
        return E_JOB;
    return jinja_assign(ex, scope, node->id, &macro);
}

static int exec_caller(struct jinja_exec *ex, struct jinja_scope *scope,
                       const struct jinja_node *node)
{
    struct jinja_value caller, result;
    if (new_macro(ex, scope, node, &caller) < 0 ||
        jinja_eval_call(ex, scope, node->a, &caller, &result) < 0)
        return E_JOB;
    return print_value(ex, &result);
}

/* ---- the rest ---- */

static int exec_with(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node)
{
    struct jinja_scope *inner = NULL;
    if (fresh_scope(ex, scope, &inner) < 0)
        return E_JOB;
    for (int i = 0; i < node->params->n; i++) {
        struct jinja_value value;
        if (jinja_eval(ex, scope, node->params->defaults[i], &value) < 0 ||
            jinja_assign(ex, inner, node->params->ids[i], &value) < 0)
            return E_JOB;
    }
    int flow = jinja_exec_items(ex, inner, node->items, node->n_items);
    jinja_scope_end(ex, inner);
    return flow;
}

static int exec_if(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node)
{
    for (;;) {
        struct jinja_value test;
        if (jinja_eval(ex, scope, node->a, &test) < 0)
            return E_JOB;
        if (jinja_truth(&test))
            return jinja_exec_items(ex, scope, node->items, node->n_items);
        if (node->n_otherwise != 1 || node->otherwise[0]->kind != NODE_IF)
            return jinja_exec_items(ex, scope, node->otherwise, node->n_otherwise);
        node = node->otherwise[0];
    }
}

static int exec_print(struct jinja_exec *ex, struct jinja_scope *scope,
                      const struct jinja_node *node)
{
    struct jinja_value value;
    if (jinja_eval(ex, scope, node->a, &value) < 0)
        return E_JOB;
    return print_value(ex, &value);
}

static int exec_node(struct jinja_exec *ex, struct jinja_scope *scope,
                     const struct jinja_node *node)
{
    ex->run.line = node->line;
    switch ((enum jinja_kind)node->kind) {
    case NODE_DATA:
        return jinja_put(&ex->run, ex->run.out, node->value.as.text);
    case NODE_PRINT:
        return exec_print(ex, scope, node);
    case NODE_SET:
        return exec_set(ex, scope, node);
    case NODE_IF:
        return exec_if(ex, scope, node);
    case NODE_FOR:
        return exec_for(ex, scope, node);
    case NODE_CAPTURE:
    case NODE_FILTERED:
        return exec_capture(ex, scope, node);
    case NODE_MACRO:
        return exec_macro(ex, scope, node);
    case NODE_CALLER:
        return exec_caller(ex, scope, node);
    case NODE_WITH:
        return exec_with(ex, scope, node);
    case NODE_BLOCK:
        return jinja_exec_items(ex, scope, node->items, node->n_items);
    case NODE_BREAK:
        return FLOW_BREAK;
    default:
        CHECK(node->kind == NODE_CONTINUE);
        return FLOW_CONTINUE;
    }
}

int jinja_exec_items(struct jinja_exec *ex, struct jinja_scope *scope, struct jinja_node **items,
                     int n)
{
    struct jinja_run *run = &ex->run;
    if (run->depth >= JINJA_STACK_MAX)
        return jinja_limit(run, "nested deeper than %d evaluations", JINJA_STACK_MAX);
    run->depth++;
    for (int i = 0; i < n; i++) {
        if (jinja_step(run, 1) < 0)
            return E_JOB;
        int flow = exec_node(ex, scope, items[i]);
        if (flow != FLOW_NEXT) {
            run->depth--;
            return flow;
        }
    }
    run->depth--;
    return FLOW_NEXT;
}
