/* jinja_lex: template text -> tokens, with Jinja2's rules for white space around tags under
 * trim_blocks and lstrip_blocks. Pure over (bytes, length). */
#ifndef TRANCHE_ENGINE_JINJA_LEX_H
#define TRANCHE_ENGINE_JINJA_LEX_H

#include "engine/jinja_value.h"

enum jinja_token_kind {
    TOKEN_END, /* of the template */
    TOKEN_DATA,
    TOKEN_PRINT_BEGIN, /* {{ */
    TOKEN_PRINT_END,
    TOKEN_BLOCK_BEGIN, /* {% */
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_ADD,
    TOKEN_SUB,
    TOKEN_MUL,
    TOKEN_POW,
    TOKEN_DIV,
    TOKEN_FLOORDIV,
    TOKEN_MOD,
    TOKEN_TILDE,
    TOKEN_EQ,
    TOKEN_NE,
    TOKEN_GT,
    TOKEN_GE,
    TOKEN_LT,
    TOKEN_LE,
    TOKEN_ASSIGN,
    TOKEN_DOT,
    TOKEN_COLON,
    TOKEN_PIPE,
    TOKEN_COMMA,
    TOKEN_SEMICOLON,
    TOKEN_LPAREN,
    TOKEN_RPAREN,
    TOKEN_LBRACKET,
    TOKEN_RBRACKET,
    TOKEN_LBRACE,
    TOKEN_RBRACE,
};
struct jinja_token {
    enum jinja_token_kind kind;
    int line;
    struct str text; /* name, data, string after its escapes, operator as written */
    int64_t i;
    double f;
};

/* What compiling shares: memory, the name for messages, the error. */
struct jinja_source {
    struct jinja_heap *heap;
    const char *name;
    struct err *err;
};
/* Records E_FATAL "NAME: line 12: ..." and returns it. */
int jinja_bad(const struct jinja_source *source, int line, const char *fmt, ...) TR_PRINTF(3, 4);

/* *out ends with a TOKEN_END and lives in the heap. `text` must be valid UTF-8. */
int jinja_lex(const struct jinja_source *source, struct str text, struct jinja_token **out,
              size_t *n_out) TR_MUSTCHECK;

#endif
