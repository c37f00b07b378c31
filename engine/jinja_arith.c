/* jinja_arith: + - * / // % ** and the signs, with Python's types and rounding. Integers have 64
 * bits here: where Python would go on with more digits, this fails. */
#include <math.h>

#include "engine/jinja_builtin.h"
#include "engine/jinja_lex.h"

static int overflow(struct jinja_run *run)
{
    return jinja_fail(run, "integer beyond 64 bits");
}

static int bad_operands(struct jinja_run *run, const char *op, const struct jinja_value *a,
                        const struct jinja_value *b)
{
    if (a->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, a);
    if (b->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, b);
    return jinja_fail(run, "unsupported operand types for %s: '%s' and '%s'", op,
                      jinja_type_name(a), jinja_type_name(b));
}

static double as_double(const struct jinja_value *v)
{
    int64_t i;
    return jinja_as_int(v, &i) ? (double)i : v->as.f;
}

static int int_power(struct jinja_run *run, int64_t base, int64_t exponent, int64_t *out)
{
    int64_t result = 1;
    bool spilled = false; /* the last squaring may overflow without being needed */
    while (exponent > 0) {
        if (exponent & 1) {
            if (spilled || __builtin_mul_overflow(result, base, &result))
                return overflow(run);
        }
        exponent >>= 1;
        spilled |= __builtin_mul_overflow(base, base, &base);
    }
    *out = result;
    return E_OK;
}

static int float_op(struct jinja_run *run, int op, double x, double y, struct jinja_value *out)
{
    double r = 0;
    if ((op == TOKEN_DIV || op == TOKEN_FLOORDIV || op == TOKEN_MOD) && y == 0)
        return jinja_fail(run, "division by zero");
    switch (op) {
    case TOKEN_ADD:
        r = x + y;
        break;
    case TOKEN_SUB:
        r = x - y;
        break;
    case TOKEN_MUL:
        r = x * y;
        break;
    case TOKEN_DIV:
        r = x / y;
        break;
    case TOKEN_POW:
        if ((x < 0 && y != floor(y)) || (x == 0 && y < 0))
            return jinja_fail(run, "%g ** %g is no real number", x, y);
        r = pow(x, y);
        if (isinf(r) && isfinite(x) && isfinite(y))
            return jinja_fail(run, "result of ** too large");
        break;
    default: { /* Python: the remainder has the sign of the divisor */
        double mod = fmod(x, y);
        if (mod != 0 && (y < 0) != (mod < 0))
            mod += y;
        else if (mod == 0)
            mod = copysign(0.0, y);
        double div = (x - mod) / y, whole = floor(div);
        if (div - whole > 0.5)
            whole += 1;
        r = op == TOKEN_MOD ? mod : div == 0 ? copysign(0.0, x / y) : whole;
    }
    }
    *out = jinja_float(r);
    return E_OK;
}

static int int_op(struct jinja_run *run, int op, int64_t x, int64_t y, struct jinja_value *out)
{
    int64_t r = 0;
    bool spill = false;
    if ((op == TOKEN_FLOORDIV || op == TOKEN_MOD) && y == 0)
        return jinja_fail(run, "division by zero");
    switch (op) {
    case TOKEN_ADD:
        spill = __builtin_add_overflow(x, y, &r);
        break;
    case TOKEN_SUB:
        spill = __builtin_sub_overflow(x, y, &r);
        break;
    case TOKEN_MUL:
        spill = __builtin_mul_overflow(x, y, &r);
        break;
    case TOKEN_FLOORDIV:
        spill = x == INT64_MIN && y == -1;
        if (!spill)
            r = x / y - (x % y != 0 && (x % y < 0) != (y < 0));
        break;
    case TOKEN_MOD:
        if (y != -1) {
            r = x % y;
            r += r != 0 && (r < 0) != (y < 0) ? y : 0;
        }
        break;
    default:
        if (int_power(run, x, y, &r) < 0)
            return E_JOB;
    }
    if (spill)
        return overflow(run);
    *out = jinja_int(r);
    return E_OK;
}

static int repeat(struct jinja_run *run, const struct jinja_value *v, int64_t times,
                  struct jinja_value *out)
{
    struct jinja_builder b = {0};
    if (v->type == JINJA_STRING) {
        for (int64_t i = 0; v->as.text.len && i < times; i++)
            if (jinja_put(run, &b, v->as.text) < 0 || jinja_step_bytes(run, 16) < 0)
                return E_JOB;
        *out = jinja_string((struct jinja_text){0});
        out->which = v->which;
        return jinja_built(run, &b, &out->as.text);
    }
    size_t n = v->as.list->n, total;
    if (times < 0 || n == 0)
        times = 0;
    if (__builtin_mul_overflow(n, (size_t)times, &total))
        return jinja_limit(run, "list too long");
    if (jinja_list_new(run, (enum jinja_type)v->type, total, out) < 0)
        return E_JOB;
    for (size_t i = 0; i < total; i++)
        out->as.list->items[i] = v->as.list->items[i % n];
    return E_OK;
}

static int join_lists(struct jinja_run *run, const struct jinja_value *a,
                      const struct jinja_value *b, struct jinja_value *out)
{
    const struct jinja_list *x = a->as.list, *y = b->as.list;
    if (jinja_list_new(run, (enum jinja_type)a->type, x->n + y->n, out) < 0)
        return E_JOB;
    if (x->n)
        memcpy(out->as.list->items, x->items, x->n * sizeof *x->items);
    if (y->n)
        memcpy(out->as.list->items + x->n, y->items, y->n * sizeof *y->items);
    return E_OK;
}

static int add_strings(struct jinja_run *run, const struct jinja_value *a,
                       const struct jinja_value *b, struct jinja_value *out)
{
    struct jinja_value left = *a, right = *b;
    if ((a->which || b->which) &&
        (jinja_escape(run, a, &left) < 0 || jinja_escape(run, b, &right) < 0))
        return E_JOB;
    *out = jinja_string((struct jinja_text){0});
    out->which = left.which;
    return jinja_concat(run, left.as.text, right.as.text, &out->as.text);
}

static bool is_list_or_tuple(const struct jinja_value *v)
{
    return v->type == JINJA_LIST || v->type == JINJA_TUPLE;
}

int jinja_binary(struct jinja_run *run, int op, const struct jinja_value *a,
                 const struct jinja_value *b, struct jinja_value *out)
{
    static const char *const names[] = {
        [TOKEN_ADD] = "+", [TOKEN_SUB] = "-",       [TOKEN_MUL] = "*", [TOKEN_POW] = "**",
        [TOKEN_DIV] = "/", [TOKEN_FLOORDIV] = "//", [TOKEN_MOD] = "%"};
    int64_t x, y;
    bool a_int = jinja_as_int(a, &x), b_int = jinja_as_int(b, &y);
    if (a_int && b_int && op != TOKEN_DIV && !(op == TOKEN_POW && y < 0))
        return int_op(run, op, x, y, out);
    if (jinja_is_num(a) && jinja_is_num(b))
        return float_op(run, op, as_double(a), as_double(b), out);
    if (op == TOKEN_ADD && a->type == JINJA_STRING && b->type == JINJA_STRING)
        return add_strings(run, a, b, out);
    if (op == TOKEN_ADD && is_list_or_tuple(a) && a->type == b->type)
        return join_lists(run, a, b, out);
    if (op == TOKEN_MUL && b_int && (a->type == JINJA_STRING || is_list_or_tuple(a)))
        return repeat(run, a, y, out);
    if (op == TOKEN_MUL && a_int && (b->type == JINJA_STRING || is_list_or_tuple(b)))
        return repeat(run, b, x, out);
    if (op == TOKEN_MOD && a->type == JINJA_STRING)
        return jinja_fail(run, "unsupported: formatting a string with %%");
    return bad_operands(run, names[op], a, b);
}

int jinja_negate(struct jinja_run *run, const struct jinja_value *v, bool negative,
                 struct jinja_value *out)
{
    int64_t i;
    if (v->type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, v);
    if (v->type == JINJA_FLOAT) {
        *out = jinja_float(negative ? -v->as.f : v->as.f);
        return E_OK;
    }
    if (!jinja_as_int(v, &i))
        return jinja_fail(run, "bad operand type for unary %c: '%s'", negative ? '-' : '+',
                          jinja_type_name(v));
    if (negative && __builtin_sub_overflow((int64_t)0, i, &i))
        return overflow(run);
    *out = jinja_int(i);
    return E_OK;
}
