/* jinja_builtin: the names that templates may use without defining them: filters, tests, methods
 * and functions, each with the parameters that Jinja2 or Python gives it. */
#ifndef TRANCHE_ENGINE_JINJA_BUILTIN_H
#define TRANCHE_ENGINE_JINJA_BUILTIN_H

#include "engine/jinja_value.h"

/* Arguments as written. */
struct jinja_args {
    const struct jinja_value *pos, *named;
    const struct str *names; /* of `named` */
    int n_pos, n_named;
};
enum { JINJA_PARAMS_MAX = 8 };
/* Arguments in the order of a function's parameters; NULL: not given. */
struct jinja_bound {
    const struct jinja_value *v[JINJA_PARAMS_MAX];
};
/* `params` is "/a,b=,c=": = marks what may be left out, / what cannot be named. Fails as Python
 * would. */
int jinja_bind(struct jinja_run *run, const char *function, const char *params,
               const struct jinja_args *args, struct jinja_bound *out) TR_MUSTCHECK;
/* Readers of one bound argument; absent gives the default. They fail on another type. */
int jinja_arg_int(struct jinja_run *run, const struct jinja_value *v, int64_t absent,
                  int64_t *out) TR_MUSTCHECK;
int jinja_arg_text(struct jinja_run *run, const struct jinja_value *v,
                   struct jinja_text *out) TR_MUSTCHECK; /* str or Markup only */

/* Numbers by name, -1 when unknown. */
int jinja_filter_find(struct str name);
int jinja_test_find(struct str name);
int jinja_method_find(struct str name);   /* callable on some type */
int jinja_function_find(struct str name); /* range, namespace, ... */
/* true for methods that the sandbox forbids because they change a list or dict. */
bool jinja_method_mutates(struct str name);
/* Whether v.name is a method of v in Python (which hides a dict's key of that name). */
bool jinja_has_method(const struct jinja_value *v, struct str name);

int jinja_filter_call(struct jinja_run *run, int filter, const struct jinja_value *v,
                      const struct jinja_args *args, struct jinja_value *out) TR_MUSTCHECK;
/* 1, 0 or an error. */
int jinja_test_call(struct jinja_run *run, int test, const struct jinja_value *v,
                    const struct jinja_args *args) TR_MUSTCHECK;
int jinja_method_call(struct jinja_run *run, int method, const struct jinja_value *self,
                      const struct jinja_args *args, struct jinja_value *out) TR_MUSTCHECK;
int jinja_function_call(struct jinja_run *run, int function, const struct jinja_args *args,
                        struct jinja_value *out) TR_MUSTCHECK;

/* v.name and v[key] as Jinja2's sandbox resolves them; undefined where there is nothing. */
int jinja_get_attr(struct jinja_run *run, const struct jinja_value *v, struct str name,
                   struct jinja_value *out) TR_MUSTCHECK;
int jinja_get_item(struct jinja_run *run, const struct jinja_value *v,
                   const struct jinja_value *key, struct jinja_value *out) TR_MUSTCHECK;
/* "a.b.0" as in map(attribute=...); NULL path: v itself. */
int jinja_get_path(struct jinja_run *run, const struct jinja_value *v,
                   const struct jinja_value *path, struct jinja_value *out) TR_MUSTCHECK;

/* ---- tables of the other files ---- */
typedef int jinja_filter_fn(struct jinja_run *run, const struct jinja_value *v,
                            const struct jinja_args *args, const struct jinja_bound *bound,
                            struct jinja_value *out);
struct jinja_filter {
    const char *name;
    const char *params; /* NULL: takes args raw */
    jinja_filter_fn *fn;
};
extern const struct jinja_filter jinja_filters_text[], jinja_filters_list[];
extern const int jinja_filters_text_n, jinja_filters_list_n;

/* a op b for + - * / // % **, and the unary ones. */
int jinja_binary(struct jinja_run *run, int op, const struct jinja_value *a,
                 const struct jinja_value *b, struct jinja_value *out) TR_MUSTCHECK;
int jinja_negate(struct jinja_run *run, const struct jinja_value *v, bool negative,
                 struct jinja_value *out) TR_MUSTCHECK;
/* & < > ' " as entities; a safe string stays. */
int jinja_escape(struct jinja_run *run, const struct jinja_value *v,
                 struct jinja_value *out) TR_MUSTCHECK;

#endif
