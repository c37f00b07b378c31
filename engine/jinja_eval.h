/* jinja_eval: runs a parsed template: expressions (jinja_eval.c), statements and macros
 * (jinja_exec.c). Every evaluation is a step; nesting is bounded by JINJA_STACK_MAX. */
#ifndef TRANCHE_ENGINE_JINJA_EVAL_H
#define TRANCHE_ENGINE_JINJA_EVAL_H

#include "engine/jinja_builtin.h"
#include "engine/jinja_parse.h"

struct jinja_binding {
    int id;
    struct jinja_value value;
    struct jinja_binding *next;
};
struct jinja_scope { /* of a loop body, a macro, ...; the outermost is run->globals: parent NULL */
    struct jinja_scope *parent;
    struct jinja_binding *bindings;
    bool kept; /* a macro was defined inside and looks names up here */
};
struct jinja_macro {
    const struct jinja_node *node; /* NODE_MACRO or NODE_CALLER */
    struct jinja_scope *scope;     /* where it was defined */
};

/* What a render adds to struct jinja_run. */
struct jinja_exec {
    struct jinja_run run;
    const struct jinja_program *program;
    struct jinja_scope root;
    struct jinja_binding *spare; /* bindings of scopes that ended */
    struct jinja_value block;    /* what a filter block's first filter takes */
};

int jinja_eval(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node,
               struct jinja_value *out) TR_MUSTCHECK;
/* Variables. */
void jinja_lookup(struct jinja_exec *ex, const struct jinja_scope *scope, int id,
                  struct jinja_value *out);
int jinja_assign(struct jinja_exec *ex, struct jinja_scope *scope, int id,
                 const struct jinja_value *value) TR_MUSTCHECK;
void jinja_scope_end(struct jinja_exec *ex, struct jinja_scope *scope);

enum jinja_flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };
/* Runs statements; returns enum jinja_flow or an error. */
int jinja_exec_items(struct jinja_exec *ex, struct jinja_scope *scope, struct jinja_node **items,
                     int n) TR_MUSTCHECK;
/* `caller`: of a call block, or NULL. */
int jinja_macro_call(struct jinja_exec *ex, const struct jinja_macro *macro,
                     const struct jinja_args *args, const struct jinja_value *caller,
                     struct jinja_value *out) TR_MUSTCHECK;
/* A call node with the caller of a call block, or NULL. */
int jinja_eval_call(struct jinja_exec *ex, struct jinja_scope *scope, const struct jinja_node *node,
                    const struct jinja_value *caller, struct jinja_value *out) TR_MUSTCHECK;

#endif
