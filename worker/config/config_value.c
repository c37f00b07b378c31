/* config_value: one option's text to its value, with the range checked. Pure. */
#include "worker/config/config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <strings.h>

enum { NUMBER_TEXT_MAX = 64 };

struct unit {
    const char *name;
    double factor;
};
static const struct unit size_units[] = {
    {"", 1},         {"B", 1},          {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 0x1p30},
    {"TiB", 0x1p40}, {"KB", 1e3},       {"MB", 1e6},     {"GB", 1e9},        {"TB", 1e12},
    {"Ki", 1024.0},  {"Mi", 1048576.0}, {"Gi", 0x1p30},  {"Ti", 0x1p40},
};
static const struct unit duration_units[] = {
    {"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}, {"d", 86400e9},
};

static int refuse(const struct option *o, struct str text, const char *where, const char *want,
                  struct err *err)
{
    int shown = (int)TR_MIN(text.len, NUMBER_TEXT_MAX);
    return err_set(err, E_USAGE, "%s: %s: want %s, found \"%.*s\"", where, o->name, want, shown,
                   text.len ? text.ptr : "");
}

/* The shortest way to write a bound: 64TiB, 0.01s, 4096. */
static void bound_text(const struct option *o, double v, char *buf, size_t cap)
{
    if (o->type == OPTION_SIZE) {
        static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
        size_t u = 0;
        for (; u < 4 && v >= 1024 && fmod(v, 1024) == 0; u++)
            v /= 1024;
        snprintf(buf, cap, "%.15g%s", v, v == 0 ? "" : names[u]);
    } else {
        snprintf(buf, cap, "%.15g%s", v, o->type == OPTION_DURATION && v != 0 ? "s" : "");
    }
}

static int check_range(const struct option *o, double v, struct str text, const char *where,
                       struct err *err)
{
    char low[32], high[32], want[80];
    if (v >= o->min && v <= o->max)
        return E_OK;
    bound_text(o, o->min, low, sizeof low);
    bound_text(o, o->max, high, sizeof high);
    snprintf(want, sizeof want, "%s to %s", low, high);
    return refuse(o, text, where, want, err);
}

/* A finite number in plain decimal form; *rest is what follows it. strtod alone would also take
 * hexadecimal, "nan" and leading blanks. */
static bool number_parse(const char *text, double *out, const char **rest)
{
    const char *p = text + (*text == '-' || *text == '+');
    if (!(*p >= '0' && *p <= '9') && !(*p == '.' && p[1] >= '0' && p[1] <= '9'))
        return false;
    if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X'))
        return false;
    char *end;
    *out = strtod(text, &end);
    *rest = end;
    return isfinite(*out);
}

static int flag_parse(struct config_value *out, const struct option *o, struct str text,
                      const char *where, struct err *err)
{
    static const char *const yes[] = {"true", "on", "yes", "1"};
    static const char *const no[] = {"false", "off", "no", "0"};
    for (size_t i = 0; i < TR_COUNT(yes); i++) {
        if (str_eq(text, str_of(yes[i])) || str_eq(text, str_of(no[i]))) {
            out->flag = str_eq(text, str_of(yes[i]));
            return E_OK;
        }
    }
    return refuse(o, text, where, "true or false", err);
}

static int choice_parse(struct config_value *out, const struct option *o, struct str text,
                        const char *where, struct err *err)
{
    char want[96];
    int index = 0;
    for (const char *p = o->choices;; index++) {
        size_t n = strcspn(p, "|");
        if (str_eq(text, (struct str){p, n})) {
            out->integer = index;
            return E_OK;
        }
        if (!p[n])
            break;
        p += n + 1;
    }
    snprintf(want, sizeof want, "one of %s", o->choices);
    return refuse(o, text, where, want, err);
}

static int int_parse(struct config_value *out, const struct option *o, const char *text,
                     const char *where, struct err *err)
{
    char *end;
    const char *digits = text + (*text == '-');
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (*digits < '0' || *digits > '9' || *end)
        return refuse(o, str_of(text), where, "a whole number", err);
    /* Beyond 64 bits strtoll saturates, and every range ends below that. */
    out->integer = v;
    return check_range(o, (double)v, str_of(text), where, err);
}

static int real_parse(struct config_value *out, const struct option *o, const char *text,
                      const char *where, struct err *err)
{
    const char *rest;
    if (!number_parse(text, &out->real, &rest) || *rest)
        return refuse(o, str_of(text), where, "a number", err);
    return check_range(o, out->real, str_of(text), where, err);
}

static int unit_parse(struct config_value *out, const struct option *o, const char *text,
                      const char *where, struct err *err)
{
    bool size = o->type == OPTION_SIZE;
    const struct unit *units = size ? size_units : duration_units;
    size_t n_units = size ? TR_COUNT(size_units) : TR_COUNT(duration_units);
    const char *want = size ? "a size such as 4096, 512MiB or 8GiB"
                            : "a duration such as 250ms, 5s, 2m, 1h or 30d";
    const char *rest;
    double v;
    if (!number_parse(text, &v, &rest))
        return refuse(o, str_of(text), where, want, err);
    for (size_t i = 0; i < n_units; i++) {
        if (strcasecmp(rest, units[i].name) != 0 && !(v == 0 && !*rest))
            continue;
        double scaled = v * units[i].factor;
        int rc = check_range(o, size ? scaled : scaled / 1e9, str_of(text), where, err);
        if (rc == E_OK)
            out->integer = (int64_t)llround(scaled);
        return rc;
    }
    return refuse(o, str_of(text), where, want, err);
}

int config_value_parse(struct config_value *out, const struct option *option, struct str text,
                       const char *where, struct err *err)
{
    char number[NUMBER_TEXT_MAX];
    if (text.len && memchr(text.ptr, '\0', text.len))
        return refuse(option, STR("?"), where, "text without NUL", err);
    if (option->type == OPTION_TEXT)
        return text.len ? E_OK : refuse(option, text, where, "a text that is not empty", err);
    if (option->type == OPTION_FLAG)
        return flag_parse(out, option, text, where, err);
    if (option->type == OPTION_CHOICE)
        return choice_parse(out, option, text, where, err);
    if (text.len == 0 || text.len >= sizeof number)
        return refuse(option, text, where, "a number", err);
    memcpy(number, text.ptr, text.len);
    number[text.len] = '\0';
    if (option->type == OPTION_INT)
        return int_parse(out, option, number, where, err);
    if (option->type == OPTION_REAL)
        return real_parse(out, option, number, where, err);
    return unit_parse(out, option, number, where, err);
}
