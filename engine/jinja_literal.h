/* jinja_literal: number and string literals of a template. */
#ifndef TRANCHE_ENGINE_JINJA_LITERAL_H
#define TRANCHE_ENGINE_JINJA_LITERAL_H

#include "engine/jinja_lex.h"

/* Reads the literal at *at, which begins with a digit, and moves *at behind it. Behind a dot no
 * float is read: x.0.1 is x[0][1]. Integers beyond 64 bits are an error. */
int jinja_read_number(const struct jinja_source *source, struct jinja_text text, size_t *at,
                      bool after_dot, struct jinja_token *out) TR_MUSTCHECK;
/* The same for the quote at *at; the token's text has Python's escapes resolved. */
int jinja_read_string(const struct jinja_source *source, struct jinja_text text, size_t *at,
                      struct jinja_token *out) TR_MUSTCHECK;

#endif
