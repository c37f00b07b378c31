/* jinja_parse: see jinja_parse.h. Statements and the whole template. */
#include "engine/jinja_parse.h"

#include "engine/jinja_builtin.h"

static int statements(struct jinja_parser *p, const char *const *ends, struct jinja_nodes *nodes);

static int memory(struct jinja_parser *p, int line)
{
    return jinja_bad(p->source, line, "template too large");
}

/* ---- targets of assignments ---- */

static int store(struct jinja_parser *p, struct jinja_node *node, struct str text)
{
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < TR_COUNT(constants); i++)
        if (str_eq(text, str_of(constants[i])))
            return jinja_bad(p->source, node->line, "cannot assign to '%s'", constants[i]);
    node->kind = NODE_NAME;
    node->text = text;
    if (jinja_intern(p, text, node->line, &node->id) < 0)
        return E_FATAL;
    p->stored[node->id] = true;
    return E_OK;
}

static int targets(struct jinja_parser *p, bool fields, struct jinja_node **out);

static int target(struct jinja_parser *p, bool fields, struct jinja_node **out)
{
    struct jinja_token *token = jinja_peek(p);
    if (jinja_skip(p, TOKEN_LPAREN)) {
        if (jinja_enter(p) < 0 || targets(p, fields, out) < 0)
            return E_FATAL;
        p->depth--;
        return jinja_expect(p, TOKEN_RPAREN);
    }
    struct jinja_node *node = jinja_node_new(p, NODE_NAME, token->line);
    if (!node)
        return E_FATAL;
    *out = node;
    if (token->kind != TOKEN_NAME)
        return jinja_unexpected(p, "a name to assign to");
    p->at++;
    if (!fields || !jinja_skip(p, TOKEN_DOT))
        return store(p, node, token->text);
    node->kind = NODE_FIELD;
    if (!jinja_at(p, TOKEN_NAME))
        return jinja_unexpected(p, "a name behind '.'");
    node->text = jinja_peek(p)->text;
    if (node->text.len && node->text.ptr[0] == '_')
        return jinja_bad(p->source, node->line, "namespace attribute '" STR_FMT "' begins with _",
                         STR_ARG(node->text));
    p->at++;
    return jinja_intern(p, token->text, node->line, &node->id);
}

static int targets(struct jinja_parser *p, bool fields, struct jinja_node **out)
{
    struct jinja_nodes nodes = {0};
    struct jinja_node *item;
    if (target(p, fields, &item) < 0)
        return E_FATAL;
    *out = item;
    if (!jinja_at(p, TOKEN_COMMA))
        return E_OK;
    struct jinja_node *tuple = jinja_node_new(p, NODE_TUPLE, item->line);
    if (!tuple || jinja_nodes_add(p, &nodes, item) < 0)
        return E_FATAL;
    while (jinja_skip(p, TOKEN_COMMA)) {
        if (!jinja_at(p, TOKEN_NAME) && !jinja_at(p, TOKEN_LPAREN))
            break;
        if (jinja_at_name(p, "in"))
            break;
        if (target(p, fields, &item) < 0 || jinja_nodes_add(p, &nodes, item) < 0)
            return E_FATAL;
    }
    tuple->items = nodes.items;
    tuple->n_items = nodes.n;
    *out = tuple;
    return E_OK;
}

/* ---- bodies ---- */

/* Statements up to one of `ends` (moved over); *end says which. */
static int body(struct jinja_parser *p, const char *const *ends, struct jinja_node ***items, int *n,
                int *end)
{
    struct jinja_nodes nodes = {0};
    jinja_skip(p, TOKEN_COLON);
    if (jinja_expect(p, TOKEN_BLOCK_END) < 0 || jinja_enter(p) < 0 ||
        statements(p, ends, &nodes) < 0)
        return E_FATAL;
    p->depth--;
    *items = nodes.items;
    *n = nodes.n;
    for (int i = 0; ends[i]; i++)
        if (jinja_at_name(p, ends[i]))
            *end = i;
    p->at++;
    return E_OK;
}

static int only_body(struct jinja_parser *p, struct jinja_node *node, const char *end)
{
    const char *const ends[] = {end, NULL};
    int which;
    return body(p, ends, &node->items, &node->n_items, &which);
}

static int for_loop(struct jinja_parser *p, struct jinja_node *node)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    int end;
    if (targets(p, false, &node->b) < 0)
        return E_FATAL;
    if (node->b->kind == NODE_NAME && str_eq(node->b->text, STR("loop")))
        return jinja_bad(p->source, node->line, "cannot assign to 'loop' in a for loop");
    if (!jinja_skip_name(p, "in"))
        return jinja_unexpected(p, "'in'");
    if (jinja_tuple(p, false, false, "recursive", &node->a) < 0)
        return E_FATAL;
    if (jinja_skip_name(p, "if") && jinja_expression(p, true, &node->c) < 0)
        return E_FATAL;
    if (jinja_at_name(p, "recursive"))
        return jinja_bad(p->source, node->line, "unsupported: recursive for loop");
    p->loops++;
    if (body(p, ends, &node->items, &node->n_items, &end) < 0)
        return E_FATAL;
    p->loops--;
    if (end == 0)
        return E_OK;
    static const char *const endfor[] = {"endfor", NULL};
    return body(p, endfor, &node->otherwise, &node->n_otherwise, &end);
}

/* elif makes a chain through `otherwise`; written as a loop so that a long chain is no recursion.
 */
static int if_chain(struct jinja_parser *p, struct jinja_node *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const endif[] = {"endif", NULL};
    for (;;) {
        int end;
        if (jinja_tuple(p, false, false, NULL, &node->a) < 0 ||
            body(p, ends, &node->items, &node->n_items, &end) < 0)
            return E_FATAL;
        if (end == 1)
            return body(p, endif, &node->otherwise, &node->n_otherwise, &end);
        if (end == 2)
            return E_OK;
        struct jinja_node *next = jinja_node_new(p, NODE_IF, jinja_peek(p)->line);
        struct jinja_nodes nodes = {0};
        if (!next || jinja_nodes_add(p, &nodes, next) < 0)
            return E_FATAL;
        node->otherwise = nodes.items;
        node->n_otherwise = nodes.n;
        node = next;
    }
}

static int set(struct jinja_parser *p, struct jinja_node *node)
{
    if (targets(p, true, &node->b) < 0)
        return E_FATAL;
    if (jinja_skip(p, TOKEN_ASSIGN))
        return jinja_tuple(p, true, false, NULL, &node->a);
    node->kind = NODE_CAPTURE;
    if (jinja_filters(p, false, &node->a) < 0)
        return E_FATAL;
    return only_body(p, node, "endset");
}

/* ---- macros ---- */

static int signature(struct jinja_parser *p, struct jinja_macro_params *params)
{
    if (jinja_expect(p, TOKEN_LPAREN) < 0)
        return E_FATAL;
    while (!jinja_at(p, TOKEN_RPAREN)) {
        struct jinja_node *name;
        if (params->n && jinja_expect(p, TOKEN_COMMA) < 0)
            return E_FATAL;
        if (params->n == JINJA_ARGS_MAX)
            return jinja_bad(p->source, jinja_peek(p)->line, "more than %d parameters",
                             JINJA_ARGS_MAX);
        if (!jinja_at(p, TOKEN_NAME))
            return jinja_unexpected(p, "the name of a parameter");
        if (target(p, false, &name) < 0)
            return E_FATAL;
        if (jinja_skip(p, TOKEN_ASSIGN)) {
            if (jinja_expression(p, true, &params->defaults[params->n]) < 0)
                return E_FATAL;
        } else if (params->n && params->defaults[params->n - 1]) {
            return jinja_bad(p->source, name->line, "parameter without default behind one with");
        }
        params->ids[params->n++] = name->id;
    }
    p->at++;
    return E_OK;
}

static int macro_body(struct jinja_parser *p, struct jinja_node *node, const char *end)
{
    struct jinja_macro_params *outer = p->macro;
    int loops = p->loops;
    p->macro = node->params;
    p->loops = 0; /* break does not leave a macro */
    if (only_body(p, node, end) < 0)
        return E_FATAL;
    p->macro = outer;
    p->loops = loops;
    if (outer) { /* names of an outer macro may be used in an inner one */
        outer->uses_varargs |= node->params->uses_varargs;
        outer->uses_kwargs |= node->params->uses_kwargs;
    }
    return E_OK;
}

static int macro(struct jinja_parser *p, struct jinja_node *node)
{
    struct jinja_node *name;
    node->params = jinja_heap_object(p->source->heap, sizeof *node->params);
    if (!node->params)
        return memory(p, node->line);
    if (!jinja_at(p, TOKEN_NAME))
        return jinja_unexpected(p, "the name of a macro");
    if (target(p, false, &name) < 0 || signature(p, node->params) < 0)
        return E_FATAL;
    node->id = name->id;
    node->text = name->text;
    return macro_body(p, node, "endmacro");
}

static int caller(struct jinja_parser *p, struct jinja_node *node)
{
    node->params = jinja_heap_object(p->source->heap, sizeof *node->params);
    if (!node->params)
        return memory(p, node->line);
    if (jinja_at(p, TOKEN_LPAREN) && signature(p, node->params) < 0)
        return E_FATAL;
    if (jinja_expression(p, true, &node->a) < 0)
        return E_FATAL;
    if (node->a->kind != NODE_CALL)
        return jinja_bad(p->source, node->line, "want a call in a call block");
    return macro_body(p, node, "endcall");
}

static int with(struct jinja_parser *p, struct jinja_node *node)
{
    node->params = jinja_heap_object(p->source->heap, sizeof *node->params);
    if (!node->params)
        return memory(p, node->line);
    while (!jinja_at(p, TOKEN_BLOCK_END)) {
        struct jinja_node *name;
        int n = node->params->n;
        if (n && jinja_expect(p, TOKEN_COMMA) < 0)
            return E_FATAL;
        if (n == JINJA_ARGS_MAX)
            return jinja_bad(p->source, node->line, "more than %d names in with", JINJA_ARGS_MAX);
        if (target(p, false, &name) < 0 || jinja_expect(p, TOKEN_ASSIGN) < 0 ||
            jinja_expression(p, true, &node->params->defaults[n]) < 0)
            return E_FATAL;
        if (name->kind != NODE_NAME)
            return jinja_bad(p->source, node->line, "unsupported: several targets in with");
        node->params->ids[node->params->n++] = name->id;
    }
    return only_body(p, node, "endwith");
}

/* {% print a, b %}: as {{ a }}{{ b }} */
static int print(struct jinja_parser *p, struct jinja_node *node)
{
    struct jinja_nodes nodes = {0};
    node->kind = NODE_BLOCK;
    while (!jinja_at(p, TOKEN_BLOCK_END)) {
        struct jinja_node *item = jinja_node_new(p, NODE_PRINT, node->line);
        if (nodes.n && jinja_expect(p, TOKEN_COMMA) < 0)
            return E_FATAL;
        if (!item || jinja_expression(p, true, &item->a) < 0 ||
            jinja_nodes_add(p, &nodes, item) < 0)
            return E_FATAL;
    }
    node->items = nodes.items;
    node->n_items = nodes.n;
    return E_OK;
}

static int leave_loop(struct jinja_parser *p, struct jinja_node *node)
{
    return p->loops ? E_OK
                    : jinja_bad(p->source, node->line, "%s outside of a for loop",
                                node->kind == NODE_BREAK ? "break" : "continue");
}

static int generation(struct jinja_parser *p, struct jinja_node *node)
{
    /* Hugging Face makes a call block of it: a scope of its own that break does not leave */
    node->params = jinja_heap_object(p->source->heap, sizeof *node->params);
    if (!node->params)
        return memory(p, node->line);
    int loops = p->loops;
    p->loops = 0;
    int rc = only_body(p, node, "endgeneration");
    p->loops = loops;
    return rc;
}

static int filtered(struct jinja_parser *p, struct jinja_node *node)
{
    if (jinja_filters(p, true, &node->a) < 0)
        return E_FATAL;
    return only_body(p, node, "endfilter");
}

static int statement(struct jinja_parser *p, struct jinja_node **out)
{
    static const struct {
        const char *tag;
        enum jinja_kind kind;
        int (*parse)(struct jinja_parser *p, struct jinja_node *node);
    } tags[] = {
        {"for", NODE_FOR, for_loop},
        {"if", NODE_IF, if_chain},
        {"set", NODE_SET, set},
        {"macro", NODE_MACRO, macro},
        {"call", NODE_CALLER, caller},
        {"filter", NODE_FILTERED, filtered},
        {"with", NODE_WITH, with},
        {"generation", NODE_WITH, generation},
        {"break", NODE_BREAK, leave_loop},
        {"continue", NODE_CONTINUE, leave_loop},
        {"print", NODE_BLOCK, print},
    };
    static const char *const refused[] = {"include", "import", "from",
                                          "extends", "block",  "autoescape"};
    struct jinja_token *token = jinja_peek(p);
    if (token->kind != TOKEN_NAME)
        return jinja_unexpected(p, "the name of a tag");
    p->at++;
    for (size_t i = 0; i < TR_COUNT(tags); i++) {
        if (!str_eq(token->text, str_of(tags[i].tag)))
            continue;
        *out = jinja_node_new(p, tags[i].kind, token->line);
        if (!*out || tags[i].parse(p, *out) < 0)
            return E_FATAL;
        return jinja_expect(p, TOKEN_BLOCK_END);
    }
    for (size_t i = 0; i < TR_COUNT(refused); i++)
        if (str_eq(token->text, str_of(refused[i])))
            return jinja_bad(p->source, token->line, "unsupported: {%% %s %%}", refused[i]);
    return jinja_bad(p->source, token->line, "unknown tag '%.*s'",
                     (int)TR_MIN(token->text.len, (size_t)40), token->text.ptr);
}

static bool at_end(struct jinja_parser *p, const char *const *ends)
{
    for (int i = 0; ends && ends[i]; i++)
        if (jinja_at_name(p, ends[i]))
            return true;
    return false;
}

static int statements(struct jinja_parser *p, const char *const *ends, struct jinja_nodes *nodes)
{
    for (;;) {
        struct jinja_token *token = jinja_peek(p);
        struct jinja_node *node = NULL;
        if (token->kind == TOKEN_END) {
            if (!ends)
                return E_OK;
            return jinja_bad(p->source, token->line, "want {%% %s %%}, the template ends", ends[0]);
        }
        p->at++;
        if (token->kind == TOKEN_DATA) {
            if (!(node = jinja_node_new(p, NODE_DATA, token->line)))
                return E_FATAL;
            node->value = jinja_string(jinja_plain(token->text));
        } else if (token->kind == TOKEN_PRINT_BEGIN) {
            if (!(node = jinja_node_new(p, NODE_PRINT, token->line)) ||
                jinja_tuple(p, true, false, NULL, &node->a) < 0 ||
                jinja_expect(p, TOKEN_PRINT_END) < 0)
                return E_FATAL;
        } else {
            if (at_end(p, ends))
                return E_OK;
            if (statement(p, &node) < 0)
                return E_FATAL;
        }
        if (jinja_nodes_add(p, nodes, node) < 0)
            return E_FATAL;
    }
}

/* NAME(...) must be a function of ours or get its value somewhere in the template. */
static int check_calls(struct jinja_parser *p)
{
    for (int id = 0; id < p->n_names; id++) {
        struct str name = p->names[id];
        if (!p->called_line[id] || p->stored[id] || jinja_function_find(name) >= 0 ||
            str_eq(name, STR("caller")))
            continue;
        return jinja_bad(p->source, p->called_line[id], "unknown function '%.*s'",
                         (int)TR_MIN(name.len, (size_t)80), name.ptr);
    }
    return E_OK;
}

int jinja_name_id(const struct jinja_program *program, struct str name)
{
    for (int i = 0; i < program->n_names; i++)
        if (str_eq(program->names[i], name))
            return i;
    return -1;
}

int jinja_parse(const struct jinja_source *source, struct str text, struct jinja_program *out)
{
    struct jinja_parser p = {.source = source};
    struct jinja_nodes nodes = {0};
    size_t n_tokens;
    p.names = jinja_heap_object(source->heap, JINJA_NAMES_MAX * sizeof *p.names);
    p.stored = jinja_heap_object(source->heap, JINJA_NAMES_MAX * sizeof *p.stored);
    p.called_line = jinja_heap_object(source->heap, JINJA_NAMES_MAX * sizeof *p.called_line);
    p.name_table = jinja_heap_object(source->heap, 2 * JINJA_NAMES_MAX * sizeof *p.name_table);
    if (!p.names || !p.stored || !p.called_line || !p.name_table)
        return memory(&p, 1);
    if (jinja_lex(source, text, &p.tokens, &n_tokens) < 0 || statements(&p, NULL, &nodes) < 0 ||
        check_calls(&p) < 0)
        return E_FATAL;
    *out = (struct jinja_program){
        .items = nodes.items, .n_items = nodes.n, .names = p.names, .n_names = p.n_names};
    out->id_loop = jinja_name_id(out, STR("loop"));
    out->id_caller = jinja_name_id(out, STR("caller"));
    out->id_varargs = jinja_name_id(out, STR("varargs"));
    out->id_kwargs = jinja_name_id(out, STR("kwargs"));
    return E_OK;
}
