/* jinja_parse_primary: names, literals, lists, dicts and tuples; the parser's own tools. */
#include "engine/chat_template.h"
#include "engine/jinja_parse.h"

static int too_large(struct jinja_parser *p, int line)
{
    return jinja_bad(p->source, line, "template too large: its tree takes more than %d bytes",
                     JINJA_HEAP_MAX);
}

bool jinja_at(struct jinja_parser *p, enum jinja_token_kind kind)
{
    return jinja_peek(p)->kind == kind;
}

bool jinja_at_name(struct jinja_parser *p, const char *name)
{
    return jinja_at(p, TOKEN_NAME) && str_eq(jinja_peek(p)->text, str_of(name));
}

bool jinja_skip(struct jinja_parser *p, enum jinja_token_kind kind)
{
    bool there = jinja_at(p, kind);
    p->at += there;
    return there;
}

bool jinja_skip_name(struct jinja_parser *p, const char *name)
{
    bool there = jinja_at_name(p, name);
    p->at += there;
    return there;
}

int jinja_unexpected(struct jinja_parser *p, const char *wanted)
{
    struct jinja_token *token = jinja_peek(p);
    if (token->kind == TOKEN_END)
        return jinja_bad(p->source, token->line, "want %s, the template ends", wanted);
    int n = (int)TR_MIN(token->text.len, (size_t)40);
    return jinja_bad(p->source, token->line, "want %s, got '%.*s'", wanted, n, token->text.ptr);
}

int jinja_expect(struct jinja_parser *p, enum jinja_token_kind kind)
{
    static const char *const wanted[] = {
        [TOKEN_PRINT_END] = "}}", [TOKEN_BLOCK_END] = "%}", [TOKEN_NAME] = "a name",
        [TOKEN_ASSIGN] = "'='",   [TOKEN_COLON] = "':'",    [TOKEN_COMMA] = "','",
        [TOKEN_LPAREN] = "'('",   [TOKEN_RPAREN] = "')'",   [TOKEN_RBRACKET] = "']'",
        [TOKEN_RBRACE] = "'}'",
    };
    return jinja_skip(p, kind) ? E_OK : jinja_unexpected(p, wanted[kind]);
}

int jinja_enter(struct jinja_parser *p)
{
    if (++p->depth > CHAT_TEMPLATE_DEPTH_MAX)
        return jinja_bad(p->source, jinja_peek(p)->line, "nested deeper than %d",
                         CHAT_TEMPLATE_DEPTH_MAX);
    return E_OK;
}

enum { NAME_SLOTS = 2 * JINJA_NAMES_MAX };

int jinja_intern(struct jinja_parser *p, struct str name, int line, int *id)
{
    size_t slot = hash_bytes(name.ptr, name.len, 0) % NAME_SLOTS;
    for (; p->name_table[slot]; slot = (slot + 1) % NAME_SLOTS) {
        *id = p->name_table[slot] - 1;
        if (str_eq(p->names[*id], name))
            return E_OK;
    }
    if (p->n_names == JINJA_NAMES_MAX)
        return jinja_bad(p->source, line, "more than %d different names", JINJA_NAMES_MAX);
    *id = p->n_names++;
    p->names[*id] = name;
    p->name_table[slot] = *id + 1;
    return E_OK;
}

struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_kind kind, int line)
{
    struct jinja_node *node = jinja_heap_object(p->source->heap, sizeof *node);
    if (!node) {
        too_large(p, line);
        return NULL;
    }
    node->kind = (uint8_t)kind;
    node->line = line;
    node->height = 1;
    return node;
}

int jinja_adopt(struct jinja_parser *p, struct jinja_node *parent, const struct jinja_node *child)
{
    if (child->height >= JINJA_NODE_HEIGHT_MAX)
        return jinja_bad(p->source, parent->line, "expression with more than %d terms",
                         JINJA_NODE_HEIGHT_MAX);
    parent->height = (uint16_t)TR_MAX((int)parent->height, child->height + 1);
    return E_OK;
}

int jinja_nodes_add(struct jinja_parser *p, struct jinja_nodes *nodes, struct jinja_node *node)
{
    if (nodes->n == nodes->cap) {
        int cap = TR_MAX(nodes->cap * 2, 4);
        struct jinja_node **items = jinja_heap_object(p->source->heap, (size_t)cap * sizeof *items);
        if (!items)
            return too_large(p, node->line);
        if (nodes->n)
            memcpy(items, nodes->items, (size_t)nodes->n * sizeof *items);
        nodes->items = items;
        nodes->cap = cap;
    }
    nodes->items[nodes->n++] = node;
    return E_OK;
}

int jinja_pair(struct jinja_parser *p, enum jinja_kind kind, enum jinja_token_kind op, int line,
               struct jinja_node **left, struct jinja_node *right)
{
    struct jinja_node *node = jinja_node_new(p, kind, line);
    if (!node)
        return E_FATAL;
    node->op = (uint8_t)op;
    node->a = *left;
    node->b = right;
    if (jinja_adopt(p, node, *left) < 0 || (right && jinja_adopt(p, node, right) < 0))
        return E_FATAL;
    *left = node;
    return E_OK;
}

static bool ends_tuple(struct jinja_parser *p, const char *stop)
{
    return jinja_at(p, TOKEN_PRINT_END) || jinja_at(p, TOKEN_BLOCK_END) ||
           jinja_at(p, TOKEN_RPAREN) || (stop && jinja_at_name(p, stop));
}

int jinja_tuple(struct jinja_parser *p, bool with_cond, bool in_parens, const char *stop,
                struct jinja_node **out)
{
    struct jinja_nodes nodes = {0};
    struct jinja_node *node = jinja_node_new(p, NODE_TUPLE, jinja_peek(p)->line);
    bool commas = false;
    if (!node)
        return E_FATAL;
    while (!ends_tuple(p, stop)) {
        struct jinja_node *item;
        if (jinja_expression(p, with_cond, &item) < 0 || jinja_nodes_add(p, &nodes, item) < 0 ||
            jinja_adopt(p, node, item) < 0)
            return E_FATAL;
        if (!jinja_skip(p, TOKEN_COMMA))
            break;
        commas = true;
    }
    if (!commas && nodes.n) {
        *out = nodes.items[0];
        return E_OK;
    }
    if (!commas && !in_parens)
        return jinja_unexpected(p, "an expression");
    node->items = nodes.items;
    node->n_items = nodes.n;
    *out = node;
    return E_OK;
}

static int list(struct jinja_parser *p, struct jinja_node *node)
{
    struct jinja_nodes nodes = {0};
    while (!jinja_at(p, TOKEN_RBRACKET)) {
        struct jinja_node *item;
        if (nodes.n && jinja_expect(p, TOKEN_COMMA) < 0)
            return E_FATAL;
        if (jinja_at(p, TOKEN_RBRACKET))
            break;
        if (jinja_expression(p, true, &item) < 0 || jinja_nodes_add(p, &nodes, item) < 0 ||
            jinja_adopt(p, node, item) < 0)
            return E_FATAL;
    }
    p->at++;
    node->items = nodes.items;
    node->n_items = nodes.n;
    return E_OK;
}

static int dict(struct jinja_parser *p, struct jinja_node *node)
{
    struct jinja_nodes nodes = {0};
    while (!jinja_at(p, TOKEN_RBRACE)) {
        struct jinja_node *key, *value;
        if (nodes.n && jinja_expect(p, TOKEN_COMMA) < 0)
            return E_FATAL;
        if (jinja_at(p, TOKEN_RBRACE))
            break;
        if (jinja_expression(p, true, &key) < 0 || jinja_expect(p, TOKEN_COLON) < 0 ||
            jinja_expression(p, true, &value) < 0)
            return E_FATAL;
        if (jinja_nodes_add(p, &nodes, key) < 0 || jinja_nodes_add(p, &nodes, value) < 0 ||
            jinja_adopt(p, node, key) < 0 || jinja_adopt(p, node, value) < 0)
            return E_FATAL;
    }
    p->at++;
    node->items = nodes.items;
    node->n_items = nodes.n;
    return E_OK;
}

/* "a" "b" is one string. */
static int strings(struct jinja_parser *p, struct jinja_node *node)
{
    size_t len = 0, from = p->at, at = 0;
    for (; jinja_at(p, TOKEN_STRING); p->at++)
        len += jinja_peek(p)->text.len;
    if (p->at == from + 1) {
        node->value = jinja_string(jinja_plain(p->tokens[from].text));
        return E_OK;
    }
    char *joined = jinja_heap_bytes(p->source->heap, len);
    if (!joined)
        return too_large(p, node->line);
    for (; from < p->at; from++) {
        struct str part = p->tokens[from].text;
        if (part.len)
            memcpy(joined + at, part.ptr, part.len);
        at += part.len;
    }
    node->value = jinja_string(jinja_plain((struct str){joined, len}));
    return E_OK;
}

static int name(struct jinja_parser *p, struct jinja_node *node)
{
    struct str text = jinja_peek(p)->text;
    p->at++;
    node->kind = NODE_CONST;
    if (str_eq(text, STR("true")) || str_eq(text, STR("True"))) {
        node->value = jinja_bool(true);
    } else if (str_eq(text, STR("false")) || str_eq(text, STR("False"))) {
        node->value = jinja_bool(false);
    } else if (str_eq(text, STR("none")) || str_eq(text, STR("None"))) {
        node->value = jinja_none();
    } else {
        node->kind = NODE_NAME;
        node->text = text;
        if (p->macro) {
            p->macro->uses_varargs |= str_eq(text, STR("varargs"));
            p->macro->uses_kwargs |= str_eq(text, STR("kwargs"));
            p->macro->uses_caller |= str_eq(text, STR("caller"));
        }
        return jinja_intern(p, text, node->line, &node->id);
    }
    return E_OK;
}

int jinja_primary(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_token *token = jinja_peek(p);
    struct jinja_node *node = jinja_node_new(p, NODE_CONST, token->line);
    int rc = E_OK;
    if (!node)
        return E_FATAL;
    *out = node;
    switch (token->kind) {
    case TOKEN_NAME:
        rc = name(p, node);
        break;
    case TOKEN_STRING:
        rc = strings(p, node);
        break;
    case TOKEN_INT:
    case TOKEN_FLOAT:
        node->value = token->kind == TOKEN_INT ? jinja_int(token->i) : jinja_float(token->f);
        p->at++;
        break;
    case TOKEN_LPAREN:
        p->at++;
        rc = jinja_tuple(p, true, true, NULL, out);
        if (rc >= 0)
            rc = jinja_expect(p, TOKEN_RPAREN);
        break;
    case TOKEN_LBRACKET:
    case TOKEN_LBRACE:
        p->at++;
        node->kind = token->kind == TOKEN_LBRACKET ? NODE_LIST : NODE_DICT;
        rc = token->kind == TOKEN_LBRACKET ? list(p, node) : dict(p, node);
        break;
    default:
        rc = jinja_unexpected(p, "an expression");
    }
    return rc;
}
