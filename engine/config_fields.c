/* config_fields: see config_fields.h. */
#include "engine/config_fields.h"

#include <math.h>
#include <stdio.h>

/* NULL when the field is absent or null. */
json_t *field_get(const struct fields *f, const char *name)
{
    json_t *value = json_object_get(f->object, name);
    return json_is_null(value) ? NULL : value;
}

/* A value as text for a message: short ones as they stand, others by type. */
const char *field_shown(const json_t *value, char text[static FIELD_SHOWN])
{
    size_t n = value ? json_dumpb(value, text, FIELD_SHOWN - 1,
                                  JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII |
                                      JSON_REAL_PRECISION(15))
                     : 0;
    if (!value)
        snprintf(text, FIELD_SHOWN, "nothing");
    else if (n == 0 || n >= FIELD_SHOWN - 1)
        snprintf(text, FIELD_SHOWN, "a long %s", json_type_name(value));
    else
        text[n] = '\0';
    return text;
}

int field_wrong(const struct fields *f, const char *name, const char *want)
{
    char text[FIELD_SHOWN];
    return err_set(f->err, E_FATAL, "%s%s: want %s, file has %s", f->where, name, want,
                   field_shown(json_object_get(f->object, name), text));
}

/* A number, integer or real in the file. `fallback` NAN: the field is required. */
int field_f64(const struct fields *f, const char *name, double min, double max, double fallback,
              double *out)
{
    const json_t *value = field_get(f, name);
    char want[96];
    *out = value ? json_number_value(value) : fallback;
    if ((!value && !isnan(fallback)) ||
        (json_is_number(value) && isfinite(*out) && *out >= min && *out <= max))
        return E_OK;
    snprintf(want, sizeof want, "a number from %.10g to %.10g", min, max);
    return field_wrong(f, name, want);
}

/* The same for a whole number; 4096.0 is one. `fallback` INT64_MIN: the field is required. */
int field_i64(const struct fields *f, const char *name, int64_t min, int64_t max, int64_t fallback,
              int64_t *out)
{
    const json_t *value = field_get(f, name);
    char want[96];
    if (!value && fallback != INT64_MIN) {
        *out = fallback;
        return E_OK;
    }
    double real = json_number_value(value);
    if (json_is_number(value) && real >= (double)min && real <= (double)max &&
        real == floor(real)) {
        *out = json_is_integer(value) ? json_integer_value(value) : (int64_t)real;
        return E_OK;
    }
    snprintf(want, sizeof want, "a whole number from %lld to %lld", (long long)min, (long long)max);
    return field_wrong(f, name, want);
}

int field_i32(const struct fields *f, const char *name, int32_t min, int32_t max, int64_t fallback,
              int32_t *out)
{
    int64_t wide = 0;
    int rc = field_i64(f, name, min, max, fallback, &wide);
    *out = (int32_t)wide;
    return rc;
}

int field_bool(const struct fields *f, const char *name, bool fallback, bool *out)
{
    const json_t *value = field_get(f, name);
    *out = value ? json_is_true(value) : fallback;
    return !value || json_is_boolean(value) ? E_OK : field_wrong(f, name, "true or false");
}

bool json_text_is(const json_t *value, const char *text)
{
    return json_is_string(value) && str_eq(json_str(value), str_of(text));
}

bool name_listed(const char *name, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, list[i]) == 0)
            return true;
    return false;
}
