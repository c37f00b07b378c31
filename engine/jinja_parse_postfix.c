/* jinja_parse_postfix: what stands behind an operand: attributes, subscripts, calls, filters,
 * tests; their names are checked here. */
#include "engine/jinja_builtin.h"
#include "engine/jinja_parse.h"

/* ---- arguments ---- */

static int argument(struct jinja_parser *p, bool *keywords, struct jinja_node **out)
{
    struct jinja_token *token = jinja_peek(p);
    if (token->kind == TOKEN_MUL || token->kind == TOKEN_POW)
        return jinja_bad(p->source, token->line, "unsupported: %s in arguments",
                         token->kind == TOKEN_MUL ? "*args" : "**kwargs");
    if (token->kind != TOKEN_NAME || token[1].kind != TOKEN_ASSIGN) {
        if (*keywords)
            return jinja_bad(p->source, token->line, "positional argument behind a keyword one");
        return jinja_expression(p, true, out);
    }
    *keywords = true;
    struct jinja_node *node = jinja_node_new(p, NODE_KEYWORD, token->line);
    if (!node)
        return E_FATAL;
    node->text = token->text;
    p->at += 2;
    *out = node;
    if (jinja_expression(p, true, &node->a) < 0)
        return E_FATAL;
    return jinja_adopt(p, node, node->a);
}

static int arguments(struct jinja_parser *p, struct jinja_node *call)
{
    struct jinja_nodes nodes = {0};
    bool keywords = false;
    int line = jinja_peek(p)->line;
    if (jinja_expect(p, TOKEN_LPAREN) < 0)
        return E_FATAL;
    while (!jinja_at(p, TOKEN_RPAREN)) {
        struct jinja_node *node;
        if (nodes.n && jinja_expect(p, TOKEN_COMMA) < 0)
            return E_FATAL;
        if (nodes.n && jinja_at(p, TOKEN_RPAREN))
            break;
        if (argument(p, &keywords, &node) < 0 || jinja_nodes_add(p, &nodes, node) < 0 ||
            jinja_adopt(p, call, node) < 0)
            return E_FATAL;
    }
    if (nodes.n > JINJA_ARGS_MAX)
        return jinja_bad(p->source, line, "%d arguments, the limit is %d", nodes.n, JINJA_ARGS_MAX);
    p->at++;
    call->items = nodes.items;
    call->n_items = nodes.n;
    return E_OK;
}

/* A call: what is called must be a method, a function or a macro that we know. */
static int call(struct jinja_parser *p, struct jinja_node **node)
{
    struct jinja_node *callee = *node;
    int line = jinja_peek(p)->line;
    if (callee->kind == NODE_ATTR) {
        callee->builtin = jinja_method_find(callee->text);
        if (jinja_method_mutates(callee->text))
            return jinja_bad(p->source, line, "method '" STR_FMT "' changes its object: forbidden",
                             STR_ARG(callee->text));
        if (callee->builtin < 0)
            return jinja_bad(p->source, line, "unknown method '" STR_FMT "'",
                             STR_ARG(callee->text));
    } else if (callee->kind == NODE_NAME) {
        if (!p->called_line[callee->id])
            p->called_line[callee->id] = line;
    } else {
        return jinja_bad(p->source, line, "unsupported: a call of an expression");
    }
    if (jinja_pair(p, NODE_CALL, TOKEN_END, line, node, NULL) < 0)
        return E_FATAL;
    return arguments(p, *node);
}

/* ---- subscripts ---- */

static int slice_part(struct jinja_parser *p, struct jinja_node *slice, int i)
{
    if (jinja_at(p, TOKEN_COLON) || jinja_at(p, TOKEN_RBRACKET) || jinja_at(p, TOKEN_COMMA))
        return E_OK;
    if (jinja_expression(p, true, &slice->items[i]) < 0)
        return E_FATAL;
    return jinja_adopt(p, slice, slice->items[i]);
}

static int slice(struct jinja_parser *p, int line, struct jinja_node *first,
                 struct jinja_node **node)
{
    struct jinja_node *made = *node;
    if (jinja_pair(p, NODE_SLICE, TOKEN_END, line, &made, NULL) < 0)
        return E_FATAL;
    made->items = jinja_heap_object(p->source->heap, 3 * sizeof *made->items);
    if (!made->items)
        return jinja_bad(p->source, line, "template too large");
    made->n_items = 3;
    made->items[0] = first;
    if (first && jinja_adopt(p, made, first) < 0)
        return E_FATAL;
    p->at++;
    if (slice_part(p, made, 1) < 0)
        return E_FATAL;
    if (jinja_skip(p, TOKEN_COLON) && slice_part(p, made, 2) < 0)
        return E_FATAL;
    *node = made;
    return E_OK;
}

static int subscript(struct jinja_parser *p, struct jinja_node **node)
{
    int line = jinja_peek(p)->line;
    struct jinja_node *key = NULL;
    p->at++;
    if (!jinja_at(p, TOKEN_COLON) && jinja_expression(p, true, &key) < 0)
        return E_FATAL;
    if (jinja_at(p, TOKEN_COLON)) {
        if (slice(p, line, key, node) < 0)
            return E_FATAL;
    } else if (jinja_pair(p, NODE_ITEM, TOKEN_END, line, node, key) < 0) {
        return E_FATAL;
    }
    if (jinja_at(p, TOKEN_COMMA))
        return jinja_bad(p->source, line, "unsupported: a subscript with a comma");
    return jinja_expect(p, TOKEN_RBRACKET);
}

static int attribute(struct jinja_parser *p, struct jinja_node **node)
{
    int line = jinja_peek(p)->line;
    p->at++;
    struct jinja_token *token = jinja_peek(p);
    if (token->kind == TOKEN_INT) {
        struct jinja_node *key = jinja_node_new(p, NODE_CONST, line);
        if (!key)
            return E_FATAL;
        key->value = jinja_int(token->i);
        p->at++;
        return jinja_pair(p, NODE_ITEM, TOKEN_END, line, node, key);
    }
    if (token->kind != TOKEN_NAME)
        return jinja_unexpected(p, "a name or number behind '.'");
    p->at++;
    if (jinja_pair(p, NODE_ATTR, TOKEN_END, line, node, NULL) < 0)
        return E_FATAL;
    (*node)->text = token->text;
    return E_OK;
}

int jinja_postfix(struct jinja_parser *p, struct jinja_node **node)
{
    for (;;) {
        int rc;
        if (jinja_at(p, TOKEN_DOT))
            rc = attribute(p, node);
        else if (jinja_at(p, TOKEN_LBRACKET))
            rc = subscript(p, node);
        else if (jinja_at(p, TOKEN_LPAREN))
            rc = call(p, node);
        else
            return E_OK;
        if (rc < 0)
            return rc;
    }
}

/* ---- filters, tests ---- */

/* map("f"), select("t"), selectattr("a", "t") name a filter or test in a string. */
static int check_inner(struct jinja_parser *p, const struct jinja_node *filter)
{
    static const struct {
        const char *name;
        int arg;
        int (*find)(struct str name);
    } naming[] = {{"map", 0, jinja_filter_find},
                  {"select", 0, jinja_test_find},
                  {"reject", 0, jinja_test_find},
                  {"selectattr", 1, jinja_test_find},
                  {"rejectattr", 1, jinja_test_find}};
    for (size_t i = 0; i < TR_COUNT(naming); i++) {
        if (!str_eq(filter->text, str_of(naming[i].name)) || filter->n_items <= naming[i].arg)
            continue;
        const struct jinja_node *arg = filter->items[naming[i].arg];
        if (arg->kind != NODE_CONST || arg->value.type != JINJA_STRING)
            continue;
        struct str name = jinja_str(arg->value.as.text);
        if (naming[i].find(name) < 0)
            return jinja_bad(p->source, arg->line, "unknown %s '%.*s' in %s",
                             naming[i].arg || i ? "test" : "filter",
                             (int)TR_MIN(name.len, (size_t)40), name.ptr, naming[i].name);
    }
    return E_OK;
}

int jinja_filters(struct jinja_parser *p, bool block, struct jinja_node **node)
{
    while (block || jinja_skip(p, TOKEN_PIPE)) {
        struct jinja_token *token = jinja_peek(p);
        block = false;
        if (token->kind != TOKEN_NAME)
            return jinja_unexpected(p, "the name of a filter");
        p->at++;
        struct jinja_node *made = jinja_node_new(p, NODE_FILTER, token->line);
        if (!made)
            return E_FATAL;
        made->text = token->text;
        made->builtin = jinja_filter_find(token->text);
        if (made->builtin < 0)
            return jinja_bad(p->source, token->line, "unknown filter '" STR_FMT "'",
                             STR_ARG(token->text));
        made->a = *node;
        if (*node && jinja_adopt(p, made, *node) < 0)
            return E_FATAL;
        if (jinja_at(p, TOKEN_LPAREN) && (arguments(p, made) < 0 || check_inner(p, made) < 0))
            return E_FATAL;
        *node = made;
    }
    return E_OK;
}

static bool begins_argument(struct jinja_parser *p)
{
    switch (jinja_peek(p)->kind) {
    case TOKEN_NAME:
        return !jinja_at_name(p, "else") && !jinja_at_name(p, "or") && !jinja_at_name(p, "and");
    case TOKEN_STRING:
    case TOKEN_INT:
    case TOKEN_FLOAT:
    case TOKEN_LBRACKET:
    case TOKEN_LBRACE:
        return true;
    default:
        return false;
    }
}

/* `is NAME x` takes x as its one argument. */
static int test_argument(struct jinja_parser *p, struct jinja_node *made)
{
    struct jinja_nodes nodes = {0};
    struct jinja_node *arg;
    if (jinja_at_name(p, "is"))
        return jinja_bad(p->source, made->line, "tests cannot be chained with 'is'");
    if (jinja_primary(p, &arg) < 0 || jinja_postfix(p, &arg) < 0 ||
        jinja_nodes_add(p, &nodes, arg) < 0)
        return E_FATAL;
    made->items = nodes.items;
    made->n_items = nodes.n;
    return jinja_adopt(p, made, arg);
}

static int test(struct jinja_parser *p, struct jinja_node **node)
{
    bool negated = jinja_skip_name(p, "not");
    struct jinja_token *token = jinja_peek(p);
    if (token->kind != TOKEN_NAME)
        return jinja_unexpected(p, "the name of a test");
    p->at++;
    struct jinja_node *made = *node;
    if (jinja_pair(p, NODE_TEST, TOKEN_END, token->line, &made, NULL) < 0)
        return E_FATAL;
    made->text = token->text;
    made->builtin = jinja_test_find(token->text);
    if (made->builtin < 0)
        return jinja_bad(p->source, token->line, "unknown test '" STR_FMT "'",
                         STR_ARG(token->text));
    int rc = E_OK;
    if (jinja_at(p, TOKEN_LPAREN))
        rc = arguments(p, made);
    else if (begins_argument(p))
        rc = test_argument(p, made);
    if (rc >= 0 && negated)
        rc = jinja_pair(p, NODE_NOT, TOKEN_END, token->line, &made, NULL);
    *node = made;
    return rc;
}

int jinja_filters_and_tests(struct jinja_parser *p, struct jinja_node **node)
{
    for (;;) {
        int rc;
        if (jinja_at(p, TOKEN_PIPE))
            rc = jinja_filters(p, false, node);
        else if (jinja_skip_name(p, "is"))
            rc = test(p, node);
        else if (jinja_at(p, TOKEN_LPAREN))
            rc = call(p, node);
        else
            return E_OK;
        if (rc < 0)
            return rc;
    }
}
