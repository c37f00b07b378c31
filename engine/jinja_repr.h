/* jinja_repr: values as text: Python's str() and repr(), and json.dumps. */
#ifndef TRANCHE_ENGINE_JINJA_REPR_H
#define TRANCHE_ENGINE_JINJA_REPR_H

#include "engine/jinja_value.h"

/* str(v): what {{ v }} prints. Marks of strings stay; a list or dict that holds content bytes is
 * content as a whole. Fails for what has no stable text (a method, a generator). */
int jinja_to_text(struct jinja_run *run, const struct jinja_value *v,
                  struct jinja_text *out) TR_MUSTCHECK;

struct jinja_json_options {
    bool ascii, sort_keys, indented;
    struct str indent; /* one level */
    struct str item_separator, key_separator;
};
/* json.dumps. Content as a whole when any string inside is. */
int jinja_to_json(struct jinja_run *run, const struct jinja_value *v,
                  const struct jinja_json_options *options, struct jinja_text *out) TR_MUSTCHECK;

/* Python's float repr: the shortest digits that read back. buf holds 32 bytes. */
struct str jinja_float_repr(double f, char buf[32]);

#endif
