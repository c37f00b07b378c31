/* jinja_tests: what may stand behind `is`. */
#include "engine/jinja_builtin.h"
#include "engine/jinja_compare.h"
#include "engine/jinja_lex.h"
#include "engine/jinja_repr.h"
#include "engine/jinja_text.h"

enum test {
    T_BOOLEAN,
    T_CALLABLE,
    T_DEFINED,
    T_DIVISIBLEBY,
    T_EQ,
    T_ESCAPED,
    T_EVEN,
    T_FALSE,
    T_FLOAT,
    T_GE,
    T_GT,
    T_IN,
    T_INTEGER,
    T_ITERABLE,
    T_LE,
    T_LOWER,
    T_LT,
    T_MAPPING,
    T_NE,
    T_NONE,
    T_NUMBER,
    T_ODD,
    T_SAMEAS,
    T_SEQUENCE,
    T_STRING,
    T_TRUE,
    T_UNDEFINED,
    T_UPPER,
};

static const struct {
    const char *name;
    enum test test;
    bool arg;
} tests[] = {
    {"!=", T_NE, true},
    {"<", T_LT, true},
    {"<=", T_LE, true},
    {"==", T_EQ, true},
    {">", T_GT, true},
    {">=", T_GE, true},
    {"boolean", T_BOOLEAN, false},
    {"callable", T_CALLABLE, false},
    {"defined", T_DEFINED, false},
    {"divisibleby", T_DIVISIBLEBY, true},
    {"eq", T_EQ, true},
    {"equalto", T_EQ, true},
    {"escaped", T_ESCAPED, false},
    {"even", T_EVEN, false},
    {"false", T_FALSE, false},
    {"float", T_FLOAT, false},
    {"ge", T_GE, true},
    {"greaterthan", T_GT, true},
    {"gt", T_GT, true},
    {"in", T_IN, true},
    {"integer", T_INTEGER, false},
    {"iterable", T_ITERABLE, false},
    {"le", T_LE, true},
    {"lessthan", T_LT, true},
    {"lower", T_LOWER, false},
    {"lt", T_LT, true},
    {"mapping", T_MAPPING, false},
    {"ne", T_NE, true},
    {"none", T_NONE, false},
    {"number", T_NUMBER, false},
    {"odd", T_ODD, false},
    {"sameas", T_SAMEAS, true},
    {"sequence", T_SEQUENCE, false},
    {"string", T_STRING, false},
    {"true", T_TRUE, false},
    {"undefined", T_UNDEFINED, false},
    {"upper", T_UPPER, false},
};

int jinja_test_find(struct str name)
{
    for (size_t i = 0; i < TR_COUNT(tests); i++)
        if (str_eq(name, str_of(tests[i].name)))
            return (int)i;
    return -1;
}

static int divides(struct jinja_run *run, const struct jinja_value *v, const struct jinja_value *by,
                   int64_t want)
{
    struct jinja_value rest, wanted = jinja_int(want);
    if (jinja_binary(run, TOKEN_MOD, v, by, &rest) < 0)
        return E_JOB;
    return jinja_equal(run, &rest, &wanted, 0);
}

/* Python's `is`: None and the booleans are one object each; other values only if they are the same.
 */
static bool same_object(const struct jinja_value *a, const struct jinja_value *b)
{
    if (a->type != b->type)
        return false;
    switch ((enum jinja_type)a->type) {
    case JINJA_NONE:
        return true;
    case JINJA_BOOL:
        return a->as.truth == b->as.truth;
    case JINJA_INT: /* CPython shares small integers */
        return a->as.i == b->as.i && a->as.i >= -5 && a->as.i <= 256;
    case JINJA_STRING:
        return a->as.text.ptr == b->as.text.ptr && a->as.text.len == b->as.text.len;
    case JINJA_UNDEFINED:
    case JINJA_FLOAT:
        return false;
    case JINJA_FUNCTION:
        return a->which == b->which;
    default:
        return a->as.list == b->as.list;
    }
}

static int is_cased(struct jinja_run *run, const struct jinja_value *v, enum jinja_class what)
{
    struct jinja_text t;
    if (jinja_to_text(run, v, &t) < 0 || jinja_step_bytes(run, t.len) < 0)
        return E_JOB;
    return jinja_text_is(t, what);
}

static int ordered(struct jinja_run *run, enum test test, const struct jinja_value *v,
                   const struct jinja_value *arg)
{
    static const char *const ops[] = {[T_GE] = ">=", [T_GT] = ">", [T_LE] = "<=", [T_LT] = "<"};
    int order;
    if (jinja_order(run, v, arg, ops[test], &order) < 0)
        return E_JOB;
    if (order == 2)
        return 0;
    return test == T_GE   ? order >= 0
           : test == T_GT ? order > 0
           : test == T_LE ? order <= 0
                          : order < 0;
}

static bool is_kind(enum test test, const struct jinja_value *v)
{
    enum jinja_type type = (enum jinja_type)v->type;
    switch (test) {
    case T_BOOLEAN:
        return type == JINJA_BOOL;
    case T_CALLABLE: /* Undefined has __call__, too */
        return type == JINJA_MACRO || type == JINJA_FUNCTION || type == JINJA_METHOD ||
               type == JINJA_LOOP || type == JINJA_UNDEFINED;
    case T_DEFINED:
        return type != JINJA_UNDEFINED;
    case T_UNDEFINED:
        return type == JINJA_UNDEFINED;
    case T_ESCAPED:
        return type == JINJA_STRING && v->which;
    case T_FALSE:
        return type == JINJA_BOOL && !v->as.truth;
    case T_TRUE:
        return type == JINJA_BOOL && v->as.truth;
    case T_FLOAT:
        return type == JINJA_FLOAT;
    case T_INTEGER:
        return type == JINJA_INT;
    case T_ITERABLE:
        return type == JINJA_STRING || type == JINJA_UNDEFINED || type == JINJA_LOOP ||
               (type >= JINJA_LIST && type <= JINJA_DICT);
    case T_MAPPING:
        return type == JINJA_DICT;
    case T_NONE:
        return type == JINJA_NONE;
    case T_NUMBER:
        return jinja_is_num(v);
    case T_SEQUENCE:
        return type == JINJA_STRING || type == JINJA_UNDEFINED || type == JINJA_DICT ||
               jinja_is_seq(v);
    default:
        return type == JINJA_STRING;
    }
}

int jinja_test_call(struct jinja_run *run, int test, const struct jinja_value *v,
                    const struct jinja_args *args)
{
    struct jinja_bound bound;
    struct jinja_value two = jinja_int(2);
    if (jinja_bind(run, tests[test].name, tests[test].arg ? "other" : "", args, &bound) < 0)
        return E_JOB;
    const struct jinja_value *arg = bound.v[0];
    switch (tests[test].test) {
    case T_DIVISIBLEBY:
        return divides(run, v, arg, 0);
    case T_EVEN:
        return divides(run, v, &two, 0);
    case T_ODD:
        return divides(run, v, &two, 1);
    case T_EQ:
        return jinja_equal(run, v, arg, 0);
    case T_NE: {
        int same = jinja_equal(run, v, arg, 0);
        return same < 0 ? same : !same;
    }
    case T_GE:
    case T_GT:
    case T_LE:
    case T_LT:
        return ordered(run, tests[test].test, v, arg);
    case T_IN:
        return jinja_contains(run, arg, v);
    case T_SAMEAS:
        return same_object(v, arg);
    case T_LOWER:
        return is_cased(run, v, JINJA_IS_LOWER);
    case T_UPPER:
        return is_cased(run, v, JINJA_IS_UPPER);
    default:
        return is_kind(tests[test].test, v);
    }
}
