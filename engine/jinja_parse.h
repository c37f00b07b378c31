/* jinja_parse: tokens -> a tree of nodes, with every name, filter, test, method and function
 * checked against what the interpreter knows: what it does not know is an error here, not in a
 * render. */
#ifndef TRANCHE_ENGINE_JINJA_PARSE_H
#define TRANCHE_ENGINE_JINJA_PARSE_H

#include "engine/jinja_lex.h"

enum {
    JINJA_NODE_HEIGHT_MAX = 400, /* a + b + c + ... makes one level a term */
    JINJA_NAMES_MAX = 4096,      /* different variable names in one template */
};

enum jinja_kind {
    /* expressions */
    NODE_CONST,   /* value */
    NODE_NAME,    /* id */
    NODE_ATTR,    /* a . text */
    NODE_ITEM,    /* a [ b ] */
    NODE_SLICE,   /* a [ items[0] : items[1] : items[2] ], absent ones NULL */
    NODE_CALL,    /* a ( items ) */
    NODE_FILTER,  /* a | builtin ( items ); a is NULL in a filter block */
    NODE_TEST,    /* a is builtin ( items ) */
    NODE_BINARY,  /* a op b */
    NODE_COMPARE, /* a, then pairs of op (in items[i]->op) and items[i]->a */
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_NEG,
    NODE_POS,
    NODE_COND,   /* a if b else c; c may be NULL */
    NODE_CONCAT, /* items joined by ~ */
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT,    /* items: key, value, key, value */
    NODE_KEYWORD, /* text = a, as an argument */
    NODE_OPERAND, /* of NODE_COMPARE */
    /* statements */
    NODE_DATA,     /* value */
    NODE_PRINT,    /* a */
    NODE_FOR,      /* target b, iterable a, filter c; items, otherwise */
    NODE_IF,       /* a: items; otherwise, which may hold one NODE_IF for elif */
    NODE_SET,      /* target b = a */
    NODE_CAPTURE,  /* set block: target b, filters a; items */
    NODE_MACRO,    /* id; params; items */
    NODE_CALLER,   /* call block: a is the call, params and items as in a macro */
    NODE_FILTERED, /* filter block: filters a; items */
    NODE_WITH,     /* params: targets with their values; items */
    NODE_BLOCK,    /* generation block: items in place */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_FIELD, /* target ns.text, id */
};

struct jinja_node {
    uint8_t kind; /* enum jinja_kind */
    uint8_t op;   /* enum jinja_token_kind; for NODE_OPERAND also OP_IN, OP_NOT_IN */
    uint16_t height;
    int line;
    int id;      /* of a variable name */
    int builtin; /* number of a filter or test, or of a method in NODE_ATTR under a call */
    struct str text;
    struct jinja_value value;
    struct jinja_node *a, *b, *c;
    struct jinja_node **items;
    int n_items;
    struct jinja_node **otherwise;
    int n_otherwise;
    struct jinja_macro_params *params;
};
enum { OP_IN = 100, OP_NOT_IN };

struct jinja_macro_params {
    int ids[32];                     /* JINJA_ARGS_MAX */
    struct jinja_node *defaults[32]; /* NULL: none */
    int n;
    bool uses_varargs, uses_kwargs, uses_caller;
};

struct jinja_program {
    struct jinja_node **items;
    int n_items;
    struct str *names; /* by id */
    int n_names;
    /* ids of names with a meaning of their own */
    int id_loop, id_caller, id_varargs, id_kwargs;
};

int jinja_parse(const struct jinja_source *source, struct str text,
                struct jinja_program *out) TR_MUSTCHECK;
/* -1 when the template never mentions the name. */
int jinja_name_id(const struct jinja_program *program, struct str name);

/* ---- shared between jinja_parse.c (statements), _expr.c, _postfix.c and _primary.c ---- */
struct jinja_parser {
    const struct jinja_source *source;
    struct jinja_token *tokens;
    size_t at;
    int depth;                        /* of blocks and brackets */
    int loops;                        /* for loops that break may leave */
    struct jinja_macro_params *macro; /* innermost macro or call block */
    struct str *names;
    int n_names, names_cap;
    bool *stored;     /* by id: some statement gives it a value */
    int *called_line; /* by id: line of a call NAME(...), 0: none */
    int *name_table;  /* open addressing, id + 1 */
};
static inline struct jinja_token *jinja_peek(struct jinja_parser *p)
{
    return &p->tokens[p->at];
}
bool jinja_at(struct jinja_parser *p, enum jinja_token_kind kind);
bool jinja_at_name(struct jinja_parser *p, const char *name);
bool jinja_skip(struct jinja_parser *p, enum jinja_token_kind kind);
bool jinja_skip_name(struct jinja_parser *p, const char *name);
int jinja_expect(struct jinja_parser *p, enum jinja_token_kind kind) TR_MUSTCHECK;
int jinja_unexpected(struct jinja_parser *p, const char *wanted);
int jinja_enter(struct jinja_parser *p) TR_MUSTCHECK; /* p->depth-- leaves */
int jinja_intern(struct jinja_parser *p, struct str name, int line, int *id) TR_MUSTCHECK;
struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_kind kind, int line);
/* Takes the child's height into the parent's; fails where the tree gets too high. */
int jinja_adopt(struct jinja_parser *p, struct jinja_node *parent,
                const struct jinja_node *child) TR_MUSTCHECK;

/* Puts a node with the operands *left and `right` (may be NULL) in the place of *left. */
int jinja_pair(struct jinja_parser *p, enum jinja_kind kind, enum jinja_token_kind op, int line,
               struct jinja_node **left, struct jinja_node *right) TR_MUSTCHECK;

struct jinja_nodes { /* children under collection */
    struct jinja_node **items;
    int n, cap;
};
int jinja_nodes_add(struct jinja_parser *p, struct jinja_nodes *nodes,
                    struct jinja_node *node) TR_MUSTCHECK;

int jinja_expression(struct jinja_parser *p, bool with_cond, struct jinja_node **out) TR_MUSTCHECK;
int jinja_primary(struct jinja_parser *p, struct jinja_node **out) TR_MUSTCHECK;
/* An expression, or several with commas as a tuple. `stop`: a name that ends it, or NULL. */
int jinja_tuple(struct jinja_parser *p, bool with_cond, bool in_parens, const char *stop,
                struct jinja_node **out) TR_MUSTCHECK;
/* Attributes, subscripts and calls behind `*node`; then filters, tests and calls. */
int jinja_postfix(struct jinja_parser *p, struct jinja_node **node) TR_MUSTCHECK;
int jinja_filters_and_tests(struct jinja_parser *p, struct jinja_node **node) TR_MUSTCHECK;
/* The filters behind `*node` at a pipe; without the first pipe where `block`. */
int jinja_filters(struct jinja_parser *p, bool block, struct jinja_node **node) TR_MUSTCHECK;

#endif
