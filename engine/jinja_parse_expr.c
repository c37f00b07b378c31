/* jinja_parse_expr: expressions of the template language, in Jinja2's order of precedence:
 * if-else, or, and, not, comparison, + -, ~, * / // %, **, unary, postfix, filters and tests. */
#include "engine/jinja_parse.h"

/* ---- operators ---- */

static int unary(struct jinja_parser *p, bool with_filters, struct jinja_node **out)
{
    struct jinja_token *token = jinja_peek(p);
    int rc;
    if (token->kind == TOKEN_SUB || token->kind == TOKEN_ADD) {
        p->at++;
        if (jinja_enter(p) < 0 || unary(p, false, out) < 0)
            return E_FATAL;
        p->depth--;
        rc = jinja_pair(p, token->kind == TOKEN_SUB ? NODE_NEG : NODE_POS, TOKEN_END, token->line,
                        out, NULL);
    } else {
        rc = jinja_primary(p, out);
    }
    if (rc < 0 || jinja_postfix(p, out) < 0)
        return E_FATAL;
    return with_filters ? jinja_filters_and_tests(p, out) : E_OK;
}

static int power(struct jinja_parser *p, struct jinja_node **out)
{
    if (unary(p, true, out) < 0)
        return E_FATAL;
    while (jinja_at(p, TOKEN_POW)) {
        int line = jinja_peek(p)->line;
        struct jinja_node *right;
        p->at++;
        if (unary(p, true, &right) < 0 ||
            jinja_pair(p, NODE_BINARY, TOKEN_POW, line, out, right) < 0)
            return E_FATAL;
    }
    return E_OK;
}

static int product(struct jinja_parser *p, struct jinja_node **out)
{
    if (power(p, out) < 0)
        return E_FATAL;
    for (;;) {
        enum jinja_token_kind op = jinja_peek(p)->kind;
        int line = jinja_peek(p)->line;
        struct jinja_node *right;
        if (op != TOKEN_MUL && op != TOKEN_DIV && op != TOKEN_FLOORDIV && op != TOKEN_MOD)
            return E_OK;
        p->at++;
        if (power(p, &right) < 0 || jinja_pair(p, NODE_BINARY, op, line, out, right) < 0)
            return E_FATAL;
    }
}

static int concat(struct jinja_parser *p, struct jinja_node **out)
{
    if (product(p, out) < 0)
        return E_FATAL;
    if (!jinja_at(p, TOKEN_TILDE))
        return E_OK;
    struct jinja_nodes nodes = {0};
    struct jinja_node *made = jinja_node_new(p, NODE_CONCAT, jinja_peek(p)->line);
    struct jinja_node *part = *out;
    if (!made)
        return E_FATAL;
    for (;;) {
        if (jinja_nodes_add(p, &nodes, part) < 0 || jinja_adopt(p, made, part) < 0)
            return E_FATAL;
        if (!jinja_skip(p, TOKEN_TILDE))
            break;
        if (product(p, &part) < 0)
            return E_FATAL;
    }
    made->items = nodes.items;
    made->n_items = nodes.n;
    *out = made;
    return E_OK;
}

static int sum(struct jinja_parser *p, struct jinja_node **out)
{
    if (concat(p, out) < 0)
        return E_FATAL;
    while (jinja_at(p, TOKEN_ADD) || jinja_at(p, TOKEN_SUB)) {
        enum jinja_token_kind op = jinja_peek(p)->kind;
        int line = jinja_peek(p)->line;
        struct jinja_node *right;
        p->at++;
        if (concat(p, &right) < 0 || jinja_pair(p, NODE_BINARY, op, line, out, right) < 0)
            return E_FATAL;
    }
    return E_OK;
}

/* The comparison operator at the cursor, moved over; 0 when there is none. */
static int compare_op(struct jinja_parser *p)
{
    enum jinja_token_kind kind = jinja_peek(p)->kind;
    if (kind >= TOKEN_EQ && kind <= TOKEN_LE) {
        p->at++;
        return (int)kind;
    }
    if (jinja_skip_name(p, "in"))
        return OP_IN;
    if (!jinja_at_name(p, "not"))
        return 0;
    p->at++;
    if (jinja_skip_name(p, "in"))
        return OP_NOT_IN;
    p->at--;
    return 0;
}

static int comparison(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_nodes nodes = {0};
    int op, line = jinja_peek(p)->line;
    if (sum(p, out) < 0)
        return E_FATAL;
    struct jinja_node *made = NULL;
    while ((op = compare_op(p)) != 0) {
        struct jinja_node *operand = jinja_node_new(p, NODE_OPERAND, line);
        if (!made && !(made = jinja_node_new(p, NODE_COMPARE, line)))
            return E_FATAL;
        if (!operand || sum(p, &operand->a) < 0 || jinja_nodes_add(p, &nodes, operand) < 0 ||
            jinja_adopt(p, made, operand->a) < 0)
            return E_FATAL;
        operand->op = (uint8_t)op;
    }
    if (!made)
        return E_OK;
    made->a = *out;
    made->items = nodes.items;
    made->n_items = nodes.n;
    *out = made;
    return jinja_adopt(p, made, made->a);
}

static int negation(struct jinja_parser *p, struct jinja_node **out)
{
    int line = jinja_peek(p)->line;
    if (!jinja_skip_name(p, "not"))
        return comparison(p, out);
    if (jinja_enter(p) < 0 || negation(p, out) < 0)
        return E_FATAL;
    p->depth--;
    return jinja_pair(p, NODE_NOT, TOKEN_END, line, out, NULL);
}

static int conjunction(struct jinja_parser *p, struct jinja_node **out)
{
    if (negation(p, out) < 0)
        return E_FATAL;
    while (jinja_at_name(p, "and")) {
        int line = jinja_peek(p)->line;
        struct jinja_node *right;
        p->at++;
        if (negation(p, &right) < 0 || jinja_pair(p, NODE_AND, TOKEN_END, line, out, right) < 0)
            return E_FATAL;
    }
    return E_OK;
}

static int disjunction(struct jinja_parser *p, struct jinja_node **out)
{
    if (conjunction(p, out) < 0)
        return E_FATAL;
    while (jinja_at_name(p, "or")) {
        int line = jinja_peek(p)->line;
        struct jinja_node *right;
        p->at++;
        if (conjunction(p, &right) < 0 || jinja_pair(p, NODE_OR, TOKEN_END, line, out, right) < 0)
            return E_FATAL;
    }
    return E_OK;
}

int jinja_expression(struct jinja_parser *p, bool with_cond, struct jinja_node **out)
{
    if (jinja_enter(p) < 0 || disjunction(p, out) < 0)
        return E_FATAL;
    while (with_cond && jinja_at_name(p, "if")) {
        int line = jinja_peek(p)->line;
        struct jinja_node *test_node, *other = NULL;
        p->at++;
        if (disjunction(p, &test_node) < 0)
            return E_FATAL;
        if (jinja_skip_name(p, "else") && jinja_expression(p, true, &other) < 0)
            return E_FATAL;
        if (jinja_pair(p, NODE_COND, TOKEN_END, line, out, test_node) < 0)
            return E_FATAL;
        (*out)->c = other;
        if (other && jinja_adopt(p, *out, other) < 0)
            return E_FATAL;
    }
    p->depth--;
    return E_OK;
}
